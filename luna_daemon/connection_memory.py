"""The memory beside the socket that one connection of the daemon has: made when the client asks, counted, given up."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from luna_daemon import frames
from luna_daemon.arena_messages import CONFIRM, LEASE, CudaOpened
from luna_daemon.arena_transport import ArenaTransport
from luna_daemon.fields import plain
from luna_daemon.messages import ShmOpened
from luna_daemon.shared_memory import SharedMemory
from luna_daemon.transport import NOT_OPENED, OVER_TCP, Carrier
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from luna_daemon.arena_messages import OpenCuda
    from luna_daemon.arenas import ArenaLease, ArenaPool
    from luna_daemon.messages import OpenShm, TensorOffer
    from luna_daemon.shared_memory import SharedMemoryBudget
    from luna_daemon.stream import FrameReader, FrameWriter


class ConnectionMemory:
    """Opens the ways beside the socket for one client.

    Args:
        budget: of the shared memory of all connections.
        arenas: of the daemon's card.
        is_local: whether the client came through the Unix socket.

    Attributes:
        carrier: what the tensors of the connection go through.
    """

    def __init__(self, budget: SharedMemoryBudget, arenas: ArenaPool, *, is_local: bool) -> None:
        self.carrier = Carrier(is_reusing=True, reason=NOT_OPENED if is_local else OVER_TCP)
        self._budget = budget
        self._arenas = arenas
        self._is_local = is_local
        self._counted_bytes = 0
        self._offer: TensorOffer | None = None
        self._peer_pid: int | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._lease: ArenaLease | None = None
        self._trial: ArenaTransport | None = None

    def meet(self, offer: TensorOffer, peer_pid: int | None) -> str | None:
        """Take note of who the client is; return why its tensors cannot stay on the card, None if they can."""
        self._offer, self._peer_pid = (offer, peer_pid) if self._is_local else (None, None)
        return self._arenas.fault(self._offer, self._peer_pid)

    def open_shared(self, request: int, body: OpenShm, reader: FrameReader, writer: FrameWriter) -> None:
        """Make shared memory and pass it on with the reply.

        Raises:
            DaemonError: ``transport-failed``; nothing was sent.
        """
        if self.carrier.shared is not None:
            raise DaemonError("transport-failed", "it is open already")
        try:
            shared, descriptors = self._make_shared(body)
        except DaemonError as error:
            self.carrier.reason = error.message
            raise
        reply = ShmOpened(shared.generation, body.up_bytes, body.down_bytes)
        try:
            header = {"id": request, "ok": True, "body": plain(reply)}
            writer.send_with_descriptors(frames.encode_frame(header), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self.carrier.open(shared, reader, body.from_bytes)

    def _make_shared(self, body: OpenShm) -> tuple[SharedMemory, list[int]]:
        if not self._is_local:
            raise DaemonError("transport-failed", OVER_TCP)
        wanted = body.up_bytes + body.down_bytes
        self._budget.take(wanted)
        try:
            made = SharedMemory.create(body.up_bytes, body.down_bytes)
        except BaseException:
            self._budget.give(wanted)
            raise
        self._counted_bytes = wanted
        return made

    def open_cuda(self, body: OpenCuda, reader: FrameReader) -> CudaOpened:
        """Do one step of leasing an arena; called by the device's thread.

        Raises:
            DaemonError: ``transport-failed``; the client is left without an arena.
        """
        try:
            if body.step == LEASE:
                return self._lease_arena(body)
            if body.step == CONFIRM:
                return self._confirm_arena(body, reader)
        except DaemonError as error:
            self._give_arena_back(error.message)
            raise
        if self._lease is None:
            return CudaOpened(0)  # it never got one, and the reason of that is known
        generation = self._lease.generation
        self._give_arena_back(body.reason or "the client gave it back")
        return CudaOpened(generation)

    def _lease_arena(self, body: OpenCuda) -> CudaOpened:
        fault = "it is open already" if self._lease is not None else self._arenas.fault(self._offer, self._peer_pid)
        if fault is not None:
            raise DaemonError("transport-failed", fault)
        memory = self._arenas.memory()
        lease = self._arenas.lease(body.up_bytes + body.down_bytes)
        with self._lock:
            if self._is_closed:  # the client went while its request waited
                self._arenas.give_back(lease)
                raise DaemonError("transport-failed", "the connection is closed")
            self._lease = lease
            self._trial = ArenaTransport.of_daemon(lease.arena, lease.generation, body.up_bytes, body.down_bytes)
            trial = self._trial
        return CudaOpened(
            generation=lease.generation,
            uuid=memory.uuid,
            handle=lease.arena.handle.hex(),
            size_bytes=lease.arena.size_bytes,
            up_bytes=body.up_bytes,
            down_bytes=body.down_bytes,
            canary=trial.write_canary(memory),
        )

    def _confirm_arena(self, body: OpenCuda, reader: FrameReader) -> CudaOpened:
        with self._lock:
            trial, self._trial = self._trial, None
        if trial is None or trial.generation != body.generation:
            raise DaemonError("transport-failed", "there is no arena of that generation to confirm")
        if not trial.has_canary(body.canary):
            raise DaemonError("transport-failed", "what the client wrote into the card's memory does not arrive here")
        with self._lock:
            if self._is_closed:
                raise DaemonError("transport-failed", "the connection is closed")
            self.carrier.open_arena(trial, reader)
        return CudaOpened(trial.generation)

    def _give_arena_back(self, reason: str) -> None:
        with self._lock:
            lease, self._lease, self._trial = self._lease, None, None
            arena, self.carrier.arena = self.carrier.arena, None
        self.carrier.arena_reason = reason
        if arena is not None:
            arena.close()
        if lease is not None:
            self._arenas.give_back(lease)

    def close(self) -> None:
        """Give everything up."""
        with self._lock:
            self._is_closed = True
        self._give_arena_back("it was closed")
        self.carrier.close()
        if self._counted_bytes:
            self._budget.give(self._counted_bytes)
            self._counted_bytes = 0
