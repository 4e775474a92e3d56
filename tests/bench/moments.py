"""What a client is in the middle of when somebody dies. Run as a process it is the client that gets killed.

`python -m tests.bench.moments PORT MOMENT [SET]` does it over and over and says `go` once it has begun.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from array import array
from typing import TYPE_CHECKING, Any

from luna_daemon import address, auth, frames
from luna_daemon.client import DaemonClient
from luna_daemon.protocol import (
    EncodeTokens,
    OpenShm,
    Part,
    PutModel,
    TokenItem,
    TokenRows,
    VaeDecode,
    WireTensor,
    plain,
)
from luna_daemon.stream import FrameReader
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

IDS = WireTensor("ids", "i32", (77,), memoryview(array("i", [49406, *range(1, 76), 49407])).cast("B"))
ROWS = TokenItem({"l": TokenRows((77,), "ids")})
LATENT = WireTensor("latent", "f32", (1, 4, 32, 32), memoryview(bytes(4 * 32 * 32 * 4)))
IDLE_SLEEP_S = 0.01


def encode(client: DaemonClient, set_id: str) -> bytes:
    """Return what a fixed prompt gives."""
    body, tensors = client.encode_tokens(set=set_id, items=[ROWS], tensors=[IDS], cache="bypass", timeout_s=30)
    return bytes(tensors[body.items[0].cond].data)


def raw_connection(port: int) -> socket.socket:
    """Return a greeted connection whose bytes are the caller's to send."""
    where = address.find("127.0.0.1", port, "auto")
    if where.path is None:
        raise ConnectionRefusedError("the daemon is gone")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(where.path)
    who = {"name": "raw", "version": "0", "pid": os.getpid()}
    body = {"magic": "luna-daemon", "protocol": [1, 1], "nonce": auth.new_nonce(), "client": who}
    connection.sendall(_frame({"id": 1, "cmd": "hello", "body": body}))
    FrameReader(connection, frames.Limits()).announced()
    return connection


def _frame(header: dict[str, Any], tensors: list[WireTensor] | None = None) -> bytes:
    return b"".join(bytes(part) for part in frames.encode_frame(header, tensors or []))


class Busy:
    """Does one thing over and over, with a client of its own where that is enough."""

    def __init__(self, port: int, set_id: str) -> None:
        self._port = port
        self._set = set_id
        self._client: DaemonClient | None = None

    @property
    def client(self) -> DaemonClient:
        """Return the kept client."""
        if self._client is None:
            self._client = DaemonClient.connect("127.0.0.1", self._port, name="victim")
        return self._client

    def hello(self) -> None:
        """Begin to shake hands, half of the times not to the end."""
        where = address.find("127.0.0.1", self._port, "auto")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(where.path or "")
            connection.sendall((300).to_bytes(4, "big") + b'{"id": 1')
        DaemonClient.connect("127.0.0.1", self._port, name="victim").close()

    def mid_frame(self) -> None:
        """Send most of a request."""
        with raw_connection(self._port) as connection:
            body = plain(EncodeTokens(self._set, (ROWS,)))
            raw = _frame({"id": 2, "cmd": "encode_tokens", "body": body}, [IDS])
            connection.sendall(raw[: len(raw) - 100])

    def queued(self) -> None:
        """Have many requests wait."""
        with raw_connection(self._port) as connection:
            body = plain(EncodeTokens(self._set, (ROWS,), cache="bypass"))
            for request in range(2, 30):
                connection.sendall(_frame({"id": request, "cmd": "encode_tokens", "body": body}, [IDS]))
            reader = FrameReader(connection, frames.Limits())
            for _ in range(4):
                reader.skip(reader.announced().payload_bytes)

    def running(self) -> None:
        """Encode."""
        encode(self.client, self._set)

    def replying(self) -> None:
        """Decode: the answer is far larger than a socket takes at once, and comes inline."""
        with raw_connection(self._port) as connection:
            body = plain(VaeDecode(self._set))
            connection.sendall(_frame({"id": 2, "cmd": "vae_decode", "body": body}, [LATENT]))
            connection.recv(1000)

    def shared(self) -> None:
        """Decode with shared memory held."""
        self.client.vae_decode(set=self._set, latent=LATENT, timeout_s=30)
        with raw_connection(self._port) as connection:
            body = plain(OpenShm(2**20, 2**20, 4096))
            connection.sendall(_frame({"id": 2, "cmd": "open_shm", "body": body}))
            connection.recv(10)

    def loading(self) -> None:
        """Load."""
        try:
            self.client.load_model([Part("l", id="checkpoints/tiny.safetensors")])
        except DaemonError as error:
            if error.code != "model-missing":
                raise

    def lora_put(self) -> None:
        """Send a LoRA that is none."""
        try:
            self.client.lora_put(bytes(3_000_000), hash="0" * 64)
        except DaemonError as error:
            if error.code != "lora-invalid":
                raise

    def put_model(self) -> None:
        """Begin to send a model, send some of it."""
        try:
            begun = self.client.put_model(PutModel("begin", content="0" * 64, nbytes=2**24))
            piece = WireTensor.of_bytes("bytes", bytes(2**20))
            for index in range(4):
                self.client.put_model(PutModel("chunk", upload=begun.upload, offset=index << 20), [piece])
            self.client.put_model(PutModel("abort", upload=begun.upload))
        except DaemonError as error:
            if error.code not in {"daemon-busy", "request-invalid"}:
                raise

    def draining(self) -> None:
        """Close the admission and open it again."""
        self.client.drain(deadline_ms=50)
        self.client.drain(reopen=True)

    def idle(self) -> None:
        """Keep a connection."""
        self.client.ping()
        threading.Event().wait(IDLE_SLEEP_S)

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()


MOMENTS: dict[str, Callable[[Busy], None]] = {
    name: getattr(Busy, name)
    for name in (
        "hello", "mid_frame", "queued", "running", "replying", "shared", "loading", "lora_put", "put_model", "draining",
        "idle",
    )
}  # fmt: skip


def main() -> None:
    """Be the victim."""
    busy = Busy(int(sys.argv[1]), sys.argv[3])
    act = MOMENTS[sys.argv[2]]
    act(busy)
    print("go", flush=True)
    while True:
        act(busy)


if __name__ == "__main__":
    main()
