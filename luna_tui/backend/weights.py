"""The weights port: sources with their variants, conversion jobs, and the verbs on both. Torch-free.

Reading headers happens here; conversions and verification run in worker processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luna_engine.errors import LunaError
from luna_engine.paths import checkout_root
from luna_engine.weights.catalog import Listing
from luna_engine.weights.estimate import Estimator
from luna_engine.weights.inspection import inspect
from luna_engine.weights.naming import destination_of, source_roots
from luna_engine.weights.plans import ConversionOptions, plan
from luna_engine.weights.queue import JobQueue
from luna_tui.backend.shelf import Shelf
from luna_tui.views import Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.settings import Settings
    from luna_engine.weights.catalog import SourceRow
    from luna_engine.weights.inspection import Inspection
    from luna_engine.weights.jobs import Job
    from luna_engine.weights.progress import Progress

_JOBS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class VariantView:
    """A converted file of a source. ``state`` is current, stale or outdated."""

    path: str
    precision: str
    bytes: int
    state: str


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source; ``problem`` says why its header cannot be read or why it cannot be converted."""

    path: str
    name: str
    family: str | None
    what: str
    precision: str
    bytes: int
    variants: tuple[VariantView, ...] = ()
    problem: Failure | None = None

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


@dataclass(frozen=True, slots=True)
class WeightsView:
    """Sources and jobs at one moment; jobs newest first. ``notices`` are folders that were asked for and are gone."""

    at: float
    roots: tuple[str, ...] = ()
    sources: tuple[SourceView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    notices: tuple[str, ...] = ()


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
        """Check the converted files of a source."""

    def cancel(self, job_id: str) -> Outcome:
        """Stop a job."""

    def retry(self, job_id: str) -> Outcome:
        """Queue an ended job again."""

    def add(self, path: str) -> Outcome:
        """Show a file or folder beside the configured ones until Luna ends."""


def _failure(error: LunaError) -> Failure:
    return Failure(error.code, error.message, error.hint)


class LocalWeights:
    """The port over this machine's folders and job files. Thread-safe.

    Args:
        settings: for the folders.
        readonly: changing verbs are refused, and queued jobs are not started.
    """

    def __init__(self, settings: Settings, *, readonly: bool = False) -> None:
        self._settings = settings
        self._readonly = readonly
        self._queue = JobQueue.open()
        self._shelf = Shelf(settings)
        self._lock = threading.Lock()
        self._found = Listing()
        self._active: frozenset[str] = frozenset()

    def snapshot(self) -> WeightsView:
        """Return sources, scanned at most every three seconds, and jobs; start the next job if one waits."""
        with self._lock:
            jobs = self._queue.jobs()
            active = frozenset(job.id for job in jobs if not job.state.is_over)
            if active and not self._readonly:
                self._queue.run_next()
                jobs = self._queue.jobs()
            if self._active - active:
                self._shelf.expire()  # a job that has ended may have left a new file
            self._active = active
            self._found = self._shelf.listing()
            newest = jobs[: -_JOBS_SHOWN - 1 : -1]
            return WeightsView(
                time.time(),
                tuple(str(root) for root in self._found.roots),
                tuple(_source(row) for row in self._found.sources),
                tuple(_job(job, self._queue.progress(job.id)) for job in newest),
                self._notices(),
            )

    def close(self) -> None:
        """Let go of the folders and the database."""
        self._shelf.close()

    def _notices(self) -> tuple[str, ...]:
        return (*self._shelf.problems(), *(f"{notice.code}: {notice.message}" for notice in self._found.notices))

    def inspect(self, path: str) -> Inspection:
        """Read one header."""
        return inspect(path)

    def plan(self, paths: Sequence[str], precisions: Sequence[str]) -> tuple[PlanView, ...]:
        """Say what converting would write, file by file; the room that is left counts all of them."""
        found: list[PlanView] = []
        estimator = Estimator(self._settings.weights.keep_free_bytes)
        for path in paths:
            for precision in precisions:
                try:
                    found.append(self._plan_one(Path(path), precision, estimator))
                except LunaError as error:
                    found.append(PlanView(path, precision, problem=_failure(error)))
        return tuple(found)

    def _plan_one(self, path: Path, precision: str, estimator: Estimator) -> PlanView:
        known = plan(path, precision, options=ConversionOptions(roots=source_roots(self._settings)))
        destination = destination_of(path, known.precision, None, self._settings)
        cost = estimator.estimate(known, destination)
        return PlanView(
            str(path),
            known.precision.label,
            str(destination),
            known.size_bytes,
            cost.free_after_bytes,
            known.count("quantised"),
            known.count("cast") + known.count("copied"),
            known.reshaped,
            known.is_at_target,
            _failure(cost.problem) if cost.problem is not None else None,
            cost.peak_ram_bytes,
            cost.duration_s,
        )

    def convert(self, paths: Sequence[str], precisions: Sequence[str]) -> Outcome:
        """Queue conversions and start the first."""
        if self._readonly:
            return _READ_ONLY
        queued, problems = 0, []
        for path in paths:
            for precision in precisions:
                try:
                    self._queue.submit(Path(path), precision)
                    queued += 1
                except LunaError as error:
                    problems.append(error)
        self._queue.run_next()
        if problems:
            first = problems[0]
            return Outcome(ok=False, message=f"{first.message} ({queued} queued)", code=first.code, hint=first.hint)
        return Outcome.done(f"{queued} conversion{'s' if queued > 1 else ''} queued")

    def verify(self, path: str) -> Outcome:
        """Check the converted files of a source in a worker process."""
        row = next((row for row in self._found.sources if str(row.path) == path), None)
        files = [str(variant.path) for variant in row.variants] if row is not None else []
        if not files:
            return Outcome(ok=False, message=f"{Path(path).name} has no converted files", code="component-missing")
        command = [sys.executable, "-m", "luna_engine.weights.verification", *files]
        done = subprocess.run(command, capture_output=True, check=False, cwd=checkout_root())
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        errors = [entry["error"] for entry in entries if "error" in entry]
        if errors:
            first = errors[0]
            return Outcome(ok=False, message=first["message"], code=first["code"], hint=first["hint"])
        if len(entries) < len(files):
            return Outcome(ok=False, message="the verifying process ended without a word", code="worker-failed")
        return Outcome.done(f"{len(files)} of {len(files)} converted files are whole")

    def cancel(self, job_id: str) -> Outcome:
        """Stop a job."""
        if self._readonly:
            return _READ_ONLY
        job = self._queue.cancel(job_id)
        return Outcome.done(f"{job.name} is being cancelled" if not job.state.is_over else f"{job.name} is cancelled")

    def retry(self, job_id: str) -> Outcome:
        """Queue an ended job again."""
        if self._readonly:
            return _READ_ONLY
        job = self._queue.retry(job_id)
        self._queue.run_next()
        return Outcome.done(f"{job.name} is queued again")

    def add(self, path: str) -> Outcome:
        """Show a file or folder beside the configured ones until Luna ends."""
        found = Path(path).expanduser()
        if not found.exists():
            return Outcome(ok=False, message=f"there is no {found}", code="file-missing", hint="check the path")
        self._shelf.add(found.absolute())
        return Outcome.done(f"{found} is shown until Luna ends; weights.paths in the settings keeps it")


_READ_ONLY = Outcome(ok=False, message="Luna is read-only", code="read-only")


def _source(row: SourceRow) -> SourceView:
    found = row.inspection
    variants = tuple(
        VariantView(str(variant.path), variant.precision, variant.size_bytes, variant.state) for variant in row.variants
    )
    problem = None
    if row.error is not None:
        problem = Failure(row.error["code"], row.error["message"], row.error["hint"])
    elif found is not None and not found.is_convertible:
        problem = Failure("component-missing", f"{found.name}: no diffusion part", "name a checkpoint")
    return SourceView(
        str(row.path),
        row.path.name,
        found.family if found else None,
        found.name if found else "unreadable" if row.is_read else "reading …",
        found.precision if found else "",
        row.size_bytes,
        variants,
        problem,
    )


def _job(job: Job, progress: Progress | None) -> JobView:
    error = None if job.error is None else Failure(job.error["code"], job.error["message"], job.error["hint"])
    if progress is None:
        return JobView(
            job.id, job.name, job.state.value, destination=job.destination, is_over=job.state.is_over, error=error
        )
    done, total = progress.done_bytes, progress.total_bytes
    fraction = done / total if done is not None and total else None
    return JobView(
        job.id,
        job.name,
        job.state.value,
        progress.phase,
        progress.tensor,
        progress.index,
        progress.count,
        1.0 if job.state.value in {"done", "reused"} else fraction,
        progress.bytes_per_s,
        progress.eta_s,
        progress.rss_bytes,
        job.destination,
        job.state.is_over,
        error,
    )
