"""Sudden deaths and mixed loads: the survivor answers in time, and nothing is left behind."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luna_daemon import kept
from luna_daemon.identity import DaemonPlaces
from luna_daemon.protocol import EncodeText, EncodeTokens, Part, TextItem, TokenItem, TokenRows, WireTensor
from luna_engine import paths
from luna_engine.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import WireDaemon

IDS = WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))


def encode(set_id: str) -> EncodeTokens:
    return EncodeTokens(set_id, (TokenItem({"l": TokenRows((1,), "ids")}),))


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("moment", ["idle", "queued", "running", "replying", "loading"])
def test_the_death_of_the_daemon_is_noticed_at_any_moment(
    start_daemon: Callable[..., WireDaemon], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(kept, "RECONNECT_AFTER_S", (0.05, 0.1))
    daemon = start_daemon()
    client, watch = daemon.client(), daemon.client()
    outcome: list[Any] = []

    def work(action: Callable[[], Any]) -> None:
        try:
            outcome.append(action())
        except DaemonError as error:
            outcome.append(error)

    actions: dict[str, Callable[[], Any]] = {
        "idle": lambda: time.sleep(0.2) or client.ping(),
        "queued": lambda: client.call("encode_tokens", encode("s"), [IDS]),
        "running": lambda: client.call("encode_tokens", encode("until-cancelled"), [IDS]),
        "replying": lambda: [client.call("encode_tokens", encode("big"), [IDS]) for _ in range(1000)],
        "loading": lambda: client.load_model([Part("l", id="slow:30")]),
    }
    threads = [threading.Thread(target=work, args=(actions[moment],))]
    if moment == "queued":
        threads.insert(0, threading.Thread(target=work, args=(actions["running"],)))
    for thread in threads:
        thread.start()
        if moment in {"queued", "running"}:
            until(lambda: watch.status().queue["device"].running == 1)
    if moment == "queued":
        until(lambda: watch.status().queue["device"].depth == 1)
    if moment == "loading":
        until(lambda: watch.status().queue["load"].running == 1)
    if moment == "replying":
        time.sleep(0.1)
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 5.0
    assert len(outcome) == len(threads)
    assert all(isinstance(result, DaemonUnreachableError) for result in outcome)


# DAEMON S18
@pytest.mark.parametrize("moment", ["queued", "running", "loading"])
def test_the_death_of_a_client_frees_what_it_asked_for(wire: WireDaemon, moment: str) -> None:
    """The client is a process of its own and gets SIGKILL."""
    ask = {
        "queued": "[client.call('encode_tokens', E('until-cancelled'), [IDS], timeout_s=30) for _ in range(1)]",
        "running": "client.call('encode_tokens', E('until-cancelled'), [IDS], timeout_s=30)",
        "loading": "client.load_model([Part('l', id='slow:0.5')])",
    }[moment]
    script = (
        "import threading\n"
        "from array import array\n"
        "from luna_daemon.client import DaemonClient\n"
        "from luna_daemon.protocol import EncodeTokens, Part, TokenItem, TokenRows, WireTensor\n"
        "IDS = WireTensor('ids', 'i32', (1,), memoryview(array('i', [1])).cast('B'))\n"
        "E = lambda name: EncodeTokens(name, (TokenItem({'l': TokenRows((1,), 'ids')}),))\n"
        f"client = DaemonClient.connect('127.0.0.1', {wire.port}, name='victim')\n"
        f"threads = [threading.Thread(target=lambda: {ask}) for _ in range({3 if moment == 'queued' else 1})]\n"
        "[thread.start() for thread in threads]\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", script], cwd=paths.checkout_root())
    watch = wire.client()
    lane = "load" if moment == "loading" else "device"
    try:
        until(lambda: watch.status().queue[lane].running == 1)
        if moment == "queued":
            until(lambda: watch.status().queue[lane].depth == 2)
    finally:
        victim.kill()
        victim.wait(10)
    until(lambda: "victim" not in {row.name for row in watch.status().clients})
    until(lambda: watch.status().queue[lane].running + watch.status().queue[lane].depth == 0)
    assert watch.call("encode_tokens", encode("s"), [IDS]).body.items


def test_a_daemon_killed_while_starting_leaves_the_place_free(start_daemon: Callable[..., WireDaemon]) -> None:
    for _ in range(3):
        first = start_daemon()
        first.process.kill()
        first.process.wait(10)
    last = start_daemon()
    assert last.client().ping()
    assert DaemonPlaces("wire").identity.exists()


def test_a_mixed_load_of_six_clients_leaves_the_daemon_as_it_was(wire: WireDaemon) -> None:
    process = psutil.Process(wire.process.pid)
    failures: list[Any] = []

    class GivenUpError(Exception):
        pass

    def give_up() -> None:
        raise GivenUpError

    def one(client: Any, chance: random.Random) -> None:
        kind = chance.randrange(6)
        if kind == 0:
            client.ping()
        elif kind == 1:
            client.call("encode_text", EncodeText("s", (TextItem("x" * chance.randrange(1, 500)),)))
        elif kind == 2:
            latent = WireTensor("latent", "f32", (1, 1, 1, 5000), memoryview(bytes(20_000)))
            client.vae_decode(set="s", latent=latent)
        elif kind == 3:
            with pytest.raises(DaemonError):
                client.call("encode_tokens", encode("error:token-invalid"), [IDS])
        elif kind == 4:
            with pytest.raises(GivenUpError):
                client.call("encode_tokens", encode("s"), [IDS], poll=give_up)
        else:
            client.call("encode_tokens", encode("s"), [IDS])

    def work(seed: int, rounds: int) -> None:
        chance = random.Random(seed)
        client = wire.client(name=f"load-{seed}")
        try:
            for _ in range(rounds):
                one(client, chance)
        except BaseException as error:  # noqa: BLE001 - a thread's border; the test reports it
            failures.append(error)
        finally:
            client.close()

    def burst(rounds: int) -> None:
        threads = [threading.Thread(target=work, args=(seed, rounds)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    burst(50)
    before = process.memory_info().rss
    burst(250)
    assert failures == []
    watch = wire.client()
    until(lambda: [row.name for row in watch.status().clients] == ["luna"])
    status = watch.status()
    assert (status.queue["device"].depth, status.queue["device"].running) == (0, 0)
    assert status.totals.requests > 1500
    assert process.memory_info().rss - before < 8 * 1024**2
