"""What the header of a request says beside its body, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.protocol import COMMANDS
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from luna_daemon.protocol import Command

DEADLINE_MS = 120_000
TRACE_LENGTH_MAX = 128
_KEYS = frozenset({
    "id", "cmd", "body", "segments", "deadline_ms", "priority", "progress", "trace", "released", "released_cuda",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """A request as its header announces it. ``deadline_s`` counts from the receipt."""

    command: Command
    deadline_s: float
    is_bulk: bool
    trace: str | None
    wants_progress: bool


def read_request_header(header: dict[str, Any]) -> RequestHeader:
    """Check a header.

    Raises:
        DaemonError: ``request-invalid`` naming the field, or ``command-unknown``.
    """
    if not header.keys() <= _KEYS:
        unknown = min(header.keys() - _KEYS)
        raise DaemonError("request-invalid", f"{unknown}: unknown field", details={"path": unknown})
    name = header.get("cmd")
    command = COMMANDS.get(name) if isinstance(name, str) else None
    if command is None or name in {"hello", "auth"}:
        raise DaemonError("command-unknown", f"no command {name!r} here", "see the welcome's list of commands")
    deadline_ms = header.get("deadline_ms", DEADLINE_MS)
    if type(deadline_ms) is not int or deadline_ms < 1:
        raise DaemonError("request-invalid", "deadline_ms: expected a positive integer")
    priority = header.get("priority", "interactive")
    if priority not in {"interactive", "bulk"}:
        raise DaemonError("request-invalid", "priority: expected interactive or bulk")
    trace = header.get("trace")
    if trace is not None and (not isinstance(trace, str) or len(trace) > TRACE_LENGTH_MAX):
        raise DaemonError("request-invalid", "trace: expected a W3C traceparent")
    wants_progress = header.get("progress", False)
    if not isinstance(wants_progress, bool):
        raise DaemonError("request-invalid", "progress: expected true or false")
    return RequestHeader(command, deadline_ms / 1000, priority == "bulk", trace, wants_progress)


def released_offsets(raw: Any) -> list[int]:
    """Return the places that a header's ``released`` or ``released_cuda`` gives back.

    Raises:
        DaemonError: ``request-invalid``.
    """
    if not isinstance(raw, list) or not all(type(item) is int for item in raw):
        raise DaemonError("request-invalid", "released: expected a list of offsets")
    return raw


def command_name(name: Any) -> str:
    """Return a command's name for the metrics, whatever it was that a client sent in its place."""
    return name if isinstance(name, str) and name in COMMANDS else "unknown"
