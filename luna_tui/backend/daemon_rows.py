"""From the supervisor's records to the screen's rows, and from two moments to the events between them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_tui.views import DaemonRow, EventRow, ExitView, SetView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_daemon.status_messages import DaemonStatus
    from luna_daemon.views import DaemonView, LastExit

_LEVELS = {"crashed": "error", "failed": "error", "backoff": "warning", "unresponsive": "warning", "orphan": "warning"}
# States that come and go with each request or start; the log tells them.
_QUIET = frozenset({"busy", "loading", "stopping"})


def row_of(view: DaemonView, now: float) -> DaemonRow:
    """Return the row of a daemon."""
    status = view.status
    phase, fraction = _phase(view)
    return DaemonRow(
        view.name, view.service_type, view.state.value, view.device, view.port, host=view.host,
        reason=_reason(view), pid=view.pid, adopted=view.adopted, restarts_total=view.restarts_total,
        backoff_s=view.backoff_s, phase=phase, phase_fraction=fraction, uptime_s=_uptime(view, now),
        rss_bytes=view.rss_bytes if view.rss_bytes is not None or status is None else status.rss_bytes,
        vram_bytes=view.vram_bytes, queue_depth=_queue(status), backend=_backend(status), clients=_clients(status),
        sets=_sets(status), last_exit=_exit(view.last_exit), log_path=view.log_path, configured=view.configured,
        autostart=view.autostart,
    )  # fmt: skip


def _phase(view: DaemonView) -> tuple[str | None, float | None]:
    if view.state.value not in {"starting", "loading"} or view.phase is None:
        return None, None
    phase = view.phase
    if phase.done is None:
        return phase.name, None
    return phase.name, phase.done / phase.total if phase.total else phase.done


def _reason(view: DaemonView) -> str | None:
    if view.stop is not None:
        return f"{view.stop.stage}: next stage in {max(0, round(view.stop.next_in_s))} s"
    return view.reason


def _uptime(view: DaemonView, now: float) -> float | None:
    if view.pid is None:
        return None
    if view.status is not None:
        return view.status.uptime_s
    return None if view.create_time is None else max(0.0, now - view.create_time)


def _queue(status: DaemonStatus | None) -> int | None:
    return None if status is None else sum(lane.depth + lane.running for lane in status.queue.values())


def _backend(status: DaemonStatus | None) -> str | None:
    if status is None or status.backend is None:
        return None
    return f"{status.backend}: {status.backend_reason}" if status.backend_reason else status.backend


def _clients(status: DaemonStatus | None) -> tuple[str, ...]:
    clients = status.clients if status is not None else ()
    return tuple(f"{client.name} {client.transport}" for client in clients if not client.name.startswith("luna-tui"))


def _sets(status: DaemonStatus | None) -> tuple[SetView, ...]:
    return tuple(
        SetView(
            entry.set, entry.family, tuple(part.role for part in entry.parts), entry.bytes, entry.precision, entry.place,
            entry.pinned,
        )
        for entry in (status.sets if status is not None else ())
    )  # fmt: skip


def _exit(last: LastExit | None) -> ExitView | None:
    if last is None:
        return None
    return ExitView(
        last.at, last.code, last.signal, last.reason, last.peak_ram_bytes, last.peak_vram_bytes, last.log_tail
    )


def changes(before: Iterable[DaemonRow], after: Iterable[DaemonRow]) -> list[EventRow]:
    """Return what is worth an event between two moments."""
    known = {row.name: row for row in before}
    found = []
    for row in after:
        old = known.get(row.name)
        if old is None or (old.state == row.state and old.restarts_total == row.restarts_total):
            continue
        if row.restarts_total > old.restarts_total and old.state not in {"backoff", "crashed"}:
            found.append(_event(row, "error", "daemon-crashed", _last_words(row)))
        if row.state != old.state and row.state not in _QUIET and not (old.state == "busy" and row.state == "ready"):
            message = row.reason or f"{row.name} is {row.state}"
            found.append(_event(row, _LEVELS.get(row.state, "info"), f"daemon-{row.state}", message))
    return found


def _last_words(row: DaemonRow) -> str:
    return row.last_exit.reason if row.last_exit is not None else "the process ended"


def _event(row: DaemonRow, level: str, code: str, message: str) -> EventRow:
    return EventRow("", time.time(), level, row.name, code, message)
