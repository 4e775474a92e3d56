"""The hardening list of DAEMON.md, section 12: the lines that have no better place. Tests name their line."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import auth, connection, frames, platform, stream
from luna_daemon import protocol as p
from luna_daemon.connection import Connection
from luna_daemon.protocol import COMMANDS, Lane
from luna_daemon.service import DaemonService
from luna_daemon.stream import FrameReader, FrameWriter
from luna_engine import paths
from luna_engine.errors import DaemonError

from .conftest import hello, say, wait_for
from .test_commands import request
from .wire_daemon import SmallEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import WireDaemon

TESTS = Path(__file__).resolve().parents[1]
IDS = p.WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))


def tokens(set_id: str) -> p.EncodeTokens:
    return p.EncodeTokens(set_id, (p.TokenItem({"l": p.TokenRows((1,), "ids")}),))


def test_every_line_of_the_list_has_a_test_that_names_it() -> None:
    text = "\n".join(path.read_text("utf-8") for path in sorted(TESTS.rglob("test_*.py")))
    named = {line for group in re.findall(r"DAEMON (S\d+(?:, S\d+)*)", text) for line in group.split(", ")}
    assert named >= {f"S{number}" for number in range(1, 26)}


# DAEMON S1
def test_what_could_run_code_from_bytes_is_never_called_by_the_wire() -> None:
    """A process in which all of it raises takes frames, tokens, tensors and LoRA blobs as ever."""
    script = """
import builtins, marshal, pickle, shelve, sys
import torch, safetensors.torch
from tests.daemon.wire_daemon import SmallEngine
from luna_daemon import frames, patches, tensors
from luna_daemon.protocol import COMMANDS, decode_body, plain
from tests.daemon.test_protocol_table import REQUESTS
def never(*_args, **_more):
    raise SystemExit("called what runs code")
pickle.load = pickle.loads = pickle.Unpickler = marshal.load = shelve.open = torch.load = never
builtins.eval = never
for name, body in REQUESTS.items():
    raw = b"".join(bytes(part) for part in frames.encode_frame({"id": 1, "cmd": name, "body": plain(body)}))
    header = frames.decode_header(memoryview(raw)[4:])
    assert decode_body(COMMANDS[name].request, header["body"], strict=True) == body
lora = [patches.Patch("a.weight", "lora", {"up": torch.ones(4, 1), "down": torch.ones(1, 4)})]
assert patches.content_hash(patches.unpack(memoryview(patches.pack(lora)))) == patches.content_hash(lora)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=paths.checkout_root(), capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "fine", done.stderr


@pytest.fixture
def service(luna_home: Path) -> Iterator[DaemonService]:
    from luna_daemon.engine_seam import EngineOptions

    made = DaemonService("unit", "full", SmallEngine(EngineOptions()), b"\x05" * 32)
    made.start()
    yield made
    made.close_connections(0.0)
    made.stop(0.0, "the test is over")
    assert made.wait(10)


# DAEMON S2
def test_a_foreign_user_is_refused_before_anything_is_read(
    service: DaemonService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "peer_uid", lambda _connection: 4242)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not Connection(service, ours, None).handshake()
        header = FrameReader(theirs, frames.Limits()).announced().header
    assert header["error"]["code"] == "daemon-auth"


# DAEMON S3
def test_a_token_of_somebody_else_is_not_used(luna_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auth.ensure_token()
    monkeypatch.setattr("os.getuid", lambda: 4242)
    with pytest.raises(DaemonError) as caught:
        auth.read_token()
    assert caught.value.code == "daemon-auth"
    assert "belongs to uid" in caught.value.message


# DAEMON S15
def test_a_reader_without_progress_is_dropped_and_its_memory_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALLED_READER_SECONDS", 0.2)
    ours, theirs = socket.socketpair()
    lost = threading.Event()
    with ours, theirs:
        writer = FrameWriter(ours, lost.set)
        writer.send([memoryview(bytes(16 << 20))])
        assert writer.unsent_bytes > 0
        assert lost.wait(10), "a stalled reader must be given up"
        assert writer.unsent_bytes == 0
        writer.send([memoryview(bytes(1 << 20))])
        assert writer.unsent_bytes == 0, "what comes later is dropped"


# DAEMON S16
def test_who_comes_beside_a_flood_waits_for_two_turns_not_for_the_flood(wire: WireDaemon) -> None:
    """With one request each, fairness by turns; how long a turn is does not matter here."""
    flood, reader = wire.greeted()
    order: list[int] = []
    with flood:
        for index in range(2, 30):
            say(flood, {"id": index, "cmd": "encode_tokens", "body": p.plain(tokens("sleep:0.05"))}, [IDS])
        watch = wire.client()
        wait_for(lambda: watch.status().queue["device"].running >= 1)
        watch.call("encode_tokens", tokens("s"), [IDS])
        before = watch.status().queue["device"].depth
        while len(order) < 28:
            announced = reader.announced()
            reader.skip(announced.payload_bytes)
            order.append(announced.header["id"])
    assert before >= 10, "most of the flood waits behind the one request"


# DAEMON S21
def test_events_of_a_subscriber_that_never_reads_are_bounded(service: DaemonService) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Connection(service, ours, None)
        service.watch.events.subscribe(made, ["log"], None)
        for index in range(20_000):
            service.watch.events.publish("log", "line", {"message": f"{index:0300}"})
        time.sleep(0.05)  # nothing to wait for: the events thread has more than it can send
        waiting = service.watch.events._subscribers[made]._waiting
        assert len(waiting) <= 1024
        assert made._writer.unsent_bytes < 2 * connection.EVENT_BYTES_AHEAD
        service.watch.events.forget(made)


# DAEMON S23
def test_no_secret_text_or_path_is_in_errors_metrics_events_or_log(wire: WireDaemon) -> None:
    text = "a very private prompt"
    client, watcher = wire.client(), wire.client()
    watcher.subscribe(["request", "log", "model", "lora", "downgrade", "stalled"])
    said = []
    for name, code in [("encode_text", "tokenizer-missing"), ("encode_text", None), ("encode_tokens", "out-of-memory")]:
        body, tensors = request(name, code)
        if name == "encode_text":
            body = p.EncodeText(body.set, (p.TextItem(text),))
        try:
            client.call(name, body, tensors)
        except DaemonError as error:
            said.append(str(error))
    with pytest.raises(DaemonError) as caught:
        client.call("encode_tokens", tokens("bug"), [IDS])
    said += [str(caught.value), json.dumps(caught.value.details), client.metrics()]
    ends = 0
    while ends < 4:
        event = watcher.next_event(10.0)
        assert event is not None
        ends += (event.topic, event.event) == ("request", "end")
        said.append(repr(event))
    everything = "\n".join(said)
    for hidden in (text, auth.read_token().hex(), str(wire.home), str(TESTS)):
        assert hidden not in everything
    assert text not in (wire.home / "state" / "logs" / "wire" / "current.log").read_text("utf-8")


# these have tests of their own: they make the connection itself
NOT_INJECTED = frozenset(["hello", "auth", "open_shm", "open_cuda"])


# DAEMON S25
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - NOT_INJECTED))
def test_a_bug_in_any_handler_is_internal_and_the_next_request_is_answered(
    service: DaemonService, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_given: Any, **_more: Any) -> Any:
        raise ZeroDivisionError("a secret prompt")

    service._wait_ready()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Connection(service, ours, None)
        serving = threading.Thread(target=lambda: made.handshake() and made.serve(), daemon=True)
        serving.start()
        reader = FrameReader(theirs, frames.Limits())
        say(theirs, {"id": 1, "cmd": "hello", "body": hello()})
        assert reader.announced().header["ok"] is True
        with monkeypatch.context() as patch:
            if COMMANDS[name].lane is Lane.NOW:
                patch.setattr(service, "answer_now", fail)
            else:
                for one in (name, "prepare"):
                    patch.setattr(service._engine, one, fail, raising=False)
            body, tensors = request(name)
            say(theirs, {"id": 2, "cmd": name, "body": p.plain(body)}, tensors)
            header = reader.announced().header
        assert header["ok"] is False, header
        assert header["error"]["code"] == "internal"
        assert "secret" not in json.dumps(header)
        say(theirs, {"id": 3, "cmd": "ping", "body": {}})
        assert reader.announced().header["ok"] is True
        theirs.close()
        serving.join(10)
        assert not serving.is_alive()
