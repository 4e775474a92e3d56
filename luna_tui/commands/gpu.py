"""`luna gpu`: graphics cards, who holds their memory, and where each number comes from."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import click
import psutil

from luna_daemon.identity import live_identities
from luna_tui import frame
from luna_tui.backend.gpus import LocalGpus
from luna_tui.views import DaemonRow
from luna_tui.wording import UNKNOWN, size

if TYPE_CHECKING:
    from luna_tui.views import GpuCard, GpusView


@click.command("gpu", short_help="Show graphics cards and who uses their memory.")
@frame.global_options
def command() -> None:
    """Show graphics cards, the processes on them and the machine's memory."""
    gpus = LocalGpus(running_daemons)
    view = gpus.snapshot()
    gpus.close()
    frame.output().data("luna.gpu/1", as_record(view), as_text(view))


def running_daemons() -> tuple[DaemonRow, ...]:
    """Return Luna's daemons of this user by their identity files, without asking them."""
    rows = []
    for identity in live_identities():
        try:
            rss = psutil.Process(identity.pid).memory_info().rss
        except psutil.Error:
            rss = None
        device = identity.device or "cpu"
        rows.append(
            DaemonRow(identity.name, identity.service_type, "running", device, identity.port, pid=identity.pid,
                      rss_bytes=rss)
        )  # fmt: skip
    return tuple(rows)


def as_record(view: GpusView) -> dict[str, Any]:
    """Return the fields of schema luna.gpu/1."""
    reason = None
    if view.reason is not None:
        reason = {"code": view.reason.code, "message": view.reason.message, "hint": view.reason.hint}
    memory = None
    if view.memory is not None:
        memory = {
            "total_bytes": view.memory.total_bytes,
            "used_bytes": view.memory.used_bytes,
            "available_bytes": view.memory.available_bytes,
        }
    return {
        "provider": {"name": view.provider, "version": view.version, "reason": reason},
        "devices": [_device(card) for card in view.cards],
        "memory": memory,
    }


def _device(card: GpuCard) -> dict[str, Any]:
    rest = next((row.bytes for row in card.processes if row.kind == "remainder"), None)
    return {
        "uuid": card.uuid, "index": card.index, "name": card.name, "vendor": card.vendor,
        "total_bytes": card.total_bytes, "used_bytes": card.used_bytes, "free_bytes": card.free_bytes,
        "peak_bytes": card.peak_bytes, "peak_at": _timestamp(card.peak_at), "unexplained_bytes": rest,
        "util_percent": card.util_percent, "temperature_c": card.temperature_c, "power_w": card.power_w,
        "lost": card.lost,
        "processes": [
            {"pid": row.pid, "create_time": row.create_time, "label": row.label, "kind": row.kind, "bytes": row.bytes,
             "source": row.source, "peak_bytes": row.peak_bytes}
            for row in card.processes if row.kind != "remainder"
        ],
    }  # fmt: skip


def _timestamp(at: float | None) -> str | None:
    if at is None:
        return None
    moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_text(view: GpusView) -> str:
    """Return the same for people."""
    lines = []
    for card in view.cards:
        if card.lost:
            lines.append(f"cuda:{card.index} {card.name}  {card.lost}")
            continue
        util = UNKNOWN if card.util_percent is None else f"{card.util_percent} %"
        lines.append(f"cuda:{card.index} {card.name}  {size(card.used_bytes)} of {size(card.total_bytes)}  {util}")
        lines += [
            f"  {row.pid or UNKNOWN:>8}  {size(row.bytes):>10}  {row.source:<11}  {row.label}" for row in card.processes
        ]
    if view.reason is not None:
        lines.append(f"{view.reason.message}" + (f" -> {view.reason.hint}" if view.reason.hint else ""))
    if view.memory is not None:
        lines.append(f"RAM  {size(view.memory.used_bytes)} of {size(view.memory.total_bytes)}")
        lines += [f"  {row.pid:>8}  {size(row.bytes):>10}  {row.label}" for row in view.memory.processes]
    return "\n".join(lines)
