"""Frames over a connected socket: reading with deadlines, writing without joining or blocking on a slow peer.

The socket stays in blocking mode; every wait that has a deadline goes through poll(), so that a reader and writers of
one connection do not disturb each other's timeouts.
"""

from __future__ import annotations

import collections
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.frames import (
    HEADER_BYTES_MAX,
    LENGTH_BYTES,
    MIB,
    ONLY_INLINE,
    Limits,
    Segment,
    broken,
    decode_header,
    decode_segments,
    header_length,
)
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUFFER_BYTES = 65_536
FRAME_SECONDS = 5.0
FRAME_BYTES_PER_SECOND = 16 * MIB
STALLED_READER_SECONDS = 30.0
VECTOR_MAX = 512
SEND_BUFFER_BYTES = MIB  # the conditioning of a prompt goes to the kernel in one call
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
DESCRIPTORS_MAX = 2
_INTEGER = struct.Struct("i")
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
_SEND_FLAGS = _DONT_WAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class ConnectionLostError(DaemonError):
    """The peer is gone: end of file, reset, or too slow. Never sent over the wire."""

    def __init__(self, message: str) -> None:
        super().__init__("connection-lost", message)


@dataclass(frozen=True, slots=True)
class Announced:
    """A received header and what must still be read after it."""

    header: dict[str, Any]
    segments: tuple[Segment, ...]

    @property
    def payload_bytes(self) -> int:
        """Return the bytes that follow inline."""
        return sum(segment.nbytes for segment in self.segments if segment.ref is None) if self.segments else 0

    @property
    def tensor_bytes(self) -> int:
        """Return the bytes of all segments, however they travel."""
        return sum(segment.nbytes for segment in self.segments) if self.segments else 0


def set_receive_slice(connection: socket.socket, seconds: float) -> None:
    """Let a blocking receive return after a while without data: one system call where poll() and recv() are two."""
    whole = int(seconds)
    packed = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)


def widen(connection: socket.socket) -> None:
    """Ask for a kernel buffer that takes a usual reply whole; the kernel may grant less."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def wait_readable(connection: socket.socket, seconds: float) -> bool:
    """Wait until the socket has bytes (or its end); False after the time."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


def wait_writable(connection: socket.socket, seconds: float) -> bool:
    """Wait until the socket takes bytes; False after the time."""
    poller = select.poll()
    poller.register(connection, select.POLLOUT)
    return bool(poller.poll(max(0.0, seconds) * 1000))


class FrameReader:
    """Reads frames from one socket; used by one thread at a time.

    Attributes:
        vias: the transports whose segments are taken.
        takes_descriptors: whether file descriptors may come with the next frames; they are kept in ``descriptors``.
    """

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._buffer = memoryview(bytearray(BUFFER_BYTES + HEADER_BYTES_MAX + LENGTH_BYTES))
        self._start = 0
        self._end = 0
        self._deadline = 0.0
        self.vias = ONLY_INLINE
        self.takes_descriptors = False
        self.descriptors: list[int] = []

    @property
    def has_bytes(self) -> bool:
        """Tell whether received bytes wait in the buffer."""
        return self._end > self._start

    def announced(
        self,
        header_limit: int = HEADER_BYTES_MAX,
        payload_limit: int | None = None,
        frame_s: float = FRAME_SECONDS,
    ) -> Announced:
        """Read the next header; waits for its first byte without limit, for the rest up to ``frame_s``.

        Raises:
            ConnectionLostError: end of file or a sender that is too slow.
            DaemonError: ``frame-invalid`` or ``payload-too-large``.
        """
        if not self.has_bytes:
            self._receive()
        self._deadline = time.monotonic() + frame_s
        if self._end - self._start < LENGTH_BYTES:
            self._fill(LENGTH_BYTES)
        length = header_length(self._buffer[self._start :], header_limit)
        if self._end - self._start < LENGTH_BYTES + length:
            self._fill(LENGTH_BYTES + length)
        begin = self._start + LENGTH_BYTES
        header = decode_header(self._buffer[begin : begin + length])
        self._start = begin + length
        if "segments" not in header:
            return Announced(header, ())
        limit = self._limits.payload_in_bytes if payload_limit is None else payload_limit
        return Announced(header, decode_segments(header, limit, self.vias))

    def payload(self, into: memoryview) -> None:
        """Read the announced payload into a buffer of its size.

        Raises:
            ConnectionLostError: end of file, or slower than 5 s + 16 MiB/s.
        """
        self._deadline += into.nbytes / FRAME_BYTES_PER_SECOND
        have = min(into.nbytes, self._end - self._start)
        into[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        while have < into.nbytes:
            have += self._receive_into(into[have:])

    def skip(self, nbytes: int) -> None:
        """Read a payload off without keeping it."""
        scratch = memoryview(bytearray(min(nbytes, MIB)))
        while nbytes:
            part = min(nbytes, scratch.nbytes)
            self.payload(scratch[:part])
            nbytes -= part

    def _fill(self, wanted: int) -> None:
        while self._end - self._start < wanted:
            if self._start and self._start + wanted > self._buffer.nbytes:
                left = self._end - self._start
                self._buffer[:left] = bytes(self._buffer[self._start : self._end])
                self._start, self._end = 0, left
            self._end += self._receive_into(self._buffer[self._end :])

    def has_received(self) -> bool:
        """Receive the first bytes of a frame; False if the socket's own receive timeout comes first.

        Raises:
            ConnectionLostError: end of file.
        """
        self._start = self._end = 0
        receive = self._receive_with_descriptors if self.takes_descriptors else self._connection.recv_into
        try:
            self._end = _received(receive, self._buffer)
        except BlockingIOError:
            return False
        return True

    def _receive_with_descriptors(self, view: memoryview, flags: int = 0) -> int:
        """Receive bytes and what descriptors come with them; a plain receive would drop those."""
        space = socket.CMSG_SPACE(DESCRIPTORS_MAX * _INTEGER.size)
        count, ancillary, _, _ = self._connection.recvmsg_into([view], space, flags | _CLOSE_ON_EXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) - len(data) % _INTEGER.size
                self.descriptors += (number for (number,) in _INTEGER.iter_unpack(data[:whole]))
        return count

    def close_descriptors(self) -> None:
        """Close the descriptors that came and nobody took."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()

    def _receive(self) -> None:
        """Wait for the first bytes of a frame for as long as it takes."""
        self._start = 0
        self._end = _received(self._connection.recv_into, self._buffer)

    def _receive_into(self, view: memoryview) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ConnectionLostError("the other side stopped in the middle of a message")
        if _DONT_WAIT:
            try:
                return _received(self._receive_now, view)  # mostly the bytes are there already
            except BlockingIOError:
                pass
        if not wait_readable(self._connection, left):
            raise ConnectionLostError("the other side stopped in the middle of a message")
        return _received(self._receive_with_descriptors if self.takes_descriptors else self._connection.recv_into, view)

    def _receive_now(self, view: memoryview) -> int:
        if self.takes_descriptors:
            return self._receive_with_descriptors(view, _DONT_WAIT)
        return self._connection.recv_into(view, 0, _DONT_WAIT)


def _received(receive: Callable[[memoryview], int], view: memoryview) -> int:
    try:
        count = receive(view)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ConnectionLostError(f"the connection broke: {error.strerror or error}") from error
    if count == 0:
        raise ConnectionLostError("the other side closed the connection")
    return count


class FrameWriter:
    """Writes frames to one socket from any thread.

    `send` tries to hand everything to the kernel at once; what does not fit goes to a thread that is started then,
    so that a slow reader stalls nobody else.
    """

    def __init__(self, connection: socket.socket, on_lost: Callable[[], None]) -> None:
        self._connection = connection
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._backlog: collections.deque[memoryview] = collections.deque()
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._unsent_bytes = 0

    def send(self, buffers: Sequence[memoryview]) -> None:
        """Send one frame, now or through the writer thread. A closed connection drops it silently."""
        with self._lock:
            if not self._closed:
                self._send(list(buffers))

    def _send(self, left: list[memoryview]) -> None:
        if not self._backlog:
            try:
                left = _push(self._connection, left)
            except OSError:
                self._closed = True
                self._on_lost()
                return
        if left:
            self._backlog.extend(left)
            self._unsent_bytes += sum(buffer.nbytes for buffer in left)
            self._start_thread()
            self._wake.notify()

    def send_with_descriptors(self, buffers: Sequence[memoryview], descriptors: Sequence[int]) -> None:
        """Send one frame with open files, after everything before it. A closed connection drops it silently."""
        packed = b"".join(_INTEGER.pack(descriptor) for descriptor in descriptors)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
        while not self._has_sent(b"".join(buffers), rights):
            self.wait_below(0)
            if not wait_writable(self._connection, STALLED_READER_SECONDS):
                self._on_lost()
                return

    def _has_sent(self, frame: bytes, rights: list[tuple[int, int, bytes]]) -> bool:
        """Send the first bytes of a frame together with its open files; False if the kernel takes none now."""
        with self._lock:
            if self._closed:
                return True
            if self._backlog:
                return False
            try:
                sent = self._connection.sendmsg([frame], rights, _SEND_FLAGS)
            except BlockingIOError:
                return False
            except OSError:
                self._closed = True
                self._on_lost()
                return True
            self._send([memoryview(frame)[sent:]] if sent < len(frame) else [])
            return True

    @property
    def unsent_bytes(self) -> int:
        """Return what the kernel did not take yet."""
        return self._unsent_bytes

    def wait_below(self, nbytes: int) -> None:
        """Wait while more than that is unsent, so that who does not read its replies cannot ask for more."""
        if self._unsent_bytes <= nbytes:
            return
        with self._lock:
            self._wake.wait_for(lambda: self._closed or self._unsent_bytes <= nbytes)

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="luna-writer", daemon=True)
            self._thread.start()

    def _drain(self) -> None:
        while True:
            with self._lock:
                while not self._backlog and not self._closed:
                    self._wake.wait()
                if self._closed and not self._backlog:
                    return
            try:
                if not wait_writable(self._connection, STALLED_READER_SECONDS):
                    raise TimeoutError("no progress")
                with self._lock:
                    left = _push(self._connection, list(self._backlog))
                    self._backlog = collections.deque(left)
                    self._unsent_bytes = sum(buffer.nbytes for buffer in left)
                    self._wake.notify_all()
            except (OSError, ValueError):
                with self._lock:
                    self._give_up()
                self._on_lost()
                return

    def close(self, linger_s: float = 0.0) -> None:
        """Stop; wait up to the time for what is still to be sent."""
        deadline = time.monotonic() + linger_s
        with self._lock:
            while self._backlog and not self._closed and (left := deadline - time.monotonic()) > 0:
                self._wake.wait(left)
            self._give_up()

    def _give_up(self) -> None:
        self._closed = True
        self._backlog.clear()
        self._unsent_bytes = 0
        self._wake.notify_all()


def _push(connection: socket.socket, buffers: list[memoryview]) -> list[memoryview]:
    """Write as much as the kernel takes now; return what is left."""
    while buffers:
        try:
            if len(buffers) == 1:
                sent = connection.send(buffers[0], _SEND_FLAGS)
            else:
                sent = connection.sendmsg(buffers[:VECTOR_MAX], (), _SEND_FLAGS)
        except BlockingIOError:
            return buffers
        while buffers and sent >= buffers[0].nbytes:
            sent -= buffers.pop(0).nbytes
        if sent:
            buffers[0] = buffers[0][sent:]
    return buffers


def send_all(connection: socket.socket, buffers: Sequence[memoryview], seconds: float) -> None:
    """Write a whole frame, waiting while the peer is slow.

    Raises:
        ConnectionLostError: the peer is gone, or took nothing for that long.
    """
    left = list(buffers)
    try:
        while left := _push(connection, left):
            if not wait_writable(connection, seconds):
                raise ConnectionLostError("the other side takes no data")
    except OSError as error:
        raise ConnectionLostError(f"the connection broke: {error.strerror or error}") from error


__all__ = ["Announced", "ConnectionLostError", "FrameReader", "FrameWriter", "broken", "send_all"]
