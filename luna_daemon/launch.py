"""Starting a daemon process: its command line, its log, and the process as something that can end."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from luna_daemon import platform
from luna_daemon.identity import DaemonPlaces, read_identity
from luna_engine import paths
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

    from luna_engine.settings import DaemonInstance, Settings

_STALE_START_LOG_S = 3600.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: an exit code or a signal; neither where nobody could see."""

    code: int | None = None
    signal: int | None = None


class Process(Protocol):
    """A daemon's process, started here or found."""

    pid: int
    create_time: float

    def ended(self) -> Ended | None:
        """Look once; None while it runs."""
        ...

    def send(self, number: int) -> bool:
        """Send a signal; False if it is gone."""
        ...

    def close(self) -> None:
        """Stop watching."""
        ...


class ChildProcess:
    """A process started here: its exit code is ours to read."""

    def __init__(self, child: subprocess.Popen[bytes], start_log: Path) -> None:
        self.pid = child.pid
        self.create_time = platform.create_time(child.pid) or time.time()
        self.start_log = start_log
        self._child = child
        _children.append(child)

    def ended(self) -> Ended | None:
        """Look once; None while it runs."""
        code = self._child.poll()
        if code is None:
            return None
        return Ended(signal=-code) if code < 0 else Ended(code=code)

    def send(self, number: int) -> bool:
        """Send a signal; False if it is gone."""
        return self.ended() is None and platform.send_signal(self.pid, self.create_time, number)

    def close(self) -> None:
        """Let it live on without us."""
        _children[:] = [child for child in _children if child.poll() is None]


class FoundProcess:
    """A process that somebody else started."""

    def __init__(self, pid: int, create_time: float) -> None:
        self.pid = pid
        self.create_time = create_time
        self._watch = platform.ProcessWatch(pid, create_time)

    def ended(self) -> Ended | None:
        """Look once; how it ended is not ours to read."""
        return Ended() if self._watch.has_ended() else None

    def send(self, number: int) -> bool:
        """Send a signal; False if it is gone."""
        return platform.send_signal(self.pid, self.create_time, number)

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()


# Kept so that children that outlive their watcher are reaped, not left as zombies, while this process lives.
_children: list[subprocess.Popen[bytes]] = []


@atexit.register
def _let_children_live() -> None:
    """Tell Popen that running on after this process is what they are for, or it warns."""
    for child in _children:
        if child.poll() is None:
            child.returncode = 0


def program(settings: Settings) -> tuple[str, ...]:
    """Return the interpreter and the file that daemons are started with."""
    python = settings.daemon.python or sys.executable
    return (python, str(paths.checkout_root() / "luna_daemon" / "server.py"))


def launch(name: str, instance: DaemonInstance, command: Sequence[str]) -> ChildProcess:
    """Start a daemon, detached.

    Args:
        name, instance: of the daemon.
        command: interpreter and file, from `program`.

    Raises:
        DaemonError: ``start-failed`` if the interpreter cannot be run.
    """
    logs = DaemonPlaces(name).logs
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(logs)
    start_log = logs / f"start-{os.getpid()}-{secrets.token_hex(4)}.log"
    from luna_daemon.options import arguments_for  # with it come the model messages, which a mere look does not need

    arguments = [*command, *arguments_for(name, instance), "--start-log", str(start_log)]
    try:
        return ChildProcess(platform.spawn_detached(arguments, start_log), start_log)
    except OSError as error:
        raise DaemonError(
            "start-failed",
            f"{command[0]} cannot be run: {error.strerror}",
            "check daemon.python in the settings",
        ) from error


def _sweep(logs: Path) -> None:
    """Remove start logs of processes that ended before they had the daemon's lock."""
    for path in logs.glob("start-*.log"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_START_LOG_S:
                path.unlink()


def keep_start_log(name: str, process: Process) -> None:
    """Make the output of a process that died early the daemon's current log, so that people find it."""
    start_log: Path | None = getattr(process, "start_log", None)
    places = DaemonPlaces(name)
    if start_log is None or not start_log.exists():
        return
    other = read_identity(name)
    if other is not None and other.is_alive():
        start_log.unlink()  # the daemon that runs keeps its log where it is
        return
    if places.log.exists():
        places.log.replace(places.previous_log)
    start_log.replace(places.log)


def log_tail(name: str, lines: int = 50) -> tuple[str, ...]:
    """Return the last lines of a daemon's current log."""
    try:
        with DaemonPlaces(name).log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65_536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-lines:])
