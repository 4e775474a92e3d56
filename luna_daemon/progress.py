"""How far a long request is: the work says it, the request's client hears it. No torch.

The thread that runs a request knows whom to tell; code deep below only counts (`advance`) and need not know of
requests. Counting where nobody listens costs next to nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Report = Callable[[int, int, str], None]
"""Is told what is done, of how much, in what unit."""
PAUSE_S = 0.1


class Count:
    """How much of one piece of work is done; tells at most every 0.1 s, and at its end.

    Args:
        report: is told.
        total: of the work.
        unit: such as ``bytes``.
        clock: seconds.
    """

    def __init__(self, report: Report, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._total = total
        self._unit = unit
        self._clock = clock
        self._done = 0
        self._told_at = float("-inf")

    def advance(self, amount: int) -> None:
        """Count; what is more than the total is not told."""
        before, self._done = self._done, min(self._total, self._done + amount)
        is_end = self._done == self._total != before
        if is_end or (self._done > before and self._clock() - self._told_at >= PAUSE_S):
            self._told_at = self._clock()
            self._report(self._done, self._total, self._unit)


_listener: ContextVar[Report | None] = ContextVar("listener", default=None)
_count: ContextVar[Count | None] = ContextVar("count", default=None)


@contextlib.contextmanager
def told_to(report: Report | None) -> Iterator[None]:
    """Name who is told about what this thread does meanwhile."""
    token = _listener.set(report)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def counting(total: int, unit: str) -> Iterator[None]:
    """Count a piece of work."""
    report = _listener.get()
    token = _count.set(None if report is None or total <= 0 else Count(report, total, unit))
    try:
        yield
    finally:
        _count.reset(token)


def advance(amount: int) -> None:
    """Say that so much more is done, if somebody counts."""
    count = _count.get()
    if count is not None:
        count.advance(amount)
