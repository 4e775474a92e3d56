"""A node that waits for a conversion: the job runs in a worker process, ComfyUI's progress bar and cancel work."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError, error_from
from luna_engine.weights.queue import JobQueue

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.weights.jobs import Job

    from .comfy import ComfyHost

_POLL_S = 0.2


def converted(host: ComfyHost, source: Path, precision: str, folder: Path | None) -> Path:
    """Return the converted file, made now if there is no current one.

    Two ComfyUI processes that ask for one file make it once: the worker of the second waits at the file's lock.

    Args:
        host: for progress (in bytes of the source) and the interrupt.
        source: a checkpoint or diffusion model.
        precision: a label of the engine.
        folder: where the file goes; None takes the default folder.

    Raises:
        LunaError: whatever the plan or the worker says. ComfyUI's interrupt cancels the job and goes on.
    """
    queue = JobQueue.open()
    job = queue.submit(source, precision, folder)
    worker = queue.start(job.id)
    move = host.progress()
    try:
        while not (queue.store.load(job.id).state.is_over or (worker is not None and worker.poll() is not None)):
            if worker is None:  # another face of Luna was faster; should its worker die, the job is ours again
                queue.settle()
                worker = queue.start(job.id)
            progress = queue.progress(job.id)
            if progress is not None and progress.total_bytes:
                move(progress.done_bytes or 0, progress.total_bytes)
            host.check_interrupt()
            time.sleep(_POLL_S)
    except BaseException:  # ComfyUI's interrupt among them: the file is not wanted any more
        with contextlib.suppress(LunaError):  # it has ended by itself
            queue.cancel(job.id)
        raise
    finally:
        if worker is not None:
            worker.wait()
            queue.settle()  # a worker that was stopped before it could say so
    return _destination(queue, queue.store.load(job.id))


def _destination(queue: JobQueue, job: Job) -> Path:
    from pathlib import Path

    if job.error is not None:
        raise error_from(job.error)
    if not job.state.is_over:
        raise LunaError(
            "convert-failed", f"the worker of {job.name} died", f"its last words are in {queue.store.log_path(job.id)}"
        )
    return Path(job.destination)
