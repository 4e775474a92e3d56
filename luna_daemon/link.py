"""The client's end of one connection: handshake, many requests in flight from many threads, one reader at a time.

There is no reader thread: whoever waits and finds nobody reading reads for all. So a lone ping costs no thread switch.
"""

from __future__ import annotations

import collections
import itertools
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import luna_engine
from luna_daemon import auth, frames
from luna_daemon.fields import decode_body, plain
from luna_daemon.inbox import Inbox
from luna_daemon.messages import Auth, Challenge, ClientInfo, Hello, OpenShm, ShmOpened, TensorOffer, Welcome
from luna_daemon.platform import sealed_memory
from luna_daemon.shared_memory import SharedMemory
from luna_daemon.stream import ConnectionLostError, FrameReader, send_all, set_receive_slice, wait_readable, widen
from luna_daemon.transport import ALL_INLINE, OVER_TCP, SHM_FROM_BYTES, Carrier
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from luna_daemon.frames import WireTensor
    from luna_daemon.watch_messages import Event

HANDSHAKE_SECONDS = 2.0
SLICE_SECONDS = 0.1
SEND_STALL_SECONDS = 30.0
OPEN_SECONDS = 2.0
NOT_NEEDED = "nothing large was sent yet"
NOT_OFFERED = "this daemon does not offer it"
RELEASED_MAX = 1024  # per frame; more wait for the next
_PAYLOAD_MAX = frames.Limits().payload_out_bytes


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens: a Unix socket if ``path`` is set, else TCP."""

    host: str
    port: int
    path: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Pending:
    """One request that waits for its reply."""

    header: dict[str, Any] | None = None
    tensors: dict[str, WireTensor] = field(default_factory=dict)
    error: DaemonError | None = None
    descriptors: list[int] = field(default_factory=list)
    parts: collections.deque[Any] = field(default_factory=collections.deque)

    @property
    def is_done(self) -> bool:
        """Tell whether the reply or the end of the connection has come."""
        return self.header is not None or self.error is not None


class Link:
    """An authenticated connection."""

    def __init__(
        self,
        address: Address,
        client_name: str,
        timeout_s: float,
        *,
        shm_from_bytes: int = SHM_FROM_BYTES,
        shm_fault: str | None = None,
    ) -> None:
        """Connect and shake hands.

        Args:
            address: where.
            client_name: what the daemon shows.
            timeout_s: for connecting.
            shm_from_bytes: tensors of this size and more take shared memory where there is any.
            shm_fault: why shared memory is not to be tried.

        Raises:
            OSError: nobody listens there.
            DaemonError: ``daemon-auth``, ``protocol-mismatch``, or the connection was lost.
        """
        self.address = address
        self.pid = os.getpid()
        self._socket = _connect(address, timeout_s)
        self._reader = FrameReader(self._socket, frames.Limits())
        self._carrier = Carrier(reason=shm_fault or NOT_NEEDED)
        self._shm_from_bytes = shm_from_bytes
        self._opening = threading.Lock()
        self._is_settled = shm_fault is not None
        self._placed: dict[int, list[int]] = {}
        self._released: list[int] = []
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self.inbox = Inbox()
        self._waiting = 0
        self._is_reading = False
        self._pending: dict[int, Pending] = {}
        self._ids = itertools.count(1)
        self._lost: DaemonError | None = None
        try:
            self.welcome = self._shake_hands(client_name, min(timeout_s, HANDSHAKE_SECONDS))
        except BaseException:
            self.close()
            raise

    @property
    def is_usable(self) -> bool:
        """Tell whether requests may be sent: not lost, and not inherited over a fork."""
        return self._lost is None and self.pid == os.getpid()

    def _shake_hands(self, client_name: str, seconds: float) -> Welcome:
        deadline = time.monotonic() + seconds
        nonce = auth.new_nonce()
        who = ClientInfo(client_name, luna_engine.__version__, os.getpid())
        offer = TensorOffer(shm=sealed_memory.missing() is None)
        body = self._handshake_call("hello", plain(Hello(nonce=nonce, client=who, tensors=offer)), deadline)
        if self.address.path is None:
            challenge = decode_body(Challenge, body, strict=False)
            token = auth.read_token()
            expected = auth.proof(token, "server", self.address.port, nonce, challenge.nonce)
            if not auth.is_proof(challenge.proof, expected):
                raise DaemonError(
                    "daemon-auth",
                    f"what listens at {self.address} does not know this user's token",
                    "another program or another user's daemon has the port; nothing was sent to it",
                )
            mine = auth.proof(token, "client", self.address.port, nonce, challenge.nonce)
            body = self._handshake_call("auth", plain(Auth(mine)), deadline)
        return decode_body(Welcome, body, strict=False)

    def _handshake_call(self, command: str, body: dict[str, Any], deadline: float) -> Any:
        request = {"id": next(self._ids), "cmd": command, "body": body}
        send_all(self._socket, frames.encode_frame(request, limit=frames.HELLO_BYTES_MAX), HANDSHAKE_SECONDS)
        if not self._reader.has_bytes and not wait_readable(self._socket, deadline - time.monotonic()):
            raise ConnectionLostError(f"{self.address} accepted the connection but does not answer")
        header = self._reader.announced().header
        if header.get("ok") is not True:
            raise error_from(header.get("error"))
        return header.get("body")

    def start(self, header: dict[str, Any], tensors: Sequence[WireTensor]) -> tuple[int, Pending]:
        """Send a request.

        Returns:
            Its id, and what `wait` takes.

        Raises:
            ConnectionLostError: the connection is or goes down; the request may or may not have arrived.
            DaemonError: ``tensor-invalid`` or ``request-invalid``; nothing was sent.
        """
        pending = Pending()
        placed = self._carrier.place(tensors) if tensors else ALL_INLINE
        released: list[int] = []
        with self._lock:
            if self._lost is not None:
                raise ConnectionLostError(self._lost.message)
            request = next(self._ids)
            self._pending[request] = pending
            if placed.refs:
                self._placed[request] = placed.offsets
            if self._released:
                released = self._released[:RELEASED_MAX]
                del self._released[:RELEASED_MAX]
        whole = {"id": request, **header}
        if released:
            whole["released"] = released
        try:
            buffers = frames.encode_frame(whole, tensors, refs=placed.refs)
            with self._sending:
                send_all(self._socket, buffers, SEND_STALL_SECONDS)
        except ConnectionLostError as error:
            self._fail(error)
            raise
        except DaemonError:
            self._unsend(request, released)
            raise
        return request, pending

    def _unsend(self, request: int, released: list[int]) -> None:
        """Undo the book-keeping of a request that was not sent."""
        with self._lock:
            self._pending.pop(request, None)
            self._released += released
            self._carrier.free(self._placed.pop(request, ()))

    @property
    def transport_name(self) -> str:
        """The best way that tensors have on this connection now."""
        return self._carrier.name

    @property
    def transport_reason(self) -> str | None:
        """Why there is no better way than inline, None if there is one."""
        return None if self._carrier.shared is not None else self._carrier.reason

    @property
    def sent_by_way(self) -> Counter[str]:
        """How many tensors were sent by which way, and as ``full`` those that found no room in shared memory."""
        return self._carrier.counts

    def open_shared(self, poll: Callable[[], None] | None = None) -> None:
        """Open shared memory, once; while one thread does it, and where it cannot be, tensors go inline.

        Raises:
            ConnectionLostError: the connection went down meanwhile.
        """
        if self._is_settled or not self._opening.acquire(blocking=False):
            return
        try:
            self._carrier.reason = self._open_shared(poll)
            self._is_settled = True
        finally:
            self._opening.release()

    def _open_shared(self, poll: Callable[[], None] | None) -> str:
        """Open shared memory; return the reason if that failed."""
        why_not = OVER_TCP if self.address.path is None else self.welcome.transports.get("shm", NOT_OFFERED)
        if why_not != "ok":
            return why_not
        self._expect_descriptors()
        try:
            pending = self._ask_for_shared(poll)
        finally:
            self._reader.takes_descriptors = False
        if pending is None:
            return f"the daemon did not open it within {OPEN_SECONDS:g} s"
        if pending.error is not None:
            raise ConnectionLostError(pending.error.message)
        try:
            self._carrier.open(_attach(pending), self._reader, self._shm_from_bytes)
        except DaemonError as error:
            return error.message
        return ""

    def _ask_for_shared(self, poll: Callable[[], None] | None) -> Pending | None:
        request, pending = self.start({"cmd": "open_shm", "body": plain(OpenShm(from_bytes=self._shm_from_bytes))}, ())
        try:
            if self.wait(pending, time.monotonic() + OPEN_SECONDS, poll):
                return pending
        except BaseException:
            self.forget(request)
            raise
        self.forget(request)
        return None

    def _expect_descriptors(self) -> None:
        """Let whoever reads next take descriptors; who reads now would drop them."""
        with self._lock:
            self._waiting += 1
            try:
                self._turn.wait_for(lambda: not self._is_reading)
            finally:
                self._waiting -= 1
            self._reader.takes_descriptors = True

    def forget(self, request: int) -> None:
        """Stop waiting for a request; its late reply is dropped."""
        with self._lock:
            self._pending.pop(request, None)

    def wait(
        self,
        pending: Pending,
        deadline: float,
        poll: Callable[[], None] | None,
        on_part: Callable[[Any], None] | None = None,
    ) -> bool:
        """Wait for a reply, reading for everybody where nobody else does.

        Args:
            pending: from `start`.
            deadline: in the time of `time.monotonic`.
            poll: called between slices of at most 0.1 s; what it raises goes through.
            on_part: gets the bodies of parts that come before the reply, on this thread.

        Returns:
            False if the deadline came first.
        """
        while not pending.is_done:
            if poll is not None:
                poll()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wait_slice(pending, min(left, SLICE_SECONDS))
            _tell(pending, on_part)
        _tell(pending, on_part)  # another thread may have read the last part and the reply just now
        return True

    def wait_event(self, deadline: float, poll: Callable[[], None] | None) -> Event | None:
        """Wait for the next event; None if the deadline came first.

        Raises:
            ConnectionLostError: the connection is down and no event is left.
        """
        while (event := self.inbox.take()) is None:
            if self._lost is not None:
                raise ConnectionLostError(self._lost.message)
            if poll is not None:
                poll()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._wait_slice(self.inbox, min(left, SLICE_SECONDS))
        return event

    def _wait_slice(self, pending: Pending | Inbox, seconds: float) -> None:
        with self._lock:
            if pending.is_done:
                return
            if self._is_reading:
                self._waiting += 1
                try:
                    self._turn.wait(seconds)
                finally:
                    self._waiting -= 1
                return
            self._is_reading = True
        try:
            if self._reader.has_bytes or self._has_received(seconds):
                self._read_one()
        except (DaemonError, OSError, ValueError) as error:
            lost = error if isinstance(error, DaemonError) else ConnectionLostError(str(error))
            self._fail(lost)
        finally:
            with self._lock:
                self._is_reading = False
                if self._waiting:
                    self._turn.notify_all()

    def _has_received(self, seconds: float) -> bool:
        if seconds < SLICE_SECONDS and not wait_readable(self._socket, seconds):
            return False
        return self._reader.has_received()

    def _read_one(self) -> None:
        announced = self._reader.announced(payload_limit=_PAYLOAD_MAX)
        header = announced.header
        if "event" in header:
            self._reader.skip(announced.payload_bytes)
            self.inbox.put(header)
            return
        request = header.get("id")
        if "part" in header:
            self._reader.skip(announced.payload_bytes)
            waiting = self._pending.get(request)  # type: ignore[arg-type]  # None is no key
            if waiting is not None:
                waiting.parts.append(header.get("body"))
            return
        pending = self._pending.get(request) if isinstance(request, int) and "ok" in header else None
        if pending is None:
            self._reader.skip(announced.payload_bytes)  # a reply given up, a part
            if header.get("ok") is False and request is None:
                raise error_from(header.get("error"))  # the daemon closes the connection, and says why
        tensors = self._carrier.receive(self._reader, announced) if pending is not None else {}
        with self._lock:
            self._released += (segment.ref.offset for segment in announced.segments if segment.ref is not None)
            if self._placed and "ok" in header:
                self._carrier.free(self._placed.pop(request, ()))  # type: ignore[arg-type]  # None is no key
            if pending is None:
                self._reader.close_descriptors()
                return
            self._pending.pop(request, None)  # type: ignore[arg-type]  # it is an int where pending was found
            pending.descriptors, self._reader.descriptors = self._reader.descriptors, []
            pending.tensors = tensors
            pending.header = header

    def _fail(self, error: DaemonError) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = error
            for pending in self._pending.values():
                pending.error = self._lost
            self._pending.clear()
            self._turn.notify_all()
        self._carrier.close("the connection is lost")
        self._socket.close()

    def close(self) -> None:
        """Close the connection; waiting requests fail with ``connection-lost``."""
        if self.pid == os.getpid():
            self._hang_up()
        self._fail(ConnectionLostError("the connection was closed here"))

    def _hang_up(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is down already


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if address.path is not None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(address.path)
        except BaseException:
            connection.close()
            raise
    else:
        connection = socket.create_connection((address.host, address.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)
    widen(connection)
    set_receive_slice(connection, SLICE_SECONDS)
    return connection


def _tell(pending: Pending, on_part: Callable[[Any], None] | None) -> None:
    while on_part is not None and pending.parts:
        on_part(pending.parts.popleft())


def _attach(pending: Pending) -> SharedMemory:
    """Map what came with the reply to open_shm."""
    header = pending.header or {}
    try:
        if header.get("ok") is not True:
            raise error_from(header.get("error"))
        opened = decode_body(ShmOpened, header.get("body"), strict=False)
        return SharedMemory.attach(opened.generation, pending.descriptors, opened.up_bytes, opened.down_bytes)
    finally:
        for descriptor in pending.descriptors:
            os.close(descriptor)


def error_from(record: object) -> DaemonError:
    """Return the error that a reply carries."""
    if not isinstance(record, dict):
        return DaemonError("frame-invalid", "the daemon sent an error without a code")
    hint, retry, details = (record.get(key) for key in ("hint", "retry_after_ms", "details"))
    return DaemonError(
        str(record.get("code", "internal")),
        str(record.get("message", "")),
        hint if isinstance(hint, str) else None,
        retry_after_ms=retry if isinstance(retry, int) else None,
        details=details if isinstance(details, dict) else None,
    )
