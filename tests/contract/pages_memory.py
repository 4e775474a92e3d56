"""A second real implementation of `luna_daemon.device_memory`: shared pages with the manners of a card's memory.

As with CUDA, a handle is 64 bytes that mean something only while the process lives that made the arena, everything is
gone with that process however it ends, and touching an arena of a dead process is a fault, not an error to be handled.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from luna_daemon.messages import CudaOffer
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import torch

    from luna_daemon.device_memory import DeviceBuffer

_HANDLE = struct.Struct("<qq48x")
"""The maker's pid and its descriptor."""
FAULTS = ("allocate", "bug", "open", "synchronize", "write", "writes nowhere")
"""What goes wrong on demand: a refusal, something that nobody thought of, a copy that never arrives."""


class DeadArenaError(RuntimeError):
    """An arena was touched whose maker is dead. A card would fault the whole process here."""


class PagesBuffer:
    """Bytes in pages, of an arena or this process's own."""

    def __init__(self, view: memoryview, arena: PagesArena | None = None) -> None:
        self._view = view
        self._arena = arena

    @property
    def nbytes(self) -> int:
        return self._view.nbytes

    def own(self) -> PagesBuffer:
        if self._arena is None:
            return self
        self._arena.require_alive()
        return PagesBuffer(memoryview(bytearray(self._view)))

    def host(self) -> memoryview:
        return memoryview(bytearray(self.own()._view))

    def tensor(self) -> torch.Tensor:
        import torch

        return torch.frombuffer(self._view, dtype=torch.uint8)


class PagesArena:
    """Pages of one process, mapped by another one through the kernel's view of its descriptors."""

    def __init__(self, descriptor: int, maker: int, handle: bytes, size_bytes: int, fault: str | None) -> None:
        self.handle = handle
        self.size_bytes = size_bytes
        self._descriptor = descriptor
        self._maker = maker
        self._fault = fault
        self._pages: memoryview | None = memoryview(mmap.mmap(descriptor, size_bytes))

    def write(self, offset: int, data: DeviceBuffer) -> None:
        self.require_alive()
        if self._fault == "write":
            raise DaemonError("transport-failed", "told to fail in the middle", details={"via": "cuda_ipc"})
        if self._fault != "writes nowhere":
            self._mapped()[offset : offset + data.nbytes] = data.host()

    def region(self, offset: int, nbytes: int) -> PagesBuffer:
        self.require_alive()
        return PagesBuffer(self._mapped()[offset : offset + nbytes], self)

    def _mapped(self) -> memoryview:
        if self._pages is None:
            raise DeadArenaError("the arena was touched after it was closed")
        return self._pages

    def require_alive(self) -> None:
        """Fault if the maker is dead, or a zombie: its card's memory is gone then."""
        try:
            state = Path(f"/proc/{self._maker}/stat").read_text("ascii").rpartition(") ")[2][:1]
        except OSError:
            state = "X"
        if state in "ZX":
            raise DeadArenaError(f"process {self._maker}, which made the arena, is dead")

    def close(self) -> None:
        if self._pages is not None:
            self._pages = None
            os.close(self._descriptor)


class PagesMemory:
    """A card made of pages.

    Args:
        uuid: what it calls itself.
        fault: one of `FAULTS`.
    """

    def __init__(self, uuid: str, fault: str | None = None) -> None:
        self.uuid = uuid
        self.fault = fault
        self.synchronized = 0

    def allocate(self, size_bytes: int) -> PagesArena:
        if self.fault == "allocate":
            raise DaemonError("transport-failed", "the card has no memory left")
        if self.fault == "bug":
            raise ZeroDivisionError("a secret prompt")
        descriptor = os.memfd_create("luna-card")
        os.ftruncate(descriptor, size_bytes)
        handle = _HANDLE.pack(os.getpid(), descriptor)
        return PagesArena(descriptor, os.getpid(), handle, size_bytes, self.fault)

    def open(self, handle: bytes, size_bytes: int) -> PagesArena:
        if self.fault == "open":
            raise DaemonError("transport-failed", "the driver refuses to open the handle")
        try:
            maker, number = _HANDLE.unpack(handle)
            descriptor = os.open(f"/proc/{maker}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except (OSError, struct.error) as error:
            raise DaemonError("transport-failed", f"no such handle: {error}") from error
        return PagesArena(descriptor, maker, handle, size_bytes, self.fault)

    def buffer(self, data: bytes) -> PagesBuffer:
        return PagesBuffer(memoryview(bytearray(data)))

    def synchronize(self) -> None:
        if self.fault == "synchronize":
            raise DaemonError("transport-failed", "what was under way on the card has failed")
        self.synchronized += 1

    def offer(self) -> CudaOffer:
        return CudaOffer(self.uuid, "none", "pages", expandable_segments=False)
