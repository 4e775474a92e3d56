"""Requests that wait for a lane: bounded admission, fair between clients, cancellable at any time. No torch.

Within a lane clients share the device's time by deficit round robin (Shreedhar and Varghese 1995), interactive requests
before bulk ones, which get at least every eighth turn.
"""

from __future__ import annotations

import collections
import contextvars
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

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
        tell: sends a part of the answer before it is finished.
        wants_progress: whether its client asked to be told how far it is.
        cost: the milliseconds of the device that it will probably take.
        group: jobs of equal groups may turn out to fit into one batch; None runs alone.
        prepared: what the engine made of it, once it has been looked at.
        started: when the lane took it; ``window_s`` and ``load_s`` are how long it then waited for others to join, and
            for its model.
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
    tell: Callable[[Mapping[str, Any]], None] = field(default=lambda _part: None)
    wants_progress: bool = False
    cost: float = 1.0
    group: Hashable | None = None
    prepared: Any = None
    window_s: float = 0.0
    load_s: float = 0.0

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


class Call:
    """A short piece of the daemon's own work for a lane's thread, such as putting a loaded set in its place.

    Args:
        work: runs on the lane's thread, between jobs.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._context = contextvars.copy_context()  # who asks is told how far it is
        self._work = work
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work and wake who waits for it; what it raises is raised there."""
        try:
            self._result = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked for it
            self._error = error
        finally:
            self._done.set()

    def result(self) -> Any:
        """Wait for the work, which cannot be taken back, and return what it gave or raise what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


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


class _Turns:
    """The waiting jobs of one priority, by client; whoever has the largest deficit of device time is next.

    A round of deficit round robin gives each client the same quantum. Here the quantum is what the first of them lacks,
    so that a turn is found in one round and nobody gets ahead by more than one job.
    """

    def __init__(self) -> None:
        self._jobs: collections.OrderedDict[Hashable, collections.deque[Job]] = collections.OrderedDict()
        self._deficit: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        self._jobs.setdefault(job.client, collections.deque()).append(job)
        self._deficit.setdefault(job.client, 0.0)

    def restore(self, job: Job) -> None:
        """Put a removed job back before its client's others, and take the charge back."""
        self._deficit[job.client] = self._deficit[job.client] + job.cost if job.client in self._deficit else 0.0
        self._jobs.setdefault(job.client, collections.deque()).appendleft(job)

    def next(self) -> Job:
        lacking = {client: jobs[0].cost - self._deficit[client] for client, jobs in self._jobs.items()}
        client = next((one for one, lack in lacking.items() if lack <= 0), None)
        if client is None:
            client = min(lacking, key=lacking.__getitem__)
            for one in self._jobs:
                self._deficit[one] += lacking[client]
        job = self._jobs[client][0]
        self.remove(job)
        return job

    def remove(self, job: Job) -> bool:
        """Take a job out and charge its client for it; False if it does not wait here."""
        jobs = self._jobs.get(job.client)
        if jobs is None or job not in jobs:
            return False
        jobs.remove(job)
        self._deficit[job.client] -= job.cost
        self._jobs.move_to_end(job.client)
        if not jobs:
            del self._jobs[job.client], self._deficit[job.client]
        return True

    def in_turn(self) -> Iterator[Job]:
        """Give the jobs in the order of a round robin: first every client's first, then their second."""
        for nth in itertools.zip_longest(*self._jobs.values()):
            yield from (job for job in nth if job is not None)


class FairQueue:
    """The waiting jobs of one lane."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._interactive, self._bulk = _Turns(), _Turns()
        self._first: list[Job] = []
        self._calls: collections.deque[Call] = collections.deque()
        self._taken = 0
        self._puts = 0
        self._is_closed = False

    def put(self, job: Job) -> None:
        """Add a job behind its client's others."""
        with self._condition:
            self._turns(job).put(job)
            self._puts += 1
            self._condition.notify_all()

    def put_first(self, job: Job) -> None:
        """Add a job whose turn it was, and that had to wait for its model: it comes before all else."""
        with self._condition:
            job.state = QUEUED
            self._first.append(job)
            self._condition.notify_all()

    def restore(self, job: Job) -> None:
        """Put a job that was taken back before its client's others, as if it had not been."""
        with self._condition:
            job.state = QUEUED
            self._turns(job).restore(job)
            self._condition.notify_all()

    def call(self, call: Call) -> None:
        """Add a short piece of work of the daemon's own; it comes before all jobs."""
        with self._condition:
            self._calls.append(call)
            self._condition.notify_all()

    def _turns(self, job: Job) -> _Turns:
        return self._bulk if job.is_bulk else self._interactive

    def take(self) -> Job | Call | None:
        """Wait for what is next, in fair order, and mark it as running; None when closed and empty."""
        with self._condition:
            while not (self._first or self._calls or self._interactive or self._bulk):
                if self._is_closed:
                    return None
                self._condition.wait()
            if self._first:
                return _begun(self._first.pop(0))
            return self._calls.popleft() if self._calls else _begun(self._next())

    def take_call(self) -> Call | None:
        """Return a waiting call, if there is one, at once."""
        with self._condition:
            return self._calls.popleft() if self._calls else None

    def take_grouped(self) -> Job | None:
        """Return the first waiting job that may be batched, if there is one, at once."""
        with self._condition:
            for job in self._waiting():
                if job.group is not None and self.remove(job):
                    return _begun(job)
            return None

    def _next(self) -> Job:
        self._taken += 1
        is_bulk_turn = self._bulk and (not self._interactive or self._taken % BULK_EVERY == 0)
        return (self._bulk if is_bulk_turn else self._interactive).next()

    def waiting(self, group: Hashable) -> tuple[int, list[Job]]:
        """Return a mark for `wait_after` and the waiting jobs of a group in fair order."""
        with self._condition:
            return self._puts, [job for job in self._waiting() if job.group == group]

    def wait_after(self, mark: int, seconds: float) -> bool:
        """Wait until a job was put since the mark; False after the time."""
        with self._condition:
            return self._condition.wait_for(lambda: self._puts != mark or bool(self._calls), seconds)

    def claim(self, job: Job) -> bool:
        """Take a waiting job out of its turn and mark it as running; False if it does not wait any more."""
        with self._condition:
            return self.remove(job) and bool(_begun(job))

    def remove(self, job: Job) -> bool:
        """Take a waiting job out; False if it does not wait any more."""
        with self._condition:
            if job in self._first:
                self._first.remove(job)
                return True
            return self._turns(job).remove(job)

    def clear(self) -> list[Job]:
        """Take all waiting jobs out."""
        with self._condition:
            jobs = list(self._waiting())
            self._interactive, self._bulk, self._first = _Turns(), _Turns(), []
            return jobs

    def close(self) -> None:
        """Let `take` return None once the queue is empty."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def _waiting(self) -> Iterator[Job]:
        yield from self._first
        yield from self._interactive.in_turn()
        yield from self._bulk.in_turn()

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


def _begun(job: Job) -> Job:
    job.state = RUNNING
    if job.started is None:
        job.started = time.monotonic()
    return job
