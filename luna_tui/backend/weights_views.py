"""What the weights screen shows, and the port it comes through. Imports nothing that draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_engine.weights.inspection import Inspection
    from luna_tui.views import Failure, Outcome


@dataclass(frozen=True, slots=True)
class VariantView:
    """A converted file. ``state`` is a `VariantState`'s value; ``note`` says the rest for people."""

    path: str
    name: str
    precision: str
    bytes: int
    state: str
    note: str = ""
    is_usable: bool = True
    is_verified: bool = False
    is_pinned: bool = False
    is_made: bool = True
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source; ``problem`` says why its header cannot be read or why it cannot be converted.

    ``impossible`` are precisions that it cannot become, each with the reason.
    """

    path: str
    name: str
    family: str | None
    what: str
    precision: str
    bytes: int
    variants: tuple[VariantView, ...] = ()
    problem: Failure | None = None
    impossible: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_convertible(self) -> bool:
        """Tell whether it has a diffusion part that can be read."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class JobView:
    """A conversion job. Unknown numbers are None."""

    id: str
    name: str
    state: str
    phase: str | None = None
    tensor: str | None = None
    index: int | None = None
    count: int | None = None
    fraction: float | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    rss_bytes: int | None = None
    destination: str = ""
    is_over: bool = False
    error: Failure | None = None
    precision: str = ""
    source: str = ""
    place: int | None = None
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class DiskView:
    """A disk with what Luna's files take there, in bytes."""

    path: str
    total: int
    free: int
    variants: int
    variant_bytes: int
    trash_bytes: int


@dataclass(frozen=True, slots=True)
class PruneRow:
    """A converted file that could go. ``refused`` says what keeps it."""

    path: str
    bytes: int
    reason: str
    refused: str | None = None
    used_at: float | None = None


@dataclass(frozen=True, slots=True)
class WeightsView:
    """Sources and jobs at one moment.

    Attributes:
        jobs: running ones, waiting ones in their order, then ended ones, the newest first.
        strays: converted files that have no source here.
        notices: what is wrong with folders and database.
        unread: headers that are still to be read.
    """

    at: float
    roots: tuple[str, ...] = ()
    sources: tuple[SourceView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    notices: tuple[str, ...] = ()
    strays: tuple[VariantView, ...] = ()
    disks: tuple[DiskView, ...] = ()
    unread: int = 0


@dataclass(frozen=True, slots=True)
class PlanView:
    """What one conversion would write, or the ``problem`` that forbids it."""

    source: str
    precision: str
    destination: str = ""
    output_bytes: int | None = None
    free_after_bytes: int | None = None
    quantised: int = 0
    kept: int = 0
    reshaped: int = 0
    is_at_target: bool = False
    problem: Failure | None = None
    peak_ram_bytes: int | None = None
    duration_s: float | None = None


class Weights(Protocol):
    """The port of screen 3."""

    def snapshot(self) -> WeightsView:
        """Return sources and jobs. May block."""

    def inspect(self, path: str) -> Inspection:
        """Read one header."""

    def plan(self, paths: Sequence[str], precisions: Sequence[str]) -> tuple[PlanView, ...]:
        """Say what converting would write."""

    def convert(self, paths: Sequence[str], precisions: Sequence[str]) -> Outcome:
        """Queue conversions and start the first."""

    def verify(self, path: str) -> Outcome:
        """Check a converted file, or all of a source, and whether they still belong to it."""

    def prune_plan(self, paths: Sequence[str], rules: Sequence[str], unused_days: int) -> tuple[PruneRow, ...]:
        """Say what pruning would take: these files, else by the rules ``stale``, ``orphans`` and ``unused``."""

    def prune(self, paths: Sequence[str]) -> Outcome:
        """Move converted files into the trash."""

    def undo(self) -> Outcome:
        """Bring back what was pruned last."""

    def empty_trash(self) -> Outcome:
        """Delete what waits in the trash."""

    def pin(self, path: str) -> Outcome:
        """Let a converted file stay whatever is pruned, or no longer."""

    def pause(self, job_id: str) -> Outcome:
        """Hold a job, or let it go on."""

    def move(self, job_id: str, step: int) -> Outcome:
        """Start a waiting job so many places later (negative: earlier)."""

    def cancel(self, job_id: str) -> Outcome:
        """Stop a job."""

    def retry(self, job_id: str) -> Outcome:
        """Queue an ended job again."""

    def add(self, path: str) -> Outcome:
        """Show a file or folder beside the configured ones until Luna ends."""
