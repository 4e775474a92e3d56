"""The conversion worker: `python -m luna_engine.weights.worker JOB` runs one job of the queue to its end.

SIGTERM and Ctrl-C cancel it: part file and lock go, the job says "cancelled". Everything it has to say goes to the
job's files; the exit code is 0, 1 (failed or cancelled) or 4 (the source is at fault).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luna_engine import settings
from luna_engine.errors import ConversionError, LunaError
from luna_engine.weights.checks import remember_check, remember_source
from luna_engine.weights.conversion import ConversionReport, convert
from luna_engine.weights.jobs import Job, JobState, JobStore, now
from luna_engine.weights.mixes import Convolutions
from luna_engine.weights.naming import source_roots
from luna_engine.weights.pausing import PausableCancel
from luna_engine.weights.pipelines import weight_file
from luna_engine.weights.plans import ConversionOptions
from luna_engine.weights.progress import Progress
from luna_engine.weights.queue import JobQueue
from luna_engine.weights.rates import START, VERIFY, Sample, learn
from luna_engine.weights.targets import Fp8Layout
from luna_engine.weights.verification import verify

if TYPE_CHECKING:
    from types import FrameType

_NICENESS = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the job named on the command line and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    store = JobStore(Path(os.environ["LUNA_JOBS"])) if "LUNA_JOBS" in os.environ else JobStore.open()
    try:
        cancel = PausableCancel(store.pause_path(arguments[0]))
    except LunaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code

    def stop(_number: int, _frame: FrameType | None) -> None:
        cancel.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with contextlib.suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(_NICENESS)
    try:
        job = JobQueue(store).claim(arguments[0])
    except LunaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return run(store, job, cancel)


def run(store: JobStore, job: Job, cancel: PausableCancel) -> int:
    """Run a claimed job, writing its state and progress.

    This is a process's border: whatever happens ends in the job's file.
    """
    store.append(job.id, Progress("started", now(), job.id, destination=job.destination))
    try:
        report = _convert(store, job, cancel)
    except LunaError as error:
        return _failed(store, job, error)
    except Exception as error:  # noqa: BLE001 - the border of the process: logged with its traceback
        traceback.print_exc()
        return _failed(
            store,
            job,
            ConversionError(
                "convert-failed",
                f"{job.name}: {type(error).__name__}: {error}",
                f"the traceback is in {store.log_path(job.id)}",
            ),
        )
    state = JobState(report.state)
    # The line comes before the state: who sees that the job is over finds the last word written.
    store.append(
        job.id,
        Progress(
            state.value,
            now(),
            job.id,
            phase="verify",
            done_bytes=report.source_bytes,
            total_bytes=report.source_bytes,
            destination=str(report.destination),
            rss_bytes=report.peak_rss_bytes,
        ),
    )
    store.save(
        dataclasses.replace(
            job, state=state, ended_at=now(), result=report.as_dict(), destination=str(report.destination)
        )
    )
    store.drop_marks(job.id)
    return 0


def _convert(store: JobStore, job: Job, cancel: PausableCancel) -> ConversionReport:
    started_s = time.time() - psutil.Process().create_time()
    known = settings.load()
    fp8 = Fp8Layout(job.fp8_layout == "legacy", job.fp8_matmul == "full")
    options = ConversionOptions(job.allow_finer, job.reshape, source_roots(known), fp8, Convolutions(job.convolutions))
    report = convert(
        job.source,
        job.destination,
        job.precision,
        lambda progress: store.append(job.id, progress),
        cancel=cancel,
        options=options,
        job=job.id,
        keep_free_bytes=known.weights.keep_free_bytes,
    )
    for warning in report.warnings:
        store.append(job.id, Progress("warning", now(), job.id, phase="check", message=warning))
    if report.state == "done":
        store.save(dataclasses.replace(job, state=JobState.VERIFYING))
        store.append(job.id, Progress("progress", now(), job.id, phase="verify", destination=job.destination))
        begun = time.monotonic()
        checked = verify(report.destination)
        remember_check(checked.path, checked.data_sha256, report.errors)
        remember_source(weight_file(report.source), report.source_sha256)
        steps = {**report.steps, VERIFY: (report.size_bytes, time.monotonic() - begun), START: (0, started_s)}
        if not cancel.has_waited:  # how long it took says nothing if it was paused
            learn(Sample(steps, report.kernel, report.peak_rss_bytes), store.folder.parent)
    return report


def _failed(store: JobStore, job: Job, error: LunaError) -> int:
    state = JobState.CANCELLED if error.code == "cancelled" else JobState.FAILED
    store.drop_marks(job.id)
    store.append(
        job.id,
        Progress(state.value, now(), job.id, phase="commit", destination=job.destination, error=error.as_dict()),
    )
    store.save(dataclasses.replace(job, state=state, ended_at=now(), error=error.as_dict()))
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
