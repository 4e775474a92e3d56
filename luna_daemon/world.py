"""What the state machine of a daemon touches: time, processes, identities, answers. Tests script it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

from luna_daemon import identity as records
from luna_daemon import launch, platform
from luna_daemon.identity import DaemonPlaces, ExitRecord, Identity
from luna_daemon.launch import FoundProcess
from luna_daemon.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_daemon.launch import Process
    from luna_daemon.messages import Pong
    from luna_daemon.status_messages import DaemonStatus
    from luna_engine.settings import DaemonInstance


ORPHAN_AFTER_S = 5.0


class Clock(Protocol):
    """Time, so that tests may own it."""

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...

    def time(self) -> float:
        """Seconds since 1970."""
        ...


class SystemClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()


class World(Protocol):
    """What the state machine does to the outside; `RealWorld` does it, tests of its logic script it."""

    def identity(self, name: str) -> Identity | None:
        """Return the identity of a live daemon."""
        ...

    def orphan(self, name: str) -> Process | None:
        """Return the process that holds a daemon's lock without an identity by which it could be reached.

        One that has just begun is none: a daemon takes its lock a moment before it writes its identity.
        """
        ...

    def launch(self, name: str, instance: DaemonInstance) -> Process:
        """Start a process."""
        ...

    def found(self, identity: Identity) -> Process:
        """Watch a process that runs already."""
        ...

    def ping(self, identity: Identity) -> Pong | None:
        """Ask for a sign of life."""
        ...

    def status(self, identity: Identity) -> DaemonStatus | None:
        """Ask for the status."""
        ...

    def shutdown(self, identity: Identity, deadline_s: float, *, is_forced: bool) -> bool:
        """Ask to stop."""
        ...

    def exit_record(self, name: str) -> ExitRecord | None:
        """Return what was written about the last end."""
        ...

    def note_asked(self, name: str, process: Process, generation: str | None) -> None:
        """Write down that the process about to be killed is killed on purpose."""
        ...

    def note_stay_down(self, name: str) -> None:
        """Write down that a daemon that is down shall not be started again."""
        ...

    def forget(self, name: str) -> None:
        """Close what is kept for a daemon."""
        ...


class RealWorld:
    """Processes, files and sockets."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start daemons with this interpreter and file."""
        self._command = tuple(command)
        self._probe = Probe()

    def identity(self, name: str) -> Identity | None:
        """Return the identity of a live daemon; a provably dead one is removed."""
        found = records.read_identity(name)
        if found is None:
            return None
        if found.is_alive():
            return found
        if records.read_identity(name) == found:
            self._bury(found)
        return None

    @staticmethod
    def _bury(found: Identity) -> None:
        """Remove the identity of a dead daemon; if it left no word about its end, say that."""
        places = DaemonPlaces(found.name)
        record = records.read_exit(found.name)
        if record is None or record.pid != found.pid:
            silent = ExitRecord(found.pid, found.generation, time.time(), None, "ended without a word")
            records.write_record(places.exit, silent)
        places.identity.unlink(missing_ok=True)

    def orphan(self, name: str) -> Process | None:
        """Return the process that holds a daemon's lock without an identity by which it could be reached.

        One that has just begun is none: a daemon takes its lock a moment before it writes its identity.
        """
        lock = platform.FileLock(DaemonPlaces(name).lock)
        pid = lock.holder()
        began = None if pid is None else platform.create_time(pid)
        if pid is None or began is None or pid == os.getpid() or time.time() - began < ORPHAN_AFTER_S:
            return None  # mostly dead: not worth a look, which would hold the lock for a moment
        if lock.acquire():
            lock.release()
            return None
        return FoundProcess(pid, began)

    def launch(self, name: str, instance: DaemonInstance) -> Process:
        """Start a process."""
        return launch.launch(name, instance, self._command)

    def found(self, identity: Identity) -> Process:
        """Watch a process that runs already."""
        return FoundProcess(identity.pid, identity.create_time)

    def ping(self, identity: Identity) -> Pong | None:
        """Ask for a sign of life."""
        return self._probe.ping(identity)

    def status(self, identity: Identity) -> DaemonStatus | None:
        """Ask for the status."""
        return self._probe.status(identity)

    def shutdown(self, identity: Identity, deadline_s: float, *, is_forced: bool) -> bool:
        """Ask to stop."""
        return self._probe.shutdown(identity, deadline_s, is_forced=is_forced)

    def exit_record(self, name: str) -> ExitRecord | None:
        """Return what was written about the last end."""
        return records.read_exit(name)

    def note_asked(self, name: str, process: Process, generation: str | None) -> None:
        """Write down that the process about to be killed is killed on purpose."""
        record = ExitRecord(process.pid, generation, time.time(), None, "killed as asked", asked=True)
        records.write_record(DaemonPlaces(name).exit, record)

    def note_stay_down(self, name: str) -> None:
        """Write down that a daemon that is down shall not be started again."""
        record = ExitRecord(0, None, time.time(), None, "stopped by you", asked=True)
        records.write_record(DaemonPlaces(name).exit, record)

    def forget(self, name: str) -> None:
        """Close what is kept for a daemon."""
        self._probe.forget(name)

    def close(self) -> None:
        """Close all connections."""
        self._probe.close()
