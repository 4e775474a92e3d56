"""The queue of conversions: submit, start the next worker, watch, cancel, retry.

Workers are processes of their own and survive whoever started them. Exactly one runs at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil

from luna_engine import paths, settings
from luna_engine.errors import ConversionError, LunaError
from luna_engine.weights.jobs import Job, JobState, JobStore, new_id, now
from luna_engine.weights.locking import is_alive
from luna_engine.weights.naming import destination_of, source_roots
from luna_engine.weights.plans import ConversionOptions, plan
from luna_engine.weights.progress import Progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

# Detached workers that this process started: kept so that it can take their exit code (and leave no zombie).
_STARTED: list[subprocess.Popen[bytes]] = []
_TEND_EVERY_S = 1.0
_log = logging.getLogger(__name__)
_MOST_ATTEMPTS = 3  # the first, and two after a worker died


class JobQueue:
    """The queue of one state folder. All methods may be called from any process."""

    def __init__(self, store: JobStore) -> None:
        self.store = store

    @classmethod
    def open(cls, state_dir: Path | None = None) -> JobQueue:
        """Open the queue of the state folder (None: the user's)."""
        return cls(JobStore.open(state_dir))

    def submit(
        self, source: Path, precision: str, out: Path | None = None, options: ConversionOptions | None = None
    ) -> Job:
        """Add a job after planning it, so that what cannot be converted is refused at once.

        Args:
            source: the file to convert.
            precision: a label.
            out: a folder; None takes the default one.
            options: see ConversionOptions.

        Raises:
            LunaError: whatever `plan` raises.
        """
        known = settings.load()
        options = options or ConversionOptions()
        options = dataclasses.replace(options, roots=options.roots or source_roots(known))
        found = plan(source, precision, options=options)
        job = Job(
            new_id(),
            str(source.absolute()),
            found.precision.label,
            str(destination_of(source, found.precision, out, known, self._reserved())),
            allow_finer=options.allow_finer,
            reshape=options.reshape,
            fp8_layout="legacy" if options.fp8.is_legacy else "current",
            fp8_matmul="full" if options.fp8.is_full_matmul else "fast",
            convolutions=options.convolutions.value,
            queued_at=now(),
            rank=max((other.rank for other in in_order(self.jobs())), default=0),
            output_bytes=found.size_bytes,
        )
        self.store.save(job)
        self.store.append(
            job.id,
            Progress("queued", now(), job.id, total_bytes=found.source_bytes, destination=job.destination),
        )
        return job

    def _reserved(self) -> dict[str, str]:
        return {job.destination: job.source for job in self.jobs() if not job.state.is_over}

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs, oldest first."""
        return self.store.all()

    def progress(self, job_id: str) -> Progress | None:
        """Return how far a job is."""
        return self.store.progress(job_id)

    def cancel(self, job_id: str) -> Job:
        """Stop a job: a queued one at once, a running one by asking its worker, which then removes its part file.

        Raises:
            LunaError: ``job-missing``; ``job-over`` if it has ended.
        """
        with self._locked():
            job = self.store.load(job_id)
            if job.state.is_over:
                raise LunaError("job-over", f"job {job_id} is {job.state.value} already")
            if _is_running(job) and job.pid is not None:
                self.store.cancel_path(job_id).touch()
                with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
                    os.kill(job.pid, signal.SIGTERM)
                return job
            return self._end(job, JobState.CANCELLED)

    def claim(self, job_id: str) -> Job:
        """Take a job as its worker: it is running now, under this process.

        Raises:
            ConversionError: ``cancelled`` if it was stopped before it began.
        """
        with self._locked():  # whoever started this process has written the job's file by now
            job = self.store.load(job_id)
            if self.store.cancel_path(job_id).exists():
                self._end(job, JobState.CANCELLED)
                raise ConversionError("cancelled", f"{job.name} was cancelled before it began")
            me = psutil.Process()
            return self.store.save(
                dataclasses.replace(
                    job,
                    state=JobState.RUNNING,
                    pid=me.pid,
                    create_time=me.create_time(),
                    started_at=now(),
                    attempts=max(1, job.attempts),
                )
            )

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            LunaError: ``job-missing``; ``job-active`` if it has not ended.
        """
        with self._locked():
            job = self.store.load(job_id)
            if not job.state.is_over:
                raise LunaError("job-active", f"job {job_id} is {job.state.value}")
            fresh = dataclasses.replace(
                job, state=JobState.QUEUED, error=None, result=None, attempts=0, pid=None, create_time=None,
                started_at=None, ended_at=None, queued_at=now(),
            )  # fmt: skip
            self.store.append(job_id, Progress("queued", now(), job_id, destination=job.destination))
            return self.store.save(fresh)

    def run_next(self) -> Job | None:
        """Start a detached worker for the next waiting job that is not paused; None if one runs or nothing waits."""
        with self._locked():
            jobs = self._settled()
            if any(_is_running(job) for job in jobs):
                return None
            waiting = next((job for job in in_order(jobs) if not self.is_paused(job.id)), None)
            return None if waiting is None else self._start(waiting, detached=True)[0]

    def is_paused(self, job_id: str) -> bool:
        """Tell whether a job waits because somebody wants it to."""
        return self.store.pause_path(job_id).exists()

    def pause(self, job_id: str, *, is_paused: bool = True) -> Job:
        """Hold a job, or let it go on: a waiting one keeps its place, a running one stops between two chunks.

        Raises:
            LunaError: ``job-missing``; ``job-over`` if it has ended.
        """
        with self._locked():
            job = self.store.load(job_id)
            if job.state.is_over:
                raise LunaError("job-over", f"job {job_id} is {job.state.value} already")
            if is_paused:
                self.store.pause_path(job_id).touch()
            else:
                self.store.pause_path(job_id).unlink(missing_ok=True)
            return job

    def move(self, job_id: str, place: int) -> int:
        """Put a waiting job at another place of the queue and return it: 1 is the next to be started.

        Raises:
            LunaError: ``job-missing``; ``job-active`` if it does not wait.
        """
        with self._locked():
            job = self.store.load(job_id)
            if job.state is not JobState.QUEUED:
                raise LunaError("job-active", f"job {job_id} is {job.state.value}: only waiting jobs have a place")
            others = [other for other in in_order(self.jobs()) if other.id != job_id]
            place = min(max(1, place), len(others) + 1)
            others.insert(place - 1, job)
            for rank, other in enumerate(others):
                if other.rank != rank:
                    self.store.save(dataclasses.replace(other, rank=rank))
            return place

    def tend(self, stop: threading.Event) -> None:
        """Start waiting jobs one after the other until ``stop`` is set: what a supervisor does in a thread."""
        while not stop.wait(_TEND_EVERY_S):
            try:
                if any(not job.state.is_over for job in self.jobs()):
                    self.run_next()
            except OSError:  # a task border: a state folder that is away for a moment must not end the tending
                _log.exception("the conversion queue cannot be tended")

    def settle(self) -> tuple[Job, ...]:
        """Say what became of jobs whose worker died without a word, and return all jobs."""
        with self._locked():
            return self._settled()

    def _settled(self) -> tuple[Job, ...]:
        _STARTED[:] = [worker for worker in _STARTED if worker.poll() is None]
        return tuple(self._reclaimed(job) for job in self.jobs())

    def start(self, job_id: str) -> subprocess.Popen[bytes] | None:
        """Start a worker for this very job as a child that dies with its terminal, and return the process.

        None if the job does not wait any more: another face of Luna was faster and has started it.
        """
        with self._locked():
            job = self.store.load(job_id)
            return self._start(job, detached=False)[1] if job.state is JobState.QUEUED else None

    def _start(self, job: Job, *, detached: bool) -> tuple[Job, subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "luna_engine.weights.worker", job.id]
        environment = {**os.environ, "LUNA_JOBS": str(self.store.folder)}
        with self.store.log_path(job.id).open("ab") as log:
            worker = subprocess.Popen(
                command,
                cwd=paths.checkout_root(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=detached,
            )
        if detached:
            _STARTED.append(worker)
        started = dataclasses.replace(
            job,
            state=JobState.RUNNING,
            pid=worker.pid,
            create_time=_create_time(worker.pid),
            attempts=job.attempts + 1,
            started_at=now(),
        )
        return self.store.save(started), worker

    def _reclaimed(self, job: Job) -> Job:
        """Queue a job again whose worker died, at most twice; then it has failed."""
        if job.state not in {JobState.RUNNING, JobState.VERIFYING} or _is_running(job):
            return job
        if self.store.cancel_path(job.id).exists():
            return self._end(job, JobState.CANCELLED)
        if job.attempts < _MOST_ATTEMPTS:
            return self.store.save(dataclasses.replace(job, state=JobState.QUEUED, pid=None, create_time=None))
        error = ConversionError(
            "convert-failed",
            f"the worker of {job.name} died {job.attempts} times",
            f"its last words are in {self.store.log_path(job.id)}",
        )
        return self._end(job, JobState.FAILED, error.as_dict())

    def _end(self, job: Job, state: JobState, error: dict[str, object] | None = None) -> Job:
        self.store.drop_marks(job.id)
        self.store.append(
            job.id,
            Progress(state.value, now(), job.id, phase="commit", destination=job.destination, error=error),
        )
        return self.store.save(dataclasses.replace(job, state=state, error=error, ended_at=now()))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes of this machine out of the queue for a moment."""
        with (self.store.folder / "queue.lock").open("ab") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Return the waiting jobs in the order they will be started in."""
    return sorted((job for job in jobs if job.state is JobState.QUEUED), key=lambda job: (job.rank, job.id))


def _is_running(job: Job) -> bool:
    return job.state in {JobState.RUNNING, JobState.VERIFYING} and is_alive(job.pid, job.create_time)


def _create_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:  # it has ended already; the worker's own words in the job file win
        return None
