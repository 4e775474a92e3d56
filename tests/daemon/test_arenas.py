"""Tensors that stay on a card, against a real daemon: the card is made of pages, all else is the product's.

The driver's own calls (`luna_daemon.cuda_memory`) are not tested here: they need a card.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import link_memory
from luna_daemon import protocol as p
from luna_daemon.arena_transport import ArenaTransport
from luna_daemon.arenas import NO_OFFER
from luna_daemon.device_memory import DeviceTensor
from luna_daemon.frames import MIB, WireTensor
from luna_daemon.platform import sealed_memory
from luna_daemon.transport import ARENA_FULL, OVER_TCP
from luna_engine.errors import DaemonError
from tests.contract.pages_memory import DeadArenaError, PagesBuffer, PagesMemory

from .conftest import wait_for
from .memory_requests import decode, latent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luna_daemon.client import DaemonClient

    from .conftest import WireDaemon

pytestmark = pytest.mark.skipif(sealed_memory.missing() is not None, reason=str(sealed_memory.missing()))
CARD = "GPU-11111111-2222-3333-4444-555555555555"
OTHER_CARD = "GPU-99999999-2222-3333-4444-555555555555"


@pytest.fixture
def card(start_daemon: Callable[..., WireDaemon]) -> Callable[..., WireDaemon]:
    """Start a daemon that computes on a card."""

    def start(*arguments: str, **environment: str) -> WireDaemon:
        daemon = start_daemon(*arguments, LUNA_TEST_CARD=CARD, **environment)
        wait_for(lambda: daemon.client(name="watcher").ping().state == "ready", what="a ready daemon")
        return daemon

    return start


@pytest.fixture(scope="module")
def shared_card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireDaemon]:
    """One daemon with a card for all tests that leave it as it was."""
    from .conftest import listening, spawn

    home = tmp_path_factory.mktemp("card-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(home))
        daemon = listening(spawn(home, "--port", "0", LUNA_TEST_CARD=CARD))
        try:
            with daemon.client() as client:
                wait_for(lambda: client.ping().state == "ready", what="a ready daemon")
            daemon.clients.clear()
            yield daemon
        finally:
            daemon.end()


@pytest.fixture
def wire(shared_card: WireDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireDaemon]:
    """The shared daemon; after each test all arenas have come back, and somebody else is answered."""
    monkeypatch.setenv("LUNA_HOME", str(shared_card.home))
    yield shared_card
    for client in shared_card.clients:
        client.close()
    shared_card.clients.clear()
    with shared_card.client(name="canary") as canary:
        wait_for(lambda: canary.status().caches["arenas"].entries == 0, what="the return of all arenas")
    shared_card.clients.clear()


def on_card(tensor: WireTensor) -> DeviceTensor:
    return DeviceTensor(tensor.name, tensor.dtype, tensor.shape, PagesBuffer(memoryview(bytearray(tensor.data))))


def guest(daemon: WireDaemon, memory: PagesMemory | None = None, **options: Any) -> DaemonClient:
    """Connect a client whose tensors lie on the card."""
    return daemon.client(device_memory=memory or PagesMemory(CARD), **options)


def row(client: DaemonClient) -> p.ClientStatus:
    """Return what the daemon says of this client."""
    (found,) = (one for one in client.status().clients if one.name == client.name)
    return found


# there and back


def test_tensors_of_a_card_stay_there_and_the_client_s_are_its_own(wire: WireDaemon) -> None:
    client = guest(wire, name="me")
    assert (client.transport, client.transport_reason) == ("inline", link_memory.NOT_ASKED)
    first = decode(client, on_card(latent(MIB, 1)))
    second = decode(client, on_card(latent(MIB, 2)))
    assert first.did.transport == second.did.transport == {"in": "cuda_ipc", "out": "cuda_ipc"}
    for seed, reply in ((1, first), (2, second)):
        image = reply.tensors["image"]
        assert isinstance(image, DeviceTensor)
        assert image.data == latent(MIB, seed).data
    assert (client.transport, client.transport_reason) == ("cuda_ipc", None)
    assert (row(client).transport, row(client).reason) == ("cuda_ipc", None)
    arenas = client.status().caches["arenas"]
    assert (arenas.bytes, arenas.cap_bytes, arenas.entries, arenas.hits) == (128 * MIB, 512 * MIB, 1, 2)


def test_even_a_small_tensor_of_a_card_stays_there(wire: WireDaemon) -> None:
    assert decode(guest(wire), on_card(latent(64))).did.transport == {"in": "cuda_ipc", "out": "cuda_ipc"}


def test_tensors_in_host_memory_take_shared_memory_beside_it(wire: WireDaemon) -> None:
    client = guest(wire)
    decode(client, on_card(latent(MIB)))
    assert decode(client, latent(MIB)).did.transport == {"in": "shm", "out": "shm"}


def test_a_client_that_never_has_tensors_on_a_card_leases_nothing(wire: WireDaemon) -> None:
    client = guest(wire)
    decode(client, latent(MIB))
    assert client.status().caches["arenas"].entries == 0


def test_its_pieces_come_back_over_many_requests(wire: WireDaemon) -> None:
    client = guest(wire)
    for index in range(5):
        reply = decode(client, on_card(latent(24 * MIB, index)))
        assert reply.did.transport == {"in": "cuda_ipc", "out": "cuda_ipc"}
        assert reply.tensors["image"].data == latent(24 * MIB, index).data


def test_what_finds_no_room_goes_through_host_memory_and_says_so(wire: WireDaemon) -> None:
    client = guest(wire)
    reply = decode(client, on_card(latent(64 * MIB + 4096)))
    assert reply.tensors["image"].data == latent(64 * MIB + 4096).data
    assert client._usable_link().sent_by_way["arena_full"] == 1
    assert reply.did.transport["in"] == "inline"
    placed = client._usable_link()._carrier.place([on_card(latent(65 * MIB))])
    assert (placed.refs, placed.reason) == ({}, ARENA_FULL)


def test_threads_that_share_a_client_do_not_mix_up_their_tensors(wire: WireDaemon) -> None:
    client = guest(wire)
    failures: list[Any] = []

    def work(seed: int) -> None:
        tensor = on_card(latent(MIB, seed))
        try:
            for _ in range(5):
                assert decode(client, tensor).tensors["image"].data == tensor.data
        except BaseException as error:  # noqa: BLE001 - a thread's border; the test reports it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# not to be had: the next rung, and the reason everywhere


def shown(client: DaemonClient, reason: str) -> None:
    """Check that a client fell back to shared memory, with the right answer, and that all sides say why."""
    reply = decode(client, on_card(latent(MIB)))
    assert reply.tensors["image"].data == latent(MIB).data
    assert reply.did.transport == {"in": "shm", "out": "shm"}
    assert client.transport == "shm"
    assert reason in str(client.transport_reason)


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        (PagesMemory(OTHER_CARD), OTHER_CARD),
        (PagesMemory(CARD, "open"), "refuses to open the handle"),
        (PagesMemory(CARD, "writes nowhere"), "does not arrive here"),
    ],
    ids=["another card", "refused by the driver", "the daemon reads something else"],
)
def test_an_arena_that_cannot_be_had_is_not_worth_an_error(wire: WireDaemon, memory: PagesMemory, reason: str) -> None:
    client = guest(wire, memory, name="me")
    shown(client, reason)
    wait_for(lambda: reason in str(row(client).reason), what="the reason in the daemon's status")
    assert client.status().caches["arenas"].entries == 0
    asked = wire_requests(client)
    decode(client, on_card(latent(MIB)))
    assert wire_requests(client) == asked + 2, "it was asked for again: one request is the decode, one the status"


def wire_requests(client: DaemonClient) -> int:
    return client.status().totals.requests


def test_the_welcome_says_why_before_anybody_asks(wire: WireDaemon) -> None:
    assert OTHER_CARD in guest(wire, PagesMemory(OTHER_CARD)).welcome.transports["cuda_ipc"]
    assert guest(wire).welcome.transports["cuda_ipc"] == "ok"
    assert wire.client().welcome.transports["cuda_ipc"] == NO_OFFER


def test_a_client_reads_something_else_than_the_daemon_wrote(card: Callable[..., WireDaemon]) -> None:
    shown(guest(card(LUNA_TEST_CARD_FAULT="writes nowhere")), link_memory.NOT_ARRIVED)


def test_the_card_has_no_memory_left(card: Callable[..., WireDaemon]) -> None:
    daemon = card(LUNA_TEST_CARD_FAULT="allocate")
    client = guest(daemon)
    shown(client, "no memory left")
    assert client.status().caches["arenas"].bytes == 0


def test_a_bug_below_the_card_s_memory_is_internal_and_the_next_request_is_answered(
    card: Callable[..., WireDaemon],
) -> None:
    shown(guest(card(LUNA_TEST_CARD_FAULT="bug")), "open_cuda")


@pytest.mark.parametrize("how", ["option", "setting"])
def test_it_can_be_switched_off(card: Callable[..., WireDaemon], luna_home: Path, how: str) -> None:
    from luna_engine import paths

    if how == "setting":
        paths.settings_file().parent.mkdir(parents=True, exist_ok=True)
        paths.settings_file().write_text("[daemon]\ncuda_ipc = false\n", "utf-8")
    daemon = card(*(["--no-cuda-ipc"] if how == "option" else []))
    shown(guest(daemon), "told to have none")


def test_over_tcp_there_is_none(wire: WireDaemon) -> None:
    client = guest(wire, transport="tcp")
    reply = decode(client, on_card(latent(MIB)))
    assert reply.did.transport["in"] == "inline"
    assert (client.transport, client.transport_reason) == ("inline", OVER_TCP)


def test_the_fifth_client_finds_all_arenas_leased_until_one_leaves(wire: WireDaemon) -> None:
    first, *others = (guest(wire) for _ in range(4))
    for client in (first, *others):
        assert decode(client, on_card(latent(64))).did.transport["in"] == "cuda_ipc"
    shown(guest(wire), "all 4 arenas of the card are in use")
    first.close()
    late = guest(wire)
    wait_for(lambda: late.status().caches["arenas"].entries == 3, what="the return of an arena")
    assert decode(late, on_card(latent(64))).did.transport["in"] == "cuda_ipc"
    assert late.status().caches["arenas"].bytes == 4 * 128 * MIB


def test_a_copy_that_fails_makes_the_request_go_the_next_way(wire: WireDaemon) -> None:
    memory = PagesMemory(CARD)
    client = guest(wire, memory)
    decode(client, on_card(latent(MIB)))
    arena = client._usable_link()._carrier.arena
    assert isinstance(arena, ArenaTransport)
    assert arena._arena is not None
    arena._arena._fault = "write"  # type: ignore[attr-defined]  # the pages of the test
    shown(client, "told to fail in the middle")


# clients that say what they like


class RawGuest:
    """A client that says what it likes about its arena."""

    def __init__(self, wire: WireDaemon, **lease: Any) -> None:
        self.client = guest(wire)
        self.link = self.client._usable_link()
        self.memory = PagesMemory(CARD)
        self.opened = self.ask(p.OpenCuda(**lease))

    def ask(self, body: p.OpenCuda) -> dict[str, Any]:
        return self.say({"cmd": "open_cuda", "body": p.plain(body)})

    def say(self, header: dict[str, Any]) -> dict[str, Any]:
        _, pending = self.link.start(header, ())
        wait_for(lambda: self.link.wait(pending, 1e12, None), what="an answer")
        if pending.error is not None:
            return {"error": {"code": pending.error.code}}
        assert pending.header is not None
        return pending.header

    def confirm(self, canary: str | None = None) -> dict[str, Any]:
        """Write the canary as a client does, and confirm it or something else."""
        body = p.decode_body(p.CudaOpened, self.opened["body"], strict=True)
        assert body.handle is not None
        arena = self.memory.open(bytes.fromhex(body.handle), int(body.size_bytes or 0))
        whole = ArenaTransport.of_client(arena, body.generation, int(body.up_bytes or 0), int(body.down_bytes or 0))
        mine = whole.write_canary(self.memory)
        reply = self.ask(p.OpenCuda("confirm", generation=body.generation, canary=canary or mine))
        self.link._carrier.open_arena(whole, self.link._reader)
        return reply

    def decode(self, offset: int, nbytes: int = 4096, generation: int = 0, command: str = "vae_decode") -> Any:
        ref = {"generation": self.opened["body"]["generation"] + generation, "offset": offset}
        segment = {"name": "latent", "dtype": "u8", "shape": [nbytes], "nbytes": nbytes, "via": "cuda_ipc", "ref": ref}
        segment |= {"dtype": "f32", "shape": [1, 1, 1, nbytes // 4]}
        return self.say({"cmd": command, "body": {"set": "s"}, "segments": [segment]})


def code(reply: dict[str, Any]) -> str:
    return str(reply["error"]["code"])


def test_wrong_places_get_a_typed_error_and_the_connection_stays(wire: WireDaemon) -> None:
    raw = RawGuest(wire, up_bytes=MIB, down_bytes=MIB)
    assert raw.confirm()["ok"] is True
    wrong = [raw.decode(MIB), raw.decode(MIB - 4092), raw.decode(0, generation=1), raw.decode(2**52)]
    assert [code(reply) for reply in wrong] == ["transport-failed"] * 4
    assert [reply["error"]["details"] for reply in wrong] == [{"via": "cuda_ipc"}] * 4
    assert raw.decode(0)["did"]["transport"] == {"in": "cuda_ipc", "out": "cuda_ipc"}


def test_an_arena_is_not_used_before_both_sides_have_read_it(wire: WireDaemon) -> None:
    raw = RawGuest(wire)
    assert code(raw.decode(0)) == "frame-invalid"


@pytest.mark.parametrize("canary", ["0" * 64, "short", "é"])
def test_a_wrong_canary_takes_the_arena_back(wire: WireDaemon, canary: str) -> None:
    raw = RawGuest(wire)
    assert code(raw.confirm(canary)) == "transport-failed"
    assert raw.client.status().caches["arenas"].entries == 0
    assert code(raw.confirm()) == "transport-failed"


def test_steps_out_of_order_are_refused_and_leave_nothing_leased(wire: WireDaemon) -> None:
    raw = RawGuest(wire)
    assert code(raw.ask(p.OpenCuda())) == "transport-failed"
    assert raw.client.status().caches["arenas"].entries == 0
    raw.opened = raw.ask(p.OpenCuda())
    stale = p.OpenCuda("confirm", generation=raw.opened["body"]["generation"] + 1, canary="0" * 64)
    assert code(raw.ask(stale)) == "transport-failed"
    assert raw.ask(p.OpenCuda("release"))["ok"] is True
    assert raw.ask(p.OpenCuda("release"))["body"]["generation"] == 0


@pytest.mark.parametrize("sizes", [{"up_bytes": 128 * MIB}, {"down_bytes": 2**50}])
def test_more_than_an_arena_is_refused(wire: WireDaemon, sizes: dict[str, int]) -> None:
    assert code(RawGuest(wire, **sizes).opened) == "transport-failed"


def test_a_range_below_a_page_is_no_request(wire: WireDaemon) -> None:
    assert code(RawGuest(wire, up_bytes=1).opened) == "request-invalid"


@pytest.mark.parametrize("released", [[4096 * 7], ["0"], 5, [True]])
def test_only_what_was_handed_out_can_be_released(wire: WireDaemon, released: Any) -> None:
    raw = RawGuest(wire)
    raw.confirm()
    assert code(raw.say({"cmd": "ping", "body": {}, "released_cuda": released})) == "request-invalid"
    assert raw.say({"cmd": "ping", "body": {}})["ok"] is True


def test_only_commands_of_the_device_take_tensors_of_a_card(wire: WireDaemon) -> None:
    raw = RawGuest(wire)
    raw.confirm()
    assert code(raw.decode(0, command="lora_put")) in {"request-invalid", "tensor-invalid"}
    ref = {"generation": raw.opened["body"]["generation"], "offset": 0}
    segment = {"name": "blob", "dtype": "u8", "shape": [4], "nbytes": 4, "via": "cuda_ipc", "ref": ref}
    refused = raw.say({"cmd": "lora_put", "body": {"hash": "h"}, "segments": [segment]})
    assert code(refused) == "tensor-invalid"


def test_an_old_generation_means_nothing_after_the_next_lease(wire: WireDaemon) -> None:
    raw = RawGuest(wire)
    raw.confirm()
    old = raw.opened["body"]["generation"]
    assert raw.ask(p.OpenCuda("release"))["ok"] is True
    raw.opened = raw.ask(p.OpenCuda())
    assert raw.opened["body"]["generation"] != old
    raw.confirm()
    assert raw.decode(0)["ok"] is True
    assert code(raw.decode(0, generation=old - raw.opened["body"]["generation"])) == "transport-failed"


# kills

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[3])
from luna_daemon.client import DaemonClient
from luna_daemon.device_memory import DeviceTensor
from tests.contract.pages_memory import PagesBuffer, PagesMemory
client = DaemonClient.connect("127.0.0.1", int(sys.argv[1]), name="victim", device_memory=PagesMemory(sys.argv[2]))
buffer = PagesBuffer(memoryview(bytearray(1 << 20)))
client.vae_decode(set="s", latent=DeviceTensor("latent", "f32", (1, 1, 1, 1 << 18), buffer))
print(client.transport, flush=True)
time.sleep(600)
"""


def cards(pid: int) -> int:
    """Count a process's mappings of cards made of pages."""
    return Path(f"/proc/{pid}/maps").read_text("ascii").count("memfd:luna-card")


def test_the_arena_of_a_killed_client_goes_to_the_next_one(wire: WireDaemon) -> None:
    watcher = wire.client(name="watcher")
    root = str(Path(__file__).resolve().parents[2])
    before = cards(wire.process.pid)
    for _ in range(2):
        command = [sys.executable, "-c", HOLD, str(wire.port), CARD, root]
        victim = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert victim.stdout is not None
        with victim.stdout:
            assert victim.stdout.readline() == b"cuda_ipc\n"
            assert watcher.status().caches["arenas"].entries == 1
            victim.send_signal(signal.SIGKILL)
            victim.wait(10)
        wait_for(lambda: watcher.status().caches["arenas"].entries == 0, what="the return of the arena")
    assert cards(wire.process.pid) <= max(before, 1), "one arena serves them all"
    assert decode(guest(wire), on_card(latent(MIB))).did.transport["out"] == "cuda_ipc"


def test_after_the_daemon_s_death_a_client_touches_no_arena_and_keeps_what_it_has(
    card: Callable[..., WireDaemon],
) -> None:
    before = cards(os.getpid())
    daemon = card()
    client = guest(daemon)
    kept = decode(client, on_card(latent(MIB))).tensors["image"]
    arena = client._usable_link()._carrier.arena
    assert isinstance(arena, ArenaTransport)
    mapped = arena._arena
    assert mapped is not None
    daemon.process.kill()
    daemon.process.wait(10)
    with pytest.raises(DeadArenaError):
        mapped.region(0, 1)  # so would a card
    with pytest.raises(DaemonError) as caught:
        decode(client, latent(64))
    assert caught.value.code == "daemon-unreachable"
    assert kept.data == latent(MIB).data
    assert cards(os.getpid()) == before
    assert client._link is None or client._link._carrier.arena is None
