"""From the supervisor's records to the screen's rows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from luna_tui.views import DaemonRow, ExitView, SetView

if TYPE_CHECKING:
    from luna_daemon.status_messages import DaemonStatus, SetStatus
    from luna_daemon.views import DaemonView, LastExit

# Connections of Luna itself; nobody else is hurt when they end.
_OWN = frozenset({"luna-supervisor", "luna-tui"})
_CONTENT = re.compile(r"[0-9a-f]{16}")


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
    return tuple(f"{client.name} {client.transport}" for client in clients if client.name not in _OWN)


def _sets(status: DaemonStatus | None) -> tuple[SetView, ...]:
    return tuple(
        SetView(
            _name(entry), entry.family, tuple(part.role for part in entry.parts),
            entry.bytes, entry.precision, entry.place, entry.pinned,
        )
        for entry in (status.sets if status is not None else ())
    )  # fmt: skip


def _name(entry: SetStatus) -> str:
    """Return what a person calls a set: its name, or its family where the id is a hash of its content."""
    return entry.family if _CONTENT.fullmatch(entry.set) and entry.family else entry.set


def _exit(last: LastExit | None) -> ExitView | None:
    if last is None:
        return None
    return ExitView(
        last.at, last.code, last.signal, last.reason, last.peak_ram_bytes, last.peak_vram_bytes, last.log_tail
    )
