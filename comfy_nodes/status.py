"""The text of LunaDaemonStatus: one block of lines per service, from what the daemons say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.client import DaemonClient
    from luna_daemon.services import Services
    from luna_daemon.status_messages import DaemonStatus, DeviceStatus, SetStatus

_HEALTHY = frozenset({"ready", "busy"})
_MIB = 1024 * 1024


def describe(services: Services) -> tuple[list[str], bool]:
    """Ask both services.

    Returns:
        The lines, and whether at least one service is healthy. A service that cannot be reached is a line with
        the command that starts it, not an error.
    """
    lines: list[str] = []
    healthy = False
    seen: set[str] = set()
    for word, connect in (("text encoder", services.text), ("VAE", services.vae)):
        status, problem = _ask(connect)
        if status is None:
            lines.append(f"{word}: not running. {problem}")
            continue
        healthy = healthy or status.state in _HEALTHY
        if status.generation in seen:
            lines.append(f"{word}: served by {status.name} too")
            continue
        seen.add(status.generation)
        lines.extend(_service(word, status))
    return lines, healthy


def _ask(connect: Callable[[], DaemonClient]) -> tuple[DaemonStatus | None, str]:
    try:
        return connect().status(detail="full"), ""
    except LunaError as error:
        return None, str(error)


def _service(word: str, status: DaemonStatus) -> list[str]:
    phase = f" ({status.phase})" if status.phase else ""
    waiting = sum(lane.depth for lane in status.queue.values())
    failed = sum(status.totals.errors.values())
    return [
        f"{word}: {status.name} is {status.state}{phase}, version {status.version}, up {_duration(status.uptime_s)}",
        f"  address: {', '.join(status.addresses)}",
        f"  device: {_device(status.device)}, backend {status.backend or 'unknown'}",
        f"  memory of the process: {_size(status.rss_bytes)}",
        f"  requests: {status.totals.requests} served, {failed} failed, {waiting} waiting",
        *(f"  set {entry.set}: {_set(entry)}" for entry in status.sets),
        *(f"  cache {name}: {_size(cache.bytes)} of {_size(cache.cap_bytes)}" for name, cache in status.caches.items()),
        f"  transport: {', '.join(sorted({client.transport for client in status.clients})) or 'none in use'}",
    ]


def _device(device: DeviceStatus) -> str:
    name = device.name or device.kind
    if device.total_bytes is None or device.free_bytes is None:
        return name
    return f"{name}, {_size(device.total_bytes - device.free_bytes)} of {_size(device.total_bytes)} used"


def _set(entry: SetStatus) -> str:
    files = ", ".join(f"{part.role} {part.id or 'sent by a client'}" for part in entry.parts)
    default = ", default" if entry.default else ""
    return f"{entry.family} {entry.precision} on {entry.place}{default} ({files})"


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / _MIB:,.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
