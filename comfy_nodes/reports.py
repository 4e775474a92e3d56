"""Status texts of nodes: one summary line, then lines that start with ``note:`` or ``warning:``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def status_text(summary: str, *, notes: Iterable[str] = (), warnings: Iterable[str] = ()) -> str:
    """Join the lines of a status output."""
    return "\n".join([summary, *(f"note: {line}" for line in notes), *(f"warning: {line}" for line in warnings)])
