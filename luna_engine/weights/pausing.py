"""A request to stop that can also hold the work for a while: a mark in the folder of jobs, seen between two chunks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LOOK_EVERY_S = 0.2


class PausableCancel(threading.Event):
    """An event for ``cancel`` of `convert`: asking it waits as long as the mark is there.

    Args:
        mark: the file whose being there means "paused".
    """

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self._mark = mark
        self.has_waited = False

    def is_set(self) -> bool:
        """Tell whether to stop; while paused wait first, unless it is to stop anyway."""
        while self._mark.exists() and not super().is_set():
            self.has_waited = True
            self.wait(_LOOK_EVERY_S)
        return super().is_set()
