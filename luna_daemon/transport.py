"""How the tensors of a connection cross: inline bytes behind the header are always there, faster ways are opened.

Each side has one `Carrier` per connection. It answers where outgoing tensors go, and gives received ones memory of
their own.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from luna_daemon.frames import INLINE, MIB, ONLY_INLINE, Ref, Segment, WireTensor, tensors_in
from luna_daemon.platform import sealed_memory
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luna_daemon.stream import Announced, FrameReader

SHM_FROM_BYTES = 256 * 1024
"""Smaller tensors go inline: copying them twice more would save nothing."""
KEPT_BYTES_MAX = 64 * MIB
KEPT_BUFFERS_MAX = 4
OVER_TCP = "a TCP connection passes no memory on"
NOT_OPENED = "the client did not open it"
NO_CUDA_IPC = "this version shares no memory of a card"
FULL = "the shared memory is full"


class Transport(Protocol):
    """A way beside the socket, such as `luna_daemon.shared_memory.SharedMemory`."""

    def place(self, data: memoryview) -> Ref | None:
        """Copy bytes to where the other side finds them; None if there is no room now."""

    def view(self, ref: Ref, nbytes: int) -> memoryview:
        """Return the other side's bytes, which may change until they are copied."""

    def free(self, offsets: Iterable[int]) -> None:
        """Use what `place` took again."""

    def close(self) -> None:
        """Give the memory up."""


def offered(*, is_local: bool) -> dict[str, str]:
    """Return the transports of a connection for its welcome: name -> ``ok`` or why not."""
    shm = sealed_memory.missing() if is_local else OVER_TCP
    return {INLINE: "ok", "shm": shm or "ok", "cuda_ipc": NO_CUDA_IPC}


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the tensors of a frame went.

    Attributes:
        refs: of those that do not follow inline, by name.
        via: the best way that one of them took.
        reason: why a large one went inline, None if none did.
    """

    refs: dict[str, Ref] = field(default_factory=dict)
    via: str = INLINE
    reason: str | None = None

    @property
    def offsets(self) -> list[int]:
        """Return the places to be freed later."""
        return [ref.offset for ref in self.refs.values()]


ALL_INLINE = Placed()


class Carrier:
    """The tensors of one connection, on one side of it.

    Args:
        is_reusing: receive into buffers that are used again when nobody holds them any more. What a client
            receives is its own.

    Attributes:
        shared: the way beside the socket once it is open.
        reason: why there is none.
        from_bytes: tensors of at least this size take it.
        counts: segments sent by way; ``full`` counts those that found no room.
    """

    def __init__(self, *, is_reusing: bool = False, reason: str = NOT_OPENED) -> None:
        self.shared: Transport | None = None
        self.reason = reason
        self.from_bytes = SHM_FROM_BYTES
        self.counts: Counter[str] = Counter()
        self._is_reusing = is_reusing
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    @property
    def name(self) -> str:
        """The best way that is open."""
        return INLINE if self.shared is None else "shm"

    def open(self, shared: Transport, reader: FrameReader, from_bytes: int = SHM_FROM_BYTES) -> None:
        """Use a way beside the socket from now on."""
        self.from_bytes = from_bytes
        reader.vias = ONLY_INLINE | {"shm"}
        self.shared = shared

    def close(self, reason: str = "it was closed") -> None:
        """Use the socket alone from now on."""
        shared, self.shared = self.shared, None
        self.reason = reason
        if shared is not None:
            shared.close()

    def place(self, tensors: Sequence[WireTensor]) -> Placed:
        """Copy the large tensors of a frame into shared memory as long as there is room; the others go inline."""
        if not any(tensor.data.nbytes >= self.from_bytes for tensor in tensors):
            return ALL_INLINE
        refs: dict[str, Ref] = {}
        reason = None
        for tensor in tensors:
            if tensor.nbytes < self.from_bytes:
                continue
            shared = self.shared
            ref = None if shared is None else shared.place(tensor.data.cast("B"))
            if ref is not None:
                refs[tensor.name] = ref
            else:
                reason = self.reason if shared is None else FULL
                self.counts["full"] += shared is not None
        self.counts["shm"] += len(refs)
        return Placed(refs, "shm" if refs else INLINE, reason)

    def free(self, offsets: Iterable[int]) -> None:
        """Use places of sent tensors again."""
        shared = self.shared
        if shared is not None:
            shared.free(offsets)

    def receive(self, reader: FrameReader, announced: Announced) -> dict[str, WireTensor]:
        """Copy the tensors of an announced frame into memory of this side.

        Raises:
            DaemonError: ``transport-failed`` for a place outside the shared memory; nothing was read then.
        """
        segments = announced.segments
        if not segments:
            return {}
        outside = [(segment, self._view(segment)) for segment in segments if segment.ref is not None]
        if not outside:
            return self._receive_inline(reader, segments, announced.payload_bytes)
        tensors = {
            segment.name: WireTensor(segment.name, segment.dtype, segment.shape, self._copy(view))
            for segment, view in outside
        }
        inline = [segment for segment in segments if segment.ref is None]
        tensors.update(self._receive_inline(reader, inline, announced.payload_bytes))
        return {segment.name: tensors[segment.name] for segment in segments}

    def _view(self, segment: Segment) -> memoryview:
        shared = self.shared
        if shared is None or segment.ref is None:
            raise DaemonError("transport-failed", f"the shared memory is not there any more: {self.reason}")
        return shared.view(segment.ref, segment.nbytes)

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
        owners = {id(tensor.data.obj): tensor.data.obj for tensor in tensors.values()}
        for tensor in tensors.values():
            try:
                tensor.data.release()
            except BufferError:
                owners.pop(id(tensor.data.obj), None)
        for owner in owners.values():
            if isinstance(owner, bytearray) and len(owner) <= KEPT_BYTES_MAX and _is_unused(owner):
                with self._lock:
                    if len(self._free) < KEPT_BUFFERS_MAX:
                        self._free.append(owner)


def _is_unused(buffer: bytearray) -> bool:
    """Tell whether no view of the buffer is left: only then may its size change."""
    try:
        last = buffer.pop()
        buffer.append(last)
    except BufferError:
        return False
    return True
