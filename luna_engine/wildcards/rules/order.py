"""The order in which a reference tries its candidates: that of a multi-pick of all, drawn only as far as needed."""

from __future__ import annotations

import bisect
import math
from itertools import accumulate
from typing import TYPE_CHECKING

from luna_engine.wildcards.seeds import below

if TYPE_CHECKING:
    from collections.abc import Sequence

_FEWEST_REMOVED = 64


class Order:
    """Candidates without replacement by weight; draw j uses position ``first + j`` of the site's stream.

    A single reference begins at position 0, which is its draw without rules: rules that reject nothing change
    nothing. A multi-pick begins at 1, as it does without rules. Equal weights are given as None.
    """

    def __init__(self, key: int, size: int, sums: Sequence[int] | None, first: int) -> None:
        self._key = key
        self._first = first
        self._sums: Sequence[int] = range(1, size + 1) if sums is None else sums
        self._names: Sequence[int] = range(size)
        self._removed: list[int] = []
        self._most_removed = max(_FEWEST_REMOVED, math.isqrt(size))
        self._total = self._sums[-1] if size else 0
        self._drawn: list[int] = []

    def at(self, place: int) -> int | None:
        """Return the candidate at a place of the order, None behind the last of positive weight."""
        while len(self._drawn) <= place:
            if self._total <= 0:
                return None
            self._draw()
        return self._drawn[place]

    def _draw(self) -> None:
        sums, removed = self._sums, self._removed
        ticket = below(self._key, self._total, self._first + len(self._drawn))
        for gone in removed:
            before = sums[gone - 1] if gone else 0
            if ticket < before:
                break
            ticket += sums[gone] - before
        at = bisect.bisect_right(sums, ticket)
        self._drawn.append(self._names[at])
        bisect.insort(removed, at)
        self._total -= sums[at] - (sums[at - 1] if at else 0)
        if len(removed) >= self._most_removed:
            self._compact()

    def _compact(self) -> None:
        """Leave the drawn candidates out for good, so that a long search stays cheap."""
        sums, gone = self._sums, set(self._removed)
        kept = [at for at in range(len(sums)) if at not in gone]
        self._names = [self._names[at] for at in kept]
        self._sums = list(accumulate(sums[at] - (sums[at - 1] if at else 0) for at in kept))
        self._removed = []
