"""Tensors through shared memory: against a real daemon, with hostile clients, without memory, and after kills."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_daemon import frames
from luna_daemon import protocol as p
from luna_daemon.frames import MIB, Ref, WireTensor
from luna_daemon.platform import sealed_memory
from luna_daemon.protocol import plain
from luna_daemon.shared_memory import ALIGN_BYTES, Blocks, SharedMemory, SharedMemoryBudget
from luna_daemon.stream import FrameReader, FrameWriter
from luna_daemon.transport import FULL, OVER_TCP, Carrier
from luna_engine.errors import DaemonError

from .conftest import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import WireDaemon

pytestmark = pytest.mark.skipif(sealed_memory.missing() is not None, reason=str(sealed_memory.missing()))


def latent(nbytes: int, seed: int = 1) -> WireTensor:
    data = bytes((seed + index) % 251 for index in range(4096)) * (nbytes // 4096 + 1)
    return WireTensor("latent", "f32", (1, 1, 1, nbytes // 4), memoryview(data)[:nbytes])


def decode(client: Any, tensor: WireTensor, set_id: str = "s") -> Any:
    return client.call("vae_decode", p.VaeDecode(set_id), [tensor])


# blocks


@given(st.lists(st.one_of(st.integers(0, 20_000), st.just(-1)), max_size=60), st.randoms())
def test_blocks_never_overlap_and_come_back_whole(sizes: list[int], random: Any) -> None:
    blocks = Blocks(16 * ALIGN_BYTES)
    held: dict[int, int] = {}
    for size in sizes:
        if size < 0 and held:
            offset = random.choice(sorted(held))
            del held[offset]
            assert blocks.give(offset)
            assert not blocks.give(offset)
        elif size >= 0 and (offset := blocks.take(size)) is not None:
            assert offset + size <= 16 * ALIGN_BYTES
            held[offset] = size
        spans = sorted((offset, offset + max(1, size)) for offset, size in held.items())
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    for offset in held:
        assert blocks.give(offset)
    assert blocks.taken_bytes == 0
    assert blocks.take(16 * ALIGN_BYTES) == 0


def test_the_lowest_block_is_used_again() -> None:
    blocks = Blocks(4 * ALIGN_BYTES)
    first = blocks.take(10)
    assert first is not None
    blocks.take(10)
    blocks.give(first)
    assert blocks.take(1) == first


def test_the_budget_counts_each_connection_and_all_of_them() -> None:
    budget = SharedMemoryBudget(10, 15)
    budget.take(10)
    for nbytes in (11, 6):
        with pytest.raises(DaemonError, match="share") as caught:
            budget.take(nbytes)
        assert caught.value.code == "transport-failed"
    budget.give(10)
    budget.take(10)


# both ends in one process


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
    carrier.free(placed.offsets)
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


# a daemon


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
    assert shared._blocks.taken_bytes == 0


def test_memory_that_went_wrong_is_left_and_the_request_repeated_inline(wire: WireDaemon) -> None:
    client = wire.client()
    decode(client, latent(MIB))
    shared = client._usable_link()._carrier.shared
    assert isinstance(shared, SharedMemory)
    shared.generation += 1
    reply = decode(client, latent(MIB))
    assert bytes(reply.tensors["image"].data) == bytes(latent(MIB).data)
    assert reply.did.transport["in"] == "inline"
    assert client.transport == "inline"
    assert "not that of this connection" in str(client.transport_reason)


# hostile clients


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
        closed(self.descriptors)
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


# nothing there


@contextlib.contextmanager
def limited(daemon: WireDaemon, what: int, value: int) -> Iterator[None]:
    """Take a resource away from a running daemon for a while."""
    before = resource.prlimit(daemon.process.pid, what)
    resource.prlimit(daemon.process.pid, what, (value, before[1]))
    yield
    resource.prlimit(daemon.process.pid, what, before)


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[0]) * resource.getpagesize()


# DAEMON S20
@pytest.mark.parametrize("what", ["no memory", "no mapping", "no descriptors"])
def test_without_shared_memory_tensors_go_inline_and_the_reply_says_why(
    start_daemon: Callable[..., WireDaemon], what: str
) -> None:
    daemon = start_daemon()
    client = daemon.client()
    wait_for(lambda: client.ping().state == "ready", what="a ready daemon")
    pid = daemon.process.pid
    taken = {
        "no memory": (resource.RLIMIT_FSIZE, 32 * MIB),
        "no mapping": (resource.RLIMIT_AS, address_space(pid) + 112 * MIB),
        "no descriptors": (resource.RLIMIT_NOFILE, len(list(Path(f"/proc/{pid}/fd").iterdir()))),
    }
    with limited(daemon, *taken[what]):
        reply = decode(client, latent(MIB))
    assert bytes(reply.tensors["image"].data) == bytes(latent(MIB).data)
    assert reply.did.transport["out"] == "inline"
    assert "shared memory" in reply.did.transport["reason"]
    assert "shared memory" in str(client.transport_reason)
    assert client.status().caches["shm"].bytes == 0


# kills


HOLD = """
import sys, time
from luna_daemon.client import DaemonClient
from luna_daemon.frames import WireTensor
client = DaemonClient.connect("127.0.0.1", int(sys.argv[1]), name="victim")
latent = WireTensor("latent", "f32", (1, 1, 1, 1 << 18), memoryview(bytes(1 << 20)))
client.vae_decode(set="s", latent=latent)
print(client.transport, flush=True)
time.sleep(600)
"""


def memories(pid: int) -> int:
    """Count a process's mappings of the daemon's shared memory."""
    return Path(f"/proc/{pid}/maps").read_text("ascii").count("memfd:luna-")


def named() -> set[Path]:
    """Return the shared memory of all processes that has a name."""
    return set(Path("/dev/shm").iterdir())  # noqa: S108 - looked at, not used


def test_a_killed_client_leaves_nothing_behind(wire: WireDaemon) -> None:
    before = named()
    watcher = wire.client(name="watcher")
    begin = (memories(wire.process.pid), watcher.status().caches["shm"].bytes)
    victim = subprocess.Popen([sys.executable, "-c", HOLD, str(wire.port)], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    with victim.stdout:
        assert victim.stdout.readline() == b"shm\n"
        assert memories(wire.process.pid) == begin[0] + 2
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
    wait_for(lambda: watcher.status().caches["shm"].bytes == begin[1], what="the return of the memory")
    wait_for(lambda: memories(wire.process.pid) == begin[0], what="the end of the mappings")
    assert not named() - before


def test_a_killed_daemon_leaves_nothing_behind(start_daemon: Callable[..., WireDaemon]) -> None:
    before = named()
    daemon = start_daemon()
    client = daemon.client()
    decode(client, latent(MIB))
    assert memories(os.getpid()) == 2
    daemon.process.kill()
    daemon.process.wait(10)
    began = time.monotonic()
    with pytest.raises(DaemonError) as caught:
        decode(client, latent(MIB))
    assert caught.value.code == "daemon-unreachable"
    assert time.monotonic() - began < 30
    assert memories(os.getpid()) == 0
    assert not named() - before
