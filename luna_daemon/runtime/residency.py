"""Where sets are: on the device, in host memory or on disk, and which of them goes when room is needed.

Used by the device's thread only. On a CPU device and host are one place.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_daemon.runtime import memory
from luna_daemon.runtime.backend import Place
from luna_daemon.runtime.failures import release_cache
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from luna_daemon.runtime.held import HeldSet

RESERVE_BYTES = 512 * 1024 * 1024


class Residency:
    """Keeps what is held within the budgets and within what is free, other processes counted.

    Args:
        device: where sets compute.
        host: the CPU.
        budget_bytes: what sets may hold on the device; None is what is free.
        host_budget_bytes: what sets may hold in host memory beside a card.
        drop_merged: forgets merged LoRA weights and returns their bytes.
        leases: of a set, by its id.
        free_bytes: of a device, as its driver says.
    """

    def __init__(
        self,
        device: torch.device,
        host: torch.device,
        budget_bytes: int | None = None,
        host_budget_bytes: int | None = None,
        drop_merged: Callable[[], int] = lambda: 0,
        leases: Callable[[str], int] = lambda name: 0,  # noqa: ARG005 - nobody holds any
        free_bytes: Callable[[torch.device], int] = memory.free_bytes,
    ) -> None:
        self._device = device
        self._host = host
        self._budgets = {Place.DEVICE: budget_bytes, Place.HOST: host_budget_bytes}
        self._drop_merged = drop_merged
        self._leases = leases
        self._free_bytes = free_bytes

    @property
    def device(self) -> torch.device:
        """Where sets compute."""
        return self._device

    @property
    def has_card(self) -> bool:
        """Whether device and host are two places."""
        return self._device.type != "cpu"

    def make_room(self, sets: Iterable[HeldSet], needed_bytes: int, keep: HeldSet | None = None) -> tuple[str, ...]:
        """Make room on the device: drop merged weights, then move idle sets, longest unused first, pinned last.

        Args:
            sets: all of them.
            needed_bytes: by what is to come.
            keep: a set that stays and is not counted, because it is what is to come.

        Returns:
            The ids of the sets that had to go.

        Raises:
            DaemonError: ``out-of-memory`` with what is needed, what is free and who holds how much.
        """
        others = [held for held in sets if held is not keep]
        if not self._has_room(Place.DEVICE, others, needed_bytes):
            self._drop_merged()
        moved = []
        for held in self._in_order(others, Place.DEVICE):
            if self._has_room(Place.DEVICE, others, needed_bytes):
                break
            if self._demote(held, others):
                moved.append(held.id)
        if not self._has_room(Place.DEVICE, others, needed_bytes):
            raise self._no_room(others, needed_bytes)
        return tuple(moved)

    def promote(self, held: HeldSet, sets: Iterable[HeldSet]) -> float:
        """Bring a set to the device and return the seconds that took; 0 if it is there.

        Raises:
            SetOnDiskError: its weights have to be read first.
            DaemonError: ``out-of-memory``.
        """
        if held.model.place is Place.DEVICE:
            return 0.0
        began = time.monotonic()
        self.make_room(sets, held.size_bytes, held)
        held.model.move(Place.DEVICE)
        return time.monotonic() - began

    def demote_idle(self, sets: Iterable[HeldSet], nbytes: int | None = None, keep: HeldSet | None = None) -> list[str]:
        """Move idle sets off the device until that many bytes are free, or all; return the ids of those moved."""
        known = list(sets)
        moved: list[str] = []
        freed = 0
        for held in self._in_order(known, Place.DEVICE):
            if held is keep or held.is_pinned or (nbytes is not None and freed >= nbytes):
                continue
            size = held.held_bytes
            if self._demote(held, known):
                freed += size
                moved.append(held.id)
        return moved

    def _in_order(self, sets: Iterable[HeldSet], place: Place) -> list[HeldSet]:
        idle = [held for held in sets if not held.users and held.place is place]
        return sorted(idle, key=lambda held: (held.is_pinned, self._leases(held.id) > 0, held.last_used or 0.0))

    def _demote(self, held: HeldSet, sets: list[HeldSet]) -> bool:
        """Move an idle set one place down: to the host beside a card, else to disk, where a pinned one never goes."""
        if self.has_card and held.place is Place.DEVICE and self._make_host_room(held.size_bytes, sets):
            held.model.move(Place.HOST)
        elif held.is_pinned:
            return False
        else:
            held.loaded = None
        release_cache()
        return True

    def _make_host_room(self, needed_bytes: int, sets: list[HeldSet]) -> bool:
        for held in self._in_order(sets, Place.HOST):
            if self._has_room(Place.HOST, sets, needed_bytes):
                break
            if not held.is_pinned:
                held.loaded = None
        return self._has_room(Place.HOST, sets, needed_bytes)

    def _has_room(self, place: Place, sets: Iterable[HeldSet], needed_bytes: int) -> bool:
        budget = self._budgets[place]
        used = sum(held.held_bytes for held in sets if held.place is place)
        if budget is not None and used + needed_bytes > budget:
            return False
        free = self._free_bytes(self._device if place is Place.DEVICE else self._host)
        return free - RESERVE_BYTES >= needed_bytes

    def _no_room(self, sets: list[HeldSet], needed_bytes: int) -> DaemonError:
        free, budget = self._free_bytes(self._device), self._budgets[Place.DEVICE]
        limit = "" if budget is None else f", the budget is {budget:,}"
        holders = {held.id: held.held_bytes for held in sets if held.place is Place.DEVICE}
        return DaemonError(
            "out-of-memory",
            f"{needed_bytes:,} bytes are needed and {free:,} are free{limit}; "
            f"{len(holders)} sets that are pinned or in use hold {sum(holders.values()):,}",
            "unload or unpin a set, raise the budget, or end what else uses the device",
            details={"needed_bytes": needed_bytes, "free_bytes": free, "holders": holders},
        )
