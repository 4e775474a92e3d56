"""A peer process that takes tensors by the daemon's own transport and nothing else: no queue, no engine.

Run by path with the path of a Unix socket to listen on.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from luna_daemon import frames  # noqa: E402 - the import root comes first
from luna_daemon.frames import MIB  # noqa: E402 - likewise
from luna_daemon.shared_memory import SharedMemory  # noqa: E402 - likewise
from luna_daemon.stream import ConnectionLostError, FrameReader, FrameWriter, send_all  # noqa: E402 - likewise
from luna_daemon.transport import Carrier  # noqa: E402 - likewise

BYTES = 64 * MIB


class CarriedPeer:
    """This side of it; tensors cross in shared memory."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "carried.sock")
        self._process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = FrameReader(self._socket, frames.Limits())
        self._reader.takes_descriptors = True
        generation = self._reader.announced().header["id"] if self._reader.has_received() else 0
        self._carrier = Carrier()
        shared = SharedMemory.attach(generation, self._reader.descriptors, BYTES, BYTES)
        self._reader.close_descriptors()
        self._reader.takes_descriptors = False
        self._carrier.open(shared, self._reader, from_bytes=1)

    def send(self, tensor: frames.WireTensor) -> None:
        """Send a tensor and wait for the answer."""
        placed = self._carrier.place([tensor])
        send_all(self._socket, frames.encode_frame({"id": 1}, [tensor], refs=placed.refs), 5.0)
        self._reader.has_received()
        if self._reader.announced().header["bytes"] != tensor.nbytes or not placed.refs:
            raise RuntimeError("the tensor did not cross in shared memory")
        self._carrier.free(placed.offsets)

    def close(self) -> None:
        """End the peer."""
        self._socket.close()
        self._process.wait(5)


def serve(path: str) -> None:
    """Take tensors until the other side goes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    print("up", flush=True)
    connection, _ = listener.accept()
    reader = FrameReader(connection, frames.Limits())
    writer = FrameWriter(connection, lambda: None)
    shared, descriptors = SharedMemory.create(BYTES, BYTES)
    writer.send_with_descriptors(frames.encode_frame({"id": shared.generation}), descriptors)
    carrier = Carrier(is_reusing=True)
    carrier.open(shared, reader)
    try:
        while True:
            tensors = carrier.receive(reader, reader.announced())
            total = sum(tensor.nbytes for tensor in tensors.values())
            carrier.release(tensors)
            writer.send(frames.encode_frame({"bytes": total}))
    except ConnectionLostError:
        return


if __name__ == "__main__":
    serve(sys.argv[1])
