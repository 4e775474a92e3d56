"""What is done when memory runs out, step by step, until the work fits: the out-of-memory ladder.

Empty the allocator's cache; drop merged LoRA weights; halve the rows of a pass down to one; let the VAE work in tiles;
move idle sets off the device. Then it is an error, and the daemon goes on. Nothing is ever moved to the CPU instead.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from luna_daemon.messages import OUT_OF_MEMORY, Downgrade
from luna_daemon.runtime.failures import is_out_of_memory, release_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from luna_daemon.runtime.effort import Effort
    from luna_engine.errors import DaemonError

T = TypeVar("T")
_log = logging.getLogger("luna.daemon.memory")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TRIED = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)


class Ladder:
    """Runs work that may run out of memory.

    Args:
        drop_merged: forgets merged LoRA weights and returns their bytes.
        demote_idle: moves idle sets off the device, but for the one of that id, and returns their ids.
    """

    def __init__(self, drop_merged: Callable[[], int], demote_idle: Callable[[str | None], Sequence[str]]) -> None:
        self._drop_merged = drop_merged
        self._demote_idle = demote_idle
        self.steps: Counter[str] = Counter()

    def run(
        self, doing: str, work: Callable[[Effort], T], effort: Effort, refuse: Callable[[int | None], DaemonError]
    ) -> T:
        """Do the work, with a step of the ladder before each further try.

        Args:
            doing: for the log.
            work: is given what it may take.
            effort: to begin with.
            refuse: makes the error for when nothing helped, from the bytes of the allocation that failed.

        The tries stand outside the except block, so that no traceback holds tensors meanwhile.
        """
        steps = self._climb(effort)
        while True:
            try:
                return work(effort)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                needed_bytes = _asked_bytes(error)
            step = next(steps, None)
            self.steps[step or "refused"] += 1
            _log.warning("memory ran out while %s: %s", doing, step or "nothing helped")
            if step is None:
                raise refuse(needed_bytes)

    def _climb(self, effort: Effort) -> Iterator[str]:
        """Take one step after the other, and name it; a step that changes nothing is left out."""
        release_cache()
        yield "cache emptied"
        if freed := self._drop_merged():
            release_cache()
            effort.downgraded.append(
                Downgrade("merged LoRA weights", f"{freed:,} bytes of them dropped", OUT_OF_MEMORY)
            )
            yield "merged weights dropped"
        yield from _halve(effort)
        if effort.spare_tile is not None:
            effort.tile, effort.spare_tile = effort.spare_tile, None
            yield "tiled"
        if moved := self._demote_idle(effort.set_id):
            release_cache()
            effort.downgraded.append(
                Downgrade("idle sets on the device", f"{', '.join(moved)} moved off", OUT_OF_MEMORY)
            )
            yield "idle sets moved"


def _halve(effort: Effort) -> Iterator[str]:
    asked, place = effort.rows, len(effort.downgraded)
    while effort.rows is not None and effort.rows > 1:
        effort.rows //= 2
        effort.downgraded[place:] = [
            Downgrade(f"passes of {asked} rows", f"passes of {effort.rows} rows", OUT_OF_MEMORY)
        ]
        yield "batch halved"


def _did(asked: str, instead: str) -> Downgrade:
    return Downgrade(asked, instead, OUT_OF_MEMORY)


def _asked_bytes(error: BaseException) -> int | None:
    """Return the bytes that an allocator's message says could not be had (torch's CUDA and CPU allocators)."""
    found = _TRIED.search(str(error))
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])
