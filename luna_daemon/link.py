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
from luna_daemon.error_records import error_from
from luna_daemon.fields import decode_body, plain
from luna_daemon.inbox import Inbox
from luna_daemon.link_memory import LinkMemory
from luna_daemon.messages import Auth, Challenge, ClientInfo, Hello, Welcome
from luna_daemon.stream import ConnectionLostError, FrameReader, send_all, set_receive_slice, wait_readable, widen
from luna_daemon.transport import ALL_INLINE, CUDA_IPC, SHM
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from luna_daemon.frames import Ref, WireTensor
    from luna_daemon.link_memory import MemoryWish
    from luna_daemon.watch_messages import Event

HANDSHAKE_SECONDS = 2.0
SLICE_SECONDS = 0.1
SEND_STALL_SECONDS = 30.0
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
    """One request that waits for its reply; ``wants_descriptors`` of one whose reply comes with open files."""

    wants_descriptors: bool = False
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
        wish: MemoryWish | None = None,
    ) -> None:
        """Connect and shake hands.

        Args:
            address: where.
            client_name: what the daemon shows.
            timeout_s: for connecting.
            wish: which ways beside the socket its tensors shall have.

        Raises:
            OSError: nobody listens there.
            DaemonError: ``daemon-auth``, ``protocol-mismatch``, or the connection was lost.
        """
        self.address = address
        self.pid = os.getpid()
        self._socket = _connect(address, timeout_s)
        self._reader = FrameReader(self._socket, frames.Limits())
        self._memory = LinkMemory(self, self._reader, wish)
        self._carrier = self._memory.carrier
        self._placed: dict[int, list[Ref]] = {}
        self._released: list[Ref] = []
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
        hello = Hello(nonce=nonce, client=who, tensors=self._memory.offer())
        body = self._handshake_call("hello", plain(hello), deadline)
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

    def start(
        self, header: dict[str, Any], tensors: Sequence[WireTensor], *, wants_descriptors: bool = False
    ) -> tuple[int, Pending]:
        """Send a request; ``wants_descriptors`` says that open files come with its reply.

        Returns:
            Its id, and what `wait` takes.

        Raises:
            ConnectionLostError: the connection is or goes down; the request may or may not have arrived.
            DaemonError: ``tensor-invalid`` or ``request-invalid``; nothing was sent.
        """
        pending = Pending(wants_descriptors)
        placed = self._carrier.place(tensors) if tensors else ALL_INLINE
        released: list[Ref] = []
        with self._lock:
            if self._lost is not None:
                raise ConnectionLostError(self._lost.message)
            request = next(self._ids)
            self._pending[request] = pending
            if placed.refs:
                self._placed[request] = list(placed.refs.values())
            if self._released:
                released = self._released[:RELEASED_MAX]
                del self._released[:RELEASED_MAX]
        whole = {"id": request, **header}
        if released:
            whole |= _given_back(released)
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

    def _unsend(self, request: int, released: list[Ref]) -> None:
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
        """Why there is no faster way, None if there cannot be one or nobody asked for it."""
        return self._carrier.why_no_better

    @property
    def sent_by_way(self) -> Counter[str]:
        """How many tensors were sent by which way; ``full`` and ``arena_full`` are those that found no room."""
        return self._carrier.counts

    def open_shared(self, poll: Callable[[], None] | None = None) -> None:
        """Open shared memory, once; while one thread does it, and where it cannot be, tensors go inline.

        Raises:
            ConnectionLostError: the connection went down meanwhile.
        """
        self._memory.open_shared(poll)

    def open_arena(self, poll: Callable[[], None] | None = None) -> None:
        """Have tensors that lie on a card stay there, once; where that cannot be they go through host memory.

        Raises:
            ConnectionLostError: the connection went down meanwhile.
        """
        self._memory.open_arena(poll)

    def expect_descriptors(self) -> None:
        """Let whoever reads next take descriptors; who reads now would drop them. `end_descriptors` ends that."""
        with self._lock:
            self._waiting += 1
            try:
                self._turn.wait_for(lambda: not self._is_reading)
            finally:
                self._waiting -= 1
            self._reader.takes_descriptors = True

    def end_descriptors(self) -> None:
        """Take descriptors no more, and close those that nobody took."""
        self._reader.takes_descriptors = False
        self._reader.close_descriptors()

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
            self._released += (segment.ref for segment in announced.segments if segment.ref is not None)
            if self._placed and "ok" in header:
                self._carrier.free(self._placed.pop(request, ()))  # type: ignore[arg-type]  # None is no key
            if pending is None:
                return
            self._pending.pop(request, None)  # type: ignore[arg-type]  # it is an int where pending was found
            if pending.wants_descriptors:  # the reply before it may have come in the same piece
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
        self._memory.close("the connection is lost")
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


def _given_back(released: Sequence[Ref]) -> dict[str, list[int]]:
    """Return the fields of a header that give places of received tensors back."""
    fields = {"released": SHM, "released_cuda": CUDA_IPC}
    offsets = {name: [ref.offset for ref in released if ref.via == via] for name, via in fields.items()}
    return {name: places for name, places in offsets.items() if places}
