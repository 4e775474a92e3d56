"""Which waiting requests run together with the one whose turn it is. Torch-free; used by the device's thread only.

The head of the fair queue decides the model. Then every waiting request that fits into the same batch joins, in fair
order. Whether two fit is the engine's word (`ModelEngine.prepare`): the same set, encoders and row lengths.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from luna_daemon.runtime.queue import FairQueue, Job

IDLE_S = 0.05
WINDOW_S = 0.002
CROWDED_S = 10.0
SHARED_MS = 5.0
ALONE_MS = 500.0
_ALIKE = 2.0  # how much more than the cheapest member a client's first request may cost


class Gathering:
    """Collects batches.

    Args:
        queue: of the device.
        prepare: has the engine look at a job and sets ``prepared``; False if the job is answered by that.
        row_cap: rows at most in a batch.

    A window for others to join opens only if the device worked a moment ago and a client of the last batch is missing
    from this one: a lone client never waits.
    """

    def __init__(self, queue: FairQueue, prepare: Callable[[Job], bool], row_cap: Callable[[Job], int]) -> None:
        self._queue = queue
        self._prepare = prepare
        self._row_cap = row_cap
        self._last_clients: set[Hashable] = set()
        self._last_end = float("-inf")
        self._seen: dict[Hashable, float] = {}

    def gather(self, head: Job) -> list[Job]:
        """Return the batch of a prepared job, itself first; all of them are prepared and marked as running."""
        batch = [head]
        if head.prepared.key is None:
            return batch
        cap = self._row_cap(head)
        until = time.monotonic() + self._window()
        while True:
            mark = self._join(batch, cap)
            left = until - time.monotonic()
            missing = self._last_clients - {job.client for job in batch}
            if left <= 0 or not missing or _rows(batch) >= cap or not self._queue.wait_after(mark, left):
                break
        now = time.monotonic()
        for job in batch:
            job.window_s = now - (job.started or now)
        return batch

    def ended(self, batch: list[Job]) -> None:
        """Note who was served, for the next window and for the next budget."""
        self._last_end = time.monotonic()
        self._last_clients = {job.client for job in batch}
        self._seen = {client: at for client, at in self._seen.items() if self._last_end - at < CROWDED_S}
        self._seen.update(dict.fromkeys(self._last_clients, self._last_end))

    def _window(self) -> float:
        return WINDOW_S if time.monotonic() - self._last_end < IDLE_S else 0.0

    def _join(self, batch: list[Job], cap: int) -> int:
        mark, candidates = self._queue.waiting(batch[0].group)
        budget = ALONE_MS if {job.client for job in candidates} | self._seen.keys() <= {batch[0].client} else SHARED_MS
        for job in candidates:
            if _rows(batch) >= cap:
                break
            if self._is_welcome(job, batch, budget) and self._has_joined(job, batch, cap):
                batch.append(job)
        return mark

    @staticmethod
    def _is_welcome(job: Job, batch: list[Job], budget_ms: float) -> bool:
        """Tell whether a job may lengthen the batch.

        The first request of a client may, if it is no larger than the others; more of the same client only as long as
        the whole stays short, so that a flood of one does not make everybody's batches long.
        """
        if sum(member.cost for member in batch) + job.cost <= budget_ms:
            return True
        is_new = all(member.client != job.client for member in batch)
        return is_new and job.cost <= _ALIKE * min(member.cost for member in batch)

    def _has_joined(self, job: Job, batch: list[Job], cap: int) -> bool:
        """Take a job out of the queue if it fits; one that nobody has looked at is taken out for that."""
        if job.prepared is not None and not _fits(job, batch, cap):
            return False
        if not self._queue.claim(job):
            return False
        if job.prepared is None and not self._prepare(job):
            return False
        if _fits(job, batch, cap):
            return True
        self._queue.restore(job)
        return False


def _fits(job: Job, batch: list[Job], cap: int) -> bool:
    is_alike: bool = job.prepared.key == batch[0].prepared.key
    return is_alike and _rows(batch) + job.prepared.rows <= cap


def _rows(batch: list[Job]) -> int:
    return sum(job.prepared.rows for job in batch)


class Batch:
    """The check of a batch: it goes on while one of its requests is still wanted."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = jobs

    def check(self) -> None:
        """Raise what the last of them raises once nobody waits any more.

        Raises:
            DaemonError: ``cancelled`` or ``daemon-timeout``.
        """
        last: DaemonError | None = None
        for job in self._jobs:
            try:
                job.check()
            except DaemonError as error:
                last = error
            else:
                return
        if last is not None:
            raise last
