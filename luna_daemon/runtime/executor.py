"""One thread that runs one lane's jobs, one after the other. The device's executor is the only one that touches it."""

from __future__ import annotations

import logging
import secrets
import threading
from typing import TYPE_CHECKING, Any

from luna_daemon.runtime.queue import DONE, RUNNING, FairQueue, Job
from luna_engine.errors import DaemonError, LunaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.frames import WireTensor

_log = logging.getLogger("luna.executor")


class Executor:
    """The thread of a lane.

    Args:
        name: of the lane.
        run: computes a job's answer; runs on this thread only.
        first: runs on this thread before any job; if it raises, `on_first_failed` gets the exception and no job runs.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Job], tuple[Any, list[WireTensor]]],
        first: Callable[[], None] | None = None,
        on_first_failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.queue = FairQueue()
        self._run = run
        self._first = first
        self._on_first_failed = on_first_failed
        self._idle = threading.Condition()
        self._running: Job | None = None
        self._is_in_first = first is not None
        self._thread = threading.Thread(target=self._loop, name=f"luna-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def running(self) -> Job | None:
        """Return the job that runs now."""
        return self._running

    def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing waits or runs."""
        with self._idle:
            return self._idle.wait_for(
                lambda: self._running is None and not self._is_in_first and self.queue.facts()[0] == 0, seconds
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
        while (job := self.queue.take()) is not None:
            with self._idle:
                self._running = job
            try:
                answer = self._answer(job)
                job.state = DONE
                job.finish(job, answer)
            except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
                _log.exception("the answer of request %s could not be given", job.request)
            finally:
                with self._idle:
                    self._running = None
                    self._idle.notify_all()

    def _answer(self, job: Job) -> tuple[Any, list[WireTensor]] | DaemonError:
        try:
            job.check()
            answer = self._run(job)
            if job.is_cancelled:
                job.check()
        except DaemonError as error:
            return error
        except LunaError as error:
            return DaemonError(error.code, error.message, error.hint, details=error.details)
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
            return internal_error(job.command.name, job.trace)
        return answer

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
        return "stopping" if job.state == RUNNING else "finished"


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
