"""Builder, LoRA Randomizer and Explorer over real wildcard files, with a stand-in for ComfyUI's folder lists."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_nodes import comfy
from comfy_nodes.lora_randomizer import LunaLoRARandomizer
from comfy_nodes.wildcard_builder import LunaWildcardBuilder
from comfy_nodes.wildcard_explorer import LunaYAMLPathExplorer, LunaYAMLWildcardExplorer
from luna_engine.errors import InputFileError, LunaError, WildcardError
from luna_engine.wildcards import WildcardLibrary
from tests.nodes.hosts import FolderHost

if TYPE_CHECKING:
    from collections.abc import Iterator

LORAS = ("style/ink.safetensors", "style/wash.safetensors", "char/elara.safetensors", "old/ink.pt")
LISTS = """\
styles:
  - {value: style/ink.safetensors, weight: 3, min: 0.6, max: 0.9}
  - style/wash
  - <lora:elara:0.25>
gone: [style/wash, nobody-has-this]
templates:
  one: ["[styles] x"]
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderHost]:
    folder = tmp_path_factory.mktemp("wild")
    (folder / "testloras.yaml").write_text(LISTS)
    (folder / "sub").mkdir()
    (folder / "sub" / "testsea.txt").write_text("calm\nrough\n")
    found = FolderHost(folder)
    found.models = {"loras": LORAS, "embeddings": ("sub/deep.safetensors", "plain.pt")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy, "current_host", lambda: found)
        yield found


@pytest.fixture(autouse=True)
def no_notices(host: FolderHost) -> None:
    host.notices.clear()


# -- Builder


def build(template: str = "boat", seed: int = 1, **more: Any) -> tuple[str, str, str, list[Any], str]:
    result: tuple[str, str, str, list[Any], str] = LunaWildcardBuilder().build(template, seed, **more)["result"]
    return result


def test_the_parts_are_joined_in_order_and_empty_ones_leave_no_comma() -> None:
    prompt, loras, full, stack, report = build(
        "${sky=!{testsea}}a ${sky} boat",
        prefix="photo",
        suffix="${sky}, 35mm",
        lora_string_input=" <lora:elara:0.5:0.25> ",
        lora_2="style/wash.safetensors",
        lora_2_weight=0.8,
        lora_3="style/ink.safetensors",
        lora_3_weight=0,
        embedding_1="sub/deep.safetensors",
        embedding_2="plain.pt",
        embedding_2_weight=1.2,
    )
    assert prompt in {"a calm boat", "a rough boat"}
    assert loras == "<lora:elara:0.5:0.25> <lora:style/wash:0.8>"
    sky = prompt.split()[1]
    assert full == f"photo, embedding:sub/deep, (embedding:plain:1.2), {prompt}, {loras}, {sky}, 35mm"
    assert stack == [("char/elara.safetensors", 0.5, 0.25), ("style/wash.safetensors", 0.8, 0.8)]
    assert "2 LoRAs, 2 embeddings" in report
    assert build("boat")[:3] == ("boat", "", "boat")


def test_the_prompt_is_that_of_the_engine(host: FolderHost) -> None:
    library = WildcardLibrary.load([host.folder])
    assert build("{testloras:styles} {1-99}", 7)[0] == library.expand("{testloras:styles} {1-99}", 7).text


def test_a_file_named_twice_is_in_the_stack_once_with_a_note() -> None:
    *_, stack, report = build(lora_string_input="<lora:elara:0.1>", lora_1="char/elara.safetensors", lora_1_weight=0.9)
    assert stack == [("char/elara.safetensors", 0.9, 0.9)]
    assert "note: char/elara.safetensors is named twice" in report


def test_what_is_not_there_is_an_error_with_near_names() -> None:
    with pytest.raises(InputFileError, match=r"lora-missing.*char/elara"):
        build(lora_string_input="<lora:elra>")
    with pytest.raises(LunaError, match="lora-tag"):
        build(lora_string_input="<lora:elara:high>")
    assert LunaWildcardBuilder.VALIDATE_INPUTS(lora_1="elara", embedding_1="none") is True
    assert "lora_2: lora-missing" in str(LunaWildcardBuilder.VALIDATE_INPUTS(lora_2="nobody"))
    assert "embedding_3: embedding-missing" in str(LunaWildcardBuilder.VALIDATE_INPUTS(embedding_3="nobody"))
    assert "name-ambiguous" in str(LunaWildcardBuilder.VALIDATE_INPUTS(lora_1="ink"))


def test_prefix_and_suffix_count_for_the_fingerprint(host: FolderHost) -> None:
    sea = host.folder / "sub" / "testsea.txt"
    before = LunaWildcardBuilder.IS_CHANGED(prompt_template="boat", prefix="x", suffix="{testsea}")
    alone = LunaWildcardBuilder.IS_CHANGED(prompt_template="boat", prefix="x", suffix="")
    sea.write_text("calm\nrough\nflat\n")
    assert LunaWildcardBuilder.IS_CHANGED(prompt_template="boat", prefix="x", suffix="{testsea}") != before
    assert LunaWildcardBuilder.IS_CHANGED(prompt_template="boat", prefix="x", suffix="") == alone
    sea.write_text("calm\nrough\n")


# -- LoRA Randomizer


def draw(count: int = 2, seed: int = 1, **more: Any) -> tuple[str, list[tuple[str, float, float]]]:
    widgets = {"weight_min": 0.5, "weight_max": 1.0, "weight_step": 0.1, **more}
    result: tuple[str, list[tuple[str, float, float]]] = LunaLoRARandomizer().draw(count, seed, **widgets)["result"]
    return result


def _split(drawn: tuple[str, list[tuple[str, float, float]]]) -> tuple[list[str], list[tuple[str, float, float]]]:
    return drawn[0].split(), drawn[1]


SLOTS = {f"pool_{number}": name for number, name in enumerate(LORAS[:3], 1)}


def test_none_is_drawn_twice_and_both_ends_of_the_range_occur() -> None:
    seen: set[float] = set()
    for seed in range(200):
        text, stack = draw(3, seed, **SLOTS, pool_4=LORAS[0])
        assert len({file for file, _, _ in stack}) == len(stack) == 3
        assert text.count("<lora:") == 3
        seen |= {model for _, model, _ in stack}
        assert all(model == clip for _, model, clip in stack)
    assert seen == {0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_another_slot_moves_nobody_elses_luck(host: FolderHost, seed: int) -> None:
    _, three = draw(3, seed, **SLOTS)
    _, four = draw(4, seed, **SLOTS, pool_9=LORAS[3])
    assert [entry for entry in four if entry[0] != LORAS[3]] == three


def test_pick_weights_ranges_and_tags_of_a_list_are_heeded() -> None:
    picks: Counter[str] = Counter()
    for seed in range(600):
        _, ((file, strength, _),) = draw(1, seed, yaml_source="testloras:styles")
        picks[file] += 1
        if file == LORAS[0]:
            assert strength in {0.6, 0.7, 0.8, 0.9}
        elif file == LORAS[2]:
            assert strength == 0.25
    assert picks[LORAS[0]] > picks[LORAS[1]] + picks[LORAS[2]] > 100
    assert draw(3, 5, yaml_source="__testloras/styles__") == draw(3, 5, yaml_source="{testloras:styles}")


def test_swapped_bounds_own_clip_draws_and_grids_that_miss_the_end() -> None:
    assert draw(2, 9, weight_min=1.0, weight_max=0.5, **SLOTS) == draw(2, 9, **SLOTS)
    strengths = {model for seed in range(60) for _, model, _ in draw(3, seed, weight_step=0.2, **SLOTS)[1]}
    assert strengths == {0.5, 0.7, 0.9}
    apart = 0
    for seed in range(40):
        text, stack = draw(3, seed, clip_weight="own draw", **SLOTS)
        for tag, (file, model, clip) in zip(text.split(), stack, strict=True):
            name = file.removesuffix(".safetensors")
            assert tag == (f"<lora:{name}:{model}>" if model == clip else f"<lora:{name}:{model}:{clip}>")
            apart += model != clip
    assert apart > 60


def test_more_than_there_are_gives_all_with_a_notice(host: FolderHost) -> None:
    assert len(draw(10, 1, **SLOTS)[1]) == 3
    assert "10 LoRAs were wanted, the pool holds 3" in host.notices[0]
    assert draw(0, 1, **SLOTS) == ("", [])


def test_what_is_missing_stops_or_is_left_out_with_a_notice(host: FolderHost) -> None:
    with pytest.raises(InputFileError, match="lora-missing"):
        draw(2, 1, yaml_source="testloras:gone")
    assert draw(1, 1, yaml_source="testloras:gone", missing="skip")[1][0][0] == LORAS[1]
    assert host.notices == ["nobody-has-this is not there and left out"]
    with pytest.raises(WildcardError, match=r"wildcard-unresolved.*testloras"):
        draw(1, 1, yaml_source="testlora:styles")
    assert "pool_3: lora-missing" in str(LunaLoRARandomizer.VALIDATE_INPUTS(missing="error", pool_3="x"))
    assert LunaLoRARandomizer.VALIDATE_INPUTS(missing="skip", pool_3="x") is True


def test_only_the_sources_own_file_changes_the_fingerprint(host: FolderHost) -> None:
    first = LunaLoRARandomizer.IS_CHANGED(yaml_source="testloras:styles")
    other = host.folder / "other.txt"
    other.write_text("x\n")
    assert LunaLoRARandomizer.IS_CHANGED(yaml_source="testloras:styles") == first
    assert LunaLoRARandomizer.IS_CHANGED(yaml_source="") == ""
    (host.folder / "testloras.yaml").write_text(LISTS + "more: [x]\n")
    assert LunaLoRARandomizer.IS_CHANGED(yaml_source="testloras:styles") != first
    (host.folder / "testloras.yaml").write_text(LISTS)


# -- Explorer


def explore(file: str, **more: Any) -> list[str]:
    text: str = LunaYAMLWildcardExplorer().explore(file, **more)["result"][0]
    return text.splitlines()


def test_each_line_is_a_reference_that_draws(host: FolderHost) -> None:
    library = WildcardLibrary.load([host.folder])
    lines = explore("testloras.yaml", show_item_counts=False)
    assert lines[:2] == ["{testloras}", "{testloras:styles}"]
    for line in lines:
        assert library.expand(line).diagnostics == ()
        assert library.expand(line).text != line


def test_numbers_templates_depth_and_filter() -> None:
    lines = explore("testloras.yaml")
    assert "{testloras:styles}  # 3 items, 3 combinations" in lines
    assert "{testloras:templates.one}  # templates, 1 items, 3 combinations" in lines
    assert "{testloras:templates.one}" not in explore("testloras.yaml", max_depth=1, show_item_counts=False)
    assert explore("testloras.yaml", filter="STY", show_item_counts=False) == ["{testloras:styles}"]
    assert explore("sub/testsea.txt") == ["{sub/testsea}  # 2 items, 2 combinations"]


def test_problems_of_the_file_stand_at_the_end(host: FolderHost) -> None:
    bad = host.folder / "testbad.yaml"
    bad.write_text('fine: [x]\ndead: ["{testnobody}"]\n')
    lines = explore("testbad.yaml", show_item_counts=False)
    assert lines[:-1] == ["{testbad}", "{testbad:fine}", "{testbad:dead}"]
    assert lines[-1].startswith("# testbad.yaml:2:")
    assert "unknown-ref" in lines[-1]
    bad.unlink()


def test_a_file_that_is_not_there_is_an_error_never_a_path() -> None:
    with pytest.raises(InputFileError, match=r"file-missing.*testloras.yaml"):
        explore("testlora.yaml")
    assert issubclass(LunaYAMLPathExplorer, LunaYAMLWildcardExplorer)
