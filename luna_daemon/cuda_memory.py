"""CUDA's side of `luna_daemon.device_memory`: five calls of the driver, and torch for the copies.

An arena is an allocation of its own, straight from the driver, and its handle is what the driver's IPC call gives for
it: 64 bytes, no offset. So torch's allocator does not matter on either side: not cudaMallocAsync, which ComfyUI uses
and which can neither export nor import, not expandable segments, and no reference-counter files, which a killed
importer would leave behind. Sources: CUDA Driver API, "Memory Management" (cuMemAlloc, cuIpcGetMemHandle,
cuIpcOpenMemHandle, cuIpcCloseMemHandle) and "CUDA Array Interface (Version 3)" of the Numba manual.
"""

from __future__ import annotations

import ctypes
import functools
import os
import uuid as uuids
from typing import TYPE_CHECKING, Any

from luna_daemon.device_memory import DeviceTensor
from luna_daemon.messages import CudaOffer
from luna_daemon.platform import sharing
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import torch

    from luna_daemon.device_memory import DeviceBuffer

HANDLE_BYTES = 64
_LIBRARY = "libcuda.so.1"
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which the driver takes by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class _Uuid(ctypes.Structure):
    """CUuuid."""

    _fields_ = (("bytes", ctypes.c_ubyte * 16),)


class Driver:
    """The calls of libcuda that sharing needs. The context of the card must be current on the calling thread."""

    def __init__(self) -> None:
        """Load the driver.

        Raises:
            DaemonError: ``transport-failed`` where there is none.
        """
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise DaemonError("transport-failed", f"no CUDA driver: {error}") from error

    def uuid(self, ordinal: int) -> str:
        """Return the UUID of a visible card, or of its MIG slice."""
        device, found = ctypes.c_int(), _Uuid()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        self._call("cuDeviceGetUuid_v2", ctypes.byref(found), device)
        return f"GPU-{uuids.UUID(bytes=bytes(found.bytes))}"

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new memory of the current card."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address.value

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def export(self, address: int) -> bytes:
        """Return the handle by which another process opens an allocation."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle.reserved)

    def open(self, handle: bytes) -> int:
        """Map an allocation of another process and return its address here."""
        address, given = ctypes.c_uint64(), _Handle.from_buffer_copy(handle)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), given, ctypes.c_uint(_LAZY_PEER_ACCESS))
        return address.value

    def close(self, address: int) -> None:
        """Unmap what `open` gave."""
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        result = function(*arguments)
        if result != 0:
            raise DaemonError("transport-failed", f"{name}: {self._error(result)}", details={"via": "cuda_ipc"})

    def _error(self, result: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorString(ctypes.c_int(result), ctypes.byref(text)) != 0 or text.value is None:
            return f"error {result} of the CUDA driver"
        return text.value.decode("utf-8", "replace")


@functools.cache
def driver() -> Driver:
    """Return the driver, loaded once."""
    return Driver()


class CudaBuffer:
    """Bytes of a tensor on a card (`luna_daemon.device_memory.DeviceBuffer`)."""

    def __init__(self, tensor: torch.Tensor, *, is_own: bool = True) -> None:
        """Wrap a one-dimensional u8 tensor; ``is_own`` says that nobody else writes to it."""
        self._tensor = tensor
        self._is_own = is_own

    @property
    def nbytes(self) -> int:
        """Size."""
        return self._tensor.numel()

    def own(self) -> CudaBuffer:
        """Copy the bytes unless they are this process's, and wait until that is done."""
        if self._is_own:
            return self
        copy = self._tensor.clone()
        _wait(copy)
        return CudaBuffer(copy)

    def host(self) -> memoryview:
        """Copy the bytes to host memory."""
        return self._tensor.cpu().numpy().data

    def tensor(self) -> torch.Tensor:
        """Return the bytes themselves."""
        return self._tensor


class CudaArena:
    """An allocation of the driver that two processes have mapped (`luna_daemon.device_memory.Arena`)."""

    def __init__(self, address: int, handle: bytes, size_bytes: int, device: torch.device, *, is_mine: bool) -> None:
        self.handle = handle
        self.size_bytes = size_bytes
        self._address = address
        self._device = device
        self._is_mine = is_mine
        self._bytes: torch.Tensor | None = _view(address, size_bytes, device)

    def write(self, offset: int, data: DeviceBuffer) -> None:
        """Copy bytes in and wait for the card.

        Raises:
            DaemonError: ``transport-failed``: the card refused.
        """
        import torch

        target = self._mapped()[offset : offset + data.nbytes]
        try:
            with torch.no_grad():
                target.copy_(data.tensor())
            _wait(target)
        except RuntimeError as error:
            details = {"via": "cuda_ipc"}
            raise DaemonError("transport-failed", f"copying on the card failed: {error}", details=details) from error

    def region(self, offset: int, nbytes: int) -> CudaBuffer:
        """Return bytes as they lie in the arena."""
        return CudaBuffer(self._mapped()[offset : offset + nbytes], is_own=False)

    def _mapped(self) -> torch.Tensor:
        if self._bytes is None:
            raise DaemonError("transport-failed", "the arena is closed", details={"via": "cuda_ipc"})
        return self._bytes

    def close(self) -> None:
        """Free it where it was made, else unmap it."""
        import torch

        if self._bytes is None:
            return
        self._bytes = None
        with torch.cuda.device(self._device):
            if self._is_mine:
                driver().free(self._address)
            else:
                driver().close(self._address)


class CudaMemory:
    """One card as this process uses it (`luna_daemon.device_memory.DeviceMemory`)."""

    def __init__(self, device: torch.device) -> None:
        """Look at a card.

        Raises:
            DaemonError: ``transport-failed``: this system or driver shares no memory.
        """
        import torch

        fault = sharing.system_fault()
        if fault is not None:
            raise DaemonError("transport-failed", fault)
        given: int | None = device.index
        index = torch.cuda.current_device() if given is None else given
        self._device = torch.device("cuda", index)
        torch.cuda.synchronize(self._device)  # makes the context that torch uses
        self.uuid = driver().uuid(index)

    def allocate(self, size_bytes: int) -> CudaArena:
        """Allocate memory of the driver's that can be opened elsewhere.

        Raises:
            DaemonError: ``transport-failed``.
        """
        with self._current():
            address = driver().allocate(size_bytes)
            try:
                return CudaArena(address, driver().export(address), size_bytes, self._device, is_mine=True)
            except BaseException:
                driver().free(address)
                raise

    def open(self, handle: bytes, size_bytes: int) -> CudaArena:
        """Map memory that another process allocated.

        Raises:
            DaemonError: ``transport-failed``.
        """
        if len(handle) != HANDLE_BYTES:
            raise DaemonError("transport-failed", f"a handle of {len(handle)} bytes, CUDA's have {HANDLE_BYTES}")
        with self._current():
            return CudaArena(driver().open(handle), handle, size_bytes, self._device, is_mine=False)

    def buffer(self, data: bytes) -> CudaBuffer:
        """Copy host bytes to the card."""
        import torch

        return CudaBuffer(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device))

    def synchronize(self) -> None:
        """Wait for the whole card, as far as this process uses it."""
        import torch

        torch.cuda.synchronize(self._device)

    def offer(self) -> CudaOffer:
        """Say which card and which torch this is."""
        import torch

        return CudaOffer(
            uuid=self.uuid,
            torch=torch.__version__,
            allocator=torch.cuda.get_allocator_backend(),
            expandable_segments=_has_expandable_segments(),
        )

    def _current(self) -> Any:
        """Make torch's context of the card current on this thread, as the driver's calls need it."""
        import torch

        torch.cuda.synchronize(self._device)
        return torch.cuda.device(self._device)


def _has_expandable_segments() -> bool:
    """Tell what torch's allocator was told in the environment; said to the daemon for its log only."""
    told = " ".join(os.environ.get(name, "") for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    return "expandable_segments:true" in told.lower().replace(" ", "")


def wrap(name: str, dtype: str, tensor: torch.Tensor) -> DeviceTensor:
    """Return a wire tensor over a tensor on a card; one with gaps is copied there first."""
    import torch

    plain = tensor.detach().contiguous()
    return DeviceTensor(name, dtype, tuple(plain.shape), CudaBuffer(plain.reshape(-1).view(torch.uint8)))


def _view(address: int, size_bytes: int, device: torch.device) -> torch.Tensor:
    """Return a u8 tensor over memory of the driver's; it is never one of inference mode, whatever the caller's is."""
    import torch

    with torch.inference_mode(mode=False):
        return torch.as_tensor(_Span(address, size_bytes), device=device)


class _Span:
    """Memory of a card as the CUDA array interface describes it."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _wait(tensor: torch.Tensor) -> None:
    """Wait until the current stream of a tensor's card has done everything it was given."""
    import torch

    torch.cuda.current_stream(tensor.device).synchronize()
