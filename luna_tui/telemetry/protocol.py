"""The seam to a driver: frozen samples in bytes; None is unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from luna_tui.views import Failure


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """A process on a card, as the driver sees it."""

    pid: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class CardSample:
    """One card at one moment. ``lost`` is the reason when it does not answer."""

    uuid: str
    index: int
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    util_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[ProcessSample, ...] = ()
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """All cards, or the reason why there are none."""

    provider: str
    version: str | None = None
    reason: Failure | None = None
    cards: tuple[CardSample, ...] = ()


class GpuProvider(Protocol):
    """A source of samples."""

    def sample(self) -> Sample:
        """Return what the driver says now. May block; never raises for a driver's trouble."""

    def close(self) -> None:
        """Let go of the driver."""
