"""LunaPromptCraft over real files, and in a real ComfyUI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from comfy_nodes import comfy
from comfy_nodes.promptcraft import BASE_MODELS, LunaPromptCraft
from luna_engine.errors import InputFileError, LunaError, WildcardError
from luna_engine.wildcards import RuleOptions, WildcardLibrary
from luna_engine.wildcards.rules.links import family_of
from tests.nodes.hosts import FolderHost
from tests.nodes.processes import REPO

if TYPE_CHECKING:
    from pathlib import Path

    from tests.nodes.processes import ComfyServer

FILES = {
    "testplace.yaml": "beach: [{value: a beach, tags: [sea]}]\nslope: [{value: a slope, tags: [winter]}]\n",
    "testwear.txt": "a parka\nswimwear\na coat\n",
    "constraints_t.yaml": (
        "testplace:beach: {testwear: {compatible: [swimwear], incompatible: [parka]}}\n"
        "testwear: {context_preferences: [{when: [winter], require: [parka, coat]}]}\n"
    ),
    "modifiers_t.yaml": "testplace:beach: {testwear: {modifiers: [wet]}}\n",
    "expanders_t.yaml": "testplace:beach: {more: {values: [sea haze]}}\n",
    "lora_t.yaml": (
        "testplace:beach:\n"
        "  loras: [{name: coast, model_weight: 0.8, clip_weight: 0.6, trigger: surf}, {name: gone, priority: -1}]\n"
        "  embeddings: [{name: drought, polarity: negative}]\n"
    ),
}
TEMPLATE = "{testwear} at {testplace}"
NAMES = ("prompt", "seed", "lora_stack", "trigger_words", "debug", "negative", "choices")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHost:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    found = FolderHost(tmp_path)
    found.models["loras"] = ("sub/coast.safetensors", "other.safetensors")
    monkeypatch.setattr(comfy, "current_host", lambda: found)
    return found


def craft(template: str = TEMPLATE, seed: int = 1, **more: Any) -> dict[str, Any]:
    answer = LunaPromptCraft().craft(template, seed, **more)
    return {**dict(zip(NAMES, answer["result"], strict=True)), "ui": answer["ui"]["text"]}


def test_what_is_drawn_together_fits_and_brings_its_links(host: FolderHost) -> None:
    made = craft("{testwear} at {testplace:beach}")
    assert made["prompt"] == "swimwear, wet at a beach, sea haze, surf"
    assert made["seed"] == 1
    assert made["lora_stack"] == [("sub/coast.safetensors", 0.8, 0.6)]
    assert made["trigger_words"] == "surf"
    assert made["negative"] == "embedding:drought"
    assert made["ui"] == [made["prompt"], made["negative"]]
    assert [entry["text"] for entry in json.loads(made["choices"]) if entry["kind"] == "item"] == [
        "swimwear",
        "a beach",
    ]
    assert any("lora-missing: there is no lora 'gone'; it was left out" in notice for notice in host.notices)


@pytest.mark.usefixtures("host")
def test_each_switch_leaves_its_rules_out() -> None:
    template = "{testwear:a parka} at {testplace:beach}"
    off = {"enable_modifiers": False, "enable_expanders": False, "enable_lora_links": False}
    assert craft(template, **off)["prompt"] == "a parka at a beach"
    assert craft(template, **{**off, "enable_modifiers": True})["prompt"] == "a parka, wet at a beach"
    assert craft(template, **{**off, "enable_expanders": True})["prompt"] == "a parka at a beach, sea haze"
    linked = craft(template, **{**off, "enable_lora_links": True}, add_trigger_words=False)
    assert (linked["prompt"], linked["trigger_words"]) == ("a parka at a beach", "surf")
    assert craft(template, **off)["lora_stack"] == []
    assert craft(template, max_loras=0)["lora_stack"] == []
    free = {
        craft("{testwear} at {testplace:beach}", seed, enable_constraints=False, **off)["prompt"] for seed in range(30)
    }
    assert "a parka at a beach" in free


def test_a_relaxed_rule_is_in_debug_and_a_notice(host: FolderHost) -> None:
    debug = json.loads(craft("{testwear:a parka} at {testplace:beach}")["debug"])
    assert [(found["file"], found["line"]) for found in debug["relaxed"]] == [("constraints_t.yaml", 1)] * 2
    assert any("rule-relaxed" in notice and "incompatible parka" in notice for notice in host.notices)
    assert {entry["file"] for entry in debug["rules"]} >= {"modifiers_t.yaml", "expanders_t.yaml", "lora_t.yaml"}
    assert {entry["for"] for entry in debug["rules"]} == {"a parka", "a beach"}


@pytest.mark.usefixtures("host")
def test_equal_seeds_give_equal_json() -> None:
    assert craft(seed=2**64 - 1) == craft(seed=2**64 - 1)
    shuffled = craft("at {testplace}: {testwear}", enable_expanders=False, enable_lora_links=False)["prompt"]
    straight = craft(enable_expanders=False, enable_lora_links=False)["prompt"]
    wear, _, place = straight.partition(" at ")
    assert shuffled == f"at {place}: {wear}"


def test_the_text_is_that_of_the_engine(host: FolderHost) -> None:
    library = WildcardLibrary.load(host.folder)
    for seed in range(5):
        assert craft(seed=seed)["prompt"] == library.expand(TEMPLATE, seed, rules=RuleOptions()).text


@pytest.mark.usefixtures("host")
def test_errors_have_their_codes() -> None:
    with pytest.raises(WildcardError, match="wildcard-syntax"):
        craft("{testwear")
    with pytest.raises(WildcardError, match="wildcard-unresolved"):
        craft("{nowhere}", missing="error")
    with pytest.raises(LunaError, match=r"lora-missing.*gone.*lora_t\.yaml:2"):
        craft("{testplace:beach}", missing="error")
    with pytest.raises(InputFileError, match="file-missing"):
        craft(wildcards_path="no such folder")


def test_a_given_folder_replaces_the_usual_ones(host: FolderHost, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "testwear.txt").write_text("rags\n")
    assert craft("{testwear}", wildcards_path=str(other))["prompt"] == "rags"
    assert host.notices == []


def test_a_network_host_reads_only_its_own_folders(host: FolderHost, tmp_path: Path) -> None:
    host.roots = (tmp_path / "elsewhere",)
    with pytest.raises(InputFileError, match="path-outside"):
        craft(wildcards_path=str(tmp_path))


def test_a_rule_file_changes_the_fingerprint(host: FolderHost) -> None:
    def fingerprint(template: str | None = "{testwear}") -> str:
        return LunaPromptCraft.IS_CHANGED(template=template, wildcards_path="")

    before, linked = fingerprint(), fingerprint(None)
    assert (fingerprint(), fingerprint(None)) == (before, linked)
    (host.folder / "lora_t.yaml").write_text("testwear: {loras: [{name: coast}]}\n")
    after = fingerprint()
    assert after != before
    assert fingerprint(None) != linked
    host.models["loras"] = ()
    assert fingerprint() != after


def test_every_base_model_is_a_family_of_the_rules() -> None:
    assert {family_of(name) for name in BASE_MODELS} == {"any", "sd15", "sdxl", "sd3", "flux", "zimage"}


@pytest.mark.comfyui
@pytest.mark.timeout(900)
class TestInComfyUI:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, content in FILES.items():
            (tmp_path / name).write_text(content.replace("name: coast", "name: demo-lora_sd15"))
        return tmp_path

    def prompt(self, folder: Path, name: str, template: str = "{testwear} at {testplace:beach}") -> dict[str, Any]:
        outputs = ((0, "text"), (2, "stack"), (4, "debug"), (5, "negative"))
        return {
            "craft": {
                "class_type": "LunaPromptCraft",
                "inputs": {"template": template, "seed": 3, "wildcards_path": str(folder)},
            },
            **{
                what: {"class_type": "LunaTestProbe", "inputs": {"value": ["craft", at], "name": f"{name}-{what}"}}
                for at, what in outputs
            },
        }

    def test_it_runs_is_cached_and_runs_again_when_a_rule_changes(
        self, comfy_server: ComfyServer, folder: Path
    ) -> None:
        def written(what: str) -> Any:
            return json.loads(comfy_server.output(f"craft-{what}.json").read_text())

        prompt = self.prompt(folder, "craft")
        assert comfy_server.run(prompt).is_success
        assert written("text") == "swimwear, wet at a beach, sea haze, surf"
        assert written("stack") == [["demo-lora_sd15.safetensors", 0.8, 0.6]]
        assert written("negative") == "embedding:drought"
        assert json.loads(written("debug"))["seed"] == 3
        assert comfy_server.run(prompt).cached == set(prompt)
        (folder / "modifiers_t.yaml").write_text("testplace:beach: {testwear: {modifiers: [soaked]}}\n")
        assert comfy_server.run(prompt).is_success
        assert written("text") == "swimwear, soaked at a beach, sea haze, surf"

    def test_the_example_workflow_draws_from_the_bundled_library(self, comfy_server: ComfyServer) -> None:
        example = json.loads((REPO / "example_workflows" / "luna_promptcraft.json").read_text())
        node = next(node for node in example["nodes"] if node["type"] == "LunaPromptCraft")
        declared = LunaPromptCraft.INPUT_TYPES()
        names = [*declared["required"], *declared["optional"]]
        values = [value for at, value in enumerate(node["widgets_values"]) if at != 2]  # the seed's own control
        inputs = dict(zip(names, values, strict=True))
        run = comfy_server.run(
            {
                "craft": {"class_type": "LunaPromptCraft", "inputs": inputs},
                "text": {"class_type": "LunaTestProbe", "inputs": {"value": ["craft", 0], "name": "craft-example"}},
                "debug": {"class_type": "LunaTestProbe", "inputs": {"value": ["craft", 4], "name": "craft-why"}},
            }
        )
        assert run.is_success
        text = json.loads(comfy_server.output("craft-example.json").read_text())
        assert len(text.splitlines()) == 2
        assert "{" not in text
        assert json.loads(json.loads(comfy_server.output("craft-why.json").read_text()))["problems"] == []

    def test_an_error_stops_at_the_node_with_its_code(self, comfy_server: ComfyServer, folder: Path) -> None:
        run = comfy_server.run(self.prompt(folder, "broken", "{testwear"))
        assert run.error["node_id"] == "craft"
        assert "wildcard-syntax" in run.error["exception_message"]
