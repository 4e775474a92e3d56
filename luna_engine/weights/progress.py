"""How far a conversion is: one record per step, which becomes a line of the job's file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment. Unknown numbers are None.

    ``event`` is queued, started, progress, warning, done, failed, cancelled or reused; ``phase`` is plan, wait,
    convert, check, commit or verify; ``index`` counts finished tensors.
    """

    event: str = "progress"
    at: str = ""
    job: str = ""
    phase: str = "plan"
    tensor: str | None = None
    index: int | None = None
    count: int | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    rss_bytes: int | None = None
    destination: str | None = None
    message: str | None = None
    error: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of a ``luna.weights.job/1`` line."""
        return dataclasses.asdict(self)


if TYPE_CHECKING:
    Report = Callable[[Progress], None]
