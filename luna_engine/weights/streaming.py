"""Converts all tensors of a file with a few threads and writes them back to the disk as they come.

Memory does not depend on the model: per thread it is one chunk in, one as floats, one out.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np

from luna_engine.errors import InputFileError
from luna_engine.weights.chunks import CHUNK
from luna_engine.weights.containers.dtypes import DTYPES
from luna_engine.weights.kernels import casts
from luna_engine.weights.pipe import Cancelled, Pipe, Tally, TensorResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from luna_engine.weights.containers.layout import Slot
    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.targets import PlannedTensor

_SYNC_S = 0.2


def stream(
    files: Sequence[Path],
    part: Path,
    work: Sequence[tuple[PlannedTensor, Slot, tuple[Slot, ...]]],
    threads: int,
    cancel: threading.Event,
    report: Callable[[Tally], None],
) -> list[TensorResult]:
    """Convert all tensors into ``part`` and return their results in order.

    Args:
        files: of the source.
        part: the output, which has its full size.
        work: tensors with their places and those of their extras, in source order.
        threads: how many work at once.
        cancel: set by the caller to stop.
        report: called about four times a second.
    """
    tally, stop, local = Tally(), threading.Event(), threading.local()
    pipes: list[Pipe] = []

    def run(planned: PlannedTensor, slot: Slot, extras: tuple[Slot, ...]) -> TensorResult:
        if stop.is_set() or cancel.is_set():
            raise Cancelled
        pipe = getattr(local, "pipe", None)
        if pipe is None:
            pipe = local.pipe = Pipe(files, part, cancel, tally)
            pipes.append(pipe)
        result = pipe.run(planned, slot, extras)
        with tally.lock:
            tally.done_tensors += 1
        return result

    with _written_back(part), ThreadPoolExecutor(threads, "luna-convert") as pool:
        futures: list[Future[TensorResult]] = [pool.submit(run, *entry) for entry in work]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.25, return_when=FIRST_EXCEPTION)
                failed = [future for future in done if future.exception() is not None]
                if failed:
                    break
                report(tally)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for pipe in pipes:
                pipe.close()
    return _results(futures)


def _results(futures: list[Future[TensorResult]]) -> list[TensorResult]:
    """Return all results; of several failures raise the one that is no mere consequence."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in errors:
        if not isinstance(error, Cancelled):
            raise error
    if errors or any(future.cancelled() for future in futures):
        raise Cancelled
    return [future.result() for future in futures]


@contextlib.contextmanager
def _written_back(part: Path) -> Iterator[None]:
    """Have the disk write while the processors compute, so that little is left for the sync at the end.

    An error of the disk is told once per open file, so it is raised here and not left for that sync.
    """
    ended = threading.Event()
    failures: list[OSError] = []

    def work(descriptor: int) -> None:
        while not ended.wait(_SYNC_S):
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                failures.append(error)
                return

    with part.open("r+b", buffering=0) as file:
        writer = threading.Thread(target=work, args=(file.fileno(),), name="luna-write-back", daemon=True)
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join()
    if failures:
        raise failures[0]


def greatest_magnitude(files: Sequence[Path], info: TensorInfo) -> float:
    """Return the greatest magnitude of a float tensor, reading it in chunks."""
    source = files[info.part]
    top, item = 0.0, DTYPES[info.dtype]
    with source.open("rb", buffering=0) as file:
        file.seek(info.offset)
        left = info.size_bytes
        while left:
            data = file.read(min(left, CHUNK * item))
            if not data:
                raise InputFileError(
                    "source-changed", f"{source.name}: {info.name} was cut short", "copy it again", file=str(source)
                )
            top = max(top, casts.greatest(info.dtype, np.frombuffer(data[: len(data) // item * item], np.uint8)))
            left -= len(data)
    return top
