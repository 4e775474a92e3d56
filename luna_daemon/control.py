"""Verbs on daemons that need no supervisor: make sure that one runs, stop one. For the command line and for nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_daemon import identity as records
from luna_daemon import launch, restart_memory
from luna_daemon.probe import Probe
from luna_daemon.process_exits import LOCK, words_for
from luna_daemon.supervised import LADDER_S, Supervised, orphan_error
from luna_daemon.world import RealWorld, SystemClock
from luna_engine import settings as settings_file
from luna_engine.errors import DaemonError, LunaError
from luna_engine.settings import DaemonInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_daemon.identity import Identity
    from luna_daemon.launch import ChildProcess
    from luna_daemon.messages import Pong
    from luna_engine.settings import Settings

WAITS = ("ready", "started", "none")
_PAUSE_S = 0.05
_ELECTION_S = 2.0  # within this time the winner of the lock has written its identity


def instance_for(name: str, settings: Settings) -> DaemonInstance:
    """Return the configuration of a daemon; `clip`, `vae` and `full` have one even if nobody wrote it.

    Raises:
        LunaError: ``daemon-unknown``.
    """
    if name in settings.daemons:
        return settings.daemons[name]
    if name in {"clip", "vae", "full"}:
        port = settings.daemon.vae_port if name == "vae" else settings.daemon.port
        return DaemonInstance(service_type=name, port=port)
    known = ", ".join(sorted(settings.daemons)) or "none"
    raise LunaError(
        "daemon-unknown",
        f"no daemon {name!r} is configured; known: {known}",
        f"luna daemon configure {name} sets it up",
    )


def ensure(
    name: str,
    *,
    wait: str = "ready",
    timeout_s: float = 120.0,
    instance: DaemonInstance | None = None,
    command: Sequence[str] | None = None,
    poll: Callable[[], None] | None = None,
) -> Identity | None:
    """Make sure that a daemon runs. Any number of callers at once start exactly one: its own lock elects it.

    Args:
        name: of a configured daemon, or ``clip``, ``vae``, ``full``.
        wait: until it is ``ready``, ``started`` (answers at all), or ``none``.
        timeout_s: for the wait.
        instance: its configuration; None takes that of the settings.
        command: interpreter and file; None is the product's own.
        poll: called while waiting; what it raises goes through, the daemon starts on.

    Returns:
        The identity of the daemon, None with wait ``none`` if it has none yet.

    Raises:
        DaemonError: ``start-failed`` with its exit in words, or ``daemon-timeout``.
    """
    settings = settings_file.load()
    wanted = instance or instance_for(records.check_name(name), settings)
    probe = Probe("luna-ensure")
    child: ChildProcess | None = None
    now = time.monotonic()
    deadline, try_after = now + timeout_s, now
    try:
        if wait == "none" and _live(name) is None:
            child = launch.launch(name, wanted, command or launch.program(settings))
        while wait != "none":
            found = _live(name)
            pong = None if found is None else probe.ping(found)
            if pong is not None and _is_enough(pong, wait):
                return found
            if found is None and child is not None:
                child = _after_election(name, child)
                try_after = time.monotonic() + _ELECTION_S
            elif found is None and time.monotonic() >= try_after:
                child = launch.launch(name, wanted, command or launch.program(settings))
            if time.monotonic() > deadline:
                state = "no answer" if pong is None else f"state {pong.state}, phase {pong.phase}"
                raise DaemonError("daemon-timeout", f"{name} is not {wait} after {timeout_s:g} s: {state}")
            if poll is not None:
                poll()
            time.sleep(_PAUSE_S)
        return _live(name)
    finally:
        probe.close()
        if child is not None:
            child.close()


def _live(name: str) -> Identity | None:
    found = records.read_identity(name)
    return found if found is not None and found.is_alive() else None


def _is_enough(pong: Pong, wait: str) -> bool:
    return pong.state in {"ready", "busy"} or (wait == "started" and pong.state == "loading")


def _after_election(name: str, child: ChildProcess) -> ChildProcess | None:
    """Look at a started process that has no identity: still on its way, beaten by another one, or failed."""
    ended = child.ended()
    if ended is None:
        return child
    if ended.code == LOCK:
        return None  # another process has the lock; its identity comes
    launch.keep_start_log(name, child)
    record = records.read_exit(name)
    reason = record.reason if record is not None and record.pid == child.pid else None
    tail = launch.log_tail(name, 5)
    raise DaemonError(
        "start-failed",
        f"{name} ended while starting: {words_for(ended, reason or (tail[-1] if tail else None))}",
        f"luna daemon logs {name} shows its log",
        details={"code": ended.code, "signal": ended.signal, "log": list(tail)},
    )


def stop(name: str, *, force: bool = False, timeout_s: float = 3 * LADDER_S, kill: bool = False) -> bool:
    """Stop a daemon by the ladder and wait: drain, SIGTERM after 10 s, SIGKILL after 10 more.

    Args:
        name: of the daemon.
        force: do not wait for queued requests.
        timeout_s: for the wait.
        kill: begin with SIGKILL.

    Returns:
        False if it did not run.

    Raises:
        DaemonError: ``daemon-timeout`` if the process is still there, ``daemon-orphan`` if somebody who cannot be
            reached has its lock.
    """
    found = _live(records.check_name(name))
    world = RealWorld(())
    if found is None:
        if (orphan := world.orphan(name)) is not None:
            orphan.close()
            raise orphan_error(name, orphan.pid)
        is_waiting = restart_memory.read(name).state == "backoff"
        if is_waiting:
            world.note_stay_down(name)  # whoever supervises it reads that before starting it again
        return is_waiting
    daemon = Supervised(name, DaemonInstance(), world, SystemClock(), lambda *_: None)
    deadline = time.monotonic() + timeout_s
    try:
        daemon.kill() if kill else daemon.stop(is_forced=force)
        while daemon.state.is_running:
            daemon.step(may_restart=False)
            if time.monotonic() > deadline:
                raise DaemonError("daemon-timeout", f"{name} (pid {found.pid}) is still there after {timeout_s:g} s")
            time.sleep(_PAUSE_S)
    finally:
        daemon.close()
        world.close()
    return True
