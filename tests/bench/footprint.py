"""What a daemon holds, measured in a state that can be compared with a later one.

The resident set alone says little: it holds what Python and the C library keep for later. So the daemon itself, asked
by a signal, collects, gives its free heap back and then writes down what is left, and beside it what is in use, which
no fragmentation can hide or feign: bytes that malloc has handed out, and blocks that Python's own allocator has.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luna_daemon.frames import MIB
from luna_engine.paths import atomic_write

if TYPE_CHECKING:
    import subprocess

ENVIRONMENT = "LUNA_BENCH_FOOTPRINT"
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds.

    Attributes:
        rss_bytes: resident memory after a collection and ``malloc_trim``.
        heap_bytes: handed out by malloc, its large mappings included; None where the C library does not tell.
        python_blocks: handed out by Python's own allocator.
        descriptors: open files and sockets.
        threads: of the process.
    """

    rss_bytes: int
    heap_bytes: int | None
    python_blocks: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        heap = "unknown" if self.heap_bytes is None else mib(self.heap_bytes)
        return (
            f"{mib(self.rss_bytes)} resident, {heap} in malloc's use, {self.python_blocks:,} Python blocks, "
            f"{self.descriptors} descriptors, {self.threads} threads"
        )


def mib(nbytes: int) -> str:
    """Return a size for a table."""
    return f"{nbytes / MIB:.1f} MiB"


def rows(warm: Footprint | None, end: Footprint | None) -> list[tuple[str, str]]:
    """Return the rows of a table that compare two readings."""
    if warm is None or end is None:
        return [("memory", "the run did not get that far")]
    growth = 100 * (end.rss_bytes / warm.rss_bytes - 1)
    heaps = "not told here"
    if warm.heap_bytes is not None and end.heap_bytes is not None:
        heaps = f"{mib(warm.heap_bytes)} → {mib(end.heap_bytes)}"
    return [
        ("resident memory, collected and trimmed", f"{mib(warm.rss_bytes)} → {mib(end.rss_bytes)} ({growth:+.2f} %)"),
        ("of that in use by malloc; blocks of Python", f"{heaps}; {warm.python_blocks:,} → {end.python_blocks:,}"),
        ("descriptors; threads", f"{warm.descriptors} → {end.descriptors}; {warm.threads} → {end.threads}"),
    ]


class _Mallinfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (malloc.h, since 2.33)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def _heap_bytes() -> int | None:
    told = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if told is None:
        return None
    told.restype = _Mallinfo2
    found = told()
    return int(found.uordblks + found.hblkhd)


def _write(path: Path) -> None:
    """Collect, trim, measure this process."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    process = psutil.Process()
    held = Footprint(
        process.memory_info().rss, _heap_bytes(), sys.getallocatedblocks(), process.num_fds(), process.num_threads()
    )
    with atomic_write(path, is_synced=False) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(held)), "utf-8")


def answer_signals() -> None:
    """Have this process, whose main thread waits in Python, measure itself whenever it gets SIGUSR1."""
    path = os.environ.get(ENVIRONMENT)
    if path is not None:
        signal.signal(signal.SIGUSR1, lambda _number, _frame: _write(Path(path)))


def measure(process: subprocess.Popen[bytes], path: Path) -> Footprint:
    """Ask a process that called `answer_signals` with that path.

    Raises:
        RuntimeError: it has ended or does not answer.
    """
    path.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the daemon does not tell what it holds")
        time.sleep(0.01)
    return Footprint(**json.loads(path.read_text("utf-8")))
