"""Tensors through shared memory: two ranges per connection, one each way, both made by the daemon.

Whoever sends copies into its range and names the place; whoever receives copies out before looking at a byte. The
client's blocks are free again at the reply, the daemon's when the client lists them as released.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING

from luna_daemon.blocks import ReceiveRange, SendRange, not_ours
from luna_daemon.frames import INTEGER_MAX
from luna_daemon.platform import sealed_memory
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Sequence

    from typing_extensions import Self

    from luna_daemon.frames import Ref

NAME = "shm"


class SharedMemory:
    """Both ranges of one connection as one side has them mapped. Thread-safe."""

    def __init__(self, generation: int, sends: mmap.mmap, receives: mmap.mmap) -> None:
        self.sent = SendRange(NAME, generation, len(sends))
        self._received = ReceiveRange(NAME, generation, len(receives))
        self._sends: memoryview | None = memoryview(sends)
        self._receives: memoryview | None = memoryview(receives)

    @property
    def generation(self) -> int:
        """What tells this connection's memory from any other's."""
        return self._received.generation

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
        sends = self._sends
        ref = None if sends is None else self.sent.take(data.nbytes)
        if sends is None or ref is None:
            return None
        sends[ref.offset : ref.offset + data.nbytes] = data
        return ref

    def free(self, offsets: Iterable[int]) -> None:
        """Use blocks of this side again.

        Raises:
            DaemonError: ``request-invalid`` for one that is not in use.
        """
        self.sent.free(offsets)

    def view(self, ref: Ref, nbytes: int) -> memoryview:
        """Return the other side's bytes; they can change at any time and must be copied before they are judged.

        Raises:
            DaemonError: ``transport-failed`` for another generation or a place outside the range.
        """
        receives = self._receives
        if receives is None:
            raise not_ours(NAME)
        self._received.check(ref, nbytes)
        return receives[ref.offset : ref.offset + nbytes]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of both ranges, 0 when closed."""
        return sum(view.nbytes for view in (self._sends, self._receives) if view is not None)

    def close(self) -> None:
        """Give the mappings up; a copy that still runs in another thread keeps its own until it is done."""
        self.sent.close()
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
