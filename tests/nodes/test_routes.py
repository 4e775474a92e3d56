"""Luna's routes in ComfyUI's server: who is refused, what is answered, bounded and off the loop."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from comfy_nodes import comfy
from comfy_nodes.routes import answer_to, refusal
from comfy_nodes.wildcard_routes import MOST_SAMPLES, complete, find, preview
from comfy_nodes.wildcards import LunaYAMLWildcard
from luna_engine.errors import LunaError
from tests.nodes.hosts import FolderHost

if TYPE_CHECKING:
    from pathlib import Path

JSON = {"Content-Type": "application/json; charset=utf-8", "Host": "127.0.0.1:8188"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHost:
    (tmp_path / "testboat.yaml").write_text("kinds: [skiff, dinghy, brig]\nlook:\n  small: ['a [kinds]']\n")
    found = FolderHost(tmp_path)
    monkeypatch.setattr(comfy, "current_host", lambda: found)
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8188"},
        {"Origin": "http://127.0.0.1:8188", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_the_servers_own_page_and_programs_may_ask(headers: dict[str, str]) -> None:
    assert refusal({**JSON, **headers}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1"},
    ],
)
def test_other_pages_may_not(headers: dict[str, str]) -> None:
    status, answer = asyncio.run(answer_to({**JSON, **headers}, b"{}", lambda _: {"ran": True}))
    assert status == 403
    assert answer["error"]["code"] == "forbidden"


def test_the_work_runs_beside_the_loop_and_what_goes_wrong_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: dict[str, Any]) -> dict[str, Any]:
        raise LunaError("value-range", "no")

    def breaks(_: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("broken")

    def where(_: dict[str, Any]) -> dict[str, Any]:
        return {"thread": threading.current_thread().name}

    def ask(body: bytes, answer: Any) -> tuple[int, dict[str, Any]]:
        return asyncio.run(answer_to(JSON, body, answer))

    assert ask(b"{}", where)[1]["thread"].startswith("luna-route")
    assert ask(b"{}", fails) == (422, {"error": LunaError("value-range", "no").as_dict()})
    assert [ask(body, where)[0] for body in (b"", b"[]", b"\xff", b"{")] == [400] * 4
    assert ask(b"{}", breaks)[0] == 500
    assert "broken" in caplog.text
    assert "broken" not in json.dumps(ask(b"{}", breaks)[1])


@pytest.mark.usefixtures("host")
def test_a_sample_is_what_the_node_gives_for_its_seed() -> None:
    parts = {"": "${k=!{testboat:kinds}}${k} {1-99}", "negative": "no ${k}"}
    answer = preview({"parts": parts, "seed": str(2**64 - 1), "count": 4})
    assert len(answer["samples"]) == 4
    for sample in answer["samples"]:
        prompt, negative, *_ = LunaYAMLWildcard().expand(
            parts[""], int(sample["seed"]), negative_template=parts["negative"]
        )["result"]
        assert sample["parts"] == {"": prompt, "negative": negative}
    assert answer["samples"][0]["seed"] == str(2**64 - 1)
    assert answer["combinations"] == str(3 * 99)
    assert answer["problems"] == []


@pytest.mark.usefixtures("host")
def test_problems_are_told_and_numbers_are_bounded() -> None:
    answer = preview({"parts": {"": "{nobody_has_this} {"}, "count": 10**9})
    assert len(answer["samples"]) <= MOST_SAMPLES
    assert any("unknown-ref" in line for line in answer["problems"])
    assert any("syntax" in line for line in answer["problems"])


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"parts": ["x"]},
        {"parts": {"": 1}},
        {"parts": {"": "x"}, "seed": "1.5"},
        {"parts": {"": "x"}, "count": True},
    ],
)
@pytest.mark.usefixtures("host")
def test_fields_of_another_kind_are_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(LunaError, match="value-range"):
        preview(payload)


@pytest.mark.usefixtures("host")
def test_completions_and_the_library_to_insert_from() -> None:
    found = complete({"text": "a {testboat:ki", "cursor": 14})["completions"]
    assert found[0]["text"] == "kinds}"
    assert complete({"text": "plain"})["completions"] == []
    answer = find({"words": "TESTBOAT look"})["found"]
    assert {"reference": "{testboat:look.small}", "address": "testboat:look.small", "items": 1} in answer
    assert find({"words": "nobody has this"})["found"] == []


def test_without_a_server_no_route_is_added() -> None:
    comfy.add_routes({"/luna/x": preview})
