"""Rules: what is added to a draw: modifiers, expanders, links, weights of groups. WILDCARDS section 9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.wildcards import RuleOptions, WildcardLibrary
from tests.unit.wildcards.rule_library import made, notes

if TYPE_CHECKING:
    from pathlib import Path

# -- additions


def test_modifiers_follow_their_target_and_leave_the_incompatible_alone(coast: WildcardLibrary) -> None:
    only = RuleOptions(expanders=False, lora_links=False)
    texts = {coast.expand("{clothing} at {place:beach}", seed, rules=only).text for seed in range(80)}
    assert texts == {
        "red swimwear, wet at a beach",
        "red swimwear, sun-bleached at a beach",
        "leather sandals at a beach",
    }
    assert coast.expand("{clothing} at {place:hall}", 1, rules=only).text.endswith(" at a hall")


def test_the_older_action_shape_modifies_with_a_blank(tmp_path: Path) -> None:
    files = {
        "act.yaml": "[{value: diving, tags: [swimming]}]",
        "clothing.txt": "a suit\n",
        "modifiers_a.yaml": "action:\n  swimming:\n    modify_clothing:\n      any: [dripping]\n",
    }
    assert made(tmp_path, files).expand("{act} in {clothing}", 0, rules=RuleOptions()).text == (
        "diving in a suit dripping"
    )


def test_expanders_append_distinct_additions_with_their_probability(coast: WildcardLibrary) -> None:
    only = RuleOptions(modifiers=False, lora_links=False)
    counts = {0: 0, 1: 0, 2: 0}
    for seed in range(300):
        text = coast.expand("{place:beach}", seed, rules=only).text
        added = text.split(", ")[1:]
        assert set(added) <= {"sea haze", "noon sun", "soft haze", "glare"}
        assert len(added) == len(set(added))
        counts[len(added)] += 1
    assert 0.3 < counts[0] / 300 < 0.5
    assert counts[1] > 50
    assert counts[2] > 50


def test_each_pick_is_expanded_once_and_additions_never_again(tmp_path: Path) -> None:
    files = {
        "place.txt": "pier\n",
        "expanders_a.yaml": "place: {more: {paths: [place], values: [gulls], count: 5}}\n",
    }
    result = made(tmp_path, files).expand("{place}", 0, rules=RuleOptions())
    assert sorted(result.text.split(", ")) == ["gulls", "pier", "pier"]


def test_additions_are_drawn_like_any_reference(tmp_path: Path) -> None:
    files = {
        "place.txt": "beach\n",
        "sky.yaml": "- snow\n- 'sun over {sea}'\n",
        "sea.txt": "surf\n",
        "expanders_a.yaml": "place: {sky: {paths: [sky], count: 1}}\n",
        "constraints_a.yaml": "place: {sky: {incompatible: [snow]}}\n",
    }
    library = made(tmp_path, files)
    assert {library.expand("{place}", seed, rules=RuleOptions()).text for seed in range(20)} == {"beach, sun over surf"}


def test_the_older_expander_shape_adds_one_or_two(tmp_path: Path) -> None:
    files = {"place.txt": "pier\n", "expanders_a.yaml": "place: {base: [a], details: [b], atmosphere: [c]}\n"}
    library = made(tmp_path, files)
    sizes = {library.expand("{place}", seed, rules=RuleOptions()).text.count(",") for seed in range(60)}
    assert sizes == {1, 2}


# -- links


def test_links_come_from_the_nearest_path_and_bring_words_and_embeddings(coast: WildcardLibrary) -> None:
    only = RuleOptions(modifiers=False, expanders=False)
    result = coast.expand_parts({"": "dunes by {place:beach}", "negative": "blur"}, 0, rules=only)
    assert result.text == "dunes by a beach, surf, (embedding:seafoam:1.1)"
    assert result.parts["negative"] == "blur, embedding:drought"
    assert result.links is not None
    (lora,) = result.links.loras
    assert (lora.name, lora.model_weight, lora.clip_weight, lora.priority) == ("coast", 0.8, 0.6, 2)
    assert lora.choice is not None
    assert result.choices[lora.choice].value == "a beach"
    assert result.links.trigger_words == ("surf", "dunes")
    assert coast.expand("{place:hall}", 0, rules=only).text == "a hall, wide open"


def test_trigger_words_stay_out_when_switched_off_and_negative_embeddings_make_a_part(coast: WildcardLibrary) -> None:
    only = RuleOptions(modifiers=False, expanders=False, trigger_words=False)
    result = coast.expand("{place:beach}", 0, rules=only)
    assert result.text == "a beach, (embedding:seafoam:1.1)"
    assert result.parts["negative"] == "embedding:drought"
    assert result.links is not None
    assert result.links.trigger_words == ("surf", "dunes")


def test_loras_come_once_by_priority_and_fit_the_base_model(tmp_path: Path) -> None:
    files = {
        "a.txt": "one\n",
        "b.txt": "two\n",
        "lora_a.yaml": (
            "a: {loras: [{name: low, priority: 1}, {name: both, priority: 2}, {name: f, base_model: Flux.1 D}]}\n"
            "b: {loras: [{name: both, priority: 9, base_model: Pony}, {name: late}]}\n"
        ),
    }
    library = made(tmp_path, files)

    def names(**options: Any) -> list[str]:
        links = library.expand("{a} {b}", 0, rules=RuleOptions(**options)).links
        return [lora.name for lora in links.loras] if links else []

    assert names() == ["both", "low", "f", "late"]
    assert names(base_model="Illustrious") == ["both", "low", "late"]
    assert names(base_model="flux") == ["both", "low", "f", "late"]
    assert names(max_loras=1) == ["both"]
    assert names(max_loras=0) == []
    assert names(lora_links=False) == []


# -- groups of weights


def test_groups_of_weights_count_always_and_zero_excludes(tmp_path: Path) -> None:
    files = {
        "boat.yaml": "- brig\n- 2::skiff\n- raft\n",
        "wildcard_rules.yaml": (
            "weights:\n  rare: {items: [brig], weight: 0.5}\n  never: {items: [raft, brig], weight: 0}\n"
        ),
    }
    library = made(tmp_path, files)
    result = next(found for found in (library.expand("{boat}", seed) for seed in range(50)) if found.text == "brig")
    assert result.choices[0].probability == pytest.approx(0.2)
    assert notes(result) == [("rare: weight x 0.5", "wildcard_rules.yaml", 2)]
    assert {library.expand("{boat}", seed).text for seed in range(60)} == {"brig", "skiff"}
    assert {library.expand("{2$$ $$__boat__}", seed).text for seed in range(20)} <= {"brig skiff", "skiff brig"}
    assert library.count("{boat}") == 2
    assert {item.weight.micro for item in library.items("boat")} == {1_000_000, 2_000_000}


def test_a_group_finds_its_items_in_large_text_files_too(tmp_path: Path) -> None:
    files = {
        "many.txt": "".join(f"line {n}\n" for n in range(3000)) + "a Brig under sail\n",
        "wildcard_rules.yaml": "weights: {all: {items: [brig], weight: 5000}}\n",
        "other.txt": "one\ntwo\n",
    }
    library = made(tmp_path, files)
    texts = [library.expand("{many}", seed).text for seed in range(60)]
    assert texts.count("a Brig under sail") > 20
    assert library.snapshot.pool(library.snapshot.index.resolve("other").target).sums is None
