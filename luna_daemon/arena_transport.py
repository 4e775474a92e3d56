"""Tensors that stay on a card: one arena of the daemon's, mapped by one client, half of it for each way.

The pieces, their names on the wire and their return are those of shared memory (`luna_daemon.blocks`); what is copied
are buffers of the card. The daemon never maps memory of a client, so the death of one cannot fault the daemon.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import TYPE_CHECKING

from luna_daemon.blocks import ReceiveRange, SendRange, not_ours
from luna_daemon.transport import CUDA_IPC

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from luna_daemon.device_memory import Arena, DeviceBuffer, DeviceMemory
    from luna_daemon.frames import Ref

CANARY_BYTES = 1024


class ArenaTransport:
    """Both ranges of one connection. Thread-safe; copies of one connection wait for each other.

    Args:
        arena: as this process has it mapped.
        generation: of the lease.
        sends, receives: (begin, bytes) of this side's range and of the other's.
        keeps: leave the arena mapped at the end, because it goes to the next client.
    """

    def __init__(
        self,
        arena: Arena,
        generation: int,
        sends: tuple[int, int],
        receives: tuple[int, int],
        *,
        keeps: bool,
    ) -> None:
        self.generation = generation
        self.sent = SendRange(CUDA_IPC, generation, sends[1])
        self._received = ReceiveRange(CUDA_IPC, generation, receives[1])
        self._sends_at, self._receives_at = sends[0], receives[0]
        self._arena: Arena | None = arena
        self._keeps = keeps
        self._lock = threading.Lock()

    @classmethod
    def of_daemon(cls, arena: Arena, generation: int, up_bytes: int, down_bytes: int) -> ArenaTransport:
        """Return the daemon's side: it sends through the second range, and keeps the arena."""
        return cls(arena, generation, (up_bytes, down_bytes), (0, up_bytes), keeps=True)

    @classmethod
    def of_client(cls, arena: Arena, generation: int, up_bytes: int, down_bytes: int) -> ArenaTransport:
        """Return the client's side: it sends through the first range, and unmaps the arena at the end."""
        return cls(arena, generation, (0, up_bytes), (up_bytes, down_bytes), keeps=False)

    def place(self, data: DeviceBuffer) -> Ref | None:
        """Copy a buffer into this side's range and wait until it is there; None if there is no room."""
        ref = self.sent.take(data.nbytes)
        if ref is None:
            return None
        with self._lock:
            if self._arena is None:
                return None
            self._arena.write(self._sends_at + ref.offset, data)
        return ref

    def view(self, ref: Ref, nbytes: int) -> DeviceBuffer:
        """Return the other side's bytes; they must be copied before they are judged.

        Raises:
            DaemonError: ``transport-failed`` for another generation or a place outside the range.
        """
        self._received.check(ref, nbytes)
        with self._lock:
            if self._arena is None:
                raise not_ours(CUDA_IPC)
            return _Region(self, self._receives_at + ref.offset, nbytes)

    def free(self, offsets: Iterable[int]) -> None:
        """Use pieces of this side's range again.

        Raises:
            DaemonError: ``request-invalid`` for one that is not in use.
        """
        self.sent.free(offsets)

    def close(self) -> None:
        """Touch the arena no more, once a copy that runs is done."""
        self.sent.close()
        with self._lock:
            arena, self._arena = self._arena, None
        if arena is not None and not self._keeps:
            arena.close()

    def write_canary(self, memory: DeviceMemory) -> str:
        """Write random bytes at the start of this side's range; return what the other side must find there."""
        nonce = secrets.token_bytes(CANARY_BYTES)
        with self._lock:
            if self._arena is None:
                raise not_ours(CUDA_IPC)
            self._arena.write(self._sends_at, memory.buffer(nonce))
        return hashlib.sha256(nonce).hexdigest()

    def has_canary(self, expected: str | None) -> bool:
        """Tell whether the start of the other side's range holds what that side said it wrote."""
        found = hashlib.sha256(self.copy_out(self._receives_at, CANARY_BYTES).host()).hexdigest()
        return expected is not None and secrets.compare_digest(found.encode(), expected.encode())

    def copy_out(self, offset: int, nbytes: int) -> DeviceBuffer:
        """Copy bytes of the arena out while it is certainly mapped.

        Raises:
            DaemonError: ``transport-failed`` once it is not.
        """
        with self._lock:
            if self._arena is None:
                raise not_ours(CUDA_IPC)
            return self._arena.region(offset, nbytes).own()


class _Region:
    """Bytes in the other side's range; every look at them is a look at a copy (`luna_daemon.device_memory`)."""

    def __init__(self, transport: ArenaTransport, offset: int, nbytes: int) -> None:
        self._transport = transport
        self._offset = offset
        self._nbytes = nbytes
        self._copy: DeviceBuffer | None = None

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def own(self) -> DeviceBuffer:
        """Copy them out, once."""
        if self._copy is None:
            self._copy = self._transport.copy_out(self._offset, self._nbytes)
        return self._copy

    def host(self) -> memoryview:
        return self.own().host()

    def tensor(self) -> torch.Tensor:
        return self.own().tensor()
