"""What the threads of the lanes run: commands of the engine, with the one failure that ends the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from luna_daemon import progress
from luna_daemon.arena_messages import OpenCuda
from luna_daemon.model_messages import Loaded, UnloadModel
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_daemon.engine_seam import Answer, Check, Encoding, ModelEngine, Ran
    from luna_daemon.runtime.queue import Job

T = TypeVar("T")


class EngineLane:
    """See `luna_daemon.runtime.executor.Lane`.

    Args:
        engine: runs the models.
        on_done: is told a command's name and its reply's body, before the client is.
        on_lost: is told that the device is lost, before its client is.
    """

    def __init__(
        self, engine: ModelEngine, on_done: Callable[[str, Any], None], on_lost: Callable[[DaemonError], None]
    ) -> None:
        self._engine = engine
        self._on_done = on_done
        self._on_lost = on_lost

    def run(self, job: Job, check: Check) -> Answer:
        """Call the engine's method of the command's name."""
        job.check()
        if isinstance(job.body, OpenCuda):
            return job.client.open_cuda(job.body), []  # type: ignore[attr-defined]  # clients are connections
        method: Callable[..., Answer] = getattr(self._engine, job.command.name)
        if isinstance(job.body, UnloadModel):
            self._give_back(job, job.body.set)
        with progress.told_to(_reporter(job)):
            answer = self._watched(lambda: method(job.body, job.tensors, check))
        if isinstance(answer[0], Loaded):
            self._engine.leases.take(job.client, answer[0].set)
        self._on_done(job.command.name, answer[0])
        return answer

    def _give_back(self, job: Job, name: str | None) -> None:
        """End the leases of who unloads a set, by its id or family, or all: it does not need them any more."""
        for row in self._engine.snapshot().sets:
            if name in {None, row.set, row.family}:
                self._engine.leases.give_back(job.client, row.set)

    def prepare(self, job: Job) -> Encoding:
        """Have the engine look at a request."""
        return self._watched(lambda: self._engine.prepare(job.body, job.tensors, job.check))

    def encode(self, encodings: Sequence[Encoding], check: Check) -> Ran:
        """Compute a batch."""
        return self._watched(lambda: self._engine.encode(encodings, check))

    def row_cap(self, job: Job) -> int:
        """Ask the engine."""
        return self._engine.row_cap(job.prepared)

    def _watched(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except DaemonError as error:
            if error.code == "device-lost":
                self._on_lost(error)
            raise


def _reporter(job: Job) -> progress.Report | None:
    """Return what sends a job's progress to its client, if that asked for it."""
    if not job.wants_progress:
        return None
    return lambda done, total, unit: job.tell({"done": done, "total": total, "unit": unit})
