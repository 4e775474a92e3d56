"""Pieces of a range of memory that one side sends through: handed out, named on the wire, taken back.

What the memory is (shared pages, a card's) does not matter here.
"""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon.frames import Ref
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable

ALIGN_BYTES = 4096


class Blocks:
    """Hands out pieces of a range: the lowest that fit, so that the same warm pages are used again and again.

    Not thread-safe by itself.
    """

    def __init__(self, size_bytes: int) -> None:
        self._free: list[tuple[int, int]] = [(0, size_bytes)]  # (offset, bytes), sorted, no two adjacent
        self._taken: dict[int, int] = {}

    @property
    def taken_bytes(self) -> int:
        """Return the bytes in use."""
        return sum(self._taken.values())

    def take(self, nbytes: int) -> int | None:
        """Return the offset of a free piece, None if none is large enough."""
        size = max(1, -(-nbytes // ALIGN_BYTES)) * ALIGN_BYTES
        for index, (offset, room) in enumerate(self._free):
            if room >= size:
                self._free[index : index + 1] = [(offset + size, room - size)] if room > size else []
                self._taken[offset] = size
                return offset
        return None

    def give(self, offset: int) -> bool:
        """Take a piece back; False if none was handed out there."""
        size = self._taken.pop(offset, None)
        if size is None:
            return False
        at = bisect.bisect(self._free, (offset, 0))
        begin, end = offset, offset + size
        if at < len(self._free) and self._free[at][0] == end:
            end += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == begin:
            at -= 1
            begin = self._free.pop(at)[0]
        self._free.insert(at, (begin, end - begin))
        return True


class SendRange:
    """The range that this side of a connection sends through. Thread-safe.

    Args:
        via: the transport's name on the wire.
        generation: of the connection's memory; the other side refuses any other.
    """

    def __init__(self, via: str, generation: int, size_bytes: int) -> None:
        self.via = via
        self.generation = generation
        self._blocks = Blocks(size_bytes)
        self._is_open = True
        self._lock = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        """Return the bytes in use."""
        with self._lock:
            return self._blocks.taken_bytes

    def take(self, nbytes: int) -> Ref | None:
        """Hand out a piece; None if there is no room, or the memory was given up."""
        with self._lock:
            offset = self._blocks.take(nbytes) if self._is_open else None
        return None if offset is None else Ref(self.via, self.generation, offset)

    def free(self, offsets: Iterable[int]) -> None:
        """Use pieces again.

        Raises:
            DaemonError: ``request-invalid`` for one that is not in use.
        """
        with self._lock:
            for offset in offsets:
                if not self._blocks.give(offset) and self._is_open:
                    raise DaemonError("request-invalid", f"released: nothing lies at {offset}")

    def close(self) -> None:
        """Hand out no more, and take back whatever comes."""
        with self._lock:
            self._is_open = False


@dataclass(frozen=True, slots=True)
class ReceiveRange:
    """The range that the other side sends through, for judging the places that it names."""

    via: str
    generation: int
    size_bytes: int

    def check(self, ref: Ref, nbytes: int) -> None:
        """Judge a place.

        Raises:
            DaemonError: ``transport-failed`` for another generation or a place outside the range.
        """
        if ref.generation != self.generation:
            raise not_ours(self.via)
        if ref.offset + nbytes > self.size_bytes:
            raise DaemonError(
                "transport-failed",
                f"a tensor of {nbytes} bytes at {ref.offset} ends outside the shared {self.size_bytes} bytes",
                details={"via": self.via},
            )


def not_ours(via: str) -> DaemonError:
    """Return the error of a place in memory that this connection does not have, or has no more."""
    return DaemonError(
        "transport-failed", "the memory that a tensor lies in is not that of this connection", details={"via": via}
    )
