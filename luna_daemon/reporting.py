"""What a running daemon says of itself: queues, memory, clients, caches, drawn together from where each is known."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil

from luna_daemon.fields import plain
from luna_daemon.status_messages import CacheStatus, ClientStatus, LaneStatus
from luna_daemon.transport import CUDA_IPC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.arenas import ArenaPool
    from luna_daemon.connection import Connection
    from luna_daemon.engine_seam import ModelEngine
    from luna_daemon.protocol import Lane
    from luna_daemon.runtime.executor import Executor
    from luna_daemon.runtime.queue import Admission, Job
    from luna_daemon.shared_memory import SharedMemoryBudget
    from luna_daemon.watch import Watch


class Reporter:
    """Reads the parts of a service; changes none of them.

    Args:
        engine, lanes, admission, shared_memory, arenas, watch: of the service.
        connections: returns those that are open.
    """

    def __init__(
        self,
        engine: ModelEngine,
        lanes: Mapping[Lane, Executor],
        admission: Admission,
        shared_memory: SharedMemoryBudget,
        arenas: ArenaPool,
        watch: Watch,
        connections: Callable[[], Sequence[Connection]],
    ) -> None:
        self._engine = engine
        self._lanes = lanes
        self._admission = admission
        self._shared_memory = shared_memory
        self._arenas = arenas
        self._watch = watch
        self._connections = connections

    def lanes(self) -> dict[str, LaneStatus]:
        """Return every queue, by name of its lane."""
        return {lane.value: self._lane(lane, executor) for lane, executor in self._lanes.items()}

    def _lane(self, lane: Lane, executor: Executor) -> LaneStatus:
        depth, nbytes, oldest_s = executor.queue.facts()
        jobs = executor.running
        started = min((job.started for job in jobs if job.started is not None), default=None)
        return LaneStatus(
            depth=depth,
            running=len(jobs),
            bytes=nbytes,
            oldest_ms=None if oldest_s is None else round(oldest_s * 1000, 3),
            running_ms=None if started is None else round((time.monotonic() - started) * 1000, 3),
            stalled=bool(jobs) and self._watch.is_stalled(lane.value),
        )

    def running(self) -> dict[str, Job | None]:
        """Return what runs in each lane; of a batch its first request."""
        return {lane.value: next(iter(executor.running), None) for lane, executor in self._lanes.items()}

    def clients(self) -> tuple[ClientStatus, ...]:
        """Return the open connections."""
        return tuple(
            ClientStatus(
                one.name, one.pid, one.transport_name, self._admission.of(one), one.requests, one.transport_reason
            )
            for one in self._connections()
        )

    def shared_memory(self) -> CacheStatus:
        """Return what is mapped; hits are tensors sent that way, misses those that found no room."""
        counts = [one.sent_by_way for one in self._connections()]
        budget = self._shared_memory
        hits, misses = (sum(count[way] for count in counts) for way in ("shm", "full"))
        return CacheStatus(budget.used_bytes, budget.total_bytes, budget.connections, hits, misses)

    def arenas(self) -> CacheStatus:
        """Return what of the card is set aside for tensors; hits and misses as with shared memory."""
        counts = [one.sent_by_way for one in self._connections()]
        return self._arenas.status(*(sum(count[way] for count in counts) for way in (CUDA_IPC, "arena_full")))

    def queue_event(self) -> dict[str, Any]:
        """Return the body of a ``queue`` event."""
        return {name: plain(status) for name, status in self.lanes().items()}

    def memory_event(self) -> dict[str, Any]:
        """Return the body of a ``memory`` event."""
        snapshot = self._engine.snapshot()
        return {
            "rss_bytes": psutil.Process().memory_info().rss,
            "device": plain(snapshot.device),
            "sets": {row.set: {"place": row.place, "bytes": row.bytes} for row in snapshot.sets},
            "caches": {name: cache.bytes for name, cache in snapshot.caches.items()},
        }

    def places(self) -> dict[str, str]:
        """Return where each set is: ``device``, ``host`` or ``disk``."""
        return {row.set: row.place for row in self._engine.snapshot().sets}


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory this process ever had."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
