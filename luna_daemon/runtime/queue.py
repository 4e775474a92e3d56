"""Requests that wait for a lane: bounded admission, fair between clients, cancellable at any time. No torch.

Within a lane clients take turns, interactive requests before bulk ones, which get at least every eighth turn.
"""

from __future__ import annotations

import collections
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from luna_daemon.frames import Limits, WireTensor
    from luna_daemon.protocol import Command

BULK_EVERY = 8
QUEUED, RUNNING, DONE = "queued", "running", "done"


@dataclass(eq=False, slots=True)
class Job:
    """One admitted request.

    Attributes:
        client: whose turn it takes.
        deadline: in the time of `time.monotonic`.
        finish: called exactly once, with the engine's answer or the error.
        via: how the tensors came.
    """

    client: Hashable
    request: int
    command: Command
    body: Any
    tensors: dict[str, WireTensor]
    deadline: float
    finish: Callable[[Job, tuple[Any, list[WireTensor]] | DaemonError], None]
    is_bulk: bool = False
    trace: str | None = None
    received: float = field(default_factory=time.monotonic)
    started: float | None = None
    state: str = QUEUED
    is_cancelled: bool = False
    nbytes: int = 0
    via: str = "inline"

    def check(self) -> None:
        """Raise if the client gave up or the deadline has passed; models call this between steps.

        Raises:
            DaemonError: ``cancelled`` or ``daemon-timeout``.
        """
        if self.is_cancelled:
            raise DaemonError("cancelled", f"{self.command.name} was cancelled")
        if time.monotonic() > self.deadline:
            waited = time.monotonic() - self.received
            raise DaemonError(
                "daemon-timeout",
                f"{self.command.name} passed its deadline after {waited:.1f} s",
                "raise daemon.timeout_s in the settings, or send less at once",
            )


class Admission:
    """Counts what is in flight, per client and in all, and turns away what would be too much."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._requests: collections.Counter[Hashable] = collections.Counter()
        self._bytes: collections.Counter[Hashable] = collections.Counter()
        self._service_s = 0.1

    def enter(self, client: Hashable, nbytes: int) -> None:
        """Count a request in before its payload is allocated.

        Raises:
            DaemonError: ``daemon-busy`` with the time after which it is worth asking again.
        """
        limits = self._limits
        with self._lock:
            total = sum(self._requests.values())
            total_bytes = sum(self._bytes.values())
            is_full = (
                self._requests[client] >= limits.connection_requests
                or self._bytes[client] + nbytes > limits.connection_bytes
                or total >= limits.total_requests
                or total_bytes + nbytes > limits.total_bytes
            )
            if is_full:
                raise DaemonError(
                    "daemon-busy",
                    f"{total} requests with {total_bytes} bytes are in flight",
                    retry_after_ms=max(50, int(self._service_s * 1000)),
                )
            self._requests[client] += 1
            self._bytes[client] += nbytes

    def leave(self, client: Hashable, nbytes: int, service_s: float | None = None) -> None:
        """Count a request out; its service time moves the average that callers are told to wait."""
        with self._lock:
            self._requests[client] -= 1
            self._bytes[client] -= nbytes
            if self._requests[client] <= 0:
                del self._requests[client]
                del self._bytes[client]
            if service_s is not None:
                self._service_s += 0.2 * (service_s - self._service_s)

    def of(self, client: Hashable) -> int:
        """Return how many requests of a client are in flight."""
        with self._lock:
            return self._requests.get(client, 0)


class FairQueue:
    """The waiting jobs of one lane."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._turns: tuple[collections.OrderedDict[Hashable, collections.deque[Job]], ...] = (
            collections.OrderedDict(),
            collections.OrderedDict(),
        )
        self._taken = 0
        self._is_closed = False

    def put(self, job: Job) -> None:
        """Add a job behind its client's others."""
        with self._condition:
            clients = self._turns[job.is_bulk]
            clients.setdefault(job.client, collections.deque()).append(job)
            self._condition.notify()

    def take(self) -> Job | None:
        """Wait for the next job in fair order and mark it as running; None when the queue was closed and is empty."""
        with self._condition:
            while not any(self._turns):
                if self._is_closed:
                    return None
                self._condition.wait()
            job = self._next()
            job.state = RUNNING
            job.started = time.monotonic()
            return job

    def _next(self) -> Job:
        interactive, bulk = self._turns
        self._taken += 1
        is_bulk_turn = bulk and (not interactive or self._taken % BULK_EVERY == 0)
        clients = bulk if is_bulk_turn else interactive
        client, jobs = next(iter(clients.items()))
        job = jobs.popleft()
        clients.move_to_end(client)
        if not jobs:
            del clients[client]
        return job

    def remove(self, job: Job) -> bool:
        """Take a waiting job out; False if it does not wait any more."""
        with self._condition:
            jobs = self._turns[job.is_bulk].get(job.client)
            if jobs is None or job not in jobs:
                return False
            jobs.remove(job)
            if not jobs:
                del self._turns[job.is_bulk][job.client]
            return True

    def clear(self) -> list[Job]:
        """Take all waiting jobs out."""
        with self._condition:
            jobs = list(self._waiting())
            for clients in self._turns:
                clients.clear()
            return jobs

    def close(self) -> None:
        """Let `take` return None once the queue is empty."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def _waiting(self) -> Iterator[Job]:
        for clients in self._turns:
            for jobs in clients.values():
                yield from jobs

    def facts(self) -> tuple[int, int, float | None]:
        """Return depth, payload bytes and the age of the oldest job in seconds."""
        with self._condition:
            jobs = list(self._waiting())
        oldest = min((job.received for job in jobs), default=None)
        return (
            len(jobs),
            sum(job.nbytes for job in jobs),
            None if oldest is None else time.monotonic() - oldest,
        )
