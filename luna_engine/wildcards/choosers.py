"""The choosers of batch modes: cycling through candidates, and drawing each once before any comes again."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.wildcards.seeds import below, mix, text_key

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class CycleChooser:
    """Takes candidate ``index mod n`` at every site, in file order; a pick of k takes a window."""

    index: int
    walks: bool = False

    def number(self, key: int, size: int, position: int, sampler: object) -> int:
        """Take the index."""
        del key, position, sampler
        return self.index % size

    def ticket(self, key: int, total: int, position: int) -> int | None:
        """Weights do not matter."""
        del key, total, position
        return None

    def several(self, key: int, weights: Sequence[int], low: int, high: int) -> list[int]:
        """Take the least number, as a window that moves by its width."""
        del key, high
        return [(self.index * low + at) % len(weights) for at in range(low)]


@dataclass(slots=True)
class Bag:
    """One site's candidates, round after round. Picks of a round are drawn one by one, as far as they are needed.

    ``weights`` may be the number of equal candidates. A round's order is that of a multi-pick of all, with K of the
    site replaced by ``mix(K ^ h("bag:" + round))``.
    """

    key: int
    weights: Sequence[int] | int
    round: int = -1
    order: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    sums: list[int] | None = None
    left: int = 0
    at: int = 0
    last: int | None = None
    held: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of candidates."""
        return self.weights if isinstance(self.weights, int) else len(self.weights)

    def take(self, count: int) -> list[int]:
        """Return the next candidates, all different; what came twice waits for the next draw."""
        taken: list[int] = []
        waiting: list[int] = []
        held, self.held = self.held, []
        while len(taken) < count:
            found = held.pop(0) if held else self._next()
            (waiting if found in taken else taken).append(found)
        self.held = [*waiting, *held]
        return taken

    def _next(self) -> int:
        if self.at == self.size or self.round < 0:
            self._begin_round()
        if self.at == len(self.order):
            self.order.append(self._pick())
        self.at += 1
        self.last = self.order[self.at - 1]
        return self.last

    def _begin_round(self) -> None:
        self.round += 1
        self.order, self.removed, self.at = [], [], 0
        if not isinstance(self.weights, int) and self.sums is None:
            total = 0
            self.sums = [total := total + weight for weight in self.weights]
        self.left = self.sums[-1] if self.sums is not None else self.size
        if self.size > 1 and self.last is not None:
            first, second = self._pick(), None
            self.order.append(first)
            if first == self.last:
                second = self._pick()
                self.order[:] = [second, first]

    def _pick(self) -> int:
        """Draw the next candidate of the round without replacement."""
        key = mix(self.key ^ text_key(f"bag:{self.round}"))
        ticket = below(key, self.left, len(self.removed) + 1)
        for gone in self.removed:
            before = self._before(gone)
            if ticket < before:
                break
            ticket += self._before(gone + 1) - before
        at = ticket if self.sums is None else bisect.bisect_right(self.sums, ticket)
        bisect.insort(self.removed, at)
        self.left -= self._before(at + 1) - self._before(at)
        return at

    def _before(self, at: int) -> int:
        if self.sums is None:
            return at
        return self.sums[at - 1] if at else 0


@dataclass(slots=True)
class BagChooser:
    """Draws every site from a bag of its own, kept over the prompts of a batch; keys are those of the base seed."""

    bags: dict[tuple[int, int, bool], Bag] = field(default_factory=dict)
    walks: bool = False

    def number(self, key: int, size: int, position: int, sampler: object) -> int:
        """Take the next of equal candidates: grid points, counts."""
        del position, sampler
        return self._bag(key, size, is_number=True).take(1)[0]

    def ticket(self, key: int, total: int, position: int) -> int | None:
        """Candidates are taken by `several`."""
        del key, total, position
        return None

    def several(self, key: int, weights: Sequence[int], low: int, high: int) -> list[int]:
        """Take the next candidates; how many is drawn from a bag too."""
        count = low + (self.number(key, high - low + 1, 0, None) if high > low else 0)
        return self._bag(key, weights, is_number=False).take(count)

    def _bag(self, key: int, weights: Sequence[int] | int, *, is_number: bool) -> Bag:
        size = weights if isinstance(weights, int) else len(weights)
        found = self.bags.get((key, size, is_number))
        if found is None:
            found = self.bags[key, size, is_number] = Bag(key, weights)
        return found
