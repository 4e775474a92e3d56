"""What the runs that kill and stop processes share: waiting with a deadline, and saying what did not hold."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SURVIVOR_S = 5.0
WAIT_S = 30.0


class WrongError(Exception):
    """Something did not hold."""


@dataclass(slots=True)
class Tally:
    """What was killed and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: dict[str, float] = field(default_factory=dict)
    restarts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, victim: str, seconds: float) -> None:
        """Remember how long the survivors took."""
        self.slowest_s[victim] = max(self.slowest_s.get(victim, 0.0), seconds)


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Poll until it is so.

    Raises:
        WrongError: it was not within the time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise WrongError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)
