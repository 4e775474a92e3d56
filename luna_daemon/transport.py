"""How the tensors of a connection cross: inline bytes behind the header are always there, faster ways are opened.

Each side has one `Carrier` per connection. It answers where outgoing tensors go, and gives received ones memory of
their own.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from luna_daemon.device_memory import DeviceBuffer, DeviceTensor
from luna_daemon.frames import INLINE, MIB, Ref, Segment, WireTensor, tensors_in
from luna_daemon.platform import sealed_memory
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luna_daemon.stream import Announced, FrameReader

SHM = "shm"
CUDA_IPC = "cuda_ipc"
WAYS = (INLINE, SHM, CUDA_IPC)
"""From the slowest to the fastest."""
SHM_FROM_BYTES = 256 * 1024
"""Smaller tensors go inline: copying them twice more would save nothing."""
KEPT_BYTES_MAX = 64 * MIB
KEPT_BUFFERS_MAX = 4
OVER_TCP = "a TCP connection passes no memory on"
NOT_OPENED = "the client did not open it"
FULL = "the shared memory is full"
ARENA_FULL = "the shared memory of the card is full"

T = TypeVar("T")


class Transport(Protocol[T]):
    """A way beside the socket: `luna_daemon.shared_memory.SharedMemory`, `luna_daemon.arena_transport.ArenaTransport`.

    T is what it carries: memory views of host bytes, or buffers on a card.
    """

    def place(self, data: T) -> Ref | None:
        """Copy bytes to where the other side finds them; None if there is no room now."""

    def view(self, ref: Ref, nbytes: int) -> T:
        """Return the other side's bytes, which may change until they are copied."""

    def free(self, offsets: Iterable[int]) -> None:
        """Use what `place` took again."""

    def close(self) -> None:
        """Give the memory up."""


def offered(*, is_local: bool, cuda_fault: str | None) -> dict[str, str]:
    """Return the transports of a connection for its welcome: name -> ``ok`` or why not."""
    shm = sealed_memory.missing() if is_local else OVER_TCP
    return {INLINE: "ok", SHM: shm or "ok", CUDA_IPC: cuda_fault or "ok"}


def way_of(refs: Iterable[Ref]) -> str:
    """Return the fastest way that one of these took."""
    return max((ref.via for ref in refs), key=WAYS.index, default=INLINE)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the tensors of a frame went.

    Attributes:
        refs: of those that do not follow inline, by name.
        reason: why one took a slower way than it might have, None if none did.
    """

    refs: dict[str, Ref] = field(default_factory=dict)
    reason: str | None = None

    @property
    def via(self) -> str:
        """The fastest way that one of them took."""
        return way_of(self.refs.values())


ALL_INLINE = Placed()


class Carrier:
    """The tensors of one connection, on one side of it.

    Args:
        is_reusing: receive into buffers that are used again when nobody holds them any more. What a client
            receives is its own.

    Attributes:
        shared: the way for bytes in host memory, once it is open.
        reason: why there is none.
        arena: the way for tensors on a card, once it is open.
        arena_reason: why there is none; None where nobody asked for one.
        from_bytes: tensors in host memory of at least this size take ``shared``.
        counts: segments sent by way; ``full`` and ``arena_full`` count those that found no room.
    """

    def __init__(self, *, is_reusing: bool = False, reason: str = NOT_OPENED) -> None:
        self.shared: Transport[memoryview] | None = None
        self.reason = reason
        self.arena: Transport[DeviceBuffer] | None = None
        self.arena_reason: str | None = None
        self.from_bytes = SHM_FROM_BYTES
        self.counts: Counter[str] = Counter()
        self._is_reusing = is_reusing
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    @property
    def name(self) -> str:
        """The fastest way that is open."""
        if self.arena is not None:
            return CUDA_IPC
        return INLINE if self.shared is None else SHM

    @property
    def why_no_better(self) -> str | None:
        """Why there is no faster way than `name`, as far as anybody asked for one."""
        if self.arena is not None:
            return None
        return self.arena_reason or (None if self.shared is not None else self.reason)

    def open(self, shared: Transport[memoryview], reader: FrameReader, from_bytes: int = SHM_FROM_BYTES) -> None:
        """Use shared memory from now on."""
        self.from_bytes = from_bytes
        reader.vias |= {SHM}
        self.shared = shared

    def open_arena(self, arena: Transport[DeviceBuffer], reader: FrameReader) -> None:
        """Let tensors on the card stay there from now on."""
        reader.vias |= {CUDA_IPC}
        self.arena = arena

    def close(self, reason: str = "it was closed") -> None:
        """Use the socket alone from now on."""
        shared, self.shared = self.shared, None
        arena, self.arena = self.arena, None
        self.reason = reason
        if arena is not None:
            self.arena_reason = reason
            arena.close()
        if shared is not None:
            shared.close()

    def place(self, tensors: Sequence[WireTensor]) -> Placed:
        """Copy the tensors of a frame to where they are fastest, as long as there is room; the others go inline."""
        refs: dict[str, Ref] = {}
        reason = None
        for tensor in tensors:
            ref, why = self._place(tensor)
            if ref is not None:
                refs[tensor.name] = ref
                self.counts[ref.via] += 1
            reason = why or reason
        return Placed(refs, reason) if refs or reason else ALL_INLINE

    def _place(self, tensor: WireTensor) -> tuple[Ref | None, str | None]:
        """Return where a tensor went, None for inline, and why not to where it might have gone."""
        why: str | None = None
        if isinstance(tensor, DeviceTensor):
            arena = self.arena
            ref = None if arena is None else arena.place(tensor.buffer)
            if ref is not None:
                return ref, None
            self.counts["arena_full"] += arena is not None
            why = self.arena_reason if arena is None else ARENA_FULL
        if tensor.nbytes < self.from_bytes:
            return None, why
        shared = self.shared
        ref = None if shared is None else shared.place(tensor.data.cast("B"))
        if ref is not None:
            return ref, why
        self.counts["full"] += shared is not None
        return None, why or (self.reason if shared is None else FULL)

    def free(self, refs: Iterable[Ref]) -> None:
        """Use the places of sent tensors again."""
        for ref in refs:
            self.free_at(ref.via, (ref.offset,))

    def free_at(self, via: str, offsets: Iterable[int]) -> None:
        """Use places of one way again.

        Raises:
            DaemonError: ``request-invalid`` for one that is not in use.
        """
        way: Transport[memoryview] | Transport[DeviceBuffer] | None = self.arena if via == CUDA_IPC else self.shared
        if way is not None:
            way.free(offsets)

    def receive(self, reader: FrameReader, announced: Announced) -> dict[str, WireTensor]:
        """Give the tensors of an announced frame memory of this side.

        Bytes in host memory are copied out at once. What lies on a card is copied by whoever uses it first on the
        daemon's side, whose reader touches no card; a client copies it here, before it gives the place back.

        Raises:
            DaemonError: ``transport-failed`` for a place outside the shared memory; nothing was read then.
        """
        segments = announced.segments
        if not segments:
            return {}
        outside = {segment.name: self._outside(segment, segment.ref) for segment in segments if segment.ref is not None}
        if not outside:
            return self._receive_inline(reader, segments, announced.payload_bytes)
        tensors = {name: self._taken(tensor) for name, tensor in outside.items()}
        inline = [segment for segment in segments if segment.ref is None]
        tensors.update(self._receive_inline(reader, inline, announced.payload_bytes))
        return {segment.name: tensors[segment.name] for segment in segments}

    def _outside(self, segment: Segment, ref: Ref) -> WireTensor:
        """Return a tensor over bytes of the other side's, once its place was judged."""
        name, dtype, shape = segment.name, segment.dtype, segment.shape
        if ref.via == CUDA_IPC:
            arena = self.arena
            if arena is None:
                raise _gone(CUDA_IPC, self.arena_reason)
            return DeviceTensor(name, dtype, shape, arena.view(ref, segment.nbytes))
        shared = self.shared
        if shared is None:
            raise _gone(SHM, self.reason)
        return WireTensor(name, dtype, shape, shared.view(ref, segment.nbytes))

    def _taken(self, tensor: WireTensor) -> WireTensor:
        name, dtype, shape = tensor.name, tensor.dtype, tensor.shape
        if not isinstance(tensor, DeviceTensor):
            return WireTensor(name, dtype, shape, self._copy(tensor.data))
        return tensor if self._is_reusing else DeviceTensor(name, dtype, shape, tensor.buffer.own())

    def _receive_inline(self, reader: FrameReader, segments: Sequence[Segment], nbytes: int) -> dict[str, WireTensor]:
        payload = memoryview(self._take(nbytes) or bytearray(max(1, nbytes)))[:nbytes]
        reader.payload(payload)
        return tensors_in(segments, payload)

    def _copy(self, view: memoryview) -> memoryview:
        buffer = self._take(view.nbytes)
        if buffer is None:
            return memoryview(bytearray(view))
        copy = memoryview(buffer)[: view.nbytes]
        copy[:] = view
        return copy

    def _take(self, nbytes: int) -> bytearray | None:
        with self._lock:
            for index, buffer in enumerate(self._free):
                if nbytes <= len(buffer) <= 4 * nbytes + MIB:
                    return self._free.pop(index)
        return None

    def release(self, tensors: Mapping[str, WireTensor]) -> None:
        """Give the memory of received tensors back; they must not be used afterwards.

        A view that a tensor library still holds, as a cache of results might, keeps its buffer out of reuse.
        """
        if not tensors or not self._is_reusing:
            return
        in_host = [tensor for tensor in tensors.values() if not isinstance(tensor, DeviceTensor)]
        owners = {id(tensor.data.obj): tensor.data.obj for tensor in in_host}
        for tensor in in_host:
            try:
                tensor.data.release()
            except BufferError:
                owners.pop(id(tensor.data.obj), None)
        for owner in owners.values():
            if isinstance(owner, bytearray) and len(owner) <= KEPT_BYTES_MAX and _is_unused(owner):
                with self._lock:
                    if len(self._free) < KEPT_BUFFERS_MAX:
                        self._free.append(owner)


def _gone(via: str, reason: str | None) -> DaemonError:
    message = f"the shared memory is not there any more: {reason}"
    return DaemonError("transport-failed", message, details={"via": via})


def _is_unused(buffer: bytearray) -> bool:
    """Tell whether no view of the buffer is left: only then may its size change."""
    try:
        last = buffer.pop()
        buffer.append(last)
    except BufferError:
        return False
    return True
