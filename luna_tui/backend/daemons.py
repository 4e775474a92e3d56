"""The daemons port: hosts the supervisor in a thread of its own if its lock is free, else looks on.

Verbs need no lock: they act through the supervisor's own functions, so a viewer's keys work too.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from luna_engine import settings as settings_file
from luna_engine.errors import LunaError
from luna_tui.backend.daemon_rows import row_of
from luna_tui.views import DaemonsView, EventRow, Outcome, SupervisorView

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.supervisor import Supervisor, SupervisorEvent
    from luna_daemon.views import DaemonView
    from luna_tui.views import DaemonDraft, DaemonRow, FieldProblem, FormChoices, GpusView

_log = logging.getLogger(__name__)
_OPEN_S = 10.0
_JOIN_S = 5.0


class LocalDaemons:
    """The daemons of this machine. Thread-safe.

    Args:
        record: keeps an event.
        gpus: gives the cards for the start form; may block.
        readonly: changing verbs are refused.
    """

    def __init__(
        self, record: Callable[[EventRow], None], gpus: Callable[[], GpusView], *, readonly: bool = False
    ) -> None:
        self._record = record
        self._gpus = gpus
        self._readonly = readonly
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._opened = threading.Event()

    # -- life ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the lock if it is free, adopt what runs, and keep watching in a thread."""
        from luna_tui.backend.transitions import ObservedSupervisor

        supervisor = ObservedSupervisor(self._note)
        self._supervisor = supervisor
        if not self._readonly:
            supervisor.try_lock()
        supervisor.step()
        self._opened.set()
        self._thread = threading.Thread(target=self._watch, args=(supervisor,), name="supervisor", daemon=True)
        self._thread.start()

    def _watch(self, supervisor: Supervisor) -> None:
        try:
            if self._readonly:
                self._look_on(supervisor)
            else:
                supervisor.run(self._stop)
        except Exception:  # noqa: BLE001 - a thread's border: without it the screen would go on as if somebody watched
            _log.exception("the supervisor ended")
            self._record(
                EventRow("", time.time(), "error", "luna-tui", "supervisor-ended",
                         "the supervisor ended by an error: nothing is restarted now", "restart luna-tui; see its log")
            )  # fmt: skip

    def _look_on(self, supervisor: Supervisor) -> None:
        """Watch without ever taking the lock."""
        while not self._stop.wait(0.2):
            supervisor.step()
        supervisor.close()

    def close(self) -> None:
        """Stop watching and give the lock back; daemons run on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _note(self, event: SupervisorEvent) -> None:
        """Keep an event of the supervisor; a viewer sees the same things and must not tell them twice."""
        supervisor = self._supervisor
        if supervisor is not None and (supervisor.is_supervising or event.level == "error"):
            self._record(EventRow("", event.at, event.level, event.daemon or "luna", event.code, event.message))

    # -- reading ---------------------------------------------------------------------------------------------

    def snapshot(self) -> DaemonsView:
        """Return every configured and running daemon."""
        if not self._opened.wait(_OPEN_S):
            raise LunaError("supervisor-slow", "the supervisor has not opened yet", "see luna-tui.log")
        now = time.time()
        problems = tuple(f"{problem.key}: {problem.message}" for problem in settings_file.load().problems)
        return DaemonsView(now, self.supervisor(), self._rows(now), problems)

    def last_seen(self) -> tuple[DaemonRow, ...]:
        """Return the daemons as last seen. Never blocks."""
        return self._rows(time.time())

    def _rows(self, now: float) -> tuple[DaemonRow, ...]:
        views: tuple[DaemonView, ...] = self._supervisor.snapshot() if self._supervisor is not None else ()
        return tuple(row_of(view, now) for view in views)

    def supervisor(self) -> SupervisorView:
        """Return who watches."""
        supervisor = self._supervisor
        if supervisor is None:
            return SupervisorView()
        if supervisor.is_supervising:
            return SupervisorView("supervising")
        holder = supervisor.holder_pid
        return SupervisorView("viewer", holder) if holder is not None else SupervisorView()

    # -- verbs -----------------------------------------------------------------------------------------------

    def _acting(self) -> Supervisor:
        """Return the supervisor for a change.

        Raises:
            LunaError: ``read-only``, or it has not opened.
        """
        self._refuse_if_readonly()
        if self._supervisor is None:
            raise LunaError("supervisor-slow", "the supervisor has not opened yet", "try again in a moment")
        return self._supervisor

    def _refuse_if_readonly(self) -> None:
        if self._readonly:
            raise LunaError("read-only", "Luna was started read-only", "start it without --readonly")

    def start(self, name: str) -> Outcome:
        """Start a daemon that is down."""
        view = self._acting().start(name)
        return Outcome.done(f"{name} is {view.state.value}")

    def stop(self, name: str) -> Outcome:
        """Begin the stop ladder."""
        view = self._acting().stop(name)
        return Outcome.done(f"{name} is {view.state.value}")

    def restart(self, name: str) -> Outcome:
        """Stop and start; from back-off, start at once."""
        view = self._acting().restart(name)
        return Outcome.done(f"{name} restarts: {view.state.value}")

    def kill(self, name: str) -> Outcome:
        """End a daemon's process without asking it."""
        self._acting().kill(name)
        return Outcome.done(f"{name} was killed and stays down")

    def adopt(self) -> Outcome:
        """Look for running daemons at once."""
        before = {view.name for view in self._acting().snapshot() if view.pid is not None}
        running = {view.name for view in self._acting().adopt() if view.pid is not None}
        found = sorted(running - before)
        return Outcome.done(f"found {', '.join(found)}" if found else f"nothing new: {len(running)} running")

    def forget(self, name: str) -> Outcome:
        """Remove a daemon that is down from the settings."""
        self._acting().forget(name)
        return Outcome.done(f"{name} is out of the settings")

    # -- the form --------------------------------------------------------------------------------------------

    def choices(self) -> FormChoices:
        """Return what the start form offers."""
        from luna_tui.backend import daemon_forms

        return daemon_forms.choices(settings_file.load(), self._gpus())

    def draft(self, name: str) -> DaemonDraft:
        """Return the form of a configured daemon."""
        from luna_tui.backend import daemon_forms

        return daemon_forms.draft(settings_file.load(), name)

    def check(self, draft: DaemonDraft) -> tuple[FieldProblem, ...]:
        """Return what is wrong with a form."""
        from luna_tui.backend import daemon_forms

        own = [row.port for row in self.last_seen() if row.name == draft.editing and row.pid is not None and row.port]
        return daemon_forms.check(draft, settings_file.load(), own)

    def save(self, draft: DaemonDraft) -> Outcome:
        """Write a form to the settings."""
        from luna_tui.backend import daemon_forms

        self._refuse_if_readonly()
        served = daemon_forms.write(draft, settings_file.load())
        return Outcome.done(f"{draft.name} is set up{f' with set {served}' if served else ''}: s starts it")
