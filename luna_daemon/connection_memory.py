"""The memory beside the socket that one connection of the daemon has: made when the client asks, counted, given up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from luna_daemon import frames
from luna_daemon.fields import plain
from luna_daemon.messages import ShmOpened
from luna_daemon.shared_memory import SharedMemory
from luna_daemon.transport import NOT_OPENED, OVER_TCP, Carrier
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from luna_daemon.messages import OpenShm
    from luna_daemon.shared_memory import SharedMemoryBudget
    from luna_daemon.stream import FrameReader, FrameWriter


class ConnectionMemory:
    """Opens the ways beside the socket for one client.

    Attributes:
        carrier: what the tensors of the connection go through.
    """

    def __init__(self, budget: SharedMemoryBudget, *, is_local: bool) -> None:
        self.carrier = Carrier(is_reusing=True, reason=NOT_OPENED if is_local else OVER_TCP)
        self._budget = budget
        self._is_local = is_local
        self._counted_bytes = 0

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

    def close(self) -> None:
        """Give everything up."""
        self.carrier.close()
        if self._counted_bytes:
            self._budget.give(self._counted_bytes)
            self._counted_bytes = 0
