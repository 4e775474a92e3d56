"""Shared memory and clients that say what they like about it."""

from __future__ import annotations

import itertools
import os
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import frames
from luna_daemon import protocol as p
from luna_daemon.frames import MIB
from luna_daemon.platform import sealed_memory
from luna_daemon.protocol import plain

from .conftest import wait_for
from .memory_requests import decode, latent

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import WireDaemon

pytestmark = pytest.mark.skipif(sealed_memory.missing() is not None, reason=str(sealed_memory.missing()))


class RawClient:
    """A client that says what it likes about its shared memory."""

    def __init__(self, wire: WireDaemon, up_bytes: int = MIB, down_bytes: int = MIB, from_bytes: int = 1) -> None:
        self.socket, self.reader = wire.greeted()
        self.reader.takes_descriptors = True
        self.ids = itertools.count(2)
        self.opened = self.ask("open_shm", plain(p.OpenShm(up_bytes, down_bytes, from_bytes)))
        self.descriptors = list(self.reader.descriptors)
        self.reader.vias = frames.ONLY_INLINE | {"shm"}

    def ask(self, command: str, body: dict[str, Any], **header: Any) -> dict[str, Any]:
        record = {"id": next(self.ids), "cmd": command, "body": body, **header}
        self.socket.sendall(frames.encode_frame(record)[0])
        if not self.reader.has_bytes:
            self.reader.has_received()
        announced = self.reader.announced()
        self.reader.skip(announced.payload_bytes)
        return announced.header

    def decode(self, offset: int, nbytes: int = 4096, generation: int | None = None) -> dict[str, Any]:
        mine = self.opened["body"]["generation"]
        segment = {"name": "latent", "dtype": "f32", "shape": [1, 1, 1, nbytes // 4], "nbytes": nbytes, "via": "shm"}
        segment["ref"] = {"generation": mine if generation is None else generation, "offset": offset}
        return self.ask("vae_decode", {"set": "s"}, segments=[segment])

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.socket.close()


@pytest.fixture
def raw(wire: WireDaemon) -> Any:
    made: list[RawClient] = []

    def make(**options: int) -> RawClient:
        made.append(RawClient(wire, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_wrong_places_get_a_typed_error_and_the_connection_stays(raw: Callable[..., RawClient]) -> None:
    client = raw()
    assert client.opened["ok"] is True
    wrong = [client.decode(MIB), client.decode(MIB - 4092), client.decode(0, generation=5), client.decode(2**52)]
    assert [reply["error"]["code"] for reply in wrong] == ["transport-failed"] * 4
    assert client.decode(0)["ok"] is True


@pytest.mark.parametrize("ref", [None, {}, {"generation": 1}, {"generation": 1, "offset": -1}, {"offset": "0"}, 5])
def test_a_malformed_place_closes_the_connection(raw: Callable[..., RawClient], ref: Any) -> None:
    client = raw()
    segment = {"name": "latent", "dtype": "u8", "shape": [1], "nbytes": 1, "via": "shm", "ref": ref}
    assert client.ask("vae_decode", {"set": "s"}, segments=[segment])["error"]["code"] == "frame-invalid"


def test_shared_memory_that_was_not_opened_cannot_be_named(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    segment = {"name": "latent", "dtype": "u8", "shape": [1], "nbytes": 1, "via": "shm"}
    segment["ref"] = {"generation": 1, "offset": 0}
    with connection:
        frame = {"id": 2, "cmd": "vae_decode", "body": {"set": "s"}, "segments": [segment]}
        connection.sendall(frames.encode_frame(frame)[0])
        assert reader.announced().header["error"]["code"] == "frame-invalid"


@pytest.mark.parametrize("released", [[7], ["0"], 5, [True], [0, 0]])
def test_only_what_was_handed_out_can_be_released(raw: Callable[..., RawClient], released: Any) -> None:
    client = raw()
    assert client.decode(0)["ok"] is True  # its image lies at 0
    assert client.ask("ping", {}, released=released)["error"]["code"] == "request-invalid"
    assert client.ask("ping", {})["ok"] is True


def test_a_client_that_releases_nothing_gets_the_rest_inline(raw: Callable[..., RawClient]) -> None:
    client = raw(down_bytes=2 * 4096)
    ways = [client.decode(0)["did"]["transport"]["out"] for _ in range(4)]
    assert ways == ["shm", "shm", "inline", "inline"]
    client.ask("ping", {}, released=[0])
    assert client.decode(0)["did"]["transport"]["out"] == "shm"


# DAEMON S19
def test_what_a_client_changes_after_sending_is_not_seen(raw: Callable[..., RawClient]) -> None:
    client = raw()
    up = sealed_memory.attach(client.descriptors[0], MIB, is_writable=True)
    generation = client.opened["body"]["generation"]
    segment = {"name": "ids", "dtype": "i32", "shape": [1024], "nbytes": 4096, "via": "shm"}
    segment["ref"] = {"generation": generation, "offset": 0}
    good, bad = struct.pack("i", 5) * 1024, struct.pack("i", 99_999) * 1024
    is_over = threading.Event()

    def flip() -> None:
        while not is_over.is_set():
            up[:4096] = good
            up[:4096] = bad

    writer = threading.Thread(target=flip)
    writer.start()
    body = plain(p.EncodeTokens("s", (p.TokenItem({"l": p.TokenRows((1024,), "ids")}),)))
    down = sealed_memory.attach(client.descriptors[1], MIB, is_writable=False)
    for _ in range(200):
        reply = client.ask("encode_tokens", body, segments=[segment])
        if reply["ok"]:
            (cond,) = reply["segments"]
            offset = cond["ref"]["offset"]
            assert set(memoryview(down[offset : offset + cond["nbytes"]]).cast("f")) == {5.0}
            client.ask("ping", {}, released=[offset])
        else:
            assert reply["error"]["code"] == "token-invalid"
    is_over.set()
    writer.join()


def test_one_connection_gets_no_more_than_its_share(raw: Callable[..., RawClient]) -> None:
    client = raw(up_bytes=300 * MIB, down_bytes=300 * MIB)
    assert client.opened["error"]["code"] == "transport-failed"
    assert client.ask("open_shm", {})["ok"] is True
    assert client.ask("open_shm", {})["error"]["code"] == "transport-failed"
    client.reader.close_descriptors()


def test_all_connections_together_get_no_more_than_the_cap(wire: WireDaemon, raw: Callable[..., RawClient]) -> None:
    clients = [raw(up_bytes=256 * MIB, down_bytes=256 * MIB) for _ in range(5)]
    assert [client.opened["ok"] for client in clients] == [True] * 4 + [False]
    late = wire.client()
    reply = decode(late, latent(MIB))
    assert reply.did.transport["out"] == "inline"
    assert "share" in reply.did.transport["reason"]
    for client in clients:
        client.socket.close()
    wait_for(lambda: late.status().caches["shm"].bytes == 0, what="the return of the memory")
    assert decode(wire.client(), latent(MIB)).did.transport["out"] == "shm"
