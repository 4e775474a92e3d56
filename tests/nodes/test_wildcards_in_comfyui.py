"""The wildcard nodes in a real headless ComfyUI: outputs, caching by exactly the files used, errors, routes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.workflows import Prompt, node, succeeds, written

if TYPE_CHECKING:
    from pathlib import Path

    from tests.nodes.processes import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]
LORA = "demo-lora_sd15.safetensors"


@pytest.fixture(scope="module")
def wild(comfy_server: ComfyServer) -> Path:
    folder = comfy_server.base / "models" / "wildcards"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "e2eboats.yaml").write_text("kinds: [skiff, dinghy, brig]\n")
    (folder / "e2esky.txt").write_text("fog\nsun\n")
    (folder / "e2eloras.yaml").write_text(f"anime:\n  - {{value: {LORA}, weight: 2, min: 0.3, max: 0.3}}\n")
    return folder


def probed(prompt: Prompt, source: str, output: int, name: str) -> Prompt:
    return {**prompt, f"p-{name}": node("LunaTestProbe", value=[source, output], name=name)}


def batch(template: str, **more: Any) -> Prompt:
    widgets = {"count": 6, "seed": 3, "unique_only": True, **more}
    prompt = {"batch": node("LunaYAMLWildcardBatch", prompt_template=template, **widgets)}
    return probed(probed(prompt, "batch", 0, "batch-prompt"), "batch", 3, "batch-report")


@pytest.mark.usefixtures("wild")
def test_a_batch_runs_what_stands_behind_it_once_for_each_prompt(comfy_server: ComfyServer) -> None:
    prompt = batch("{e2eboats:kinds} in {e2esky}")
    run = comfy_server.run(prompt)
    succeeds(run)
    texts = run.ui("batch")["text"]
    assert len(set(texts)) == len(texts) == 6
    assert len(run.ui("p-batch-prompt")["probe"]) == 6
    assert written(comfy_server, "batch-prompt") == texts[-1]
    assert written(comfy_server, "batch-report").startswith("6 of 6 prompts, 6 distinct")
    assert comfy_server.run(prompt).cached == set(prompt)
    failed = comfy_server.run(batch("{e2eboats:kinds}"))
    assert "space-exhausted" in failed.error["exception_message"]
    assert failed.error["node_id"] == "batch"


def test_an_edited_file_runs_exactly_the_graphs_again_that_use_it(comfy_server: ComfyServer, wild: Path) -> None:
    sky: Prompt = {"build": node("LunaWildcardBuilder", prompt_template="boat", seed=1, suffix="{e2esky}")}
    both = {**batch("{e2eboats:kinds}", count=2, unique_only=False), **probed(sky, "build", 2, "sky")}
    succeeds(comfy_server.run(both))
    assert comfy_server.run(both).cached == set(both)
    (wild / "e2esky.txt").write_text("hail\n")
    again = comfy_server.run(both)
    assert again.is_success
    assert again.cached == set(both) - {"build", "p-sky"}
    assert written(comfy_server, "sky") == "boat, hail"
    (wild / "e2esky.txt").write_text("fog\nsun\n")


@pytest.mark.usefixtures("wild")
def test_builder_and_randomizer_name_files_that_comfyui_loads(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "random": node(
            "LunaLoRARandomizer", lora_count=1, seed=1, weight_min=0.5, weight_max=1.0, weight_step=0.1,
            yaml_source="e2eloras:anime",
        ),
        "build": node(
            "LunaWildcardBuilder", prompt_template="{e2eboats:kinds}", seed=1, lora_string_input=["random", 0],
            embedding_1="demo-ti_sd15.safetensors", embedding_1_weight=1.2, prefix="photo",
        ),
    }  # fmt: skip
    prompt = probed(probed(prompt, "random", 0, "random-text"), "build", 2, "full")
    succeeds(comfy_server.run(prompt))
    tag = written(comfy_server, "random-text")
    assert tag == "<lora:demo-lora_sd15:0.3>"
    text = written(comfy_server, "full")
    assert text.startswith("photo, (embedding:demo-ti_sd15:1.2), ")
    assert text.endswith(f", {tag}")
    assert comfy_server.run(prompt).cached == set(prompt)


def rejection(server: ComfyServer, prompt: Prompt) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.request("/prompt", {"prompt": prompt})
    with caught.value as error:
        found: dict[str, Any] = json.loads(error.read())
    return found


def test_a_slot_with_a_file_that_is_gone_is_refused_with_near_names(comfy_server: ComfyServer) -> None:
    prompt = probed(
        {"build": node("LunaWildcardBuilder", prompt_template="x", seed=1, lora_1="demo-lora_sd51.safetensors")},
        "build", 0, "never",
    )  # fmt: skip
    text = json.dumps(rejection(comfy_server, prompt))
    assert "lora-missing" in text
    assert "demo-lora_sd15" in text


def test_the_explorer_lists_a_file_and_its_choices_are_all_files(comfy_server: ComfyServer, wild: Path) -> None:
    for kind in ("LunaYAMLWildcardExplorer", "LunaYAMLPathExplorer"):
        prompt = probed({"list": node(kind, yaml_file="e2eboats.yaml")}, "list", 0, "paths")
        succeeds(comfy_server.run(prompt))
        assert "{e2eboats:kinds}  # 3 items, 3 combinations" in written(comfy_server, "paths")
        files = comfy_server.request(f"/object_info/{kind}")[kind]["input"]["required"]["yaml_file"][0]
        assert {"e2eboats.yaml", "e2esky.txt", "characters.yaml"} <= set(files)
    prompt = probed({"list": node("LunaYAMLWildcardExplorer", yaml_file="nobody.yaml")}, "list", 0, "paths")
    assert "file-missing" in comfy_server.run(prompt).error["exception_message"]


# -- routes


def post(server: ComfyServer, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}", body, {"Content-Type": "application/json", **named}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own server on loopback
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


@pytest.mark.usefixtures("wild")
def test_the_preview_is_what_a_queued_prompt_gives(comfy_server: ComfyServer) -> None:
    template = "{e2eboats:kinds} {1-99}"
    body = json.dumps({"parts": {"": template}, "seed": "7", "count": 3}).encode()
    for path in ("/luna/wildcards/preview", "/api/luna/wildcards/preview"):
        status, answer = post(comfy_server, path, body)
        assert status == 200
    prompt = probed({"wild": node("LunaYAMLWildcard", prompt_template=template, seed=7)}, "wild", 0, "previewed")
    succeeds(comfy_server.run(prompt))
    assert answer["samples"][0]["parts"][""] == written(comfy_server, "previewed")


def test_other_pages_and_large_bodies_are_refused(comfy_server: ComfyServer) -> None:
    path = "/luna/wildcards/preview"
    assert post(comfy_server, path, b"{}", Sec_Fetch_Site="cross-site")[0] == 403
    assert post(comfy_server, path, b"{}", Origin="null")[0] == 403
    assert post(comfy_server, path, b"{}", Content_Type="text/plain")[0] == 403
    assert post(comfy_server, path, b" " * (5 * 1024 * 1024))[0] == 413
    assert post(comfy_server, path, b"[]")[0] == 400
    assert post(comfy_server, path, b"{}")[0] == 422
    with pytest.raises(urllib.error.HTTPError) as caught:
        comfy_server.request(path)
    with caught.value as error:
        assert error.code in {404, 405}  # some versions serve static files below any other path
