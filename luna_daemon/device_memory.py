"""The seam to the memory of a card: what the transport needs of it, and tensors that lie there. No torch here.

`luna_daemon.cuda_memory` is CUDA's side of it. The tests have a second one over shared pages, so that everything but
the driver's own calls runs between real processes without a card.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from luna_daemon.frames import WireTensor

if TYPE_CHECKING:
    import torch

    from luna_daemon.messages import CudaOffer


class DeviceBuffer(Protocol):
    """Bytes on a card."""

    @property
    def nbytes(self) -> int:
        """Size."""

    def own(self) -> DeviceBuffer:
        """Return the bytes in memory that nobody else can change: a finished copy, or these if that is so already."""

    def host(self) -> memoryview:
        """Return a copy in host memory."""

    def tensor(self) -> torch.Tensor:
        """Return a one-dimensional u8 tensor over these bytes, without copying."""


class Arena(Protocol):
    """A piece of a card's memory that two processes have mapped: the daemon that made it, and one client.

    Attributes:
        handle: what `DeviceMemory.open` takes in the other process; says nothing outside this machine.
        size_bytes: of all of it.
    """

    handle: bytes
    size_bytes: int

    def write(self, offset: int, data: DeviceBuffer) -> None:
        """Copy bytes in, and return when they are there for everybody."""

    def region(self, offset: int, nbytes: int) -> DeviceBuffer:
        """Return bytes of the arena as they lie there; the other side may change them at any time."""

    def close(self) -> None:
        """Unmap it; who made it frees it. Regions of it must not be used afterwards."""


class DeviceMemory(Protocol):
    """The memory of one card, as this process uses it.

    Attributes:
        uuid: of the card. Numbers such as ``cuda:0`` mean another card in another process.
    """

    uuid: str

    def allocate(self, size_bytes: int) -> Arena:
        """Make an arena that can be opened elsewhere.

        Raises:
            DaemonError: ``transport-failed`` with the driver's reason.
        """

    def open(self, handle: bytes, size_bytes: int) -> Arena:
        """Map an arena that another process made.

        Raises:
            DaemonError: ``transport-failed`` with the driver's reason.
        """

    def buffer(self, data: bytes) -> DeviceBuffer:
        """Return host bytes on the card."""

    def synchronize(self) -> None:
        """Wait until everything that this process has asked of the card is done."""

    def offer(self) -> CudaOffer:
        """Say what a daemon has to know before it hands an arena out."""


class DeviceTensor(WireTensor):
    """A tensor whose bytes lie on a card. Who asks for ``data`` gets a copy in host memory, made once."""

    __slots__ = ("_host", "buffer")

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], buffer: DeviceBuffer) -> None:
        for field, value in (("name", name), ("dtype", dtype), ("shape", shape), ("buffer", buffer), ("_host", None)):
            object.__setattr__(self, field, value)  # frozen, as all wire tensors are

    buffer: DeviceBuffer
    _host: memoryview | None

    @property
    def data(self) -> memoryview:
        """Bytes in host memory."""
        if self._host is None:
            object.__setattr__(self, "_host", self.buffer.host())
        host = self._host
        assert host is not None  # noqa: S101 - set above; not input
        return host

    @property
    def nbytes(self) -> int:
        """Return the size in bytes without copying them."""
        return self.buffer.nbytes


def as_device(tensor: WireTensor) -> DeviceTensor | None:
    """Return a tensor that lies on a card, None for any other."""
    return tensor if isinstance(tensor, DeviceTensor) else None
