"""What the exit codes of a daemon mean, in numbers and in words."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_daemon.launch import Ended

ASKED, FAILED = 0, 1
PRELOAD, DEVICE, PORT, LOCK, DEVICE_LOST, SETTINGS = 66, 69, 71, 73, 75, 78
NO_RESTART = frozenset({ASKED, PRELOAD, DEVICE, PORT, LOCK, SETTINGS})
_WORDS = {
    ASKED: "stopped as asked",
    PRELOAD: "a model to preload is missing or unusable",
    DEVICE: "its device or driver cannot be used",
    PORT: "its port is taken",
    LOCK: "a daemon of this name runs already",
    DEVICE_LOST: "its device was lost",
    SETTINGS: "its settings cannot be used",
}


def words_for(ended: Ended, reason: str | None, *, has_grown: bool = False) -> str:
    """Return an exit in words; what the daemon wrote itself adds the particulars."""
    if ended.signal is not None:
        name = _signal_name(ended.signal)
        if ended.signal == signal.SIGKILL and has_grown:
            return f"signal 9 ({name}) with rising memory: probably the kernel's OOM killer"
        return f"signal {ended.signal} ({name})"
    if ended.code is None:
        return reason or "ended without a word"
    known = _WORDS.get(ended.code, f"exit code {ended.code}")
    return f"{known}: {reason}" if reason and ended.code != ASKED else known


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
