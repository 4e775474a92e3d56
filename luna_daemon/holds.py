"""Which sets the proxies of this process need, counted, so that the daemon is told when the last of them is gone."""

from __future__ import annotations

import collections
import threading


class Holds:
    """Counts by set. Thread-safe; `let_go` takes no lock, because a finalizer may run anywhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._let_go: collections.deque[str] = collections.deque()

    def hold(self, name: str) -> None:
        """Count one more user of a set."""
        with self._lock:
            self._counts[name] += 1

    def let_go(self, name: str) -> None:
        """Count one less; the daemon is told with the next request."""
        self._let_go.append(name)

    def released(self) -> list[str]:
        """Return the sets that nobody needs any more, each once."""
        if not self._let_go:
            return []
        gone = []
        with self._lock:
            while self._let_go:
                name = self._let_go.popleft()
                self._counts[name] -= 1
                if self._counts[name] <= 0:
                    del self._counts[name]
                    gone.append(name)
        return gone
