"""The arenas of the daemon's card: made when they are first wanted, leased to one client at a time, kept for ever.

An arena is never freed while the daemon lives: a client that hangs may still have it mapped, and freeing what somebody
has mapped is undefined. So their number is capped, and whoever comes too late is told so.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon import platform
from luna_daemon.frames import INTEGER_MAX
from luna_daemon.platform import sharing
from luna_daemon.status_messages import CacheStatus
from luna_daemon.transport import OVER_TCP
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.device_memory import Arena, DeviceMemory
    from luna_daemon.frames import Limits
    from luna_daemon.messages import TensorOffer

NO_OFFER = "the client has no tensors on a card"


@dataclass(frozen=True, slots=True)
class NoDeviceMemory:
    """A daemon that has no card's memory to share, and why."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ArenaLease:
    """An arena in the hands of one connection. The generation is new each time: old places are refused."""

    arena: Arena
    generation: int


class ArenaPool:
    """Leases arenas.

    Args:
        limits: how many and how large.
        memory: of the card, asked anew each time: it is there only once the engine has started.
    """

    def __init__(self, limits: Limits, memory: Callable[[], DeviceMemory | NoDeviceMemory]) -> None:
        self._size_bytes = limits.arena_bytes
        self._most = limits.arenas
        self._ask_memory = memory
        self._lock = threading.Lock()
        self._idle: list[Arena] = []
        self._leased: set[ArenaLease] = set()
        self._made = 0

    def fault(self, offer: TensorOffer | None, peer_pid: int | None) -> str | None:
        """Say why a client can have no arena, None if it can.

        Args:
            offer: what it said of itself in its hello; None over TCP.
            peer_pid: its process as the kernel of this side sees it.
        """
        memory = self._ask_memory()
        if isinstance(memory, NoDeviceMemory):
            return memory.reason
        if offer is None:
            return OVER_TCP
        if offer.cuda is None:
            return NO_OFFER
        if offer.cuda.uuid != memory.uuid:
            return f"the client's tensors are on card {offer.cuda.uuid}, this daemon computes on {memory.uuid}"
        if offer.boot_id != platform.boot_id():
            return "the client runs on another boot of another system"
        return sharing.apart(peer_pid)

    def memory(self) -> DeviceMemory:
        """Return the card's memory.

        Raises:
            DaemonError: ``transport-failed`` if there is none.
        """
        memory = self._ask_memory()
        if isinstance(memory, NoDeviceMemory):
            raise DaemonError("transport-failed", memory.reason)
        return memory

    def lease(self, wanted_bytes: int) -> ArenaLease:
        """Lease an arena; called by the device's thread only, since it may allocate.

        Raises:
            DaemonError: ``transport-failed``: all are leased, it is too large, or the card has no memory left.
        """
        memory = self.memory()
        if wanted_bytes > self._size_bytes:
            raise DaemonError(
                "transport-failed", f"{wanted_bytes} bytes of the card were asked for, an arena has {self._size_bytes}"
            )
        with self._lock:
            arena = self._idle.pop() if self._idle else None
            if arena is None and self._made >= self._most:
                raise DaemonError(
                    "transport-failed", f"all {self._most} arenas of the card are in use by other clients"
                )
            self._made += arena is None
        try:
            if arena is None:
                arena = memory.allocate(self._size_bytes)
            else:
                memory.synchronize()  # what was still under way for a client that died
        except BaseException:
            with self._lock:
                self._made -= 1
            if arena is not None:
                arena.close()
            raise
        made = ArenaLease(arena, secrets.randbelow(INTEGER_MAX))
        with self._lock:
            self._leased.add(made)
        return made

    def give_back(self, lease: ArenaLease) -> None:
        """Let the next client have an arena; called by any thread, once per lease."""
        with self._lock:
            self._leased.discard(lease)
            self._idle.append(lease.arena)

    def status(self, hits: int, misses: int) -> CacheStatus:
        """Return what is allocated on the card; ``entries`` are those in a client's hands."""
        with self._lock:
            return CacheStatus(
                bytes=self._made * self._size_bytes,
                cap_bytes=self._most * self._size_bytes,
                entries=len(self._leased),
                hits=hits,
                misses=misses,
            )
