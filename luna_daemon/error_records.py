"""Errors as a reply carries them, from both sides."""

from __future__ import annotations

from typing import Any

from luna_engine.errors import DaemonError


def error_record(error: DaemonError) -> dict[str, Any]:
    """Return the record of an error in a reply."""
    record: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    if error.retry_after_ms is not None:
        record["retry_after_ms"] = error.retry_after_ms
    if error.details:
        record["details"] = error.details
    return record


def error_from(record: object) -> DaemonError:
    """Return the error that a reply carries."""
    if not isinstance(record, dict):
        return DaemonError("frame-invalid", "the daemon sent an error without a code")
    hint, retry, details = (record.get(key) for key in ("hint", "retry_after_ms", "details"))
    return DaemonError(
        str(record.get("code", "internal")),
        str(record.get("message", "")),
        hint if isinstance(hint, str) else None,
        retry_after_ms=retry if isinstance(retry, int) else None,
        details=details if isinstance(details, dict) else None,
    )
