"""Tensors through shared memory: both ends of it, and a real daemon."""

from __future__ import annotations

import os
import socket
import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import frames
from luna_daemon import protocol as p
from luna_daemon.frames import MIB, Ref, WireTensor
from luna_daemon.platform import sealed_memory
from luna_daemon.shared_memory import SharedMemory
from luna_daemon.stream import FrameReader, FrameWriter
from luna_daemon.transport import FULL, OVER_TCP, Carrier
from luna_engine.errors import DaemonError

from .conftest import wait_for
from .memory_requests import decode, latent

if TYPE_CHECKING:
    from .conftest import WireDaemon

pytestmark = pytest.mark.skipif(sealed_memory.missing() is not None, reason=str(sealed_memory.missing()))


def both(up: int = MIB, down: int = MIB) -> tuple[SharedMemory, SharedMemory, list[int]]:
    daemon, descriptors = SharedMemory.create(up, down)
    client = SharedMemory.attach(daemon.generation, descriptors, up, down)
    return daemon, client, descriptors


def closed(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_each_side_finds_what_the_other_placed() -> None:
    daemon, client, descriptors = both()
    up = client.place(memoryview(b"up"))
    down = daemon.place(memoryview(b"down"))
    assert up is not None
    assert down is not None
    assert bytes(daemon.view(up, 2)) == b"up"
    assert bytes(client.view(down, 4)) == b"down"
    closed(descriptors)


# DAEMON S19
def test_nobody_can_cut_the_memory_short_or_write_where_the_daemon_sends() -> None:
    _, client, (up, down) = both()
    for descriptor in (up, down):
        for size in (0, 2 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
    with pytest.raises(DaemonError) as caught:
        sealed_memory.attach(down, MIB, is_writable=True)
    assert caught.value.code == "transport-failed"
    with pytest.raises(PermissionError):
        os.pwrite(down, b"x", 0)
    assert client.view(Ref("shm", client.generation, 0), 1).readonly
    closed([up, down])


def test_a_client_does_not_map_what_could_be_cut_short() -> None:
    open_ended = os.memfd_create("luna-test")
    os.ftruncate(open_ended, MIB)
    with pytest.raises(DaemonError) as caught:
        SharedMemory.attach(1, [open_ended, open_ended], MIB, MIB)
    assert caught.value.code == "transport-failed"
    os.close(open_ended)


# DAEMON S19
@pytest.mark.parametrize(("generation", "offset", "nbytes"), [(1, 0, 1), (0, MIB, 1), (0, MIB - 1, 2), (0, 0, MIB + 1)])
def test_a_place_outside_the_memory_is_refused(generation: int, offset: int, nbytes: int) -> None:
    daemon, _, descriptors = both()
    with pytest.raises(DaemonError) as caught:
        daemon.view(Ref("shm", daemon.generation + generation, offset), nbytes)
    assert caught.value.code == "transport-failed"
    closed(descriptors)


def test_what_finds_no_room_goes_inline_and_is_counted() -> None:
    daemon, _, descriptors = both(down=2 * MIB)
    carrier = Carrier()
    one, other = socket.socketpair()
    with one, other:
        carrier.open(daemon, FrameReader(one, frames.Limits()))
        tensors = [WireTensor.of_bytes(f"t{index}", bytes(MIB)) for index in range(3)]
        placed = carrier.place([*tensors, WireTensor.of_bytes("small", b"x")])
    assert (sorted(placed.refs), placed.via, placed.reason) == (["t0", "t1"], "shm", FULL)
    assert dict(carrier.counts) == {"shm": 2, "full": 1}
    carrier.free(placed.refs.values())
    assert sorted(carrier.place(tensors[:2]).refs) == ["t0", "t1"]
    closed(descriptors)


def test_descriptors_wait_for_the_frames_before_them() -> None:
    one, other = socket.socketpair()
    memory, descriptors = SharedMemory.create(MIB, MIB)
    with one, other:
        writer = FrameWriter(one, lambda: None)
        for index in range(1, 6):
            writer.send(frames.encode_frame({"id": index}, [WireTensor.of_bytes("t", bytes(400_000))]))
        sender = threading.Thread(
            target=writer.send_with_descriptors, args=(frames.encode_frame({"id": 6}), descriptors)
        )
        sender.start()
        reader = FrameReader(other, frames.Limits())
        reader.takes_descriptors = True
        for index in range(1, 6):
            announced = reader.announced()
            assert (announced.header["id"], reader.descriptors) == (index, [])
            reader.skip(announced.payload_bytes)
        assert reader.has_bytes or reader.has_received()
        assert reader.announced().header["id"] == 6
        sender.join()
        assert len(reader.descriptors) == 2
        assert SharedMemory.attach(memory.generation, reader.descriptors, MIB, MIB).size_bytes == 2 * MIB
        reader.close_descriptors()
        writer.close()
    closed(descriptors)


def test_large_tensors_cross_in_shared_memory_and_are_the_client_s_own(wire: WireDaemon) -> None:
    client = wire.client()
    first = decode(client, latent(MIB, 1))
    second = decode(client, latent(MIB, 2))
    assert first.did.transport == second.did.transport == {"in": "shm", "out": "shm"}
    assert bytes(first.tensors["image"].data) == bytes(latent(MIB, 1).data)
    assert bytes(second.tensors["image"].data) == bytes(latent(MIB, 2).data)
    assert not first.tensors["image"].data.readonly
    assert (client.transport, client.transport_reason) == ("shm", None)
    status = client.status()
    assert {row.transport for row in status.clients if row.name == "luna"} == {"shm"}
    shm = status.caches["shm"]
    assert (shm.entries, shm.bytes, shm.cap_bytes) == (1, 128 * MIB, 2048 * MIB)
    assert shm.hits == 2


def test_small_tensors_stay_inline(wire: WireDaemon) -> None:
    reply = decode(wire.client(), latent(256 * 1024 - 4096))
    assert reply.did.transport == {"in": "inline", "out": "inline"}


def test_a_client_may_set_the_size_from_which_it_is_used(wire: WireDaemon) -> None:
    assert decode(wire.client(shm_from_bytes=1), latent(64)).did.transport == {"in": "shm", "out": "shm"}


def test_over_tcp_large_tensors_go_inline_and_the_reply_says_why(wire: WireDaemon) -> None:
    client = wire.client(transport="tcp")
    reply = decode(client, latent(MIB))
    assert reply.did.transport == {"in": "inline", "out": "inline", "reason": OVER_TCP}
    assert (client.transport, client.transport_reason) == ("inline", OVER_TCP)


def test_a_tensor_larger_than_the_ring_goes_inline_and_says_so(wire: WireDaemon) -> None:
    reply = decode(wire.client(), latent(64 * MIB + 4096))
    assert reply.did.transport == {"in": "inline", "out": "inline", "reason": FULL}


def test_the_ring_does_not_fill_up_over_many_requests(wire: WireDaemon) -> None:
    client = wire.client()
    for index in range(12):
        tensor = latent(24 * MIB, index)
        reply = decode(client, tensor)
        assert reply.did.transport == {"in": "shm", "out": "shm"}
        assert reply.tensors["image"].data == tensor.data


def test_threads_that_share_a_client_do_not_mix_up_their_tensors(wire: WireDaemon) -> None:
    client = wire.client()
    failures: list[Any] = []

    def work(seed: int) -> None:
        tensor = latent(MIB, seed)
        try:
            for _ in range(8):
                assert decode(client, tensor).tensors["image"].data == tensor.data
        except BaseException as error:  # noqa: BLE001 - a thread's border; the test reports it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_request_given_up_gives_its_memory_back(wire: WireDaemon) -> None:
    client = wire.client()
    decode(client, latent(MIB))
    many = WireTensor("ids", "i32", (100_000,), memoryview(array("i", bytes(400_000))).cast("B"))
    body = p.EncodeTokens("until-cancelled", (p.TokenItem({"l": p.TokenRows((100_000,), "ids")}),))
    with pytest.raises(DaemonError) as caught:
        client.call("encode_tokens", body, [many], timeout_s=0.1)
    assert caught.value.code == "daemon-timeout"
    link = client._usable_link()
    wait_for(lambda: client.ping() and not link._placed, what="the late answer")
    shared = link._carrier.shared
    assert isinstance(shared, SharedMemory)
    assert shared.sent.taken_bytes == 0


def test_memory_that_went_wrong_is_left_and_the_request_repeated_inline(wire: WireDaemon) -> None:
    client = wire.client()
    decode(client, latent(MIB))
    shared = client._usable_link()._carrier.shared
    assert isinstance(shared, SharedMemory)
    shared.sent.generation += 1
    reply = decode(client, latent(MIB))
    assert bytes(reply.tensors["image"].data) == bytes(latent(MIB).data)
    assert reply.did.transport["in"] == "inline"
    assert client.transport == "inline"
    assert "not that of this connection" in str(client.transport_reason)
