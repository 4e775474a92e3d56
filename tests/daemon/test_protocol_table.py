"""The table of commands: each row has a handler, a client method and strict bodies that survive the wire."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from typing import Any

import pytest

from luna_daemon import messages
from luna_daemon import protocol as wire
from luna_daemon.client import DaemonClient
from luna_daemon.protocol import COMMANDS, Lane, decode_body, plain
from luna_daemon.protocol_page import BEGIN, END, markdown
from luna_daemon.runtime.engine import Engine
from luna_engine import paths
from luna_engine.errors import DaemonError

NONCE = "ab" * 32
ROWS = wire.TokenRows((77, 77), "ids", "weights", ("v0",), ())
EXPECT = wire.Expect(2**63, 2**63, 5, 2**62, "h")
ITEM = wire.TokenItem({"l": ROWS}, layer={"l": -2}, projected=False, aux={"a": 1})
NOT_METHODS = {"hello", "auth", "open_shm", "open_cuda"}  # the connection says these by itself
REQUESTS: dict[str, Any] = {
    "hello": wire.Hello(NONCE, wire.ClientInfo("c", "1", 5)),
    "auth": wire.Auth("00"),
    "ping": wire.Ping("x"),
    "status": wire.StatusRequest("brief"),
    "metrics": wire.MetricsRequest(),
    "subscribe": wire.Subscribe(("state", "log"), from_seq=7),
    "unsubscribe": wire.Unsubscribe(("log",)),
    "cancel": wire.Cancel(3),
    "drain": wire.Drain(5, reopen=True),
    "shutdown": wire.Shutdown(5, force=True),
    "open_shm": wire.OpenShm(2**20, 2**21, 4096),
    "open_cuda": wire.OpenCuda("confirm", generation=5, canary="00"),
    "list_models": wire.ListModels("vae", loaded=True),
    "describe_model": wire.DescribeModel("sd15"),
    "load_model": wire.LoadModel((wire.Part("l", id="a/b", expect=EXPECT),), "sd15", pin=True),
    "put_model": wire.PutModel("begin", content="abc", nbytes=2**34),
    "free": wire.Free("results", 5),
    "lease": wire.Lease("s", release=True),
    "unload_model": wire.UnloadModel(all=True),
    "encode_tokens": wire.EncodeTokens("sd15", (ITEM,), exact=True),
    "encode_text": wire.EncodeText("sd15", (wire.TextItem({"l": "a", "g": "b"}, layer=-2),)),
    "lora_list": wire.LoraList(),
    "lora_has": wire.LoraHas(("a", "b")),
    "lora_put": wire.LoraPut("h"),
    "lora_drop": wire.LoraDrop(("h",)),
    "lora_validate": wire.LoraValidate("sd15", id="loras/a.safetensors"),
    "generate": wire.Generate(
        "q", (wire.Message("user", (wire.MessagePart("a"), wire.MessagePart(image="b"))),), seed=3
    ),
    "vae_encode": wire.VaeEncode("sd15", wire.Tile(512, 512, 64)),
    "vae_decode": wire.VaeDecode("sd15", None, {"a": 1}),
}


def test_every_command_has_an_example_here() -> None:
    assert REQUESTS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_request_survives_the_wire_as_the_same_class_on_both_sides(name: str) -> None:
    sent = REQUESTS[name]
    row = COMMANDS[name]
    received = decode_body(row.request, json.loads(json.dumps(plain(sent))), strict=True)
    assert type(sent) is row.request
    assert received == sent


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_field_of_a_request_is_refused_with_its_path(name: str) -> None:
    with pytest.raises(DaemonError) as caught:
        decode_body(COMMANDS[name].request, {**plain(REQUESTS[name]), "surprise": 1}, strict=True)
    assert caught.value.code == "request-invalid"
    assert caught.value.details == {"path": "body.surprise"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_a_request_refuses_a_value_of_another_kind(name: str) -> None:
    for field in dataclasses.fields(COMMANDS[name].request):
        with pytest.raises(DaemonError) as caught:
            decode_body(COMMANDS[name].request, {**plain(REQUESTS[name]), field.name: [[None]]}, strict=True)
        assert caught.value.code == "request-invalid", field.name
        assert f"body.{field.name}" in caught.value.message


def test_a_nested_unknown_field_is_named_with_its_whole_path() -> None:
    body = plain(REQUESTS["encode_tokens"])
    body["items"][0]["encoders"]["l"]["rowz"] = 1
    with pytest.raises(DaemonError) as caught:
        decode_body(wire.EncodeTokens, body, strict=True)
    assert caught.value.details == {"path": "body.items[0].encoders.l.rowz"}


def test_a_reply_tolerates_what_a_later_version_adds() -> None:
    pong = plain(wire.Pong(None, "g", "ready", None, None, 5))
    assert decode_body(wire.Pong, {**pong, "new": {"x": 1}}, strict=False).generation == "g"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in NOT_METHODS])
def test_every_command_has_a_client_method(name: str) -> None:
    assert callable(getattr(DaemonClient, name))


@pytest.mark.parametrize(
    "name",
    [row.name for row in COMMANDS.values() if row.lane is not Lane.NOW and row.name not in NOT_METHODS]
    + ["list_models"],
)
def test_the_engine_has_every_model_command_with_the_same_signature(name: str) -> None:
    parameters = list(inspect.signature(getattr(Engine, name)).parameters)
    assert len(parameters) == 4, parameters


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"parts": []}, "body.parts"),
        ({"parts": [{"role": "l"}]}, "body.parts[0].id"),
        ({"parts": [{"role": "l", "id": "a", "content": "b"}]}, "body.parts[0].id"),
        ({"parts": [{"role": "l", "id": "a"}], "precision": "int4"}, "body.precision"),
        ({"parts": [{"role": "l", "id": "a", "expect": {"device": "x"}}]}, "body.parts[0].expect.device"),
    ],
)
def test_load_model_names_the_wrong_field(body: dict[str, Any], path: str) -> None:
    with pytest.raises(DaemonError) as caught:
        decode_body(wire.LoadModel, body, strict=True)
    assert caught.value.details == {"path": path}


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "parts": []}]},
        {"messages": [{"role": "user", "parts": [{}]}]},
        {"messages": [{"role": "user", "parts": [{"text": "a", "image": "b"}]}]},
        {"temperature": -0.1},
        {"temperature": 11.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"max_tokens": 10_000},
        {"stop": [""]},
        {"stop": ["x" * 300]},
    ],
)
def test_generate_refuses_what_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(DaemonError) as caught:
        decode_body(wire.Generate, {**plain(REQUESTS["generate"]), **changes}, strict=True)
    assert caught.value.code == "request-invalid"


@pytest.mark.parametrize(
    "body",
    [
        {"step": "begin"},
        {"step": "begin", "content": "x"},
        {"step": "begin", "content": "x", "nbytes": 0},
        {"step": "chunk", "upload": "u"},
        {"step": "commit"},
        {"step": "commit", "upload": "u", "offset": 1},
        {"step": "eat"},
    ],
)
def test_put_model_asks_for_exactly_what_the_step_needs(body: dict[str, Any]) -> None:
    with pytest.raises(DaemonError) as caught:
        decode_body(wire.PutModel, body, strict=True)
    assert caught.value.code == "request-invalid"


def test_no_more_than_512_rows_go_into_one_request() -> None:
    rows = {"rows": [1] * 300, "ids": "ids"}
    body = {"set": "s", "items": [{"encoders": {"l": rows}}, {"encoders": {"l": rows}}]}
    with pytest.raises(DaemonError) as caught:
        decode_body(wire.EncodeTokens, body, strict=True)
    assert caught.value.details == {"path": "body.items"}


def test_what_was_done_survives_the_wire() -> None:
    did = messages.Did(
        "native",
        "s",
        "host",
        2,
        1,
        cached=True,
        tiled="oom",
        crop=(8, 8),
        downgraded=(messages.Downgrade("a", "b", "c"),),
        loras=(messages.LoraDid("h", "side", 2),),
    )
    assert decode_body(messages.Did, plain(did), strict=False) == did


def test_the_page_is_current() -> None:
    page = (paths.checkout_root() / "docs" / "protocol.md").read_text("utf-8")
    generated = page[page.index(BEGIN) : page.index(END) + len(END)]
    assert generated + "\n" == markdown(), "run: python -m luna_daemon.protocol --markdown"


def test_the_page_s_first_conversation_uses_what_exists() -> None:
    page = (paths.checkout_root() / "docs" / "protocol.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    compile(code, "docs/protocol.md", "exec")
    for line in code.splitlines():
        if line.startswith("from "):
            module, _, names = line.removeprefix("from ").partition(" import ")
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name)
