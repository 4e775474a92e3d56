"""Who loaded a converted file and when, and which files shall stay: what pruning asks. Torch-free."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil

from luna_engine.weights.memory import Memory, Use

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


def record_use(path: Path, holder: str, *, memory: Memory | None = None) -> None:
    """Remember that this process loaded a file now.

    Args:
        path: the file; a link counts as what it leads to.
        holder: for people, such as ``comfy:8188``.
        memory: None opens the user's `luna.db` for a moment.
    """
    me = psutil.Process()
    use = Use(os.path.realpath(path), holder, socket.gethostname(), me.pid, me.create_time(), time.time())
    with contextlib.ExitStack() as stack:
        tables = memory or stack.enter_context(contextlib.closing(Memory.open()))
        tables.keep_use(use)


def record_use_later(path: Path, holder: str) -> threading.Thread:
    """Do `record_use` in a thread of its own: a locked database must not hold up the load.

    What goes wrong is logged and costs only the entry.
    """

    def work() -> None:
        try:
            record_use(path, holder)
        except Exception:  # noqa: BLE001 - a task border: nobody waits for this thread
            _log.exception("the use of %s could not be noted", path)

    thread = threading.Thread(target=work, name="luna-use", daemon=True)
    thread.start()
    return thread
