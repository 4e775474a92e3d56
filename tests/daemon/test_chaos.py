"""What machines do to a daemon: full disks, stopped processes, replaced and vanished files, jumping clocks."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luna_daemon import protocol as p
from luna_daemon.client import DaemonClient
from luna_daemon.identity import DaemonPlaces
from luna_daemon.logs import JsonLines, LogFile
from luna_daemon.supervised import Supervised
from luna_engine.errors import DaemonError
from luna_engine.settings import DaemonInstance
from tests.bench.tiny_daemon import PART_ID

from .conftest import wait_for
from .test_supervised import ScriptedWorld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.tiny_daemon import TinyDaemon

    from .conftest import WireDaemon

IDS = p.WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))


def tokens(set_id: str) -> p.EncodeTokens:
    return p.EncodeTokens(set_id, (p.TokenItem({"l": p.TokenRows((1,), "ids")}),))


def test_half_open_connections_cost_nothing_and_end(wire: WireDaemon) -> None:
    process = psutil.Process(wire.process.pid)
    before = process.num_fds()
    held = []
    for _ in range(20):
        connection, _reader = wire.greeted()
        connection.shutdown(socket.SHUT_RD)  # reads no more, and never closes
        held.append(connection)
    with DaemonClient.connect("127.0.0.1", wire.port) as client:
        assert client.call("encode_tokens", tokens("s"), [IDS]).body.items
    for connection in held:
        connection.close()
    wait_for(lambda: process.num_fds() <= before + 1, what="the descriptors of those that went")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_costs_log_lines_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "current.log"
    path.symlink_to("/dev/full")
    handler = LogFile(path)
    handler.setFormatter(JsonLines("g"))
    logger = logging.getLogger("luna.test.full")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        logger.warning("lost")
        path.unlink()
        handler._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        logger.warning("there is room again")
    finally:
        logger.removeHandler(handler)
        handler.close()
    (line,) = path.read_text("utf-8").splitlines()
    assert json.loads(line)["message"] == "there is room again"


def test_a_daemon_whose_logs_folder_vanished_serves_on(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    client = daemon.client()
    places = DaemonPlaces("wire")
    for file in places.logs.iterdir():
        file.unlink()
    places.logs.rmdir()
    for _ in range(3):
        assert client.call("encode_tokens", tokens("s"), [IDS]).body.items


def test_a_stopped_daemon_is_waited_for_to_the_deadline_and_goes_on_where_it_was(
    start_daemon: Callable[..., WireDaemon],
) -> None:
    """SIGSTOP as a debugger or a laptop's lid gives it, for a moment."""
    daemon = start_daemon()
    client = daemon.client()
    assert client.ping()
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DaemonError) as caught:
            client.ping(timeout_s=0.3)
        assert caught.value.code == "daemon-timeout"
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert client.ping(timeout_s=10.0)


def test_a_stopped_client_holds_nobody_up(wire: WireDaemon) -> None:
    import subprocess
    import sys

    script = (
        "import time\n"
        "from luna_daemon.client import DaemonClient\n"
        f"client = DaemonClient.connect('127.0.0.1', {wire.port}, name='frozen')\n"
        "client.subscribe(['request', 'log'])\n"
        "print('go', flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE
    ) as frozen:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == b"go\n"
        frozen.send_signal(signal.SIGSTOP)
        try:
            client = wire.client()
            for _ in range(300):
                client.call("encode_tokens", tokens("s"), [IDS])
            assert "frozen" in {one.name for one in client.status().clients}
        finally:
            frozen.kill()
    wait_for(lambda: "frozen" not in {one.name for one in client.status().clients}, what="the end of the frozen one")


@pytest.fixture
def client(tiny: TinyDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonClient]:
    monkeypatch.setenv("LUNA_HOME", str(tiny.home))
    with DaemonClient.connect("127.0.0.1", tiny.port, name="chaos") as made:
        yield made


def test_a_file_replaced_or_removed_while_it_is_loaded_changes_nothing_until_it_is_loaded_anew(
    tiny: TinyDaemon, client: DaemonClient
) -> None:
    """The root itself may go, as an unmounted disk does: what is loaded stays, what is asked for is typed."""
    models = tiny.home.parent / "models"
    file = models / PART_ID
    copy = file.with_name("copy.safetensors")
    copy.write_bytes(file.read_bytes())
    parts = [p.Part("vae", id="checkpoints/copy.safetensors")]
    loaded = client.load_model(parts)
    latent = p.WireTensor("latent", "f32", (1, 4, 8, 8), memoryview(array("f", [0.1] * 256)).cast("B"))
    before = bytes(client.vae_decode(set=loaded.set, latent=latent)[1].data)
    copy.write_bytes(b"\0" * 100)
    assert bytes(client.vae_decode(set=loaded.set, latent=latent)[1].data) == before
    assert code_of(lambda: client.load_model(parts)) == "file-damaged"
    away = models.with_name("away")
    models.rename(away)
    try:
        assert bytes(client.vae_decode(set=loaded.set, latent=latent)[1].data) == before
        assert code_of(lambda: client.load_model(parts)) in {"model-missing", "path-outside"}
        client.list_models()
    finally:
        away.rename(models)
        copy.unlink()
    assert client.load_model([p.Part("l", id=PART_ID), p.Part("vae", id=PART_ID)]).set


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(DaemonError) as caught:
        action()
    return caught.value.code


class JumpingClock:
    """Wall time jumps; monotonic time does not."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1e9

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall


@pytest.mark.parametrize("jump_s", [-1e8, -3600.0, 3600.0, 1e8])
def test_a_wall_clock_that_jumps_neither_starts_nor_stops_anything(jump_s: float) -> None:
    clock, world = JumpingClock(), ScriptedWorld()
    said: list[str] = []
    daemon = Supervised(
        "d",
        DaemonInstance(),
        world,
        clock,
        lambda _level, code, _text: said.append(code),  # type: ignore[arg-type]
    )
    daemon.start()
    daemon.step(may_restart=True)
    assert daemon.state.value == "ready"
    clock.wall += jump_s
    for _ in range(20):
        clock.now += 1.0
        daemon.step(may_restart=True)
    assert daemon.state.value == "ready"
    assert said == []
    assert len(world.processes) == 1


def test_threads_that_cannot_be_made_refuse_one_connection_not_all(
    wire: WireDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where threads can be made scarce: the accept loop outlives it."""
    from luna_daemon import listener
    from luna_daemon.engine_seam import EngineOptions
    from luna_daemon.service import DaemonService

    from .wire_daemon import SmallEngine

    service = DaemonService("unit", "full", SmallEngine(EngineOptions()), b"\x05" * 32)
    tcp = listener.bind_tcp("127.0.0.1", 0)
    port = tcp.getsockname()[1]
    made = listener.Listener(service, tcp, port)
    made.start()
    start, failures = threading.Thread.start, [2]

    def scarce(thread: threading.Thread) -> None:
        if thread.name == "luna-reader" and failures[0]:
            failures[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    try:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), 5) as refused:
                refused.settimeout(5)
                assert refused.recv(1) == b"", "closed, not left to wait"
        with socket.create_connection(("127.0.0.1", port), 5) as served:
            served.sendall((300).to_bytes(4, "big"))
            time.sleep(0)
            assert made._thread.is_alive()
    finally:
        made.close()
        service.close_connections(0.0)
