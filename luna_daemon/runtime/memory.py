"""Bytes of models, measured from storages, and what the device has left."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable


_ROWS_ON_CARD, _ROWS_ON_CPU = 64, 16
_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(rb"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> dict[str, int]:
    """Return bytes per device kind (``cpu``, ``cuda``); tensors that share a storage count once."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        seen[tensor.device.type, storage.data_ptr()] = storage.nbytes()
    totals: dict[str, int] = {}
    for (kind, _), size in seen.items():
        totals[kind] = totals.get(kind, 0) + size
    return totals


def free_bytes(device: torch.device) -> int:
    """Return what the driver (or the system, for a CPU) says is free; other processes count."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return _available_bytes()


def _available_bytes() -> int:
    """Return what the system can give without swapping.

    It is asked for with every prompt. On Linux the figure stands at the top of a file; psutil reads the whole of it,
    which takes as long as half of a request's other work.
    """
    try:
        with _MEMINFO.open("rb", buffering=0) as file:
            head = file.read(256) or b""
    except OSError:  # no Linux
        head = b""
    found = _AVAILABLE.search(head)
    return int(found[1]) * 1024 if found is not None else int(psutil.virtual_memory().available)


def row_cap(device: torch.device, row_bytes: int) -> int:
    """Return how many rows of tokens may run at once: 64 on a card, 16 on a CPU, fewer where memory is short.

    Args:
        device: that they run on.
        row_bytes: what one row takes while it runs.
    """
    return max(1, min(most_rows(device), free_bytes(device) // max(1, row_bytes)))


def most_rows(device: torch.device) -> int:
    """Return how many rows a device takes at once where memory is not the limit."""
    return _ROWS_ON_CARD if device.type == "cuda" else _ROWS_ON_CPU


def total_bytes(device: torch.device) -> int:
    """Return the size of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _system_bytes()


@functools.cache
def _system_bytes() -> int:
    return int(psutil.virtual_memory().total)


def allocated_bytes(device: torch.device) -> int | None:
    """Return what torch has allocated on a card, None for a CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int | None:
    """Return what torch's allocator holds on a card, None for a CPU."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else None
