"""The supervisor: one loop that adopts, watches and restarts daemons while it holds a lock; a viewer without it.

Verbs need no lock: starting is `ensure`, stopping goes over the protocol, a kill is noted before it happens. So viewer,
command line and nodes act alike and see each other. Imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon import identity as records
from luna_daemon import launch, platform
from luna_daemon.control import ensure, stop
from luna_daemon.identity import DaemonPlaces, check_name
from luna_daemon.supervised import Supervised
from luna_daemon.views import DaemonState, DaemonView, SupervisorView
from luna_daemon.world import RealWorld, SystemClock
from luna_engine import paths
from luna_engine import settings as settings_file
from luna_engine.errors import LunaError, SettingsError
from luna_engine.settings import DaemonInstance, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_daemon.identity import Identity
    from luna_daemon.world import Clock, World

__all__ = ["DaemonState", "DaemonView", "Supervisor", "SupervisorEvent", "SupervisorView", "ensure", "stop"]

STEP_S = 0.1
_log = logging.getLogger("luna.supervisor")
_log.addHandler(logging.NullHandler())  # inside luna-tui nothing may reach the terminal by itself


@dataclass(frozen=True, slots=True)
class SupervisorEvent:
    """Something that a person may want to know."""

    at: float
    level: str
    code: str
    daemon: str | None
    message: str


class Supervisor:
    """Watches all configured and found daemons. Thread-safe; `run` in one thread, verbs from any.

    Args:
        settings: configured daemons; None reads them. The file is read again whenever it changes.
        clock: time; tests of the logic own it.
        kind: how others name this supervisor, ``luna-tui`` or ``luna daemon supervise``.
        command: interpreter and file that daemons are started with; None is the product's own `server.py`.
        world: what touches processes and sockets; None is the real one.
        on_event: called on the thread of the loop.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        clock: Clock | None = None,
        *,
        kind: str = "luna-tui",
        command: Sequence[str] | None = None,
        world: World | None = None,
        on_event: Callable[[SupervisorEvent], None] | None = None,
    ) -> None:
        self._settings = settings if settings is not None else settings_file.load()
        self._settings_stamp = _stamp()
        self._clock: Clock = clock or SystemClock()
        self._kind = kind
        self._world: World = world or RealWorld(command or launch.program(self._settings))
        self._on_event = on_event
        self._guard = threading.RLock()
        self._lock = platform.FileLock(paths.state_dir() / "supervisor.lock")
        self._daemons: dict[str, Supervised] = {}
        self._views: tuple[DaemonView, ...] = ()
        self._configure()

    # the lock

    @property
    def is_supervising(self) -> bool:
        """Tell whether this supervisor holds the lock; a viewer does not."""
        return self._lock.is_held

    @property
    def holder_pid(self) -> int | None:
        """Return the pid of whoever supervises, None if nobody does."""
        holder = self.holder()
        return None if holder is None else holder.pid

    @staticmethod
    def holder() -> SupervisorView | None:
        """Return who supervises, None if nobody does."""
        return holder()

    def try_lock(self) -> bool:
        """Become the supervisor if nobody is; tell whether this one is now."""
        if self._lock.is_held:
            return True
        if not self._lock.acquire():
            return False
        _request_path().unlink(missing_ok=True)
        me = os.getpid()
        record = {
            "pid": me,
            "kind": self._kind,
            "since": self._clock.time(),
            "create_time": platform.create_time(me),
        }
        records.write_record(_holder_path(), record)
        self._start_wanted()
        return True

    def release(self) -> None:
        """Give the lock back; daemons run on."""
        if self._lock.is_held:
            _holder_path().unlink(missing_ok=True)
            self._lock.release()

    @staticmethod
    def request_takeover() -> None:
        """Ask the holder to give the lock back; it does between two steps."""
        records.write_record(_request_path(), {"pid": os.getpid(), "at": time.time()})

    def _yield_if_asked(self) -> None:
        request = records.read_json(_request_path()) if self._lock.is_held else None
        if request is not None and request.get("pid") != os.getpid():
            self._tell(None, "info", "supervisor-yielded", f"pid {request.get('pid')} takes over")
            self.release()

    def _start_wanted(self) -> None:
        with self._guard:
            for daemon in self._daemons.values():
                if daemon.instance.autostart and not daemon.state.is_running:
                    self._attempt(daemon, daemon.start)

    # the loop

    def run(self, stop_event: threading.Event) -> None:
        """Step until the event is set, then let go of the lock. A free lock is taken, with an event."""
        try:
            while not stop_event.wait(STEP_S):
                self.step()
                if not self._lock.is_held and holder() is None and not _is_just_asked() and self.try_lock():
                    self._tell(None, "info", "supervisor-took-over", "this process supervises now")
        finally:
            self.close()

    def step(self) -> None:
        """Do one pass: read changed settings, find daemons, advance each of them."""
        with self._guard:
            self._yield_if_asked()
            self._reload_if_changed()
            self._find()
            for daemon in self._daemons.values():
                self._attempt(daemon, lambda one=daemon: one.step(may_restart=self._lock.is_held))  # type: ignore[misc]  # mypy does not infer a lambda's default
            self._publish()

    def snapshot(self) -> tuple[DaemonView, ...]:
        """Return the daemons as of the last step. Never blocks."""
        return self._views

    def close(self) -> None:
        """Stop watching; daemons run on."""
        with self._guard:
            self.release()
            for daemon in self._daemons.values():
                daemon.close()
            if isinstance(self._world, RealWorld):
                self._world.close()

    def _publish(self) -> None:
        self._views = tuple(self._daemons[name].view() for name in sorted(self._daemons))

    def _attempt(self, daemon: Supervised, action: Callable[[], None]) -> None:
        try:
            action()
        except (LunaError, OSError) as error:
            self._tell(daemon.name, "error", getattr(error, "code", "io-error"), str(error))

    # settings and finds

    def _configure(self) -> None:
        for name, instance in self._settings.daemons.items():
            try:
                check_name(name)
            except LunaError as error:
                self._tell(name, "error", error.code, error.message)
                continue
            known = self._daemons.get(name)
            if known is None:
                self._daemons[name] = self._supervised(name, instance, is_configured=True)
            else:
                known.instance, known.is_configured = instance, True
        for name, daemon in list(self._daemons.items()):
            if name not in self._settings.daemons:
                daemon.is_configured = False
                if not daemon.state.is_running:
                    del self._daemons[name]

    def _reload_if_changed(self) -> None:
        stamp = _stamp()
        if stamp == self._settings_stamp:
            return
        self._settings_stamp = stamp
        try:
            self._settings = settings_file.load()
        except SettingsError as error:
            self._tell(None, "error", error.code, f"{error}; the settings of before stay in force")
        else:
            self._configure()

    def _find(self) -> None:
        for name in self._found_names() - self._daemons.keys():
            found = self._world.identity(name)
            if found is not None:
                self._daemons[name] = self._supervised(name, _instance_of(found), is_configured=False)
                self._tell(name, "info", "daemon-found", f"{name} runs as pid {found.pid}")
        for name, daemon in list(self._daemons.items()):
            is_gone = not daemon.is_configured and daemon.state in {DaemonState.STOPPED, DaemonState.CRASHED}
            if is_gone and name not in self._settings.daemons and daemon.view().since is not None:
                del self._daemons[name]

    @staticmethod
    def _found_names() -> set[str]:
        folder = paths.state_dir() / "run"
        return {path.stem for path in folder.glob("*.json") if "." not in path.stem}

    def _supervised(self, name: str, instance: DaemonInstance, *, is_configured: bool) -> Supervised:
        def tell(level: str, code: str, message: str) -> None:
            self._tell(name, level, code, message)

        return Supervised(name, instance, self._world, self._clock, tell, is_configured=is_configured)

    def _tell(self, daemon: str | None, level: str, code: str, message: str) -> None:
        _log.log(logging.ERROR if level == "error" else logging.INFO, "%s", message, extra={"code": code})
        if self._on_event is not None:
            self._on_event(SupervisorEvent(self._clock.time(), level, code, daemon, message))

    # verbs

    def start(self, name: str) -> DaemonView:
        """Start a configured daemon unless it runs."""
        return self._verb(name, lambda daemon: daemon.start())

    def stop(self, name: str, *, force: bool = False) -> DaemonView:
        """Begin the stop ladder: drain, 10 s later SIGTERM, 10 s later SIGKILL."""
        return self._verb(name, lambda daemon: daemon.stop(is_forced=force))

    def restart(self, name: str) -> DaemonView:
        """Stop and start again; from back-off, start at once."""
        return self._verb(name, lambda daemon: daemon.restart())

    def kill(self, name: str) -> DaemonView:
        """End a daemon's process without asking it."""
        return self._verb(name, lambda daemon: daemon.kill())

    def adopt(self) -> tuple[DaemonView, ...]:
        """Look for running daemons at once."""
        self.step()
        return self._views

    def forget(self, name: str) -> None:
        """Remove a stopped daemon from the settings, with its memory of restarts.

        Raises:
            LunaError: ``daemon-running``, or ``daemon-unknown``.
        """
        with self._guard:
            daemon = self._named(name)
            if daemon.state.is_running:
                raise LunaError(
                    "daemon-running", f"{name} is {daemon.state.value}", f"stop it first: luna daemon stop {name}"
                )
            settings_file.remove_daemon(name)
            DaemonPlaces(name).memory.unlink(missing_ok=True)
            daemon.close()
            self._daemons.pop(name, None)
            self._reload_if_changed()
            self._publish()

    def _verb(self, name: str, act: Callable[[Supervised], Any]) -> DaemonView:
        with self._guard:
            daemon = self._named(name)
            act(daemon)
            self._publish()
            return daemon.view()

    def _named(self, name: str) -> Supervised:
        self._reload_if_changed()
        self._find()
        daemon = self._daemons.get(name)
        if daemon is None:
            known = ", ".join(sorted(self._daemons)) or "none"
            raise LunaError(
                "daemon-unknown", f"no daemon {name!r}; known: {known}", f"luna daemon configure {name} sets one up"
            )
        return daemon


def holder() -> SupervisorView | None:
    """Return who supervises now, None if nobody does."""
    data = records.read_json(_holder_path()) or {}
    pid, kind, since, began = (data.get(key) for key in ("pid", "kind", "since", "create_time"))
    if not isinstance(pid, int) or not isinstance(since, float) or not isinstance(began, float):
        return None
    now = platform.create_time(pid)
    if now is None or abs(now - began) > 0.02:
        return None
    return SupervisorView(pid, str(kind), since)


def _instance_of(found: Identity) -> DaemonInstance:
    return DaemonInstance(
        service_type=found.service_type, device=found.device or "auto", port=found.port or 0, restart=False
    )


def _holder_path() -> Any:
    return paths.state_dir() / "supervisor.json"


def _request_path() -> Any:
    return paths.state_dir() / "supervisor.request.json"


def _is_just_asked() -> bool:
    """Tell whether somebody else asked for the lock a moment ago, so that the one who yields does not grab it back."""
    request = records.read_json(_request_path())
    if request is None or request.get("pid") == os.getpid():
        return False
    at = request.get("at")
    return isinstance(at, float) and time.time() - at < 5.0


def _stamp() -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        facts = paths.settings_file().stat()
        return facts.st_mtime_ns, facts.st_size
    return None
