"""Daemons as text: the status table, and a daemon's settings from KEY=VALUE and as TOML."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any

from luna_engine import settings as settings_file
from luna_engine.errors import LunaError
from luna_engine.settings import DaemonInstance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_daemon.views import DaemonView, SupervisorView

UNKNOWN = "\N{EN DASH}"
_COLUMNS = ("NAME", "TYPE", "STATE", "DEVICE", "PORT", "PID", "UP", "RESTARTS", "RSS", "QUEUE", "SETS / REASON")
_CHOICES = {
    "service_type": ("full", "clip", "vae"),
    "backend": ("auto", "native", "comfy"),
    "precision": ("auto", "fp16", "bf16", "fp32"),
}


def status_table(views: Sequence[DaemonView], holder: SupervisorView | None) -> str:
    """Return the table of all daemons."""
    who = "nobody supervises" if holder is None else f"supervised by {holder.kind}, pid {holder.pid}"
    if not views:
        return f"no daemon yet ({who}); luna daemon start clip --device cpu starts one"
    rows = [_COLUMNS, *(_row(view) for view in views)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, who])


def _row(view: DaemonView) -> tuple[str, ...]:
    status = view.status
    sets = "" if status is None else ", ".join(f"{one.family} {size(one.bytes)}" for one in status.sets)
    queue = None if status is None else sum(lane.depth + lane.running for lane in status.queue.values())
    return (
        view.name,
        view.service_type,
        _state(view),
        view.device,
        str(view.port),
        _or_dash(view.pid),
        UNKNOWN if status is None else duration(status.uptime_s),
        str(view.restarts_total),
        UNKNOWN if view.rss_bytes is None else size(view.rss_bytes),
        _or_dash(queue),
        view.reason or sets,
    )


def _state(view: DaemonView) -> str:
    if view.backoff_s is not None:
        return f"backoff {view.backoff_s:.0f} s"
    if view.phase is not None:
        return f"{view.state.value}: {view.phase.name}"
    return view.state.value


def _or_dash(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def size(nbytes: int) -> str:
    """Return bytes in MiB or GiB."""
    mib = nbytes / 1024**2
    return f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib:.0f} MiB"


def duration(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def instance_from(base: DaemonInstance, changes: Sequence[str]) -> DaemonInstance:
    """Return a configuration with KEY=VALUE changes applied.

    Raises:
        LunaError: ``setting-invalid`` naming the key and what it takes.
    """
    hints = typing.get_type_hints(DaemonInstance)
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in hints:
            raise LunaError("setting-invalid", f"{change!r}: expected KEY=VALUE with KEY of {', '.join(hints)}")
        values[key] = _value(key, text.strip(), hints[key])
    instance = dataclasses.replace(base, **values)
    if instance.port != 0 and not 1024 <= instance.port <= 65535:
        raise LunaError("setting-invalid", f"port={instance.port}: expected 1024 to 65535")
    return instance


def _value(key: str, text: str, hint: Any) -> Any:
    if key in _CHOICES and text not in _CHOICES[key]:
        raise LunaError("setting-invalid", f"{key}={text}: expected one of {', '.join(_CHOICES[key])}")
    if hint is bool:
        if text not in {"true", "false"}:
            raise LunaError("setting-invalid", f"{key}={text}: expected true or false")
        return text == "true"
    if hint is str:
        return text
    if key == "preload":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if not text.isascii() or not text.isdigit():
        raise LunaError("setting-invalid", f"{key}={text}: expected a number")
    return int(text)


def toml_of(name: str, instance: DaemonInstance) -> str:
    """Return the TOML table that saving would write."""
    values = {key: value for key, value in dataclasses.asdict(instance).items() if value is not None}
    return f"[daemons.{name}]\n{settings_file.tomlkit_table(values).as_string()}"
