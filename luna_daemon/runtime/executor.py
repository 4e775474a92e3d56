"""The threads of the lanes. The device's is the only one that touches models; it gathers batches and lets them through.

Between the steps of a long request (tiles, images) the device's thread looks whether an encode waits, and runs one
batch of them. Short work of the daemon itself (`Executor.call`) is done between jobs and at those steps, too.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from luna_daemon.engine_seam import SetOnDiskError
from luna_daemon.runtime.batching import Batch, Gathering
from luna_daemon.runtime.costs import Costs
from luna_daemon.runtime.queue import DONE, Call, FairQueue, Job
from luna_engine.errors import DaemonError, LunaError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.engine_seam import Answer, Check, Encoding, Ran

_TEXT_COMMANDS = frozenset({"encode_tokens", "encode_text"})
_OF_ALL = frozenset({"device-lost", "out-of-memory", "daemon-loading"})
"""Errors of a batch that are no single request's fault."""
_log = logging.getLogger("luna.executor")


class Lane(Protocol):
    """What a lane's thread runs."""

    def run(self, job: Job, check: Check) -> Answer:
        """Compute the answer of a request that runs alone."""
        ...

    def prepare(self, job: Job) -> Encoding:
        """Look at a request that may be batched; see `ModelEngine.prepare`."""
        ...

    def encode(self, encodings: Sequence[Encoding], check: Check) -> Ran:
        """Compute a batch; see `ModelEngine.encode`."""
        ...

    def row_cap(self, job: Job) -> int:
        """Return how many rows may run at once for a prepared job's model."""
        ...


class JobSteps:
    """What a command that runs alone calls between its steps; see `luna_daemon.engine_seam.Steps`."""

    def __init__(self, job: Job, between: Callable[[], None]) -> None:
        self._job = job
        self._between = between

    def __call__(self) -> None:
        """Raise if nobody waits any more; let others through."""
        self._job.check()
        self._between()

    def quiet(self) -> None:
        """Raise if nobody waits any more, and let nobody through: a model is in the middle of its run."""
        self._job.check()

    def tell(self, part: Mapping[str, Any]) -> None:
        """Send a part of the answer."""
        self._job.tell(part)


class Executor:
    """The thread of a lane.

    Args:
        name: of the lane.
        lane: what it runs; called on this thread only.
        first: runs on this thread before any job; if it raises, `on_first_failed` gets the exception and no job runs.
        on_absent: is given a job whose model must be read from disk, and its set; `resume` goes on with the job.
    """

    def __init__(
        self,
        name: str,
        lane: Lane,
        first: Callable[[], None] | None = None,
        on_first_failed: Callable[[BaseException], None] | None = None,
        on_absent: Callable[[Job, str], None] | None = None,
    ) -> None:
        self.queue = FairQueue()
        self.costs = Costs()
        self._lane = lane
        self._first = first
        self._on_first_failed = on_first_failed
        self._on_absent = on_absent
        self._absent: dict[Job, float] = {}
        self._idle = threading.Condition()
        self._running: tuple[Job, ...] = ()
        self._is_in_first = first is not None
        self._gathering = Gathering(self.queue, self._is_prepared, lane.row_cap)
        self._thread = threading.Thread(target=self._loop, name=f"luna-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def running(self) -> tuple[Job, ...]:
        """Return the jobs that run now."""
        return self._running

    def put(self, job: Job) -> None:
        """Let a job wait for its turn."""
        job.cost = self.costs.predict(job.body, job.tensors)
        self.queue.put(job)

    def call(self, work: Callable[[], Any]) -> Any:
        """Run short work on this lane's thread before its next job, and return what it gives or raise what it raises.

        On the thread itself it runs at once.
        """
        if threading.current_thread() is self._thread:
            return work()
        call = Call(work)
        self.queue.call(call)
        return call.result()

    def post(self, work: Callable[[], Any]) -> None:
        """Run work on this lane's thread before its next job, without waiting for it."""
        self.queue.call(Call(work))

    def resume(self, job: Job, error: DaemonError | None = None) -> None:
        """Go on with a job whose model is here now, or answer it with the reason why not."""
        with self._idle:
            job.load_s += time.monotonic() - self._absent.pop(job)
            if error is None:
                self.queue.put_first(job)
            self._idle.notify_all()
        if error is not None:
            self._finish(job, error)

    def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing waits or runs."""
        with self._idle:
            return self._idle.wait_for(
                lambda: not (self._running or self._is_in_first or self._absent or self.queue.facts()[0]), seconds
            )

    def _loop(self) -> None:
        if self._first is not None:
            try:
                self._first()
            except BaseException as error:  # noqa: BLE001 - border of the thread; the owner logs it and exits
                if self._on_first_failed is not None:
                    self._on_first_failed(error)
                return
            with self._idle:
                self._is_in_first = False
                self._idle.notify_all()
        while (turn := self.queue.take()) is not None:
            if isinstance(turn, Call):
                turn.run()
            else:
                self._run(turn)

    def _run(self, head: Job) -> None:
        """Run a job whose turn it is, and what fits into a batch with it."""
        before = self._running
        self._running = (*before, head)
        try:
            if head.group is None:
                self._run_alone(head)
            elif self._is_prepared(head):
                batch = self._gathering.gather(head)
                self._running = (*before, *batch)
                self._run_batch(batch)
                self._gathering.ended(batch)
        finally:
            with self._idle:
                self._running = before
                self._idle.notify_all()

    def _run_alone(self, job: Job) -> None:
        began = time.monotonic()
        is_text = job.command.name in _TEXT_COMMANDS  # an exact encode is alone with its encoder
        steps = JobSteps(job, _nothing if is_text else self._let_through)
        answer = self._guarded(job, lambda: self._lane.run(job, steps))
        if not isinstance(answer, DaemonError):
            self.costs.learn([job], (time.monotonic() - began) * 1000)
        self._finish(job, answer)

    def _let_through(self) -> None:
        """Do waiting work of the daemon, and one batch of encodes, between two steps of a long request."""
        while (call := self.queue.take_call()) is not None:
            call.run()
        if (job := self.queue.take_grouped()) is not None:
            self._run(job)

    def _is_prepared(self, job: Job) -> bool:
        """Have the engine look at a job; False if that was all, because it is answered."""

        def prepare() -> None:
            job.check()
            job.prepared = self._lane.prepare(job)

        failed = self._guarded(job, prepare)
        if isinstance(failed, DaemonError):
            self._finish(job, failed)
            return False
        return True

    def _run_batch(self, jobs: list[Job]) -> None:
        began = time.monotonic()
        ran = self._guarded(jobs[0], lambda: self._lane.encode([job.prepared for job in jobs], Batch(jobs).check))
        if isinstance(ran, DaemonError) and len(jobs) > 1 and ran.code not in _OF_ALL:
            for job in jobs:
                self._run_batch([job])  # so that what one of them cannot have is refused to that one only
            return
        if not isinstance(ran, DaemonError):
            self.costs.learn(jobs, (time.monotonic() - began - ran.load_s) * 1000)
        for index, job in enumerate(jobs):
            if isinstance(ran, DaemonError):
                self._finish(job, ran)
                continue
            job.load_s += ran.load_s
            self._finish(job, ran.answers[index])

    def _guarded(self, job: Job, work: Callable[[], Any]) -> Any:
        """Return what some work gives, or the error that its client is told."""
        try:
            return work()
        except DaemonError as error:
            return error
        except LunaError as error:
            return DaemonError(error.code, error.message, error.hint, details=error.details)
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
            return internal_error(job.command.name, job.trace)

    def _finish(self, job: Job, answer: Answer | DaemonError) -> None:
        job.prepared = None
        if isinstance(answer, SetOnDiskError) and self._on_absent is not None:
            self._absent[job] = time.monotonic()
            self._on_absent(job, answer.set_id)
            return
        if job.is_cancelled and not isinstance(answer, DaemonError) and not job.command.streams:
            answer = DaemonError("cancelled", f"{job.command.name} was cancelled")
        job.state = DONE
        try:
            job.finish(job, answer)
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
            _log.exception("the answer of request %s could not be given", job.request)

    def cancel(self, job: Job) -> str:
        """Give up a job.

        Returns:
            ``removed`` (it waited), ``stopping`` (it runs and stops at its next check) or ``finished``.
        """
        job.is_cancelled = True
        if self.queue.remove(job):
            job.state = DONE
            job.finish(job, DaemonError("cancelled", f"{job.command.name} was cancelled"))
            with self._idle:
                self._idle.notify_all()
            return "removed"
        return "finished" if job.state == DONE else "stopping"


def _nothing() -> None:
    """Let nobody through."""


def internal_error(what: str, trace: str | None = None) -> DaemonError:
    """Log the current exception with its traceback and return what the client is told.

    Args:
        what: failed.
        trace: under which it is logged; None makes one.
    """
    trace = trace or secrets.token_hex(8)
    _log.exception("%s failed", what, extra={"trace": trace, "code": "internal"})
    return DaemonError(
        "internal",
        f"{what} failed inside the daemon, trace {trace}",
        "the daemon's log has the details under that trace id",
        details={"trace": trace},
    )
