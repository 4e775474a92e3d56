"""Every command against a real daemon process: the good case, every listed error, an unknown field."""

from __future__ import annotations

import json
import re
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import frames
from luna_daemon import protocol as p
from luna_daemon.protocol import COMMANDS, Lane, plain
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import WireDaemon

IDS = p.WireTensor("ids", "i32", (3,), memoryview(array("i", [1, 2, 3])).cast("B"))
PIXELS = p.WireTensor("pixels", "f32", (1, 2, 2, 3), memoryview(bytes(48)))
LATENT = p.WireTensor("latent", "f32", (1, 4, 1, 1), memoryview(array("f", [1, 2, 3, 4])).cast("B"))


def tokens(set_id: str, **aux: Any) -> p.EncodeTokens:
    return p.EncodeTokens(set_id, (p.TokenItem({"l": p.TokenRows((3,), "ids")}, aux=aux),))


def said(*texts: str) -> p.Message:
    return p.Message("user", tuple(p.MessagePart(text) for text in texts))


def request(name: str, error: str = "") -> tuple[Any, list[p.WireTensor]]:
    """Return a good request of a command, or one that makes the small engine answer with an error."""
    told = f"error:{error}" if error else "set"
    return {
        "describe_model": (p.DescribeModel(told), []),
        "load_model": (p.LoadModel((p.Part("l", id=told),)), []),
        "put_model": (p.PutModel("begin", content=told, nbytes=5), []),
        "free": (p.Free(), []),
        "lease": (p.Lease("set", release=True), []),
        "unload_model": (p.UnloadModel(told), []),
        "encode_tokens": (tokens(told), [IDS]),
        "encode_text": (p.EncodeText(told, (p.TextItem("a cat"),)), []),
        "lora_list": (p.LoraList(), []),
        "lora_has": (p.LoraHas(("h1",)), []),
        "lora_put": (p.LoraPut(told), [p.WireTensor.of_bytes("blob", b"12345")]),
        "lora_drop": (p.LoraDrop(("h1",)), []),
        "lora_validate": (p.LoraValidate(told, "h1"), []),
        "vae_encode": (p.VaeEncode(told), [PIXELS]),
        "generate": (p.Generate(told, (said("hello"),)), []),
        "vae_decode": (p.VaeDecode(told), [LATENT]),
        "ping": (p.Ping("n"), []),
        "status": (p.StatusRequest(), []),
        "metrics": (p.MetricsRequest(), []),
        "subscribe": (p.Subscribe(("state",)), []),
        "unsubscribe": (p.Unsubscribe(), []),
        "drain": (p.Drain(), []),
        "cancel": (p.Cancel(77), []),
        "shutdown": (p.Shutdown(), []),
        "open_shm": (p.OpenShm(), []),
        "open_cuda": (p.OpenCuda(), []),
        "list_models": (p.ListModels(), []),
    }[name]


OF_THE_CONNECTION = frozenset({"open_cuda"})  # no engine answers it; its errors are in the tests of arenas
MODEL_COMMANDS = [
    row.name for row in COMMANDS.values() if row.lane is not Lane.NOW and row.name not in OF_THE_CONNECTION
]
# Codes that the engine decides on; the others have tests of their own below, with their real causes.
BY_THE_SERVER = frozenset(
    [
        "request-invalid",
        "tensor-invalid",
        "internal",
        "daemon-busy",
        "daemon-draining",
        "daemon-timeout",
        "cancelled",
        "daemon-loading",
        "device-lost",
        "service-not-here",
    ]
)
ENGINE_ERRORS = [(name, code) for name in MODEL_COMMANDS for code in sorted(COMMANDS[name].all_errors - BY_THE_SERVER)]


def test_ping_brings_its_nonce_back(wire: WireDaemon) -> None:
    pong = wire.client().ping("hello")
    assert (pong.nonce, pong.state, pong.generation) == ("hello", "ready", wire.identity.generation)


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_status_says_what_the_daemon_is_and_does(wire: WireDaemon, transport: str) -> None:
    client = wire.client(transport=transport, name="me")
    client.load_model([wire_part("one")])
    status = client.status()
    assert (status.name, status.service_type, status.state, status.pid) == ("wire", "full", "ready", wire.process.pid)
    assert [(row.set, row.parts[0].bytes) for row in status.sets] == [("one", 10)]
    assert status.rss_bytes is not None
    assert status.rss_bytes > 10_000_000
    assert status.peak_rss_bytes is not None
    assert "me" in {row.name for row in status.clients}
    assert status.device.total_bytes is None  # absent is null, never 0
    assert f"127.0.0.1:{wire.port}" in status.addresses
    brief = client.status("brief")
    assert (brief.sets, brief.clients) == ((), ())


def wire_part(name: str) -> p.Part:
    return p.Part("l", id=name)


def test_list_models_may_be_larger_than_a_header(wire: WireDaemon) -> None:
    listed = wire.client().list_models()
    assert len(listed.files) == 2000
    assert wire.client().list_models(loaded=True).files == ()


def test_describe_model_gives_facts_and_names(wire: WireDaemon) -> None:
    client = wire.client()
    client.load_model([wire_part("set")])
    description, names = client.describe_model("set")
    assert description.facts.encoders["l"].width == 768
    assert names == {"a.weight": {"shape": [2], "dtype": "f32"}}


def test_load_model_answers_with_set_facts_and_what_was_done(wire: WireDaemon) -> None:
    loaded = wire.client().load_model([wire_part("two")])
    assert (loaded.set, loaded.bytes, loaded.facts.family) == ("two", 10, "sd15")
    assert loaded.did is not None
    assert loaded.did.transport == {"in": "inline", "out": "inline"}


def test_load_model_that_does_not_wait_is_told_to_ask_again(wire: WireDaemon) -> None:
    client = wire.client()
    with pytest.raises(DaemonError) as caught:
        client.load_model([wire_part("slow:0.4")], wait=False)
    assert caught.value.code == "daemon-loading"
    assert caught.value.retry_after_ms
    deadline = time.monotonic() + 5
    while "slow:0.4" not in {row.id for row in client.list_models(loaded=True).sets}:
        assert time.monotonic() < deadline
    assert client.load_model([wire_part("two")], wait=False).set == "two"


def test_put_model_sends_a_model_in_chunks(wire: WireDaemon) -> None:
    data = memoryview(bytes(range(1, 251)) * 10)
    assert wire.client().upload_model("abc", data) == "content:done"


def test_a_damaged_upload_is_refused_and_given_up(wire: WireDaemon) -> None:
    with pytest.raises(DaemonError) as caught:
        wire.client().upload_model("abc", memoryview(bytes(2500)))
    assert caught.value.code == "file-damaged"


def test_unload_model_frees(wire: WireDaemon) -> None:
    client = wire.client()
    client.load_model([wire_part("x")])
    assert client.unload_model(all=True).freed_bytes >= 10
    assert client.list_models(loaded=True).sets == ()
    with pytest.raises(DaemonError) as caught:
        client.unload_model("error:model-in-use")
    assert caught.value.code == "model-in-use"


def test_a_load_tells_how_far_it_is_if_asked_to(wire: WireDaemon) -> None:
    client, told = wire.client(), []
    client.load_model([wire_part("steps:4")], on_progress=lambda *facts: told.append(facts))
    assert told[0] == (1, 4, "bytes")
    assert told[-1] == (4, 4, "bytes")
    connection, reader = wire.greeted()
    with connection:
        body = plain(p.LoadModel((wire_part("steps:3"),)))
        send(connection, {"id": 2, "cmd": "load_model", "body": body, "progress": True})
        first, last, reply = (read(reader) for _ in range(3))
        assert [first["part"], last["part"]] == [0, 1]
        assert (last["body"], reply["ok"]) == ({"done": 3, "total": 3, "unit": "bytes"}, True)
        send(connection, {"id": 3, "cmd": "load_model", "body": body})
        assert read(reader)["ok"] is True  # nobody asked, nothing is told


def test_free_says_what_it_gave_back_and_what_left_the_device(wire: WireDaemon) -> None:
    client = wire.client()
    client.load_model([wire_part("disk:a")])
    freed = client.free("idle_models", 7)
    assert (freed.freed_bytes, freed.moved) == ({"idle_models": 7}, ("disk:a",))
    with pytest.raises(DaemonError) as caught:
        client.free("everything")
    assert caught.value.code == "request-invalid"


def test_a_request_for_a_set_on_disk_waits_while_it_is_read_and_others_go_on(wire: WireDaemon) -> None:
    client = wire.client()
    for name in ("disk:b", "disk:error:file-damaged"):
        client.load_model([wire_part(name)])
    client.free("idle_models")
    reply = client.call("encode_tokens", tokens("disk:b"), [IDS])
    assert reply.did.set == "disk:b"
    assert reply.timing.load > 0
    with pytest.raises(DaemonError) as caught:
        client.call("encode_tokens", tokens("disk:error:file-damaged"), [IDS])
    assert caught.value.code == "file-damaged"
    assert wait_for_none_in_flight(client)


def test_a_load_does_not_delay_an_encode(wire: WireDaemon) -> None:
    client, other = wire.client(), wire.client(name="loader")
    worker = threading.Thread(target=lambda: other.load_model([wire_part("slow:0.5")]))
    worker.start()
    deadline = time.monotonic() + 5
    while client.status().queue["load"].running == 0:
        assert time.monotonic() < deadline
    client.call("encode_tokens", tokens("s"), [IDS])
    assert worker.is_alive()
    worker.join()


def test_who_loaded_a_set_holds_it_until_it_gives_it_back_or_goes(wire: WireDaemon) -> None:
    first, second = wire.client(), wire.client(name="second")
    first.load_model([wire_part("held")])
    assert second.lease("held").leases == 2
    assert second.lease("held").leases == 2
    assert second.lease("held", release=True).leases == 1
    with pytest.raises(DaemonError) as caught:
        second.lease("nowhere")
    assert caught.value.code == "model-missing"
    first.close()
    assert second.lease("held", release=True).leases == 1  # for a minute: it may be on its way back
    second.load_model([wire_part("held")])
    second.unload_model("held")
    assert second.lease("held", release=True).leases == 1


def test_encode_tokens_carries_tensors_both_ways(wire: WireDaemon) -> None:
    body, tensors = wire.client().encode_tokens(set="s", items=tokens("s").items, tensors=[IDS])
    assert list(memoryview(tensors[body.items[0].cond].data).cast("f")) == [1.0, 2.0, 3.0]
    assert body.did is not None
    assert (body.did.rows, body.did.set) == (1, "s")


def test_encode_tokens_refuses_ids_out_of_the_vocabulary(wire: WireDaemon) -> None:
    bad = p.WireTensor("ids", "i32", (1,), memoryview(array("i", [99_999])).cast("B"))
    items = (wire_items(1),)
    with pytest.raises(DaemonError) as caught:
        wire.client().encode_tokens(set="s", items=items, tensors=[bad])
    assert caught.value.code == "token-invalid"


def wire_items(length: int) -> p.TokenItem:
    return p.TokenItem({"l": p.TokenRows((length,), "ids")})


def test_encode_text_counts_tokens(wire: WireDaemon) -> None:
    body, tensors = wire.client().encode_text(set="s", items=(text_item("four"),))
    assert body.items[0].tokens == {"l": 4}
    assert body.items[0].cond in tensors


def text_item(text: str) -> p.TextItem:
    return p.TextItem(text)


def test_the_lora_commands_answer_with_their_bodies(wire: WireDaemon) -> None:
    client = wire.client()
    assert len(client.lora_list().entries) == 500  # may outgrow a header
    assert client.lora_has(["h1", "x"]) == p.LoraFound(("h1",), ("x",))
    stored = client.lora_put(b"12345", hash="h9")
    assert (stored.entry.hash, stored.entry.bytes, stored.sets["s"].matched) == ("h9", 5, 1)
    assert client.lora_put(id="loras/a.safetensors").entry.source == "loras/a.safetensors"
    assert client.lora_drop(["h1"]) == p.LoraDropped(10, ("h1",))
    report = client.lora_validate("s", hash="h1")
    assert (report.form, report.ranks, report.problems) == ("mixed", (4, 16), ("one is not there",))


def test_a_lora_that_no_message_can_carry_is_refused_before_it_is_sent(
    wire: WireDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = wire.client()
    monkeypatch.setitem(client.welcome.limits, "payload_in_bytes", 4)
    with pytest.raises(DaemonError) as caught:
        client.lora_put(b"12345", hash="h9")
    assert caught.value.code == "lora-too-large"


def test_vae_encode_and_decode(wire: WireDaemon) -> None:
    _, latent = wire.client().vae_encode(set="s", pixels=PIXELS)
    assert memoryview(latent.data).cast("f")[0] == 48.0
    _, image = wire.client().vae_decode(set="s", latent=LATENT)
    assert bytes(image.data) == bytes(LATENT.data)


def test_generate_gives_the_text_whole_and_piece_by_piece(wire: WireDaemon) -> None:
    client = wire.client()
    picture = p.WireTensor("cat", "f32", (2, 2, 3), memoryview(bytes(48)))
    message = p.Message("user", (p.MessagePart("look at"), p.MessagePart(image="cat")))
    whole = client.generate(p.Generate("s", (message,)), [picture])
    assert (whole.text, whole.finish, whole.tokens_out) == ("look at<48>", "stop", 2)
    assert whole.did is not None
    pieces: list[str] = []
    streamed = client.generate(p.Generate("s", (said("one two three"),)), on_text=pieces.append)
    assert pieces == ["one", " two", " three"]
    assert streamed.text == "one two three"


def test_pieces_reach_their_own_request_while_others_wait_on_the_same_connection(wire: WireDaemon) -> None:
    client = wire.client()
    texts: dict[int, list[str]] = {index: [] for index in range(3)}

    def work(index: int) -> None:
        words = " ".join([str(index)] * 20)
        client.generate(p.Generate("slow", (said(words),)), on_text=texts[index].append)

    threads = [threading.Thread(target=work, args=(index,)) for index in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {index: "".join(pieces).split() for index, pieces in texts.items()} == {n: [str(n)] * 20 for n in texts}


def test_what_the_receiver_of_text_raises_stops_the_answer(wire: WireDaemon) -> None:
    class EnoughError(Exception):
        pass

    def enough(_text: str) -> None:
        raise EnoughError

    client = wire.client()
    with pytest.raises(EnoughError):
        client.generate(p.Generate("slow", (said("word " * 1000),), max_tokens=1000), on_text=enough)
    deadline = time.monotonic() + 5
    while client.status().queue["device"].running:
        assert time.monotonic() < deadline, "the answer still grows"


def test_a_cancelled_answer_keeps_what_it_has(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    with connection:
        body = plain(p.Generate("slow", (said("word " * 1000),), max_tokens=1000, stream=True))
        send(connection, {"id": 2, "cmd": "generate", "body": body})
        first = read(reader)
        assert (first["id"], first["part"], first["body"]) == (2, 0, {"text": "word"})
        send(connection, {"id": 3, "cmd": "cancel", "body": {"request": 2}})
        while (announced := reader.announced()).header.get("id") != 2 or "ok" not in announced.header:
            reader.skip(announced.payload_bytes)
        raw = bytearray(announced.payload_bytes)
        reader.payload(memoryview(raw))
        reply = json.loads(raw)
        assert reply["finish"] == "cancelled"
        assert reply["text"].startswith("word")


@pytest.mark.parametrize(("name", "code"), ENGINE_ERRORS)
def test_every_listed_error_of_the_engine_arrives_typed(wire: WireDaemon, name: str, code: str) -> None:
    body, tensors = request(name, code)
    with pytest.raises(DaemonError) as caught:
        wire.client().call(name, body, tensors)
    assert caught.value.code == code


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in {"hello", "auth"}])
def test_an_unknown_field_is_refused_and_the_connection_stays(wire: WireDaemon, name: str) -> None:
    connection, reader = wire.greeted()
    with connection:
        body, tensors = request(name)
        send(connection, {"id": 5, "cmd": name, "body": {**plain(body), "surprise": 1}}, tensors)
        header = reader.announced().header
        assert (header["id"], header["ok"], header["error"]["code"]) == (5, False, "request-invalid")
        assert "surprise" in header["error"]["message"]
        send(connection, {"id": 6, "cmd": "ping", "body": {}})
        assert reader.announced().header["ok"] is True


def read(reader: Any) -> dict[str, Any]:
    announced = reader.announced()
    reader.skip(announced.payload_bytes)
    return announced.header


def wait_for_none_in_flight(client: Any) -> bool:
    deadline = time.monotonic() + 5
    while any(one.in_flight for one in client.status().clients):
        assert time.monotonic() < deadline
    return True


def send(connection: Any, header: dict[str, Any], tensors: Any = ()) -> None:
    for buffer in frames.encode_frame(header, tensors):
        connection.sendall(buffer)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"id": 2, "cmd": "dance", "body": {}}, "command-unknown"),
        ({"id": 2, "cmd": "hello", "body": {}}, "command-unknown"),
        ({"id": 2, "cmd": None, "body": {}}, "command-unknown"),
        ({"id": 2, "cmd": "encode_text", "body": []}, "request-invalid"),
        ({"id": 2, "cmd": "ping", "body": {}, "extra": 1}, "request-invalid"),
        ({"id": 2, "cmd": "ping", "body": {}, "deadline_ms": 0}, "request-invalid"),
        ({"id": 2, "cmd": "ping", "body": {}, "deadline_ms": "soon"}, "request-invalid"),
        ({"id": 2, "cmd": "ping", "body": {}, "priority": "mine"}, "request-invalid"),
        ({"id": 2, "cmd": "ping", "body": {}, "trace": 7}, "request-invalid"),
        ({"id": 2, "cmd": "ping", "body": {}, "progress": "yes"}, "request-invalid"),
    ],
)
def test_a_bad_header_gives_a_typed_error(wire: WireDaemon, header: dict[str, Any], code: str) -> None:
    connection, reader = wire.greeted()
    with connection:
        send(connection, header)
        assert reader.announced().header["error"]["code"] == code


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("encode_tokens", []),
        ("encode_tokens", [IDS, LATENT]),
        ("vae_decode", []),
        ("vae_decode", [PIXELS]),
        ("vae_decode", [p.WireTensor("latent", "i32", (1, 4, 1, 1), memoryview(bytes(16)))]),
        ("vae_encode", [p.WireTensor("pixels", "f32", (2, 2), memoryview(bytes(16)))]),
        ("encode_text", [IDS]),
        ("ping", [IDS]),
    ],
)
def test_missing_surplus_and_wrong_tensors_are_named(wire: WireDaemon, name: str, tensors: list[Any]) -> None:
    body, _ = request(name)
    with pytest.raises(DaemonError) as caught:
        wire.client().call(name, body, tensors)
    assert caught.value.code == "tensor-invalid"
    assert wire.client().ping()


def test_a_bug_in_a_handler_is_internal_and_tells_no_secrets(wire: WireDaemon) -> None:
    with pytest.raises(DaemonError) as caught:
        wire.client().call("encode_tokens", tokens("bug"), [IDS])
    assert caught.value.code == "internal"
    assert caught.value.details is not None
    assert "secret" not in caught.value.message
    log = (wire.home / "state" / "logs" / "wire" / "current.log").read_text("utf-8")
    assert caught.value.details["trace"] in log
    assert "ZeroDivisionError" in log


def wire_tensor(value: int) -> p.WireTensor:
    return p.WireTensor("ids", "i32", (1,), memoryview(array("i", [value])).cast("B"))


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("vae", "encode_tokens"),
        ("vae", "encode_text"),
        ("vae", "generate"),
        ("clip", "vae_encode"),
        ("clip", "vae_decode"),
    ],
)
def test_a_service_sends_what_it_does_not_do_to_the_other_port(
    start_daemon: Callable[..., WireDaemon], service: str, name: str
) -> None:
    daemon = start_daemon("--service-type", service)
    body, tensors = request(name)
    with pytest.raises(DaemonError) as caught:
        daemon.client().call(name, body, tensors)
    assert caught.value.code == "service-not-here"
    assert ("19283" if service == "vae" else "19284") in str(caught.value.hint)


def test_a_lost_device_is_told_to_all_and_ends_the_process_with_75(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    connection, reader = daemon.greeted()
    with connection:
        send(connection, {"id": 2, "cmd": "encode_tokens", "body": plain(tokens("sleep:0.3"))}, [IDS])
        send(connection, {"id": 3, "cmd": "encode_tokens", "body": plain(tokens("error:device-lost"))}, [IDS])
        send(connection, {"id": 4, "cmd": "encode_tokens", "body": plain(tokens("s"))}, [IDS])
        replies = {row["id"]: row for row in (read(reader) for _ in range(3))}
        assert replies[2]["ok"] is True
        assert replies[3]["error"]["code"] == replies[4]["error"]["code"] == "device-lost"
    assert daemon.wait_exit() == 75


def test_each_request_is_one_log_line_with_its_trace_and_without_its_text(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    with connection:
        body = plain(p.EncodeText("error:tokenizer-missing", (p.TextItem("a private prompt"),)))
        send(connection, {"id": 2, "cmd": "encode_text", "body": body, "trace": "00-abcdef-01"})
        assert read(reader)["ok"] is False
    deadline = time.monotonic() + 5
    log = wire.home / "state" / "logs" / "wire" / "current.log"
    while not (lines := [line for line in log.read_text("utf-8").splitlines() if "00-abcdef-01" in line]):
        assert time.monotonic() < deadline
    (record,) = [json.loads(line) for line in lines]
    assert (record["level"], record["code"]) == ("warning", "tokenizer-missing")
    assert re.fullmatch(r"encode_text [\d.]+ ms for raw, tokenizer-missing", record["message"])
    assert "private" not in log.read_text("utf-8")
