"""When a daemon that ended is started again: the pure rules, fed with times and exits."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_daemon.process_exits import NO_RESTART, words_for

if TYPE_CHECKING:
    from luna_daemon.launch import Ended

BACKOFF_MAX_S = 60.0
JITTER = 0.2
STEADY_S = 60.0
CRASHES_MAX = 5
CRASH_WINDOW_S = 300.0
MEMORY_GROWTH = 1.2


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after an exit: start again after ``wait_s``, or leave it (None), and why."""

    wait_s: float | None
    reason: str
    is_failure: bool


@dataclass(slots=True)
class RestartRules:
    """Remembers the crashes of one daemon."""

    chance: random.Random = field(default_factory=random.Random)
    _tries: int = 0
    _crashes: list[float] = field(default_factory=list)
    _memory_kills: int = 0

    def note_ready(self, ready_s: float) -> None:
        """Forgive earlier crashes once the daemon was ready for a minute."""
        if ready_s >= STEADY_S:
            self._tries = 0
            self._memory_kills = 0

    def forgive(self) -> None:
        """Begin anew: the user acted."""
        self._tries = 0
        self._memory_kills = 0
        self._crashes.clear()

    def after(self, ended: Ended, now: float, reason: str | None, *, has_grown: bool, may_restart: bool) -> Decision:
        """Decide after an exit that nobody asked for.

        Args:
            ended: exit code or signal.
            now: monotonic time.
            reason: what the daemon itself wrote about its end.
            has_grown: its resident memory was rising.
            may_restart: the daemon's own setting.
        """
        words = words_for(ended, reason, has_grown=has_grown)
        if ended.code in NO_RESTART:
            return Decision(None, words, is_failure=True)
        self._crashes = [at for at in self._crashes if now - at < CRASH_WINDOW_S] + [now]
        self._memory_kills = self._memory_kills + 1 if ended.signal == signal.SIGKILL and has_grown else 0
        if not may_restart:
            return Decision(None, f"{words}; restart is off for this daemon", is_failure=False)
        if self._memory_kills >= 2:
            return Decision(None, f"{words}; twice in a row, so it is not started again", is_failure=True)
        if len(self._crashes) >= CRASHES_MAX:
            return Decision(None, f"{words}; {CRASHES_MAX} crashes in 5 minutes", is_failure=True)
        wait_s = min(BACKOFF_MAX_S, 2.0**self._tries) * self.chance.uniform(1 - JITTER, 1 + JITTER)
        self._tries += 1
        return Decision(wait_s, words, is_failure=False)
