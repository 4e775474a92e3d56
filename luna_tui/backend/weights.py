"""The weights port: sources with their variants, conversion jobs, and the verbs on both. Torch-free.

Reading headers happens here; conversions and verification run in worker processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_engine.paths import checkout_root
from luna_engine.weights.catalog import Listing
from luna_engine.weights.estimate import Estimator
from luna_engine.weights.inspection import inspect
from luna_engine.weights.naming import destination_of, source_roots
from luna_engine.weights.plans import ConversionOptions, plan
from luna_engine.weights.pruning import PrunePlan, PruneRules
from luna_engine.weights.queue import JobQueue, in_order
from luna_tui.backend.shelf import Shelf
from luna_tui.backend.weights_rows import job_view, source_view, variant_view
from luna_tui.backend.weights_views import PlanView, PruneRow, WeightsView
from luna_tui.views import Failure, Outcome
from luna_tui.wording import count, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.settings import Settings
    from luna_engine.weights.inspection import Inspection
    from luna_engine.weights.jobs import Job
    from luna_tui.backend.weights_views import JobView

_JOBS_SHOWN = 50


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
        self._plan = PrunePlan()
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
            self._found = found = self._shelf.listing()
            return WeightsView(
                time.time(),
                tuple(str(root) for root in found.roots),
                tuple(source_view(row) for row in found.sources),
                self._job_views(jobs),
                self._notices(),
                tuple(variant_view(variant) for variant in found.strays),
                self._shelf.disks(found),
                found.unread,
            )

    def _job_views(self, jobs: tuple[Job, ...]) -> tuple[JobView, ...]:
        waiting = in_order(jobs)
        running = [job for job in jobs if not job.state.is_over and job.state.value != "queued"]
        ended = [job for job in reversed(jobs) if job.state.is_over]
        places = {job.id: number for number, job in enumerate(waiting, 1)}
        return tuple(
            job_view(job, self._queue.progress(job.id), places.get(job.id), is_paused=self._queue.is_paused(job.id))
            for job in (*running, *waiting, *ended)[:_JOBS_SHOWN]
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
        """Check a converted file, or all of a source, and whether they still belong to it."""
        row = next((row for row in self._found.sources if str(row.path) == path), None)
        files = [path] if row is None else [str(variant.path) for variant in row.variants]
        if not files:
            return Outcome(ok=False, message=f"{Path(path).name} has no converted files", code="component-missing")
        command = [sys.executable, "-m", "luna_engine.weights.verification", *files]
        done = subprocess.run(command, capture_output=True, check=False, cwd=checkout_root())
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        self._shelf.settle(row)
        errors = [entry["error"] for entry in entries if "error" in entry]
        if errors:
            first = errors[0]
            return Outcome(ok=False, message=first["message"], code=first["code"], hint=first["hint"])
        if len(entries) < len(files):
            return Outcome(ok=False, message="the verifying process ended without a word", code="worker-failed")
        return Outcome.done(f"{len(files)} of {len(files)} converted files are whole")

    def prune_plan(self, paths: Sequence[str], rules: Sequence[str], unused_days: int) -> tuple[PruneRow, ...]:
        """Say what pruning would take: these files, else by the rules ``stale``, ``orphans`` and ``unused``."""
        wanted = PruneRules(
            tuple(Path(path) for path in paths),
            stale="stale" in rules,
            orphans="orphans" in rules,
            unused_days=unused_days if "unused" in rules else None,
        )
        self._plan = self._shelf.prune_plan(wanted)
        return tuple(
            PruneRow(str(item.path), item.size_bytes, item.reason, item.refused, item.used_at)
            for item in self._plan.items
        )

    def prune(self, paths: Sequence[str]) -> Outcome:
        """Move converted files into the trash: those of the plan that was shown last."""
        if self._readonly:
            return _READ_ONLY
        wanted = {Path(path) for path in paths}
        plan = self._plan.without(item.path for item in self._plan.items if item.path not in wanted)
        done = self._shelf.prune(plan)
        gone = sum(item.refused is None for item in done.items)
        told = f"{count(gone, 'file')} moved to the trash, {size(done.total_bytes)}: u brings back what was pruned last"
        kept = next((item for item in done.items if item.refused is not None), None)
        if kept is not None:
            return Outcome(ok=False, message=f"{told}; {kept.path.name} stays: {kept.refused}", code="prune-partly")
        return Outcome.done(told)

    def undo(self) -> Outcome:
        """Bring back what was pruned last."""
        if self._readonly:
            return _READ_ONLY
        moved = self._shelf.undo()
        failed = [one for one in moved if one.error is not None]
        back = len(moved) - len(failed)
        if failed and failed[0].error is not None:
            error = failed[0].error
            return Outcome(
                ok=False,
                message=f"{error.message} ({count(back, 'file')} brought back)",
                code=error.code,
                hint=error.hint,
            )
        return Outcome.done(f"{count(back, 'file')} brought back")

    def empty_trash(self) -> Outcome:
        """Delete what waits in the trash."""
        if self._readonly:
            return _READ_ONLY
        return Outcome.done(f"{size(self._shelf.empty_trash())} were deleted for good")

    def pin(self, path: str) -> Outcome:
        """Let a converted file stay whatever is pruned, or no longer."""
        if self._readonly:
            return _READ_ONLY
        is_pinned = self._shelf.turn_pin(Path(path))
        return Outcome.done(f"{Path(path).name} {'stays whatever is pruned' if is_pinned else 'may be pruned'}")

    def pause(self, job_id: str) -> Outcome:
        """Hold a job, or let it go on."""
        if self._readonly:
            return _READ_ONLY
        is_paused = not self._queue.is_paused(job_id)
        job = self._queue.pause(job_id, is_paused=is_paused)
        if not is_paused:
            self._queue.run_next()
        return Outcome.done(f"{job.name} {'is held' if is_paused else 'goes on'}")

    def move(self, job_id: str, step: int) -> Outcome:
        """Start a waiting job so many places later (negative: earlier)."""
        if self._readonly:
            return _READ_ONLY
        order = [job.id for job in in_order(self._queue.jobs())]
        place = order.index(job_id) + 1 if job_id in order else 1
        return Outcome.done(f"it is number {self._queue.move(job_id, place + step)} now")

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
