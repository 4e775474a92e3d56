"""The daemon's end of one connection: one reader thread that admits, answers or queues requests."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from luna_daemon import frames, platform, transport
from luna_daemon.connection_memory import ConnectionMemory
from luna_daemon.error_records import error_record
from luna_daemon.fields import decode_body
from luna_daemon.handshake import Handshake, Rejected
from luna_daemon.messages import OpenShm
from luna_daemon.protocol import Lane, check_tensors
from luna_daemon.replies import reply_frame, timing
from luna_daemon.request_header import command_name, read_request_header, released_offsets
from luna_daemon.runtime.executor import internal_error
from luna_daemon.runtime.queue import DONE, Job
from luna_daemon.stream import ConnectionLostError, FrameReader, FrameWriter
from luna_daemon.transport import CUDA_IPC, SHM, way_of
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections import Counter

    from luna_daemon.arena_messages import CudaOpened, OpenCuda
    from luna_daemon.frames import WireTensor
    from luna_daemon.messages import Hello, Welcome
    from luna_daemon.protocol import Command
    from luna_daemon.service import DaemonService
    from luna_daemon.stream import Announced

UNSENT_BYTES_MAX = 64 * frames.MIB
EVENT_BYTES_AHEAD = 65_536
_log = logging.getLogger("luna.connection")


class Connection:
    """One client."""

    def __init__(self, service: DaemonService, link: socket.socket, port: int | None) -> None:
        """Take over an accepted socket; ``port`` is the TCP port it came through, None for a Unix socket."""
        self._service = service
        self._socket = link
        self._port = port
        self._reader = FrameReader(link, service.limits)
        self._writer = FrameWriter(link, self.hang_up)
        self._memory = ConnectionMemory(service.shared_memory, service.arenas, is_local=port is None)
        self._carrier = self._memory.carrier
        self._jobs: dict[int, Job] = {}
        self._jobs_lock = threading.Lock()
        self.name = "?"
        self.pid = 0
        self.requests = 0

    @property
    def transport_name(self) -> str:
        """How tensors cross on this connection."""
        return self._carrier.name

    @property
    def transport_reason(self) -> str | None:
        """Why they do not cross faster, None if they cannot or nobody asked."""
        return self._carrier.why_no_better

    @property
    def sent_by_way(self) -> Counter[str]:
        """How many tensors were sent by which way; ``full`` and ``arena_full`` are those that found no room."""
        return self._carrier.counts

    @property
    def is_clogged(self) -> bool:
        """Tell whether the client is so slow that its events have to wait."""
        return self._writer.unsent_bytes > EVENT_BYTES_AHEAD

    def send_event(self, record: dict[str, Any]) -> None:
        """Send one event; a client that does not read them never holds anybody up."""
        self._send(record)

    def hang_up(self) -> None:
        """Close the connection from any thread; its reader then ends."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is down already

    def close(self, linger_s: float) -> None:
        """Send what is still to be sent, then hang up."""
        self._writer.close(linger_s)
        self.hang_up()

    def handshake(self) -> bool:
        """Let the client say hello and prove itself; False if it may not stay."""
        try:
            hands = Handshake(self._socket, self._reader, self._send, self._service.token, self._port)
            hello = hands.run(self._welcome)
        except Rejected as rejected:
            if rejected.error is not None:
                self._send({"id": None, "ok": False, "error": error_record(rejected.error)})
            self._service.note_rejected(str(rejected))
            return False
        except (ConnectionLostError, OSError) as error:
            self._service.note_rejected(str(error))
            return False
        self.name, self.pid = hello.client.name, hello.client.pid
        return True

    def _welcome(self, hello: Hello) -> Welcome:
        peer_pid = platform.peer_pid(self._socket) if self._port is None else None
        cuda_fault = self._memory.meet(hello.tensors, peer_pid)
        return self._service.welcome(transport.offered(is_local=self._port is None, cuda_fault=cuda_fault))

    def open_cuda(self, body: OpenCuda) -> CudaOpened:
        """Do one step towards tensors that stay on the card; called by the device's thread.

        Raises:
            DaemonError: ``transport-failed``.
        """
        return self._memory.open_cuda(body, self._reader)

    def serve(self) -> None:
        """Read requests until the client goes, then give up what it still waits for."""
        try:
            while True:
                self._writer.wait_below(UNSENT_BYTES_MAX)
                announced = self._reader.announced()
                self.requests += 1
                self._take(announced)
        except ConnectionLostError:
            pass  # the usual end
        except DaemonError as error:
            self._send({"id": None, "ok": False, "error": error_record(error)})
            self._service.watch.meter.answered("unknown", error.code)
            _log.warning("%s closed: %s", self.name, error.message, extra={"code": error.code})
            self._writer.close(1.0)
        finally:
            self._writer.close()
            self.hang_up()
            self._memory.close()
            self._service.watch.events.forget(self)
            for job in self._open_jobs():
                self._service.cancel(job)

    def _open_jobs(self) -> list[Job]:
        with self._jobs_lock:
            return list(self._jobs.values())

    def _take(self, announced: Announced) -> None:
        header = announced.header
        request = header.get("id")
        if type(request) is not int or request < 1:
            raise frames.broken("a request without an id")
        self._service.count_request()
        nbytes = announced.tensor_bytes
        admitted = False
        received = False
        try:
            if "released" in header:
                self._carrier.free_at(SHM, released_offsets(header["released"]))
            if "released_cuda" in header:
                self._carrier.free_at(CUDA_IPC, released_offsets(header["released_cuda"]))
            command, job = self._judge(header, request)
            if command.lane is Lane.NOW and announced.segments:
                raise DaemonError("tensor-invalid", f"{command.name} takes no segments")
            if job is None:
                self._answer_now(command, request, header.get("body"))
                return
            job.via = way_of(segment.ref for segment in announced.segments if segment.ref is not None)
            if job.via == CUDA_IPC and command.lane is not Lane.DEVICE:
                raise DaemonError("tensor-invalid", f"{command.name} takes no tensors that lie on a card")
            self._service.admission.enter(self, nbytes)
            admitted = True
            job.tensors, received = self._carrier.receive(self._reader, announced), True
            job.nbytes = nbytes
            check_tensors(command, job.body, job.tensors)
        except DaemonError as error:
            if isinstance(error, ConnectionLostError):
                if admitted:
                    self._service.admission.leave(self, nbytes)
                raise
            if admitted:
                self._service.admission.leave(self, nbytes)
            if not received:
                self._reader.skip(announced.payload_bytes)
            self._service.watch.meter.answered(command_name(header.get("cmd")), error.code)
            self._fail(request, error)
            return
        self._enqueue(job)

    def _judge(self, header: dict[str, Any], request: int) -> tuple[Command, Job | None]:
        """Check a header; return its command, and the job unless it is answered at once."""
        asked = read_request_header(header)
        command = asked.command
        if request in self._jobs:
            raise DaemonError("request-invalid", f"id: {request} is in flight on this connection already")
        if command.lane is Lane.NOW:
            return command, None
        self._service.check_open(command)
        job = Job(
            client=self,
            request=request,
            command=command,
            body=decode_body(command.request, header.get("body", {}), strict=True),
            tensors={},
            deadline=time.monotonic() + asked.deadline_s,
            finish=self._finish,
            is_bulk=asked.is_bulk,
            trace=asked.trace,
        )
        if command.streams or asked.wants_progress:
            numbers = itertools.count()
            job.tell = lambda part: self._send({"id": request, "part": next(numbers), "body": part})
            job.wants_progress = asked.wants_progress
        return command, job

    def _answer_now(self, command: Command, request: int, raw: Any) -> None:
        try:
            body = decode_body(command.request, {} if raw is None else raw, strict=True)
            if isinstance(body, OpenShm):
                self._memory.open_shared(request, body, self._reader, self._writer)
                self._service.watch.meter.answered(command.name, "ok")
                return
            reply, tensors = self._service.answer_now(self, command, body)
            frame = reply_frame(command, request, reply, tensors)
        except DaemonError as error:
            self._refuse_now(command, request, error)
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
            self._refuse_now(command, request, internal_error(command.name))
        else:
            self._service.watch.meter.answered(command.name, "ok")
            self._send(*frame)
            self._service.replied(body)

    def _refuse_now(self, command: Command, request: int, error: DaemonError) -> None:
        self._service.watch.meter.answered(command.name, error.code)
        self._fail(request, error)

    def _enqueue(self, job: Job) -> None:
        self._service.watch.began(job, self.name)
        answer = self._service.recall(job)
        if answer is not None:
            job.state = DONE
            self._finish(job, answer)
            return
        with self._jobs_lock:
            self._jobs[job.request] = job
        self._service.enqueue(job)

    def job(self, request: int) -> Job | None:
        """Return the request in flight with that id."""
        return self._jobs.get(request)

    def _finish(self, job: Job, answer: tuple[Any, list[WireTensor]] | DaemonError) -> None:
        """Send a job's answer; called once, on the thread of its lane or on the one that cancels it."""
        with self._jobs_lock:
            self._jobs.pop(job.request, None)
        service_s = None if job.started is None else time.monotonic() - job.started
        self._service.admission.leave(self, job.nbytes, service_s)
        if isinstance(answer, DaemonError):
            self._refuse(job, answer)
        else:
            self._send_answer(job, *answer)
        job.body = None
        received, job.tensors = job.tensors, {}
        self._carrier.release(received)
        self._log_request(job, answer.code if isinstance(answer, DaemonError) else None)

    def _log_request(self, job: Job, code: str | None) -> None:
        """Log who asked for what and how long it took; never what was in it."""
        waited = time.monotonic() - job.received
        facts = {key: value for key, value in (("code", code), ("trace", job.trace)) if value is not None}
        level = logging.INFO if code is None else logging.WARNING
        outcome = "" if code is None else f", {code}"
        _log.log(level, "%s %.1f ms for %s%s", job.command.name, waited * 1000, self.name, outcome, extra=facts)

    def _send_answer(self, job: Job, reply: Any, tensors: list[WireTensor]) -> None:
        try:
            header, outgoing = reply_frame(job.command, job.request, reply, tensors)
            header["ms"] = timing(job)
            total = sum(tensor.nbytes for tensor in outgoing)
            if total > self._service.limits.payload_out_bytes:
                raise DaemonError("value-range", f"the result takes {total} bytes", "ask for fewer images at once")
            placed = self._carrier.place(outgoing)
            did: dict[str, Any] | None = header.get("did")
            if did is not None:
                did["transport"] = {"in": job.via, "out": placed.via}
                if placed.reason is not None:
                    did["transport"]["reason"] = placed.reason
            self._watch_end(job, header, total, placed.via)
            try:
                self._writer.send(frames.encode_frame(header, outgoing, refs=placed.refs))
            except BaseException:
                self._carrier.free(placed.refs.values())
                raise
        except DaemonError as error:
            self._refuse(job, error)
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback; else the client would wait
            self._refuse(job, internal_error(job.command.name, job.trace))

    def _watch_end(self, job: Job, header: dict[str, Any], out_bytes: int, way_out: str) -> None:
        watch = self._service.watch
        watch.meter.crossed(job.via, "in", job.nbytes)
        watch.meter.crossed(way_out, "out", out_bytes)
        watch.ended(job, self.name, "ok", header["ms"], header.get("did"))

    def _refuse(self, job: Job, error: DaemonError) -> None:
        self._service.watch.ended(job, self.name, error.code, timing(job))
        self._fail(job.request, error)

    def refuse_wait(self, job: Job) -> bool:
        """Answer a request that does not want to wait; its work goes on. False if it was answered already."""
        with self._jobs_lock:
            if self._jobs.pop(job.request, None) is None:
                return False
        job.finish = self._finish_unseen
        hint = "ask again after retry_after_ms"
        self._service.watch.ended(job, self.name, "daemon-loading", timing(job))
        self._fail(job.request, DaemonError("daemon-loading", "the set is being loaded", hint, retry_after_ms=500))
        return True

    def _finish_unseen(self, job: Job, answer: tuple[Any, list[WireTensor]] | DaemonError) -> None:
        self._service.admission.leave(self, job.nbytes)
        if isinstance(answer, DaemonError):
            _log.warning("a load nobody waits for failed: %s", answer, extra={"code": answer.code})

    def _fail(self, request: int, error: DaemonError) -> None:
        self._send({"id": request, "ok": False, "error": error_record(error)})

    def _send(self, header: dict[str, Any], tensors: list[WireTensor] | None = None) -> None:
        self._writer.send(frames.encode_frame(header, tensors or ()))
