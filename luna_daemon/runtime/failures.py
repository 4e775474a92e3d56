"""What torch raises when memory runs out or a card is lost, as errors of the protocol."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

from luna_daemon.runtime.memory import free_bytes
from luna_engine.errors import DaemonError

_LOST = (
    "CUDA error: device-side assert",
    "CUDA error: an illegal memory access",
    "CUDA error: unspecified launch",
    "CUDA error: uncorrectable",
    "CUDA error: the launch timed out",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a card or the system had no memory left."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def is_device_lost(error: BaseException) -> bool:
    """Tell whether the card's context is beyond repair, so that only a new process helps."""
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _LOST)


def trim_heap() -> None:
    """Give back what Python and the C library keep for later; any thread may."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries keep less
        if trim is not None:
            trim(0)


def release_cache() -> None:
    """Give back that, and what torch's allocator keeps on a card."""
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(
    device: torch.device, doing: str, holders: dict[str, int], needed_bytes: int | None = None
) -> DaemonError:
    """Return the typed error with what could not be had, what is free and who holds memory."""
    free = free_bytes(device)
    return DaemonError(
        "out-of-memory",
        f"there was not enough memory on {device.type} while {doing}; {free:,} bytes are free",
        "unload a set, send smaller images, or end what else uses the device",
        details={"needed_bytes": needed_bytes, "free_bytes": free, "holders": holders},
    )
