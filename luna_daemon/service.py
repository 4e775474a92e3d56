"""The running daemon: its state, its lanes, the commands it answers at once, and how it stops."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil

import luna_engine
from luna_daemon import process_exits
from luna_daemon.arenas import ArenaPool
from luna_daemon.frames import Limits, WireTensor
from luna_daemon.lanes import EngineLane
from luna_daemon.memory_messages import Lease, Leased
from luna_daemon.messages import (
    PROTOCOL,
    Cancel,
    Cancelled,
    DeviceInfo,
    Ping,
    Pong,
    Shutdown,
    ShutdownReply,
    Welcome,
)
from luna_daemon.protocol import COMMANDS, Lane
from luna_daemon.reporting import Reporter, peak_rss_bytes
from luna_daemon.runtime.executor import Executor, internal_error
from luna_daemon.runtime.queue import RUNNING, Admission
from luna_daemon.shared_memory import SharedMemoryBudget
from luna_daemon.status_messages import (
    DaemonStatus,
    DeviceStatus,
    EngineSnapshot,
    StatusRequest,
    Totals,
)
from luna_daemon.transport import CUDA_IPC
from luna_daemon.watch import DOWNGRADES_KEPT, Pulse, Watch
from luna_daemon.watch_messages import (
    Drain,
    Drained,
    MetricsReply,
    MetricsRequest,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from luna_daemon.connection import Connection
    from luna_daemon.engine_seam import ModelEngine
    from luna_daemon.protocol import Command
    from luna_daemon.runtime.queue import Job

NO_WAIT_S = 0.05
REJECTED_LOG_S = 60.0
_log = logging.getLogger("luna.service")


class DaemonService:
    """Everything that all connections share.

    Args:
        name, service_type: of the daemon.
        engine: runs the models; a test may give its own.
        token: of the TCP handshake.
    """

    def __init__(
        self,
        name: str,
        service_type: str,
        engine: ModelEngine,
        token: bytes,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.service_type = service_type
        self.token = token
        self.limits = limits or Limits()
        self.generation = secrets.token_hex(8)
        self.admission = Admission(self.limits)
        self.shared_memory = SharedMemoryBudget(self.limits.shm_connection_bytes, self.limits.shm_total_bytes)
        self.arenas = ArenaPool(self.limits, lambda: engine.device_memory)
        self.watch = Watch(self.generation)
        self.addresses: tuple[str, ...] = ()
        self._engine = engine
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._phase: tuple[str, float | None, float] | None = ("starting", None, self._began)
        self._is_ready = False
        self._is_stopping = False
        self._draining: object | None = None
        self._connections: set[Connection] = set()
        self._totals: Counter[str] = Counter()
        self._rejected = [0, -REJECTED_LOG_S]
        self._finished = threading.Event()
        self.exit_code = process_exits.ASKED
        self.exit_reason = "asked"
        self.failure: BaseException | None = None
        self._ready = threading.Event()
        runs = EngineLane(engine, self.watch.changed, self._device_lost)
        self._lanes = {
            Lane.DEVICE: Executor("device", runs, self._start_engine, self._engine_failed, self._bring),
            Lane.LOAD: Executor("load", runs, self._wait_ready),
        }

        self._report = Reporter(
            engine, self._lanes, self.admission, self.shared_memory, self.arenas, self.watch, self._open_connections
        )

    # starting

    def start(self) -> None:
        """Start the lanes; the engine starts on the device's."""
        for lane in self._lanes.values():
            lane.start()
        report = self._report
        self.watch.start(Pulse(report.queue_event, report.memory_event, report.running, report.places))

    def _start_engine(self) -> None:
        self._engine.start(self._on_phase, self._lanes[Lane.DEVICE].call)
        with self._lock:
            self._phase = None
            self._is_ready = True
        self._ready.set()
        self.watch.events.publish("state", "ready", {})
        _log.info("ready after %.1f s", time.monotonic() - self._began)

    def _on_phase(self, name: str, done: float | None) -> None:
        with self._lock:
            is_new = self._phase is None or self._phase[0] != name
            began = time.monotonic() if is_new or self._phase is None else self._phase[2]
            self._phase = (name, done, began)
        self.watch.events.publish("state", "loading", {"done": done})
        if is_new:
            _log.info("phase: %s", name)

    def _wait_ready(self) -> None:
        self._ready.wait()

    def _engine_failed(self, error: BaseException) -> None:
        self.failure = error
        self._finished.set()

    # requests

    def check_open(self, command: Command) -> None:
        """Refuse what this daemon does not or no longer do.

        Raises:
            DaemonError: ``daemon-draining`` or ``service-not-here``.
        """
        if self._is_stopping:
            raise DaemonError("daemon-draining", f"{self.name} is stopping", retry_after_ms=1000)
        if self._draining is not None:
            raise DaemonError(
                "daemon-draining",
                f"{self.name} takes no work now",
                "wait until its keeper opens it again (drain with reopen), or ask another daemon",
                retry_after_ms=1000,
            )
        kind = "clip" if command.name.startswith(("encode_", "lora_", "generate")) else command.name.partition("_")[0]
        if kind in {"clip", "vae"} and self.service_type not in {kind, "full"}:
            from luna_daemon.address import default_port

            raise DaemonError(
                "service-not-here",
                f"{self.name} is a {self.service_type} daemon, {command.name} needs {kind} or full",
                f"ask the daemon at port {default_port(kind)}",
                details={"port": default_port(kind), "service_type": kind},
            )

    def recall(self, job: Job) -> tuple[Any, list[WireTensor]] | DaemonError | None:
        """Answer a request from memory, on the reader's thread, rather than behind what the device does now.

        None if it must be run. An idle device answers as fast, and looks only once.
        """
        lane = self._lanes[job.command.lane]
        if job.command.lane is not Lane.DEVICE or not lane.running or job.via == CUDA_IPC:
            return None
        job.started = time.monotonic()
        try:
            answer = self._engine.recall(job.body, job.tensors)
        except DaemonError:
            answer = None  # the lane refuses it, in its turn
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
            return internal_error(job.command.name, job.trace)
        if answer is None:
            job.started = None
        return answer

    def enqueue(self, job: Job) -> None:
        """Hand an admitted request to its lane."""
        if job.command.lane is Lane.DEVICE:
            job.group = self._engine.group(job.body)
        self._lanes[job.command.lane].put(job)
        if getattr(job.body, "wait", True) is False:
            timer = threading.Timer(NO_WAIT_S, lambda: job.client.refuse_wait(job))  # type: ignore[attr-defined]  # clients are connections
            timer.daemon = True
            timer.start()

    def _bring(self, job: Job, set_id: str) -> None:
        """Have the loader read a set that had to leave memory; the request goes on when it is there."""
        device = self._lanes[Lane.DEVICE]

        def bring() -> None:
            error: DaemonError | None = None
            try:
                self._engine.bring(set_id, job.check)
            except DaemonError as refused:
                error = refused
            except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
                error = internal_error(job.command.name, job.trace)
            device.resume(job, error)

        self._lanes[Lane.LOAD].post(bring)

    def _device_lost(self, error: DaemonError) -> None:
        _log.critical("the device is lost: %s", error.message, extra={"code": error.code})
        self._is_stopping = True
        self.exit_code, self.exit_reason = process_exits.DEVICE_LOST, error.message
        for lane in self._lanes.values():
            for job in lane.queue.clear():
                job.finish(job, DaemonError("device-lost", error.message, error.hint))
        threading.Timer(0.2, self._finished.set).start()  # after the reply of the request that met it

    def answer_now(self, connection: Connection, command: Command, body: Any) -> tuple[Any, list[WireTensor]]:
        """Answer a command of the lane *now* on the reader's thread."""
        match body:
            case Ping():
                return self._pong(body), []
            case StatusRequest():
                return self.status(body), []
            case Cancel():
                return self._cancel_by_id(connection, body), []
            case Lease():
                return self._lease(connection, body), []
            case Shutdown():
                return ShutdownReply(accepted=not self._is_stopping), []
            case Drain():
                return self._drain_or_reopen(body), []
            case Subscribe():
                return Subscribed(*self.watch.events.subscribe(connection, body.topics, body.from_seq)), []
            case Unsubscribe():
                return Unsubscribed(self.watch.events.unsubscribe(connection, body.topics)), []
            case MetricsRequest():
                return MetricsReply(), [WireTensor.of_bytes("text", self.metrics())]
            case _:
                answer: tuple[Any, list[WireTensor]] = getattr(self._engine, command.name)(body, {}, lambda: None)
                return answer

    def metrics(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        from luna_daemon.exposition import render

        return render(self.watch.meter.read(), self.status(StatusRequest()))

    def _pong(self, body: Ping) -> Pong:
        state, phase, phase_s, _done = self._state()
        uptime_ms = int((time.monotonic() - self._began) * 1000)
        return Pong(body.nonce, self.generation, state, phase, phase_s, uptime_ms)

    def _state(self) -> tuple[str, str | None, float | None, float | None]:
        phase = self._phase
        if self._is_stopping:
            return "stopping", None, None, None
        if not self._is_ready and phase is not None:
            return "loading", phase[0], round(time.monotonic() - phase[2], 3), phase[1]
        is_busy = any(job.state == RUNNING for job in self._lanes[Lane.DEVICE].running)
        is_draining = self._draining is not None
        return "busy" if is_busy else "ready", "draining" if is_draining else None, None, None

    def _cancel_by_id(self, connection: Connection, body: Cancel) -> Cancelled:
        job = connection.job(body.request)
        if job is None:
            return Cancelled("unknown")
        return Cancelled(self.cancel(job))

    def _lease(self, connection: Connection, body: Lease) -> Leased:
        leases = self._engine.leases
        if body.release:
            leases.give_back(connection, body.set)
        elif body.set in {row.set for row in self._engine.snapshot().sets}:
            leases.take(connection, body.set)
        else:
            raise DaemonError("model-missing", f"no set {body.set!r} is here", "load it with load_model")
        return Leased(leases.count(body.set))

    def cancel(self, job: Job) -> str:
        """Give up a request; see `Executor.cancel`."""
        self._totals["cancelled"] += 1
        return self._lanes[job.command.lane].cancel(job)

    def replied(self, body: Any) -> None:
        """Do what had to wait until the reply of a command of the lane *now* was sent."""
        if isinstance(body, Shutdown):
            self.stop(body.deadline_ms / 1000, "asked", is_forced=body.force)

    # status

    def status(self, body: StatusRequest) -> DaemonStatus:
        """Return everything this daemon says of itself."""
        snapshot = self._engine.snapshot()
        state, phase, phase_s, done = self._state()
        memory = psutil.Process().memory_info()
        status = DaemonStatus(
            version=luna_engine.__version__,
            protocol=PROTOCOL,
            name=self.name,
            generation=self.generation,
            service_type=self.service_type,
            addresses=self.addresses,
            pid=os.getpid(),
            state=state,
            phase=phase,
            phase_s=phase_s,
            phase_done=done,
            uptime_s=round(time.monotonic() - self._began, 3),
            rss_bytes=memory.rss,
            peak_rss_bytes=peak_rss_bytes(),
            backend=snapshot.backend,
            backend_reason=snapshot.backend_reason,
            device=snapshot.device,
            queue=self._report.lanes(),
            totals=Totals(self._totals["requests"], self._totals["cancelled"], self.watch.meter.errors()),
        )
        return status if body.detail == "brief" else self._filled(status, snapshot)

    def _filled(self, status: DaemonStatus, snapshot: EngineSnapshot) -> DaemonStatus:
        return dataclasses.replace(
            status,
            sets=snapshot.sets,
            caches={
                **snapshot.caches,
                "shm": self._report.shared_memory(),
                "arenas": self._report.arenas(),
            },
            clients=self._report.clients(),
            downgrades=(*snapshot.downgrades, *self.watch.downgrades)[-DOWNGRADES_KEPT:],
        )

    def welcome(self, transports: dict[str, str]) -> Welcome:
        """Return what a new connection is told, with the ways that its tensors have."""
        snapshot = self._engine.snapshot()
        return Welcome(
            protocol=PROTOCOL,
            version=luna_engine.__version__,
            name=self.name,
            generation=self.generation,
            service_type=self.service_type,
            state=self._state()[0],
            backend=snapshot.backend,
            device=_device_info(snapshot.device),
            commands=tuple(COMMANDS),
            sets=tuple(row.set for row in snapshot.sets[:100]),
            limits=dataclasses.asdict(self.limits),
            transports=transports,
        )

    # connections

    def add(self, connection: Connection) -> None:
        """Count an authenticated connection in."""
        with self._lock:
            self._connections.add(connection)

    def remove(self, connection: Connection) -> None:
        """Count a connection out."""
        with self._lock:
            self._connections.discard(connection)
        self._engine.leases.end(connection)

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return sorted(self._connections, key=lambda one: (one.name, one.pid))

    def count_request(self) -> None:
        """Count a request."""
        self._totals["requests"] += 1

    def note_rejected(self, why: str) -> None:
        """Log refused connections, one line a minute however many there are."""
        with self._lock:
            self._rejected[0] += 1
            now = time.monotonic()
            if now - self._rejected[1] < REJECTED_LOG_S:
                return
            count, self._rejected[0], self._rejected[1] = self._rejected[0], 0, now
        _log.warning("%d connections refused, the last because: %s", count, why)

    # stopping

    def stop(self, deadline_s: float, reason: str, *, is_forced: bool = False) -> bool:
        """Begin to stop: no new work, finish or refuse what is queued, then close. False if it stops already."""
        with self._lock:
            if self._is_stopping:
                return False
            self._is_stopping = True
            self.exit_reason = reason
        self.watch.events.publish("state", "stopping", {})
        _log.info("stopping: %s", reason)
        threading.Thread(
            target=self._drain, args=(0.0 if is_forced else deadline_s,), name="luna-drain", daemon=True
        ).start()
        return True

    def _drain_or_reopen(self, body: Drain) -> Drained:
        """Close the admission and refuse at the deadline what still waits then; or open it again."""
        with self._lock:
            self._draining = None if body.reopen else object()
            mine = self._draining
        self.watch.events.publish("state", "reopened" if body.reopen else "draining", {})
        _log.info("open again" if body.reopen else "draining")
        if mine is not None:
            timer = threading.Timer(body.deadline_ms / 1000, self._refuse_waiting, (mine,))
            timer.daemon = True
            timer.start()
        lanes = self._report.lanes().values()
        return Drained(sum(lane.depth for lane in lanes), sum(lane.running for lane in lanes))

    def _refuse_waiting(self, drain: object) -> None:
        """Refuse what waits, unless that drain was ended or replaced by another one meanwhile."""
        if self._draining is drain:
            for executor in self._lanes.values():
                self._refuse_all(executor, f"{self.name} drained before this was its turn")

    @staticmethod
    def _refuse_all(executor: Executor, why: str) -> None:
        for job in executor.queue.clear():
            job.finish(job, DaemonError("daemon-draining", why))

    def _drain(self, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        lanes = list(self._lanes.values())
        if self._is_ready:
            for lane in lanes:
                lane.wait_idle(max(0.0, deadline - time.monotonic()))
        for lane in lanes:
            self._refuse_all(lane, f"{self.name} stopped before this was its turn")
            for job in lane.running:
                lane.cancel(job)
            lane.wait_idle(1.0)
        self._finished.set()

    def finish(self) -> None:
        """End the wait of `wait` at once."""
        self._finished.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the daemon is to exit."""
        return self._finished.wait(seconds)

    def close_connections(self, linger_s: float = 1.0) -> None:
        """Send the last replies and hang up."""
        self.watch.stop()
        deadline = time.monotonic() + linger_s
        for connection in self._open_connections():
            connection.close(max(0.0, deadline - time.monotonic()))


def _device_info(device: DeviceStatus) -> DeviceInfo:
    return DeviceInfo(device.kind, device.uuid, device.name, device.total_bytes)
