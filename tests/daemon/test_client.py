"""The client: finding a daemon, surviving its restart, giving up in time."""

from __future__ import annotations

import os
import socket
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luna_daemon import address
from luna_daemon.client import DaemonClient
from luna_daemon.platform import sealed_memory
from luna_daemon.protocol import EncodeTokens, TokenItem, TokenRows, WireTensor
from luna_daemon.transport import OVER_TCP
from luna_engine import paths
from luna_engine.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import WireDaemon

IDS = WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))


def encode(set_id: str) -> EncodeTokens:
    return EncodeTokens(set_id, (TokenItem({"l": TokenRows((1,), "ids")}),))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_live_daemon_of_this_user_is_reached_over_its_unix_socket(wire: WireDaemon) -> None:
    assert address.find("127.0.0.1", wire.port).path == wire.identity.socket
    assert address.find("localhost", wire.port).path == wire.identity.socket
    assert address.find("127.0.0.1", wire.port, "tcp").path is None
    assert address.find("127.0.0.1", free_port()).path is None


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_the_welcome_tells_only_what_is_there(wire: WireDaemon, transport: str) -> None:
    welcome = wire.client(transport=transport).welcome
    shm = (sealed_memory.missing() if transport == "auto" else OVER_TCP) or "ok"
    cuda = "told to have none"  # a reason of the engine, whatever the connection
    assert welcome.transports == {"inline": "ok", "shm": shm, "cuda_ipc": cuda}
    assert welcome.name == "wire"
    assert welcome.limits["payload_in_bytes"] == 256 * 1024**2
    assert welcome.device.kind == "cpu"


def test_addresses_come_from_the_environment_then_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (address.default_host(), address.default_port(), address.default_port("vae")) == ("127.0.0.1", 19283, 19284)
    paths.config_dir().mkdir(parents=True)
    paths.settings_file().write_text("[daemon]\nport = 20001\nvae_port = 20002\n", "utf-8")
    assert (address.default_port(), address.default_port("vae")) == (20001, 20002)
    monkeypatch.setenv("LUNA_DAEMON_PORT", "20003")
    monkeypatch.setenv("LUNA_DAEMON_VAE_PORT", "20004")
    monkeypatch.setenv("LUNA_DAEMON_HOST", "localhost")
    assert (address.default_host(), address.default_port(), address.default_port("vae")) == ("localhost", 20003, 20004)
    monkeypatch.setenv("LUNA_DAEMON_PORT", "no")
    with pytest.raises(DaemonError):
        address.default_port()


def test_nobody_there_is_unreachable_at_once_with_the_command_that_starts_it() -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(DaemonUnreachableError) as caught:
        DaemonClient.connect("127.0.0.1", port)
    assert time.monotonic() - began < 1.0
    assert caught.value.code == "daemon-unreachable"
    assert caught.value.exit_code == 3
    assert f"--port {port}" in str(caught.value.hint)
    paths.config_dir().mkdir(parents=True)
    paths.settings_file().write_text(f"[daemons.mine]\nport = {port}\n", "utf-8")
    with pytest.raises(DaemonUnreachableError) as caught:
        DaemonClient.connect("127.0.0.1", port)
    assert caught.value.hint == "start it with: luna daemon start mine"


def test_a_restarted_daemon_is_found_again_and_the_request_repeated(start_daemon: Callable[..., WireDaemon]) -> None:
    first = start_daemon()
    port = first.port
    client = first.client()
    generation = client.generation
    first.process.kill()
    first.process.wait(10)
    starting = threading.Timer(0.2, lambda: start_daemon("--port", str(port)))
    starting.start()
    body, _ = client.encode_tokens(set="s", items=encode("s").items, tensors=[IDS])
    starting.join()
    assert body.items
    assert client.generation != generation


def test_a_daemon_that_stays_away_is_unreachable_within_five_seconds(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    client = daemon.client()
    thread_began = time.monotonic()
    threading.Timer(0.3, daemon.process.kill).start()
    with pytest.raises(DaemonUnreachableError):
        client.call("encode_tokens", encode("until-cancelled"), [IDS])
    assert time.monotonic() - thread_began < 5.5


def test_what_must_not_be_repeated_is_not(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    client = daemon.client()
    daemon.process.kill()
    daemon.process.wait(10)
    began = time.monotonic()
    with pytest.raises(DaemonUnreachableError):
        client.shutdown()
    assert time.monotonic() - began < 0.5


def test_poll_interrupts_the_wait_for_a_restart(start_daemon: Callable[..., WireDaemon]) -> None:
    class StoppedError(Exception):
        pass

    daemon = start_daemon()
    client = daemon.client()
    daemon.process.kill()
    daemon.process.wait(10)

    def poll() -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        client.call("encode_tokens", encode("s"), [IDS], poll=poll)


def test_a_reply_without_its_deadline_is_a_timeout_on_the_client_too(start_daemon: Callable[..., WireDaemon]) -> None:
    """A daemon that was stopped (SIGSTOP) answers nothing at all."""
    import signal

    daemon = start_daemon()
    client = daemon.client()
    os.kill(daemon.process.pid, signal.SIGSTOP)
    os.waitpid(daemon.process.pid, os.WUNTRACED)  # returns once all its threads stand still
    try:
        began = time.monotonic()
        with pytest.raises(DaemonError) as caught:
            client.ping(timeout_s=0.3)
        assert caught.value.code == "daemon-timeout"
        assert time.monotonic() - began < 4.0
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    assert client.ping(timeout_s=5.0)


def test_a_closed_client_says_so(wire: WireDaemon) -> None:
    client = wire.client()
    client.close()
    with pytest.raises(DaemonError):
        client.ping()


def test_one_connection_is_kept(wire: WireDaemon) -> None:
    client = wire.client(name="keeper")
    for _ in range(20):
        client.ping()
    rows = [row for row in client.status().clients if row.name == "keeper"]
    assert [row.requests for row in rows] == [21]


def test_a_connection_is_not_carried_over_a_fork(wire: WireDaemon) -> None:
    client = wire.client(name="parent")
    client.ping()
    link = client._link
    assert link is not None
    link.pid -= 1  # as a forked child sees it
    client.ping()
    assert client._link is not link
    link.pid += 1
    link.close()


def test_large_tensors_cross_in_both_directions(wire: WireDaemon) -> None:
    data = memoryview(os.urandom(24 * 1024**2)).cast("B")
    latent = WireTensor("latent", "f32", (1, 4, 1024, 1536), data)
    for transport in ("auto", "tcp"):
        _, image = wire.client(transport=transport).vae_decode(set="s", latent=latent)
        assert bytes(image.data) == bytes(data)


def test_many_large_replies_to_many_threads_over_one_connection(wire: WireDaemon) -> None:
    client = wire.client()
    failures: list[Any] = []

    def work(value: int) -> None:
        data = memoryview(bytes([value]) * (1024**2)).cast("B")
        latent = WireTensor("latent", "f32", (1, 4, 256, 256), data)
        for _ in range(10):
            _, image = client.vae_decode(set="s", latent=latent)
            if set(bytes(image.data)) != {value}:
                failures.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_clients_that_come_and_go_leave_no_threads_files_or_memory(wire: WireDaemon) -> None:
    process = psutil.Process(wire.process.pid)

    def visit() -> None:
        with DaemonClient.connect("127.0.0.1", wire.port) as client:
            client.call("encode_tokens", encode("big"), [IDS])

    for _ in range(5):
        visit()
    before = (process.num_threads(), process.num_fds(), process.memory_info().rss)
    for _ in range(40):
        visit()
    deadline = time.monotonic() + 5
    while process.num_threads() > before[0] or process.num_fds() > before[1]:
        assert time.monotonic() < deadline, (process.num_threads(), process.num_fds(), before)
        time.sleep(0.02)
    assert process.memory_info().rss - before[2] < 32 * 1024**2
