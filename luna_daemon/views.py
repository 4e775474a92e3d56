"""What a supervisor, the command line and the application show of daemons: frozen records, no behaviour."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luna_daemon.status_messages import DaemonStatus


class DaemonState(str, enum.Enum):
    """States of a daemon as its supervisor sees it."""

    STOPPED = "stopped"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    CRASHED = "crashed"
    BACKOFF = "backoff"
    FAILED = "failed"
    UNRESPONSIVE = "unresponsive"
    ORPHAN = "orphan"

    @property
    def is_running(self) -> bool:
        """Tell whether a process stands behind this state."""
        return self in _RUNNING


_RUNNING = frozenset(
    {
        DaemonState.STARTING,
        DaemonState.LOADING,
        DaemonState.READY,
        DaemonState.BUSY,
        DaemonState.STOPPING,
        DaemonState.UNRESPONSIVE,
        DaemonState.ORPHAN,
    }
)


@dataclass(frozen=True, slots=True)
class Phase:
    """What a loading daemon does; ``done`` of ``total`` where it knows."""

    name: str
    done: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a daemon ended.

    Attributes:
        at: wall time in seconds.
        code: exit code, None when a signal ended it or nobody saw.
        signal: number of the signal, None otherwise.
        reason: in words.
        log_tail: its last log lines.
    """

    at: float
    code: int | None
    signal: int | None
    reason: str
    peak_ram_bytes: int | None = None
    peak_vram_bytes: int | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StopStage:
    """Where a stop is: ``drain``, ``terminate`` or ``kill``, and the seconds left to the next stage."""

    stage: str
    next_in_s: float


@dataclass(frozen=True, slots=True)
class DaemonView:
    """One daemon, configured or found.

    Attributes:
        reason: why it is in this state, in words; None where the state says it all.
        since: wall time in seconds at which the state began.
        adopted: it ran already when this supervisor came.
        restarts_total: restarts after a crash; never resets.
        backoff_s: seconds until the next start, in ``backoff`` only.
        configured: it is in the settings.
        status: the daemon's own status, None while it does not answer.
    """

    name: str
    service_type: str
    state: DaemonState
    device: str
    port: int
    host: str = "127.0.0.1"
    reason: str | None = None
    since: float | None = None
    device_uuid: str | None = None
    pid: int | None = None
    create_time: float | None = None
    generation: str | None = None
    adopted: bool = False
    restarts_total: int = 0
    backoff_s: float | None = None
    phase: Phase | None = None
    stop: StopStage | None = None
    rss_bytes: int | None = None
    vram_bytes: int | None = None
    last_exit: LastExit | None = None
    log_path: str | None = None
    previous_log_path: str | None = None
    configured: bool = True
    autostart: bool = False
    status: DaemonStatus | None = None

    def as_record(self) -> dict[str, Any]:
        """Return the record of schema luna.daemon.status/1."""
        exit_ = self.last_exit
        return {
            "name": self.name,
            "service_type": self.service_type,
            "state": self.state.value,
            "reason": self.reason,
            "since": timestamp(self.since),
            "host": self.host,
            "port": self.port,
            "device": self.device,
            "device_uuid": self.device_uuid,
            "pid": self.pid,
            "create_time": self.create_time,
            "generation": self.generation,
            "adopted": self.adopted,
            "restarts_total": self.restarts_total,
            "backoff_s": self.backoff_s,
            "phase": None
            if self.phase is None
            else {"name": self.phase.name, "done": self.phase.done, "total": self.phase.total},
            "stop": None if self.stop is None else {"stage": self.stop.stage, "next_in_s": self.stop.next_in_s},
            "rss_bytes": self.rss_bytes,
            "vram_bytes": self.vram_bytes,
            "last_exit": None
            if exit_ is None
            else {
                "at": timestamp(exit_.at),
                "code": exit_.code,
                "signal": exit_.signal,
                "reason": exit_.reason,
                "peak_ram_bytes": exit_.peak_ram_bytes,
                "peak_vram_bytes": exit_.peak_vram_bytes,
            },
            "log_path": self.log_path,
            "configured": self.configured,
            "status": None if self.status is None else self.status.as_record(),
        }


@dataclass(frozen=True, slots=True)
class SupervisorView:
    """Who supervises: ``kind`` is ``luna-tui`` or ``luna daemon supervise``."""

    pid: int
    kind: str
    since: float

    def as_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {"pid": self.pid, "kind": self.kind, "since": timestamp(self.since)}


def timestamp(seconds: float | None) -> str | None:
    """Return RFC 3339 in UTC to the millisecond."""
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
