"""The first steps that need torch: threads, the device itself, its memory in numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import psutil
import torch

from luna_daemon.arenas import NoDeviceMemory
from luna_daemon.runtime import memory
from luna_daemon.runtime.residency import Residency
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.device_memory import DeviceMemory
    from luna_daemon.engine_seam import EngineOptions
    from luna_daemon.runtime.device import DeviceChoice
    from luna_daemon.status_messages import DeviceStatus


def take_device(choice: DeviceChoice, threads: int | None) -> torch.device:
    """Set torch's threads and make sure that the device computes.

    Raises:
        DaemonError: ``device-unusable``.
    """
    torch.set_num_threads(threads or psutil.cpu_count(logical=False) or 1)
    if choice.card is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DaemonError(
            "device-unusable",
            f"torch {torch.__version__} cannot use {choice.card.name}",
            "install a CUDA build of torch that fits the driver, or use --device cpu",
        )
    device = torch.device("cuda:0")  # the only one that show_only left visible
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        raise DaemonError("device-unusable", f"{choice.card.name} does not compute: {error}", None) from error
    return device


def share_card(device: torch.device, *, is_wanted: bool) -> DeviceMemory | NoDeviceMemory:
    """Return the card's memory for sharing with clients, or why there is none."""
    if device.type != "cuda":
        return NoDeviceMemory(f"this daemon computes on the {device.type.upper()}")
    if not is_wanted:
        return NoDeviceMemory("it is switched off (--no-cuda-ipc, or daemon.cuda_ipc in the settings)")
    from luna_daemon.cuda_memory import CudaMemory

    try:
        return CudaMemory(device)
    except DaemonError as error:
        return NoDeviceMemory(error.message)


def make_residency(
    device: torch.device, options: EngineOptions, drop_merged: Callable[[], int], leases: Callable[[str], int]
) -> Residency:
    """Return what decides where sets are: a card's memory has a budget of its own, on a CPU there is only the RAM's."""
    host = torch.device("cpu")
    if device.type == "cpu":
        return Residency(device, host, options.ram_budget_bytes, None, drop_merged, leases)
    return Residency(device, host, options.vram_budget_bytes, options.ram_budget_bytes, drop_merged, leases)


def measure(status: DeviceStatus, device: torch.device) -> DeviceStatus:
    """Return the status with fresh numbers; ``other_bytes`` is what neither torch nor anybody left free."""
    total, free = memory.total_bytes(device), memory.free_bytes(device)
    reserved = memory.reserved_bytes(device)
    return dataclasses.replace(
        status,
        total_bytes=total,
        free_bytes=free,
        torch_allocated_bytes=memory.allocated_bytes(device),
        torch_reserved_bytes=reserved,
        other_bytes=None if reserved is None else max(0, total - free - reserved),
    )
