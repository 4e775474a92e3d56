"""What strangers, broken clients and slow ones send: the daemon closes, says so where it can, and serves others."""

from __future__ import annotations

import os
import random
import resource
import socket
import stat
import time
from array import array
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luna_daemon import auth, frames
from luna_daemon.client import DaemonClient
from luna_daemon.frames import MIB
from luna_daemon.stream import FrameReader
from luna_daemon.transport import offered
from luna_engine.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import WireDaemon

NONCE = "ab" * 32


def frame(header: dict[str, Any]) -> bytes:
    return b"".join(bytes(buffer) for buffer in frames.encode_frame(header))


def hello(**changes: Any) -> bytes:
    who = {"name": "raw", "version": "0", "pid": 1}
    body = {"magic": "luna-daemon", "protocol": [1, 1], "nonce": NONCE, "client": who, **changes}
    return frame({"id": 1, "cmd": "hello", "body": body})


def closed(connection: socket.socket, seconds: float = 8.0) -> bytes:
    """Return what is sent until the other side closes; fail if it does not."""
    connection.settimeout(seconds)
    received = b""
    try:
        while block := connection.recv(65_536):
            received += block
    except ConnectionResetError:
        pass
    return received


def replies(raw: bytes) -> list[dict[str, Any]]:
    found = []
    while raw:
        length = frames.header_length(raw)
        found.append(frames.decode_header(raw[4 : 4 + length]))
        raw = raw[4 + length :]
    return found


# DAEMON S5
@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\0\0\0\0",
        (5000).to_bytes(4, "big") + b" " * 5000,
        (4).to_bytes(4, "big") + b"null",
        (2).to_bytes(4, "big") + b"{}",
        frame({"id": 1, "cmd": "ping", "body": {}}),
        frame({"id": 0, "cmd": "hello", "body": {}}),
        frame({"id": "x", "cmd": "hello", "body": {}}),
    ],
    ids=lambda first: repr(first[:20]),
)
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_garbage_first_is_closed_without_a_word(wire: WireDaemon, first: bytes, way: str) -> None:
    with wire.raw() if way == "tcp" else wire.raw_unix() as connection:
        connection.sendall(first)
        assert closed(connection) == b""


# DAEMON S5
def test_random_first_bytes_do_no_harm(wire: WireDaemon) -> None:
    chance = random.Random(5)
    process = psutil.Process(wire.process.pid)

    def attack(times: int) -> tuple[int, int]:
        for _ in range(times):
            with wire.raw_unix() as connection:
                connection.sendall(chance.randbytes(chance.randrange(1, 400)))
                connection.shutdown(socket.SHUT_WR)
                assert closed(connection) == b""
        return process.memory_info().rss, process.num_fds()

    before, after = (
        attack(300),
        attack(600),
    )  # the first connections also bring threads' stacks and the allocator's pools
    # Untrimmed pools came out 4 MiB apart either way here, 9 beside a full suite; a kept read buffer each would be 37.
    assert after[0] - before[0] < 16 * MIB
    assert after[1] - before[1] < 10


def test_mutated_frames_of_a_greeted_client_never_take_the_daemon_down(wire: WireDaemon) -> None:
    chance = random.Random(7)
    good = frame({"id": 2, "cmd": "encode_text", "body": {"set": "s", "items": [{"text": "a"}]}})
    for _ in range(150):
        raw = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        connection, _reader = wire.greeted()
        with connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            for header in replies(closed(connection)):
                assert "ok" in header


# DAEMON S24
@pytest.mark.parametrize("offered", [[2, 2], [2, 9], [0, 0], "1", [1], [1, 1, 1], [True, True], None])
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_another_protocol_gets_both_ranges_and_is_closed(wire: WireDaemon, offered: Any, way: str) -> None:
    with wire.raw() if way == "tcp" else wire.raw_unix() as connection:
        connection.sendall(hello(protocol=offered, future_field={"x": 1}))
        (reply,) = replies(closed(connection))
    assert reply["ok"] is False
    assert reply["error"]["code"] == "protocol-mismatch"
    assert reply["error"]["details"]["daemon"] == [1, 1]


def test_another_magic_is_a_mismatch(wire: WireDaemon) -> None:
    with wire.raw_unix() as connection:
        connection.sendall(hello(magic="other-daemon"))
        (reply,) = replies(closed(connection))
    assert reply["error"]["code"] == "protocol-mismatch"


def test_a_range_that_contains_ours_is_welcome(wire: WireDaemon) -> None:
    with wire.raw_unix() as connection:
        connection.sendall(hello(protocol=[1, 7]))
        header = FrameReader(connection, frames.Limits()).announced().header
    assert header["body"]["protocol"] == 1
    assert header["body"]["transports"] == offered(is_local=True, cuda_fault="told to have none")


@pytest.mark.parametrize("changes", [{"nonce": "short"}, {"nonce": "Z" * 64}, {"surprise": 1}, {"client": {}}])
def test_a_wrong_hello_is_told_what_is_wrong(wire: WireDaemon, changes: dict[str, Any]) -> None:
    with wire.raw_unix() as connection:
        connection.sendall(hello(**changes))
        (reply,) = replies(closed(connection))
    assert reply["error"]["code"] == "request-invalid"


def test_silence_is_closed_after_two_seconds(wire: WireDaemon) -> None:
    began = time.monotonic()
    with wire.raw() as connection:
        assert closed(connection) == b""
    assert 1.0 < time.monotonic() - began < 6.0


def challenge_of(connection: socket.socket) -> tuple[FrameReader, dict[str, Any]]:
    connection.sendall(hello())
    reader = FrameReader(connection, frames.Limits())
    return reader, reader.announced().header["body"]


# DAEMON S4
@pytest.mark.parametrize("proof", ["00" * 32, "", "not hex", "ü" * 32])
def test_a_wrong_proof_is_refused(wire: WireDaemon, proof: str) -> None:
    with wire.raw() as connection:
        reader, _ = challenge_of(connection)
        connection.sendall(frame({"id": 2, "cmd": "auth", "body": {"proof": proof}}))
        assert reader.announced().header["error"]["code"] == "daemon-auth"
        assert closed(connection) == b""


# DAEMON S4
def test_the_server_s_own_proof_and_an_earlier_client_s_are_refused(wire: WireDaemon) -> None:
    token = auth.read_token()
    with wire.raw() as connection:
        reader, challenge = challenge_of(connection)
        connection.sendall(frame({"id": 2, "cmd": "auth", "body": {"proof": challenge["proof"]}}))
        assert reader.announced().header["error"]["code"] == "daemon-auth"
        earlier = auth.proof(token, "client", wire.port, NONCE, challenge["nonce"])
    with wire.raw() as connection:
        reader, challenge = challenge_of(connection)
        connection.sendall(frame({"id": 2, "cmd": "auth", "body": {"proof": earlier}}))
        assert reader.announced().header["error"]["code"] == "daemon-auth"
    with wire.raw() as connection:
        reader, challenge = challenge_of(connection)
        right = auth.proof(token, "client", wire.port, NONCE, challenge["nonce"])
        connection.sendall(frame({"id": 2, "cmd": "auth", "body": {"proof": right}}))
        assert reader.announced().header["ok"] is True


# DAEMON S4
def test_a_client_with_another_token_sends_nothing_but_its_hello(
    wire: WireDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = wire.port
    monkeypatch.setenv("LUNA_HOME", str(tmp_path))
    auth.ensure_token()
    with pytest.raises(DaemonError) as caught:
        DaemonClient.connect("127.0.0.1", port, transport="tcp")
    assert caught.value.code == "daemon-auth"
    assert "does not know this user's token" in caught.value.message
    monkeypatch.setenv("LUNA_HOME", str(wire.home))


# DAEMON S4
def test_whoever_grabbed_the_port_learns_nothing(luna_home: Path) -> None:
    auth.ensure_token()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        import threading

        heard: list[bytes] = []

        def pose() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(65_536))
                body = {"nonce": NONCE, "proof": "00" * 32}
                connection.sendall(frame({"id": 1, "ok": True, "body": body}))
                heard.append(connection.recv(65_536))

        thread = threading.Thread(target=pose)
        thread.start()
        with pytest.raises(DaemonError) as caught:
            DaemonClient.connect("127.0.0.1", port)
        thread.join(5)
    assert caught.value.code == "daemon-auth"
    assert heard[1] == b""
    assert auth.read_token().hex() not in heard[0].decode("latin-1")


def test_a_port_of_something_else_is_unreachable_not_a_hang(luna_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with pytest.raises(DaemonUnreachableError) as caught:
            DaemonClient.connect("127.0.0.1", listener.getsockname()[1])
    assert caught.value.code == "daemon-unreachable"
    assert time.monotonic() - began < 5.0


def broken_later(wire: WireDaemon, raw: bytes) -> dict[str, Any]:
    connection, _reader = wire.greeted()
    with connection:
        connection.sendall(raw)
        (reply,) = replies(closed(connection))
    return reply


# DAEMON S7
@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (65_537).to_bytes(4, "big"),
        (9).to_bytes(4, "big") + b'{"a":NaN}',
        frame({"cmd": "ping", "body": {}}),
        frame({"id": 2, "cmd": "ping", "segments": [{"name": "x"}]}),
        frame(
            {
                "id": 2,
                "cmd": "ping",
                "segments": [{"name": "x", "dtype": "u8", "shape": [9], "nbytes": 8, "via": "inline"}],
            }
        ),
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_a_broken_frame_later_is_told_and_closed(wire: WireDaemon, raw: bytes) -> None:
    reply = broken_later(wire, raw)
    assert (reply["id"], reply["error"]["code"]) == (None, "frame-invalid")


# DAEMON S8
def test_a_payload_over_the_cap_is_refused_before_anything_is_allocated(wire: WireDaemon) -> None:
    process = psutil.Process(wire.process.pid)
    before = process.memory_info().rss
    huge = {"name": "latent", "dtype": "u8", "shape": [2**50], "nbytes": 2**50, "via": "inline"}
    reply = broken_later(wire, frame({"id": 2, "cmd": "vae_decode", "body": {"set": "s"}, "segments": [huge]}))
    assert reply["error"]["code"] == "payload-too-large"
    assert process.memory_info().rss - before < 16 * MIB


def test_a_refused_request_s_payload_is_read_off_and_the_connection_stays(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    with connection:
        tensor = frames.WireTensor.of_bytes("x", bytes(3 * MIB))
        for buffer in frames.encode_frame({"id": 2, "cmd": "nonsense", "body": {}}, [tensor]):
            connection.sendall(buffer)
        connection.sendall(frame({"id": 3, "cmd": "ping", "body": {"nonce": "still"}}))
        assert reader.announced().header["error"]["code"] == "command-unknown"
        assert reader.announced().header["body"]["nonce"] == "still"


# DAEMON S15
def test_a_sender_that_stops_in_the_middle_of_a_frame_is_dropped(wire: WireDaemon) -> None:
    connection, _reader = wire.greeted()
    with connection:
        began = time.monotonic()
        connection.sendall((100).to_bytes(4, "big") + b'{"id"')
        closed(connection, 12.0)
    assert 3.0 < time.monotonic() - began < 10.0


# DAEMON S18
@pytest.mark.parametrize("cut", [1, 4, 10, 200, 1000])
def test_an_end_in_the_middle_of_a_frame_frees_what_it_held(wire: WireDaemon, cut: int) -> None:
    ids = frames.WireTensor("ids", "i32", (300,), memoryview(array("i", range(300))).cast("B"))
    body = {"set": "s", "items": [{"encoders": {"l": {"rows": [300], "ids": "ids"}}}]}
    raw = b"".join(bytes(part) for part in frames.encode_frame({"id": 2, "cmd": "encode_tokens", "body": body}, [ids]))
    connection, _reader = wire.greeted()
    with connection:
        connection.sendall(raw[:cut])
    client = wire.client()
    deadline = time.monotonic() + 5
    while any(row.name == "raw" for row in client.status().clients):
        assert time.monotonic() < deadline


# DAEMON S18
def test_the_end_of_a_client_stops_its_running_request(wire: WireDaemon) -> None:
    ids = frames.WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))
    body = {"set": "until-cancelled", "items": [{"encoders": {"l": {"rows": [1], "ids": "ids"}}}]}
    connection, _reader = wire.greeted()
    for buffer in frames.encode_frame({"id": 2, "cmd": "encode_tokens", "body": body}, [ids]):
        connection.sendall(buffer)
    client = wire.client()
    deadline = time.monotonic() + 5
    while client.ping().state != "busy":
        assert time.monotonic() < deadline
    connection.close()
    while client.ping().state != "ready":
        assert time.monotonic() < deadline


# DAEMON S15
def test_a_reader_that_does_not_read_stalls_only_itself(wire: WireDaemon) -> None:
    ids = frames.WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))
    body = {"set": "big", "items": [{"encoders": {"l": {"rows": [1], "ids": "ids"}}}]}
    connection, reader = wire.greeted()
    with connection:
        for index in range(2, 10):
            for buffer in frames.encode_frame({"id": index, "cmd": "encode_tokens", "body": body}, [ids]):
                connection.sendall(buffer)
        other = wire.client()
        good = frames.WireTensor("ids", "i32", (1,), memoryview(array("i", [5])).cast("B"))
        began = time.monotonic()
        reply = other.call("encode_text", _text_body())
        assert reply.body.items
        assert good.nbytes == 4
        assert time.monotonic() - began < 5.0
        for _ in range(8):
            announced = reader.announced(payload_limit=64 * MIB)
            assert announced.header["ok"] is True
            reader.skip(announced.payload_bytes)


def _text_body() -> Any:
    from luna_daemon.protocol import EncodeText, TextItem

    return EncodeText("s", (TextItem("a"),))


def test_a_flood_of_silent_connections_delays_but_does_not_shut_out(wire: WireDaemon) -> None:
    silent = [wire.raw() for _ in range(20)]
    try:
        with DaemonClient.connect("127.0.0.1", wire.port) as client:  # the Unix socket has handshakes of its own
            assert client.ping()
    finally:
        for connection in silent:
            connection.close()


# DAEMON S17
def test_more_connections_than_allowed_wait_and_are_served_when_others_go(wire: WireDaemon) -> None:
    held = [wire.greeted()[0] for _ in range(126)]
    try:
        with DaemonClient.connect("127.0.0.1", wire.port) as client:
            assert client.ping()
    finally:
        for connection in held:
            connection.close()
    with DaemonClient.connect("127.0.0.1", wire.port) as client:
        assert client.ping()


# DAEMON S2
def test_socket_folder_token_and_records_are_private(wire: WireDaemon) -> None:
    state = wire.home / "state"
    path = wire.identity.socket
    assert path is not None
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116 - a socket, not a path of ours
    assert stat.S_IMODE((state / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE((state / "run" / "wire.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((state / "run").stat().st_mode) == 0o700


# DAEMON S5
def test_refused_connections_take_one_log_line_a_minute(wire: WireDaemon) -> None:
    for _ in range(5):
        with wire.raw_unix() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert closed(connection) == b""
    log = (wire.home / "state" / "logs" / "wire" / "current.log").read_text("utf-8")
    assert 1 <= log.count("connections refused") <= 3


# DAEMON S17
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can lower another process's limits")
def test_running_out_of_descriptors_pauses_accepting_and_recovers(wire: WireDaemon) -> None:
    pid = wire.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    client = wire.client()
    assert client.ping()
    held = []
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds() + 2, before[1]))
        held = [wire.raw_unix() for _ in range(8)]
        assert client.ping(), "who is connected is served"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for connection in held:
            connection.close()
    with DaemonClient.connect("127.0.0.1", wire.port) as other:
        assert other.ping()
