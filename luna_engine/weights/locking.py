"""One maker per file: a lock file beside the output, seen by every machine that shares the folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil

from luna_engine.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_POLL_S = 0.2
_REFRESH_S = 30.0
_FOREIGN_STALE_S = 24 * 3600.0
_TOLERANCE_S = 1.0


@contextlib.contextmanager
def locked(target: Path, job: str, waiting: Callable[[str], None], cancel: threading.Event) -> Iterator[bool]:
    """Hold ``<target>.lock``; gives True if another maker was waited for meanwhile.

    Args:
        target: the final name.
        job: written into the lock.
        waiting: called with the owner's description while another holds the lock.
        cancel: ends the wait.

    Raises:
        ConversionError: ``lock-held`` when the wait was cancelled.
    """
    path = target.with_name(target.name + ".lock")
    waited = False
    while not _take(path, job):
        owner = _owner(path)
        if owner is not None and _is_dead(path, owner):
            path.unlink(missing_ok=True)
            continue
        waited = True
        name = "another process" if owner is None else f"process {owner.get('pid')} on {owner.get('host')}"
        waiting(name)
        if cancel.wait(_POLL_S):
            raise ConversionError("lock-held", f"{target.name} is being made by {name}", "wait for it to end")
    keeper = _Keeper(path)
    try:
        yield waited
    finally:
        keeper.stop()
        path.unlink(missing_ok=True)


class _Keeper:
    """Touches the lock now and then, so that other machines see that its owner lives."""

    def __init__(self, path: Path) -> None:
        self._path, self._stop = path, threading.Event()
        self._thread = threading.Thread(target=self._run, name="luna-lock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_REFRESH_S):
            with contextlib.suppress(OSError):  # a share that is away for a moment
                os.utime(self._path)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def maker_of(target: Path) -> str | None:
    """Say who is making a file at this moment; None if nobody is."""
    path = target.with_name(target.name + ".lock")
    if not path.exists():
        return None
    owner = _owner(path)
    if owner is None:
        return "another process"
    return None if _is_dead(path, owner) else f"process {owner.get('pid')} on {owner.get('host')}"


def _take(path: Path, job: str) -> bool:
    me = psutil.Process()
    content = {"host": socket.gethostname(), "pid": me.pid, "create_time": me.create_time(), "job": job}
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    return True


def _owner(path: Path) -> dict[str, Any] | None:
    """Return what the lock says, None while it is being written or gone."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_dead(path: Path, owner: dict[str, Any]) -> bool:
    if owner.get("host") != socket.gethostname():
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > _FOREIGN_STALE_S
        return False
    return not is_alive(owner.get("pid"), owner.get("create_time"))


def is_alive(pid: object, create_time: object) -> bool:
    """Tell whether that very process still runs (a pid alone may belong to a successor)."""
    if not isinstance(pid, int) or not isinstance(create_time, (int, float)):
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - create_time) <= _TOLERANCE_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
