"""How tensors cross. Inline bytes behind the header are always there; faster ways are offered per connection at hello.

A transport is a pair of questions: where does a received payload go, and when may that memory be used again.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from luna_daemon.frames import MIB, WireTensor, tensors_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_daemon.stream import Announced, FrameReader

KEPT_BYTES_MAX = 64 * MIB
KEPT_BUFFERS_MAX = 4


class Transport(Protocol):
    """One way in which the tensors of a connection travel."""

    name: str

    def receive(self, reader: FrameReader, announced: Announced) -> dict[str, WireTensor]:
        """Read the payload of an announced frame."""
        ...

    def release(self, tensors: Mapping[str, WireTensor]) -> None:
        """Give the memory of received tensors back; they must not be used afterwards."""
        ...


def offered() -> dict[str, str]:
    """Return the transports of this daemon for its welcome: name -> ``ok`` or why not."""
    return {"inline": "ok"}


class InlineTransport:
    """Bytes behind the header, received into a buffer that is used again when nobody holds it any more."""

    name = "inline"

    def __init__(self, *, is_reusing: bool = False) -> None:
        self._is_reusing = is_reusing
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    def receive(self, reader: FrameReader, announced: Announced) -> dict[str, WireTensor]:
        """Read the payload of an announced frame."""
        nbytes = announced.payload_bytes
        if not announced.segments:
            return {}
        buffer = self._take(nbytes)
        payload = memoryview(buffer)[:nbytes]
        reader.payload(payload)
        return tensors_in(announced.segments, payload)

    def _take(self, nbytes: int) -> bytearray:
        with self._lock:
            for index, buffer in enumerate(self._free):
                if nbytes <= len(buffer) <= 4 * nbytes + MIB:
                    return self._free.pop(index)
        return bytearray(max(1, nbytes))

    def release(self, tensors: Mapping[str, WireTensor]) -> None:
        """Give the memory of received tensors back.

        A view that a tensor library still holds, as a cache of results might, keeps its buffer out of reuse.
        """
        if not tensors or not self._is_reusing:
            return
        owner = next(iter(tensors.values())).data.obj
        try:
            for tensor in tensors.values():
                tensor.data.release()
        except BufferError:
            return
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
