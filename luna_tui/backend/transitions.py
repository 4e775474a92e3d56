"""What happened to a daemon between two looks at it: became ready, stopped, was adopted, does not answer.

Crashes and restarts are told by the supervisor itself; here is the rest of the story.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_daemon.supervisor import Supervisor, SupervisorEvent
from luna_daemon.views import DaemonState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from luna_daemon.views import DaemonView

_SETTLED = frozenset({DaemonState.READY, DaemonState.BUSY})


class ObservedSupervisor(Supervisor):
    """A supervisor that also tells how states change from one step to the next.

    Args:
        on_event: as of `Supervisor`; called on the thread that steps.
    """

    def __init__(self, on_event: Callable[[SupervisorEvent], None]) -> None:
        super().__init__(on_event=on_event)
        self._observe = on_event
        self._before: tuple[DaemonView, ...] = ()

    def step(self) -> None:
        """Do one pass, then tell what it changed."""
        super().step()
        before, self._before = self._before, self.snapshot()
        for event in transitions(before, self._before, time.time()):
            self._observe(event)


def transitions(before: Sequence[DaemonView], after: Sequence[DaemonView], at: float) -> Iterator[SupervisorEvent]:
    """Yield an event for each daemon that is not as it was; ``at`` is their time."""
    known = {view.name: view for view in before}
    for view in after:
        yield from (SupervisorEvent(at, *change) for change in _changes(known.get(view.name), view))


def _changes(old: DaemonView | None, new: DaemonView) -> Iterator[tuple[str, str, str, str]]:
    """Yield level, code, daemon and sentence, in the order in which it happened."""
    old_pid = old.pid if old is not None else None
    is_other = new.pid != old_pid
    if old is not None and (why := _stop_reason(old, new)) is not None:
        yield "info", "daemon-stopped", new.name, f"{new.name} has stopped: {why}"
    if new.adopted and is_other and new.configured:  # the supervisor itself tells of one that is in no settings
        yield "info", "daemon-adopted", new.name, f"{new.name} runs already as pid {new.pid}: {new.state.value}"
    elif new.state in _SETTLED and old is not None and (is_other or old.state not in _SETTLED):
        is_back = old.state is DaemonState.UNRESPONSIVE and not is_other
        yield "info", "daemon-ready", new.name, f"{new.name} {'answers again' if is_back else _ready(new)}"
    if new.state is DaemonState.UNRESPONSIVE and old is not None and old.state is not new.state:
        yield "warning", "daemon-unresponsive", new.name, f"{new.name} does not answer: {new.reason}"


def _stop_reason(old: DaemonView, new: DaemonView) -> str | None:
    """Return why a daemon was put down; None if it was not. A restart on demand passes through no state of its own."""
    if new.state is DaemonState.STOPPED and old.state is not DaemonState.STOPPED:
        return new.reason or "no reason given"
    is_replaced = old.pid is not None and new.pid is not None and old.pid != new.pid
    return "to be started again" if is_replaced and old.state is DaemonState.STOPPING else None


def _ready(view: DaemonView) -> str:
    took = "" if view.status is None else f" after {view.status.uptime_s:.1f} s"
    return f"is ready{took}, pid {view.pid}"
