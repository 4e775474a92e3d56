"""Who still needs a set: a connection that loaded it holds it until it gives it back, or until a minute after its end.

A lease keeps a set from being unloaded by others. It does not keep it on the device: a set that had to make room comes
back when it is asked for. No torch; any thread may ask.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

FADE_S = 60.0


class Leases:
    """The leases of all sets.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[Hashable, set[str]] = {}
        self._fading: list[tuple[float, str]] = []

    def take(self, holder: Hashable, name: str) -> None:
        """Let a holder have a set; twice is once."""
        with self._lock:
            self._held.setdefault(holder, set()).add(name)

    def give_back(self, holder: Hashable, name: str | None = None) -> None:
        """Take back a holder's lease of a set, or of all, at once; one that it does not have is no error."""
        with self._lock:
            mine = self._held.get(holder, set())
            mine.difference_update({name} if name is not None else set(mine))
            if not mine:
                self._held.pop(holder, None)

    def end(self, holder: Hashable) -> None:
        """Let the leases of a holder that is gone fade: it may only be on its way back."""
        with self._lock:
            until = self._clock() + FADE_S
            self._fading += [(until, name) for name in sorted(self._held.pop(holder, set()))]

    def count(self, name: str) -> int:
        """Return how many leases a set has."""
        with self._lock:
            now = self._clock()
            self._fading = [(until, one) for until, one in self._fading if until > now]
            held = sum(name in mine for mine in self._held.values())
            return held + sum(name == one for _, one in self._fading)
