"""What is remembered of a daemon between supervisors, and what viewers read: ``run/<name>.restarts.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from luna_daemon import identity as records
from luna_daemon.identity import DaemonPlaces
from luna_daemon.views import LastExit


@dataclass(frozen=True, slots=True)
class Memory:
    """Written by the supervisor alone; ``backoff_until`` is wall time in seconds."""

    restarts_total: int = 0
    last_exit: LastExit | None = None
    state: str | None = None
    reason: str | None = None
    backoff_until: float | None = None


def read(name: str) -> Memory:
    """Read what is remembered; what is missing, damaged or of another version is not."""
    data = records.read_json(DaemonPlaces(name).memory) or {}

    def taken(key: str, kind: type) -> Any:
        value = data.get(key)
        return value if isinstance(value, kind) else None

    return Memory(
        restarts_total=taken("restarts_total", int) or 0,
        last_exit=_last_exit(data.get("last_exit")),
        state=taken("state", str),
        reason=taken("reason", str),
        backoff_until=taken("backoff_until", float),
    )


def _last_exit(data: object) -> LastExit | None:
    if not isinstance(data, dict):
        return None
    try:
        return LastExit(**{**data, "log_tail": tuple(data.get("log_tail", ()))})
    except TypeError:
        return None


def write(name: str, memory: Memory) -> None:
    """Replace what is remembered."""
    records.write_record(DaemonPlaces(name).memory, dataclasses.asdict(memory))
