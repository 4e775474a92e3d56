"""Reads the headers of many files, some at a time, giving up on a disk that does not answer."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights.inspection import inspect
from luna_engine.weights.memory import Header
from luna_engine.weights.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

AT_A_TIME = 4
PATIENCE_S = 10.0


def read_one(path: Path) -> Header:
    """Read one header."""
    try:
        return Header(summarise(inspect(path)), None)
    except LunaError as error:
        return Header(None, error.as_dict())
    except OSError as error:  # the disk, in the middle of the header
        failed = InputFileError(
            "file-unreadable", f"{path}: {error.strerror or error}", "check the disk", file=str(path)
        )
        return Header(None, failed.as_dict())


def read_headers(
    paths: Sequence[Path], read: Callable[[Path], Header] = read_one, patience_s: float = PATIENCE_S
) -> Iterator[tuple[Path, Header]]:
    """Yield the headers as they come, each path once.

    Args:
        paths: the files.
        read: reads one of them.
        patience_s: after so long a file is given up; its thread is left behind and another takes its place.
    """
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Path, Header]] = queue.SimpleQueue()
    started: dict[Path, float] = {}
    for path in paths:
        waiting.put(path)

    def work() -> None:
        while True:
            try:
                path = waiting.get_nowait()
            except queue.Empty:
                return
            started[path] = time.monotonic()
            done.put((path, read(path)))

    def begin() -> None:
        # Daemon threads: one that hangs in a dead network mount must not keep the process from ending.
        threading.Thread(target=work, name="luna-header", daemon=True).start()

    for _ in range(min(AT_A_TIME, len(paths))):
        begin()
    left = set(paths)
    while left:
        try:
            path, header = done.get(timeout=patience_s / 4)
        except queue.Empty:
            now = time.monotonic()
            late = [path for path, since in list(started.items()) if path in left and now - since >= patience_s]
            for path in late:
                left.discard(path)
                begin()
                yield path, Header(None, _no_answer(path, patience_s).as_dict())
            continue
        if path in left:  # else it was given up before it answered
            left.discard(path)
            yield path, header


def _no_answer(path: Path, patience_s: float) -> InputFileError:
    return InputFileError(
        "file-unreadable", f"{path.name} did not answer within {patience_s:.0f} s", "check the disk, then refresh",
        file=str(path),
    )  # fmt: skip
