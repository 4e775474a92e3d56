"""Who decides a draw: the seed (normal), or a script that walks every combination in odometer order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from luna_engine.wildcards.seeds import below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards.syntax import Sampler


class Chooser(Protocol):
    """Decides draws. ``walks`` tells that every combination is wanted, so that sampler marks do not matter."""

    @property
    def walks(self) -> bool:
        """Tell whether combinations are walked."""

    def number(self, key: int, size: int, position: int, sampler: Sampler | None) -> int:
        """Return an index below ``size`` where all candidates are equal (grid points, counts)."""

    def ticket(self, key: int, total: int, position: int) -> int | None:
        """Return a weighted draw below ``total``, or None if candidates are to be taken by `number` instead."""

    def several(self, key: int, weights: Sequence[int], low: int, high: int) -> list[int] | None:
        """Return ``low`` to ``high`` different candidates, or None if they are to be drawn one by one."""


@dataclass(slots=True)
class SeededChooser:
    """Draws by the keyed stream of section 4."""

    walks: bool = False

    def number(self, key: int, size: int, position: int, sampler: Sampler | None) -> int:
        """Draw evenly."""
        del sampler
        return below(key, size, position)

    def ticket(self, key: int, total: int, position: int) -> int | None:
        """Draw by weight."""
        return below(key, total, position)

    def several(self, key: int, weights: Sequence[int], low: int, high: int) -> list[int] | None:
        """Draw one by one."""
        del key, weights, low, high
        return None


@dataclass(slots=True)
class Odometer:
    """The digits of the sites marked ``!``, in reading order; sites beyond them take their first candidate."""

    digits: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def take(self, size: int) -> int:
        """Return the digit of the next site."""
        at = len(self.sizes)
        self.sizes.append(size)
        return min(self.digits[at], size - 1) if at < len(self.digits) else 0

    def following(self) -> list[int] | None:
        """Return the digits of the next combination, None behind the last."""
        digits = [*self.digits, *[0] * len(self.sizes)][: len(self.sizes)]
        while digits and digits[-1] + 1 >= self.sizes[len(digits) - 1]:
            digits.pop()
        if not digits:
            return None
        digits[-1] += 1
        return digits


def digits_of(index: int, sizes: list[int]) -> list[int]:
    """Return the mixed-radix digits of an index, the last site fastest; it wraps round."""
    digits = []
    for size in reversed(sizes):
        index, digit = divmod(index, size)
        digits.append(digit)
    return digits[::-1]


@dataclass(slots=True)
class ScriptedChooser:
    """Replays a prefix of indices, then takes 0, and remembers the size met at each draw.

    `advance` turns the odometer: the last draw fastest.
    """

    script: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    walks: bool = True

    def number(self, key: int, size: int, position: int, sampler: Sampler | None) -> int:
        """Take the scripted index."""
        del key, position, sampler
        at = len(self.sizes)
        self.sizes.append(size)
        if at == len(self.script):
            self.script.append(0)
        return self.script[at]

    def ticket(self, key: int, total: int, position: int) -> int | None:
        """Weights do not matter here."""
        del key, total, position
        return None

    def several(self, key: int, weights: Sequence[int], low: int, high: int) -> list[int] | None:
        """Take one digit after the other."""
        del key, weights, low, high
        return None

    def advance(self) -> bool:
        """Move to the next combination; False when all were walked."""
        script, sizes = self.script, self.sizes
        while script and script[-1] + 1 >= sizes[len(script) - 1]:
            script.pop()
        self.sizes = []
        if not script:
            return False
        script[-1] += 1
        return True
