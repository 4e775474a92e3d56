"""Tensors through shared memory: two ranges per connection, one each way, both made by the daemon.

Whoever sends copies into its range and names the place; whoever receives copies out before looking at a byte. The
client's blocks are free again at the reply, the daemon's when the client lists them as released.
"""

from __future__ import annotations

import bisect
import os
import secrets
import threading
from typing import TYPE_CHECKING

from luna_daemon.frames import INTEGER_MAX, Ref
from luna_daemon.platform import sealed_memory
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Sequence

    from typing_extensions import Self

NAME = "shm"
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


class SharedMemory:
    """Both ranges of one connection as one side has them mapped. Thread-safe."""

    def __init__(self, generation: int, sends: mmap.mmap, receives: mmap.mmap) -> None:
        self.generation = generation
        self._sends: memoryview | None = memoryview(sends)
        self._receives: memoryview | None = memoryview(receives)
        self._blocks = Blocks(len(sends))
        self._lock = threading.Lock()

    @classmethod
    def create(cls, up_bytes: int, down_bytes: int) -> tuple[Self, list[int]]:
        """Make the memory of a connection on the daemon's side.

        Args:
            up_bytes: for what the client sends; the client may write there at any time.
            down_bytes: for what the daemon sends; nobody else can write there.

        Returns:
            It, and the descriptors of both ranges, to be passed on and closed.

        Raises:
            DaemonError: ``transport-failed``.
        """
        up, receives = sealed_memory.create("luna-up", up_bytes, peer_may_write=True)
        try:
            down, sends = sealed_memory.create("luna-down", down_bytes, peer_may_write=False)
        except DaemonError:
            os.close(up)
            raise
        return cls(secrets.randbelow(INTEGER_MAX), sends, receives), [up, down]

    @classmethod
    def attach(cls, generation: int, descriptors: Sequence[int], up_bytes: int, down_bytes: int) -> Self:
        """Map the memory of a connection on the client's side; the descriptors may be closed afterwards.

        Raises:
            DaemonError: ``transport-failed``.
        """
        if len(descriptors) != 2:
            raise DaemonError("transport-failed", f"{len(descriptors)} descriptors came with the reply, not 2")
        sends = sealed_memory.attach(descriptors[0], up_bytes, is_writable=True)
        return cls(generation, sends, sealed_memory.attach(descriptors[1], down_bytes, is_writable=False))

    def place(self, data: memoryview) -> Ref | None:
        """Copy bytes into the range of this side; None if it is full or closed."""
        with self._lock:
            sends = self._sends
            offset = None if sends is None else self._blocks.take(data.nbytes)
        if sends is None or offset is None:
            return None
        sends[offset : offset + data.nbytes] = data
        return Ref(NAME, self.generation, offset)

    def free(self, offsets: Iterable[int]) -> None:
        """Use blocks of this side again.

        Raises:
            DaemonError: ``request-invalid`` for one that is not in use.
        """
        with self._lock:
            for offset in offsets:
                if not self._blocks.give(offset) and self._sends is not None:
                    raise DaemonError("request-invalid", f"released: nothing lies at {offset}")

    def view(self, ref: Ref, nbytes: int) -> memoryview:
        """Return the other side's bytes; they can change at any time and must be copied before they are judged.

        Raises:
            DaemonError: ``transport-failed`` for another generation or a place outside the range.
        """
        receives = self._receives
        if receives is None or ref.generation != self.generation:
            raise DaemonError("transport-failed", "the memory that a tensor lies in is not that of this connection")
        if ref.offset + nbytes > receives.nbytes:
            raise DaemonError(
                "transport-failed",
                f"a tensor of {nbytes} bytes at {ref.offset} ends outside the shared {receives.nbytes} bytes",
            )
        return receives[ref.offset : ref.offset + nbytes]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of both ranges, 0 when closed."""
        return sum(view.nbytes for view in (self._sends, self._receives) if view is not None)

    def close(self) -> None:
        """Give the mappings up; a copy that still runs in another thread keeps its own until it is done."""
        with self._lock:
            self._sends = self._receives = None


class SharedMemoryBudget:
    """Counts the shared memory of all connections."""

    def __init__(self, connection_bytes: int, total_bytes: int) -> None:
        self.connection_bytes = connection_bytes
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self.connections = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Count memory in.

        Raises:
            DaemonError: ``transport-failed`` if one connection or all together would hold too much.
        """
        if nbytes > self.connection_bytes:
            raise DaemonError(
                "transport-failed", f"{nbytes} bytes of shared memory, a connection may have {self.connection_bytes}"
            )
        with self._lock:
            if self.used_bytes + nbytes > self.total_bytes:
                raise DaemonError(
                    "transport-failed",
                    f"{self.connections} connections share {self.used_bytes} bytes of memory already, "
                    f"{self.total_bytes} at most",
                )
            self.used_bytes += nbytes
            self.connections += 1

    def give(self, nbytes: int) -> None:
        """Count memory out."""
        with self._lock:
            self.used_bytes -= nbytes
            self.connections -= 1
