"""The daemon's end of one connection: handshake, then one reader thread that admits, answers or queues requests."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from luna_daemon import auth, frames, platform
from luna_daemon.fields import decode_body, plain
from luna_daemon.messages import MAGIC, PROTOCOL, Auth, Challenge, Hello, OpenShm, ShmOpened
from luna_daemon.protocol import COMMANDS, Lane, check_tensors
from luna_daemon.runtime.executor import internal_error
from luna_daemon.runtime.queue import DONE, Job
from luna_daemon.shared_memory import SharedMemory
from luna_daemon.stream import ConnectionLostError, FrameReader, FrameWriter, wait_readable
from luna_daemon.transport import NOT_OPENED, OVER_TCP, Carrier
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections import Counter

    from luna_daemon.frames import WireTensor
    from luna_daemon.protocol import Command
    from luna_daemon.service import DaemonService
    from luna_daemon.stream import Announced

HANDSHAKE_SECONDS = 2.0
DEADLINE_MS = 120_000
UNSENT_BYTES_MAX = 64 * frames.MIB
EVENT_BYTES_AHEAD = 65_536
_REQUEST_KEYS = frozenset({"id", "cmd", "body", "segments", "deadline_ms", "priority", "progress", "trace", "released"})
_log = logging.getLogger("luna.connection")


class Rejected(Exception):  # noqa: N818 - a signal between two functions of this module
    """The handshake failed; ``error`` is told to the peer, None if it spoke no Luna at all."""

    def __init__(self, error: DaemonError | None, why: str) -> None:
        super().__init__(why)
        self.error = error


class Connection:
    """One client."""

    def __init__(self, service: DaemonService, link: socket.socket, port: int | None) -> None:
        """Take over an accepted socket; ``port`` is the TCP port it came through, None for a Unix socket."""
        self._service = service
        self._socket = link
        self._port = port
        self._reader = FrameReader(link, service.limits)
        self._writer = FrameWriter(link, self.hang_up)
        self._carrier = Carrier(is_reusing=True, reason=NOT_OPENED if port is None else OVER_TCP)
        self._shared_bytes = 0
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
    def sent_by_way(self) -> Counter[str]:
        """How many tensors were sent by which way, and as ``full`` those that found no room in shared memory."""
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
            self._shake_hands(time.monotonic() + HANDSHAKE_SECONDS)
        except Rejected as rejected:
            if rejected.error is not None:
                self._send({"id": None, "ok": False, "error": _error_record(rejected.error)})
            self._service.note_rejected(str(rejected))
            return False
        except (ConnectionLostError, OSError) as error:
            self._service.note_rejected(str(error))
            return False
        return True

    def _shake_hands(self, deadline: float) -> None:
        if self._port is None and platform.peer_uid(self._socket) != os.getuid():
            raise Rejected(
                DaemonError("daemon-auth", "this socket belongs to another user"), "a foreign user connected"
            )
        request, raw = self._handshake_frame("hello", deadline)
        _check_version(raw)
        hello = _handshake_body(Hello, raw)
        if not auth.is_nonce(hello.nonce):
            raise Rejected(DaemonError("request-invalid", "body.nonce: expected 32 bytes in hex"), "bad nonce")
        if self._port is not None:
            request = self._prove(request, hello, self._port, deadline)
        self.name, self.pid = hello.client.name, hello.client.pid
        self._send({"id": request, "ok": True, "body": plain(self._service.welcome(is_local=self._port is None))})

    def _prove(self, request: int, hello: Hello, port: int, deadline: float) -> int:
        nonce = auth.new_nonce()
        token = self._service.token
        mine = auth.proof(token, "server", port, hello.nonce, nonce)
        self._send({"id": request, "ok": True, "body": plain(Challenge(nonce, mine))})
        request, raw = self._handshake_frame("auth", deadline)
        expected = auth.proof(token, "client", port, hello.nonce, nonce)
        if not auth.is_proof(_handshake_body(Auth, raw).proof, expected):
            raise Rejected(
                DaemonError(
                    "daemon-auth",
                    "the client does not know this user's token",
                    "both sides must run as the same user with the same LUNA_HOME",
                ),
                "a wrong token",
            )
        return request

    def _handshake_frame(self, command: str, deadline: float) -> tuple[int, Any]:
        left = deadline - time.monotonic()
        if not self._reader.has_bytes and not wait_readable(self._socket, left):
            raise Rejected(None, "nothing was said in time")
        try:
            announced = self._reader.announced(frames.HELLO_BYTES_MAX, 0, max(0.0, deadline - time.monotonic()))
        except ConnectionLostError:
            raise
        except DaemonError as error:
            raise Rejected(None, f"no Luna frame: {error.message}") from error
        request, name = announced.header.get("id"), announced.header.get("cmd")
        if type(request) is not int or request < 1 or name != command:
            raise Rejected(None, f"expected {command}")
        return request, announced.header.get("body")

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
            self._send({"id": None, "ok": False, "error": _error_record(error)})
            self._service.watch.meter.answered("unknown", error.code)
            _log.warning("%s closed: %s", self.name, error.message, extra={"code": error.code})
            self._writer.close(1.0)
        finally:
            self._writer.close()
            self.hang_up()
            self._close_shared()
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
                self._carrier.free(_offsets(header["released"]))
            command, job = self._judge(header, request)
            if command.lane is Lane.NOW and announced.segments:
                raise DaemonError("tensor-invalid", f"{command.name} takes no segments")
            if job is None:
                self._answer_now(command, request, header.get("body"))
                return
            self._service.admission.enter(self, nbytes)
            admitted = True
            job.tensors, received = self._carrier.receive(self._reader, announced), True
            job.nbytes = nbytes
            job.via = "inline" if nbytes == announced.payload_bytes else self._carrier.name
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
            self._service.watch.meter.answered(_known(header.get("cmd")), error.code)
            self._fail(request, error)
            return
        self._enqueue(job)

    def _judge(self, header: dict[str, Any], request: int) -> tuple[Command, Job | None]:
        """Check a header; return its command, and the job unless it is answered at once."""
        if not header.keys() <= _REQUEST_KEYS:
            unknown = header.keys() - _REQUEST_KEYS
            raise DaemonError("request-invalid", f"{min(unknown)}: unknown field", details={"path": min(unknown)})
        name = header.get("cmd")
        command = COMMANDS.get(name) if isinstance(name, str) else None
        if command is None or name in {"hello", "auth"}:
            raise DaemonError("command-unknown", f"no command {name!r} here", "see the welcome's list of commands")
        deadline_ms = header.get("deadline_ms", DEADLINE_MS)
        if type(deadline_ms) is not int or deadline_ms < 1:
            raise DaemonError("request-invalid", "deadline_ms: expected a positive integer")
        priority = header.get("priority", "interactive")
        if priority not in {"interactive", "bulk"}:
            raise DaemonError("request-invalid", "priority: expected interactive or bulk")
        trace = header.get("trace")
        if trace is not None and (not isinstance(trace, str) or len(trace) > 128):
            raise DaemonError("request-invalid", "trace: expected a W3C traceparent")
        wants_progress = header.get("progress", False)
        if not isinstance(wants_progress, bool):
            raise DaemonError("request-invalid", "progress: expected true or false")
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
            deadline=time.monotonic() + deadline_ms / 1000,
            finish=self._finish,
            is_bulk=priority == "bulk",
            trace=trace,
        )
        if command.streams or wants_progress:
            numbers = itertools.count()
            job.tell = lambda part: self._send({"id": request, "part": next(numbers), "body": part})
            job.wants_progress = wants_progress
        return command, job

    def _answer_now(self, command: Command, request: int, raw: Any) -> None:
        try:
            body = decode_body(command.request, {} if raw is None else raw, strict=True)
            if isinstance(body, OpenShm):
                self._open_shared(request, body)
                self._service.watch.meter.answered(command.name, "ok")
                return
            reply, tensors = self._service.answer_now(self, command, body)
            frame = _reply_frame(command, request, reply, tensors)
        except DaemonError as error:
            self._refuse_now(command, request, error)
        except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
            self._refuse_now(command, request, internal_error(command.name))
        else:
            self._service.watch.meter.answered(command.name, "ok")
            self._send(*frame)
            self._service.replied(body)

    def _open_shared(self, request: int, body: OpenShm) -> None:
        """Make this connection's shared memory and pass it on."""
        if self._carrier.shared is not None:
            raise DaemonError("transport-failed", "it is open already")
        try:
            shared, descriptors = self._make_shared(body)
        except DaemonError as error:
            self._carrier.reason = error.message
            raise
        reply = ShmOpened(shared.generation, body.up_bytes, body.down_bytes)
        try:
            header = {"id": request, "ok": True, "body": plain(reply)}
            self._writer.send_with_descriptors(frames.encode_frame(header), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._carrier.open(shared, self._reader, body.from_bytes)

    def _make_shared(self, body: OpenShm) -> tuple[SharedMemory, list[int]]:
        if self._port is not None:
            raise DaemonError("transport-failed", OVER_TCP)
        wanted = body.up_bytes + body.down_bytes
        self._service.shared_memory.take(wanted)
        try:
            made = SharedMemory.create(body.up_bytes, body.down_bytes)
        except BaseException:
            self._service.shared_memory.give(wanted)
            raise
        self._shared_bytes = wanted
        return made

    def _close_shared(self) -> None:
        self._carrier.close()
        if self._shared_bytes:
            self._service.shared_memory.give(self._shared_bytes)
            self._shared_bytes = 0

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
            header, outgoing = _reply_frame(job.command, job.request, reply, tensors)
            header["ms"] = _timing(job)
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
                self._carrier.free(placed.offsets)
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
        self._service.watch.ended(job, self.name, error.code, _timing(job))
        self._fail(job.request, error)

    def refuse_wait(self, job: Job) -> bool:
        """Answer a request that does not want to wait; its work goes on. False if it was answered already."""
        with self._jobs_lock:
            if self._jobs.pop(job.request, None) is None:
                return False
        job.finish = self._finish_unseen
        hint = "ask again after retry_after_ms"
        self._service.watch.ended(job, self.name, "daemon-loading", _timing(job))
        self._fail(job.request, DaemonError("daemon-loading", "the set is being loaded", hint, retry_after_ms=500))
        return True

    def _finish_unseen(self, job: Job, answer: tuple[Any, list[WireTensor]] | DaemonError) -> None:
        self._service.admission.leave(self, job.nbytes)
        if isinstance(answer, DaemonError):
            _log.warning("a load nobody waits for failed: %s", answer, extra={"code": answer.code})

    def _fail(self, request: int, error: DaemonError) -> None:
        self._send({"id": request, "ok": False, "error": _error_record(error)})

    def _send(self, header: dict[str, Any], tensors: list[WireTensor] | None = None) -> None:
        self._writer.send(frames.encode_frame(header, tensors or ()))


def _offsets(raw: Any) -> list[int]:
    if not isinstance(raw, list) or not all(type(item) is int for item in raw):
        raise DaemonError("request-invalid", "released: expected a list of offsets")
    return raw


def _known(name: Any) -> str:
    """Return a command's name for the metrics, whatever it was that a client sent in its place."""
    return name if isinstance(name, str) and name in COMMANDS else "unknown"


def _check_version(raw: Any) -> None:
    """Judge magic and protocol before anything else, so that any future client gets a clear answer."""
    said = raw if isinstance(raw, dict) else {}
    magic, offered = said.get("magic"), said.get("protocol")
    is_range = isinstance(offered, list) and len(offered) == 2 and all(type(item) is int for item in offered)
    low, high = offered if isinstance(offered, list) and is_range else (0, 0)
    if magic == MAGIC and low <= PROTOCOL <= high:
        return
    raise Rejected(
        DaemonError(
            "protocol-mismatch",
            f"this daemon speaks protocol {PROTOCOL} of {MAGIC}, the client offered {offered!r} of {magic!r}",
            "update the older of the two: both come from the same Luna version",
            details={"daemon": [PROTOCOL, PROTOCOL], "client": offered if is_range else None},
        ),
        "another protocol",
    )


def _handshake_body(kind: Any, raw: Any) -> Any:
    try:
        return decode_body(kind, raw, strict=True)
    except DaemonError as error:
        raise Rejected(error, error.message) from error


def _reply_frame(
    command: Command, request: int, reply: Any, tensors: list[WireTensor]
) -> tuple[dict[str, Any], list[WireTensor]]:
    body = plain(reply)
    header: dict[str, Any] = {"id": request, "ok": True, "body": body}
    did = body.pop("did", None)
    if did is not None:
        header["did"] = did
    if command.reply_as_json:
        header["body"] = {}
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        return header, [*tensors, frames.WireTensor.of_bytes("json", raw)]
    return header, tensors


def _timing(job: Job) -> dict[str, float]:
    now = time.monotonic()
    started = now if job.started is None else job.started
    is_load = job.command.lane is Lane.LOAD
    load_s = now - started if is_load else job.load_s
    spent_s = {
        "queue": started - job.received,
        "window": job.window_s,
        "load": load_s,
        "run": max(0.0, now - started - job.window_s - load_s),
    }
    return {name: round(seconds * 1000, 3) for name, seconds in spent_s.items()}


def _error_record(error: DaemonError) -> dict[str, Any]:
    record: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    if error.retry_after_ms is not None:
        record["retry_after_ms"] = error.retry_after_ms
    if error.details:
        record["details"] = error.details
    return record
