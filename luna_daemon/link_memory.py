"""The memory beside the socket that one connection of a client has: asked for when it is first useful, tried, given up.

Nothing here is worth an error: where a way cannot be opened, tensors take the next slower one, and the reason is kept.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon import platform
from luna_daemon.arena_messages import CONFIRM, REASON_LENGTH_MAX, RELEASE, CudaOpened, OpenCuda
from luna_daemon.arena_transport import ArenaTransport
from luna_daemon.error_records import error_from
from luna_daemon.fields import decode_body, plain
from luna_daemon.messages import OpenShm, ShmOpened, TensorOffer
from luna_daemon.platform import sealed_memory
from luna_daemon.shared_memory import SharedMemory
from luna_daemon.stream import ConnectionLostError
from luna_daemon.transport import CUDA_IPC, OVER_TCP, SHM, SHM_FROM_BYTES, Carrier
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_daemon.device_memory import DeviceMemory
    from luna_daemon.fields import Body
    from luna_daemon.link import Link, Pending
    from luna_daemon.stream import FrameReader

    Poll = Callable[[], None] | None

OPEN_SECONDS = 2.0
ARENA_SECONDS = 10.0
"""The device's thread answers between two requests of other clients, so this waits for more than the card."""
NOT_NEEDED = "nothing large was sent yet"
NOT_ASKED = "no tensor on a card was sent yet"
NOT_OFFERED = "this daemon does not offer it"
NOT_ARRIVED = "what the daemon wrote into the card's memory does not arrive here"


@dataclass(frozen=True, slots=True)
class MemoryWish:
    """Which ways beside the socket a client wants for its tensors.

    Attributes:
        shm_from_bytes: tensors in host memory of this size and more take shared memory where there is any.
        device_memory: of the card that its tensors lie on; None if they lie in host memory.
        faults: ways that are not to be tried, because they went wrong before, and why.
    """

    shm_from_bytes: int = SHM_FROM_BYTES
    device_memory: DeviceMemory | None = None
    faults: tuple[tuple[str, str], ...] = ()

    def without(self, via: str, reason: str) -> MemoryWish:
        """Return the same wish without one way."""
        kept = tuple(fault for fault in self.faults if fault[0] != via)
        return MemoryWish(self.shm_from_bytes, self.device_memory, (*kept, (via, reason)))


class LinkMemory:
    """Opens the ways beside the socket for one connection.

    Attributes:
        carrier: what the tensors of the connection go through.
    """

    def __init__(self, link: Link, reader: FrameReader, wish: MemoryWish | None) -> None:
        wish = wish or MemoryWish()
        faults = dict(wish.faults)
        self.carrier = Carrier(reason=faults.get(SHM, NOT_NEEDED))
        self._link = link
        self._reader = reader
        self._from_bytes = wish.shm_from_bytes
        self._device_memory = wish.device_memory
        self._opening = threading.Lock()
        self._is_settled = {SHM: SHM in faults, CUDA_IPC: CUDA_IPC in faults or wish.device_memory is None}
        if wish.device_memory is not None:
            self.carrier.arena_reason = faults.get(CUDA_IPC, NOT_ASKED)

    def offer(self) -> TensorOffer:
        """Return what the daemon is told in the hello."""
        memory = None if self._is_settled[CUDA_IPC] else self._device_memory
        return TensorOffer(
            boot_id=None if memory is None else platform.boot_id(),
            shm=sealed_memory.missing() is None,
            cuda=None if memory is None else memory.offer(),
        )

    def open_shared(self, poll: Poll) -> None:
        """Open shared memory, once; while one thread does it, and where it cannot be, tensors go inline.

        Raises:
            ConnectionLostError: the connection went down meanwhile.
        """
        self._once(SHM, lambda: setattr(self.carrier, "reason", self._open_shared(poll)))

    def open_arena(self, poll: Poll) -> None:
        """Open an arena of the daemon's card, once; where that cannot be, tensors go through host memory.

        Raises:
            ConnectionLostError: the connection went down meanwhile.
        """
        memory = self._device_memory
        if memory is not None:
            self._once(CUDA_IPC, lambda: setattr(self.carrier, "arena_reason", self._open_arena(memory, poll)))

    def _once(self, via: str, work: Callable[[], None]) -> None:
        if self._is_settled[via] or not self._opening.acquire(blocking=False):
            return
        try:
            if not self._is_settled[via]:
                work()
                self._is_settled[via] = True
        finally:
            self._opening.release()

    def close(self, reason: str) -> None:
        """Give all memory up; nothing of the daemon's is touched afterwards."""
        self.carrier.close(reason)

    def _open_shared(self, poll: Poll) -> str:
        """Open shared memory; return the reason if the daemon refused.

        Raises:
            DaemonError: ``transport-failed``: the daemon may use it now and this side cannot, so the connection is
                of no use any more.
        """
        link = self._link
        why_not = OVER_TCP if link.address.path is None else link.welcome.transports.get(SHM, NOT_OFFERED)
        if why_not != "ok":
            return why_not
        link.expect_descriptors()
        try:
            body = OpenShm(from_bytes=self._from_bytes)
            pending = self._ask("open_shm", body, OPEN_SECONDS, poll, wants_descriptors=True)
        finally:
            link.end_descriptors()
        if pending is None:
            raise DaemonError(
                "transport-failed",
                f"the daemon did not open shared memory within {OPEN_SECONDS:g} s",
                details={"via": SHM},
            )
        try:
            raw = _body(pending)
        except DaemonError as error:
            return error.message
        self.carrier.open(_attach(raw, pending.descriptors), self._reader, self._from_bytes)
        return ""

    def _open_arena(self, memory: DeviceMemory, poll: Poll) -> str | None:
        """Lease an arena, map it and try it from both sides; return the reason if that failed."""
        if self._link.address.path is None:
            return OVER_TCP
        try:
            opened = self._step(OpenCuda(), poll)
        except DaemonError as error:
            return self._without_arena(error)
        try:
            arena = self._tried(memory, opened, poll)
        except DaemonError as error:
            return self._without_arena(error)
        self.carrier.open_arena(arena, self._reader)
        return None

    def _tried(self, memory: DeviceMemory, opened: CudaOpened, poll: Poll) -> ArenaTransport:
        """Map a leased arena; each side must find what the other one wrote into it."""
        sizes = (opened.size_bytes, opened.up_bytes, opened.down_bytes)
        if opened.handle is None or opened.uuid != memory.uuid or None in sizes:
            raise DaemonError("transport-failed", f"the daemon leased memory of card {opened.uuid}, not {memory.uuid}")
        whole, up, down = (int(size or 0) for size in sizes)
        if up + down > whole:
            raise DaemonError("transport-failed", f"ranges of {up + down} bytes were named in an arena of {whole}")
        arena = ArenaTransport.of_client(memory.open(_bytes(opened.handle), whole), opened.generation, up, down)
        try:
            if not arena.has_canary(opened.canary):
                raise DaemonError("transport-failed", NOT_ARRIVED)
            self._step(OpenCuda(CONFIRM, generation=opened.generation, canary=arena.write_canary(memory)), poll)
        except BaseException:
            arena.close()
            raise
        return arena

    def _without_arena(self, error: DaemonError) -> str:
        """Tell the daemon that its arena, if it leased one, is not used; return why."""
        if isinstance(error, ConnectionLostError):
            raise error
        if error.code != "command-unknown":
            body = OpenCuda(RELEASE, reason=error.message[:REASON_LENGTH_MAX])
            request, _ = self._link.start({"cmd": "open_cuda", "body": plain(body)}, ())
            self._link.forget(request)
        return error.message

    def _step(self, body: OpenCuda, poll: Poll) -> CudaOpened:
        pending = self._ask("open_cuda", body, ARENA_SECONDS, poll)
        if pending is None:
            raise DaemonError("transport-failed", f"the daemon did not answer within {ARENA_SECONDS:g} s")
        return decode_body(CudaOpened, _body(pending), strict=False)

    def _ask(
        self, command: str, body: Body, seconds: float, poll: Poll, *, wants_descriptors: bool = False
    ) -> Pending | None:
        """Send a request of the connection's own; None if there is no reply in time."""
        link = self._link
        header = {"cmd": command, "body": plain(body)}
        request, pending = link.start(header, (), wants_descriptors=wants_descriptors)
        try:
            if not link.wait(pending, time.monotonic() + seconds, poll):
                link.forget(request)
                return None
        except BaseException:
            link.forget(request)
            raise
        if pending.error is not None:
            raise ConnectionLostError(pending.error.message)
        return pending


def _body(pending: Pending) -> Any:
    header = pending.header or {}
    if header.get("ok") is not True:
        raise error_from(header.get("error"))
    return header.get("body")


def _attach(raw: Any, descriptors: Sequence[int]) -> SharedMemory:
    """Map what came with the reply to open_shm."""
    try:
        opened = decode_body(ShmOpened, raw, strict=False)
        return SharedMemory.attach(opened.generation, descriptors, opened.up_bytes, opened.down_bytes)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _bytes(handle: str) -> bytes:
    try:
        return bytes.fromhex(handle)
    except ValueError as error:
        raise DaemonError("transport-failed", "the daemon sent a handle that is no hex") from error
