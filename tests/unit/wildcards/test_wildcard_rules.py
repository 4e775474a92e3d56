"""Rules: what is drawn together and what is told. WILDCARDS section 9, point by point."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.errors import LunaError
from luna_engine.wildcards import ChoiceKind, RuleOptions, WildcardLibrary
from tests.unit.wildcards.rule_library import CLOTHING, FILES, ONLY_CONSTRAINTS, items, made, notes, relaxed

if TYPE_CHECKING:
    from pathlib import Path

# -- off unless asked for


def test_rules_do_nothing_unless_asked_for(coast: WildcardLibrary, tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", {name: FILES[name] for name in ("place.yaml", "clothing.txt", "light.yaml")})
    for seed in range(30):
        with_files = coast.expand("{clothing} at {place}", seed)
        assert with_files.text == plain.expand("{clothing} at {place}", seed).text
        assert with_files.links is None


def test_rules_that_touch_nothing_change_no_draw(coast: WildcardLibrary) -> None:
    """Adding a rule file must not reshuffle prompts it does not speak about."""
    template = "{light:day}, {place:hall}, {2$$ and $$__light/day__}, {a|{light:day}}"
    for seed in range(40):
        ruled = coast.expand(template, seed, rules=ONLY_CONSTRAINTS)
        assert ruled.text == coast.expand(template, seed).text
        assert ruled.choices == coast.expand(template, seed).choices


def test_a_library_without_rule_files_takes_rules_and_draws_as_ever(tmp_path: Path) -> None:
    library = made(tmp_path, {"clothing.txt": CLOTHING})
    ruled = library.expand("{clothing}", 3, rules=RuleOptions())
    assert ruled.text == library.expand("{clothing}", 3).text
    assert ruled.links is not None
    assert ruled.links.loras == ()


def test_items_make_demands_without_a_rule_file(tmp_path: Path) -> None:
    files = {
        "a.yaml": "common_tags: [hot]\nitems: [{id: sun, text: sun}]\n",
        "b.yaml": "[snow, {text: dew, blacklist: [hot]}]",
    }
    library = made(tmp_path, files)
    assert {library.expand("{a} {b}", seed, rules=RuleOptions()).text for seed in range(30)} == {"sun snow"}
    assert {library.expand("{a} {b}", seed).text for seed in range(30)} == {"sun snow", "sun dew"}


# -- constraints


def test_what_is_incompatible_or_not_compatible_is_never_drawn_together(coast: WildcardLibrary) -> None:
    seen: dict[str, set[str]] = {}
    for seed in range(200):
        result = coast.expand("{clothing} at {place}", seed, rules=ONLY_CONSTRAINTS)
        assert not relaxed(result)
        clothing, _, place = result.text.partition(" at ")
        seen.setdefault(place, set()).add(clothing)
    assert seen["a beach"] == {"red swimwear", "leather sandals"}
    assert seen["a ski slope"] == {"a parka", "a long coat"}
    assert len(seen["a hall"]) == 5


def test_entries_are_compared_as_whole_words_without_case(tmp_path: Path) -> None:
    files = {
        "head.yaml": "- long Hair\n- a chair\n- {value: brown, id: hair-2}\n- {value: grey, tags: [HAIR]}\n",
        "mood.txt": "calm\n",
        "constraints_a.yaml": "mood: {head: {incompatible: [hair]}}\n",
    }
    library = made(tmp_path, files)
    drawn = {library.expand("{mood} {head}", seed, rules=RuleOptions()).text for seed in range(60)}
    assert drawn == {"calm a chair", "calm brown"}


def test_paths_cover_themselves_and_what_is_below_cut_at_key_borders(tmp_path: Path) -> None:
    files = {
        "place.yaml": "beach: {sand: [dune], rock: [cliff]}\nbeachwear: [towel]\n",
        "sky.txt": "sun\nsnow\n",
        "constraints_a.yaml": "place.beach: {sky: {incompatible: ['sky:snow']}}\n",
    }
    library = made(tmp_path, files)
    drawn = {library.expand("{place} {sky}", seed, rules=RuleOptions()).text for seed in range(80)}
    assert drawn == {"dune sun", "cliff sun", "towel sun", "towel snow"}


def test_written_weights_prefer_and_avoid_are_factors(coast: WildcardLibrary) -> None:
    result = coast.expand("{place:beach} {clothing}", 1, rules=ONLY_CONSTRAINTS)
    clothing = next(choice for choice in result.choices if choice.file == "clothing.txt")
    # parka, swimwear, sandals, coat, cover: swimwear weighs 10, of the others each 1; the place was drawn second.
    pairs = {
        coast.expand("{clothing} {place:slope}", seed, rules=ONLY_CONSTRAINTS).text.partition(" a ski")[0]
        for seed in range(40)
    }
    assert pairs == {"a parka", "a long coat"}
    assert clothing.value in {"red swimwear", "leather sandals"}


def test_the_weighted_order_respects_every_factor(tmp_path: Path) -> None:
    files = {
        "a.yaml": "[{value: cold, tags: [winter]}]",
        "b.yaml": "- 3::coat\n- sandals\n- shirt\n",
        "constraints_a.yaml": (
            "b:\n  context_preferences: [{when: [winter], prefer: ['4::coat'], avoid: [sandals]}]\n"
            "a:\n  b: {compatible: [coat, sandals, '2::shirt']}\n"
        ),
    }
    result = made(tmp_path, files).expand("{a} {b}", 0, rules=RuleOptions())
    drawn = next(choice for choice in result.choices if choice.file == "b.yaml")
    share = {"coat": 12.0, "sandals": 0.5, "shirt": 2.0}
    assert drawn.probability == pytest.approx(share[drawn.value] / 14.5)
    assert drawn.weight == (3 if drawn.value == "coat" else 1)
    factor = {"coat": "b: weight x 4", "sandals": "b: weight x 0.5", "shirt": "b: weight x 2"}[drawn.value]
    assert factor in [written for written, _, _ in notes(result)]


def test_a_weight_of_zero_is_a_prohibition(tmp_path: Path) -> None:
    files = {
        "a.txt": "x\n",
        "b.txt": "one\ntwo\n",
        "constraints_a.yaml": "a: {b: {compatible: ['0::one', two]}}\n",
    }
    library = made(tmp_path, files)
    assert {library.expand("{a} {b}", seed, rules=RuleOptions()).text for seed in range(30)} == {"x two"}


def test_blacklists_and_whitelists_look_at_the_tags_of_the_others(tmp_path: Path) -> None:
    files = {
        "who.yaml": (
            "- {value: snowman, tags: [frost], blacklist: [heat]}\n"
            "- {value: swimmer, whitelist: [sea, pool]}\n"
            "- walker\n"
        ),
        "where.yaml": "- {value: lagoon, tags: [sea, heat]}\n- {value: glacier, tags: [frost]}\n- {value: street}\n",
    }
    library = made(tmp_path, files)
    pairs = {library.expand("{who} {where}", seed, rules=RuleOptions()).text for seed in range(150)}
    assert pairs == {
        "snowman glacier",
        "snowman street",
        "swimmer lagoon",
        "walker lagoon",
        "walker glacier",
        "walker street",
    }


def test_a_whitelist_is_met_by_a_reference_that_is_drawn_later(tmp_path: Path) -> None:
    """Forward checking: eight lists of fifty stand between the wish and the one list that can grant it."""
    files = {"a.yaml": "[{value: swimmer, whitelist: [sea]}]"}
    files["z.yaml"] = "\n".join(f"- dry {n}" for n in range(60)) + "\n- {value: lagoon, tags: [sea]}\n"
    for name in "bcdefghi":
        files[f"{name}.txt"] = "\n".join(f"{name} {n}" for n in range(50))
    library = made(tmp_path, files)
    result = library.expand(" ".join(f"__{name}__" for name in "abcdefghiz"), 0, rules=RuleOptions())
    assert result.text.endswith("lagoon")
    assert not relaxed(result)


def test_allow_states_want_a_tag_somewhere_in_the_draw(tmp_path: Path) -> None:
    files = {
        "act.txt": "skate\nread\n",
        "when.yaml": "- {value: january, tags: [winter]}\n- {value: july, tags: [summer]}\n",
        "rules_a.yaml": "act:skate: {allow_states: [winter]}\n",
    }
    library = made(tmp_path, files)
    pairs = {library.expand("{when} {act}", seed, rules=RuleOptions()).text for seed in range(60)}
    assert pairs == {"january skate", "january read", "july read"}


def test_tags_come_from_the_item_its_category_file_and_tags_files_root_to_leaf(tmp_path: Path) -> None:
    files = {
        "coat.yaml": "common_tags: [worn]\nitems:\n  - {id: parka, text: a parka, tags: [warm]}\n",
        "tags_all.yaml": "coat: [cloth]\n",
        "tags_more.yaml": "coat:\n  parka: [hooded]\n",
    }
    result = made(tmp_path, files).expand("{coat}${if #hooded: , hood up}", 0, rules=RuleOptions())
    assert result.choices[0].tags == ("warm", "worn", "cloth", "hooded")
    assert result.text == "a parka, hood up"


def test_a_multi_pick_takes_those_of_its_order_that_agree(coast: WildcardLibrary) -> None:
    for seed in range(60):
        result = coast.expand("{2$$ and $$__clothing__} at {place:beach}", seed, rules=ONLY_CONSTRAINTS)
        first, _, second = result.text.removesuffix(" at a beach").partition(" and ")
        assert {first, second} == {"red swimwear", "leather sandals"}


def test_stages_are_frame_depths_and_earlier_picks_bind_later_ones(tmp_path: Path) -> None:
    files = {
        "scene.yaml": "- {value: 'a beach with {sky}', tags: [warm]}\n- {value: 'ice under {sky}', tags: [cold]}\n",
        "sky.txt": "sun\nsnow\n",
        "constraints_a.yaml": "sky:\n  context_preferences:\n    - {when: [warm], require: [sun]}\n"
        "    - {when: [cold], require: [snow]}\n",
    }
    library = made(tmp_path, files)
    drawn = {library.expand("{{scene}|{scene}, {sky}}", seed, rules=RuleOptions()).text for seed in range(80)}
    assert drawn == {"a beach with sun", "ice under snow", "a beach with sun, sun", "ice under snow, snow"}


def test_variables_conditions_and_parts_work_under_rules(coast: WildcardLibrary) -> None:
    template = "${p=!{place}}${p}: {clothing}${if p=a beach: , barefoot}"
    for seed in range(40):
        result = coast.expand_parts({"": template, "negative": "{clothing} at ${p}"}, seed, rules=ONLY_CONSTRAINTS)
        place = result.text.partition(":")[0]
        assert ("barefoot" in result.text) == (place == "a beach")
        assert result.parts["negative"].endswith(f" at {place}")
        assert result.text == result.parts[""]


def test_pinned_picks_bind_the_others(coast: WildcardLibrary) -> None:
    pins = {"{clothing}": "a parka"}
    for seed in range(30):
        result = coast.expand("{place} {clothing}", seed, rules=ONLY_CONSTRAINTS, pins=pins)
        assert result.text in {"a ski slope a parka", "a hall a parka"}


def test_provenance_is_exact_under_rules(coast: WildcardLibrary) -> None:
    for seed in range(40):
        result = coast.expand("{clothing} at {place}, {2$$ or $$__light/day__}", seed, rules=RuleOptions())
        for choice in result.choices:
            if choice.span is not None:
                assert result.parts[choice.part][slice(*choice.span)] == choice.value
            assert choice.kind is not ChoiceKind.RULE or (choice.file and choice.line)
            assert 0 < choice.probability <= 1


# -- order independence

PARTS = ["in {clothing}", "at {place}", "{light:day}", "{{place}|dawn} light", "{2$$ and $$__clothing__}"]
_COAST: dict[str, WildcardLibrary] = {}


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(PARTS), seed=st.integers(0, 2**32))
def test_shuffling_the_parts_of_a_template_shuffles_the_output_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], seed: int
) -> None:
    if not _COAST:
        _COAST["coast"] = made(tmp_path_factory.mktemp("shuffled"), FILES)
    library = _COAST["coast"]
    texts = [library.expand("; ".join(parts), seed, rules=ONLY_CONSTRAINTS).text for parts in (PARTS, order)]
    straight = dict(zip(PARTS, texts[0].split("; "), strict=True))
    assert texts[1].split("; ") == [straight[part] for part in order]
    whole = [library.expand("; ".join(parts), seed, rules=RuleOptions()) for parts in (PARTS, order)]
    assert sorted(notes(whole[0])) == sorted(notes(whole[1]))
    assert relaxed(whole[0]) == relaxed(whole[1])


def test_equal_seeds_give_equal_results(coast: WildcardLibrary) -> None:
    for seed in range(10):
        first, second = (coast.expand("{clothing} at {place}", seed, rules=RuleOptions()) for _ in range(2))
        assert first.as_dict() == second.as_dict()


# -- relaxing


def test_what_cannot_be_kept_is_relaxed_and_told_with_its_place(coast: WildcardLibrary) -> None:
    result = coast.expand("{clothing:a parka} at {place:beach}", 0, rules=ONLY_CONSTRAINTS)
    assert result.text == "a parka at a beach"
    free = RuleOptions(constraints=False, modifiers=False, expanders=False, lora_links=False)
    assert relaxed(coast.expand("{clothing:a parka} at {place:beach}", 0, rules=free)) == []
    assert relaxed(result) == [("constraints_coast.yaml", 4), ("constraints_coast.yaml", 2)]
    message = next(found.message for found in result.diagnostics if found.code == "rule-relaxed")
    assert "incompatible parka" in message
    assert "'a parka'" in message
    assert "{clothing:a parka}" in message
    coast.expand("{clothing:a parka} at {place:beach}", 0, rules=ONLY_CONSTRAINTS, strict=True)


def test_the_fewest_rules_are_broken_and_blacklists_last(tmp_path: Path) -> None:
    files = {
        "a.yaml": "[{value: x, tags: [x], blacklist: [black]}]",
        "b.yaml": (
            "- {value: two rules, tags: [one, two]}\n- {value: black, tags: [black]}\n"
            "- {value: barred, tags: [one]}\n- {value: not wanted, tags: [odd]}\n"
        ),
        "constraints_a.yaml": (
            "a: {b: {incompatible: [one, two]}}\nb: {context_preferences: [{when: [x], require: [black, one, two]}]}\n"
        ),
    }
    library = made(tmp_path, files)
    # Each of black, barred and not wanted breaks one rule; the one that is neither blacklist nor incompatible wins.
    for seed in range(20):
        result = library.expand("{a} {b}", seed, rules=RuleOptions())
        assert result.text == "x not wanted"
        assert len(relaxed(result)) == 1


def test_an_impossible_stage_ends_soon_and_breaks_one_rule(tmp_path: Path) -> None:
    """Two lists that exclude each other, and eight of fifty between them: backtracking alone would never end."""
    files = {"a.txt": "x\n", "z.txt": "y\n", "constraints_a.yaml": "a: {z: {incompatible: [y]}}\n"}
    for name in "bcdefghi":
        files[f"{name}.yaml"] = "\n".join(
            f"- {{value: {name} {n}, tags: [t{n}], blacklist: [u{n}]}}" for n in range(50)
        )
    result = made(tmp_path, files).expand(" ".join(f"__{name}__" for name in "abcdefghiz"), 0, rules=RuleOptions())
    assert relaxed(result) == [("constraints_a.yaml", 1)]
    assert result.text.startswith("x ")
    assert result.text.endswith(" y")


def test_rejected_candidates_are_named_under_the_pick_that_took_their_place(coast: WildcardLibrary) -> None:
    told = [
        note
        for seed in range(40)
        for note in notes(coast.expand("{place:beach} {clothing}", seed, rules=ONLY_CONSTRAINTS))
    ]
    assert ("place:beach with clothing: incompatible parka", "constraints_coast.yaml", 4) in told


# -- rule files


def test_rule_files_are_known_by_type_read_from_json_and_reloaded(tmp_path: Path) -> None:
    library = made(tmp_path, {"a.txt": "x\n", "b.txt": "one\ntwo\n"})
    (tmp_path / "mine.json").write_text('{"type": "constraints", "a": {"b": {"incompatible": ["one"]}}}', "utf-8")
    before = library.fingerprint("{a} {b}", rules=True)
    assert library.refresh()
    assert {library.expand("{a} {b}", seed, rules=RuleOptions()).text for seed in range(20)} == {"x two"}
    assert library.fingerprint("{a} {b}", rules=True) != before
    (tmp_path / "mine.json").write_text('{"type": "constraints", "a": {"b": {"incompatible": ["two"]}}}', "utf-8")
    assert library.refresh()
    assert {library.expand("{a} {b}", seed, rules=RuleOptions()).text for seed in range(20)} == {"x one"}


def test_rules_are_there_again_in_a_second_library_of_the_same_folder(coast: WildcardLibrary) -> None:
    """Whatever is kept between processes, rules are not lost by it."""
    again = WildcardLibrary.load([root.path for root in coast.roots])
    first, second = (library.expand("{clothing} {place}", 4, rules=RuleOptions()) for library in (coast, again))
    assert first.as_dict() == second.as_dict()
    assert notes(first)


def test_a_fingerprint_counts_rule_files_only_where_they_count(coast: WildcardLibrary, tmp_path: Path) -> None:
    template = "{clothing} {place}"
    plain, ruled = coast.fingerprint(template), coast.fingerprint(template, rules=True)
    (tmp_path / "constraints_coast.yaml").write_text("{}", "utf-8")
    assert coast.refresh()
    assert coast.fingerprint(template) == plain
    assert coast.fingerprint(template, rules=True) != ruled
    (tmp_path / "wildcard_rules.yaml").write_text("weights: {w: {items: [a parka], weight: 2}}", "utf-8")
    assert coast.refresh()
    assert coast.fingerprint(template) != plain


@pytest.mark.parametrize(
    ("name", "text", "place", "words"),
    [
        ("constraints_a.yaml", "a: {b: {compatable: [one]}}", (1, 9), "did you mean compatible"),
        ("constraints_a.yaml", "a: {compatible: [one]}", (1, 1), "path: category"),
        ("constraints_a.yaml", "- one", (1, 1), "a path and a colon"),
        ("constraints_a.yaml", "a:\n  context_preferences: [{prefer: [one]}]", (2, 25), "when"),
        ("expanders_a.yaml", "a: {x: {values: [one], count: many}}", (1, 31), None),
        ("expanders_a.yaml", "a: {x: {values: [one], weight: 1.5}}", (1, 32), None),
        ("lora_a.yaml", "a: {loras: [{model_weight: 1}]}", (1, 13), "name"),
        ("wildcard_rules.yaml", "weights: {w: {items: [one]}}", (1, 11), None),
        ("modifiers_a.yaml", "a: {b: {modifiers: [one], compatible: [{x: y}]}}", (1, 40), "[one, two]"),
    ],
)
def test_what_no_rule_uses_is_reported_where_it_stands(
    tmp_path: Path, name: str, text: str, place: tuple[int, int], words: str | None
) -> None:
    library = made(tmp_path, {"a.txt": "x\n", "b.txt": "one\n", name: text})
    (found,) = library.diagnostics
    assert (found.file, found.line, found.column) == (name, *place)
    assert found.severity.value == "warning"
    assert words is None or words in (found.hint or "")
    assert found in library.expand("{a}", 0, rules=RuleOptions()).diagnostics


def test_a_broken_rule_file_keeps_its_last_good_rules(coast: WildcardLibrary, tmp_path: Path) -> None:
    (tmp_path / "constraints_coast.yaml").write_text("place:beach: {clothing: [", "utf-8")
    assert coast.refresh()
    result = coast.expand("{clothing} at {place:beach}", 0, rules=ONLY_CONSTRAINTS)
    assert result.text in {"red swimwear at a beach", "leather sandals at a beach"}
    assert [found.code for found in result.diagnostics] == ["yaml-syntax"]


def test_lint_finds_rules_that_never_apply_and_contradictions(tmp_path: Path) -> None:
    files = {
        "place.yaml": "beach: [{value: dune, whitelist: [sun], blacklist: [sun]}]\n",
        "clothing.txt": "coat\nhat\n",
        "constraints_a.yaml": (
            "place:beech: {clothing: {compatible: [coat, cape], incompatible: [coat]}}\n"
            "clothing: {context_preferences: [{when: [dune], prefer: [hat], avoid: [hat]}]}\n"
        ),
    }
    found = [(one.code, one.severity.value, one.file, one.line) for one in made(tmp_path, files).lint()]
    assert found == [
        ("rule-never-applies", "warning", "constraints_a.yaml", 1),
        ("rule-never-applies", "hint", "constraints_a.yaml", 1),
        ("rule-contradiction", "warning", "constraints_a.yaml", 1),
        ("rule-contradiction", "warning", "constraints_a.yaml", 2),
        ("rule-contradiction", "warning", "place.yaml", 1),
    ]


# -- batches and steps


def test_batches_under_rules_are_singles_with_their_seeds(coast: WildcardLibrary) -> None:
    batch = coast.expand_many("{clothing} at {place}", 12, 5, unique=False, rules=RuleOptions())
    for index, result in enumerate(batch):
        single = coast.expand("{clothing} at {place}", batch.seeds[index], index=index, rules=RuleOptions())
        assert single.text == result.text
    exhausted = coast.expand_many("{clothing} at {place:beach}", 9, 5, rules=ONLY_CONSTRAINTS)
    assert {result.text for result in exhausted} == {"red swimwear at a beach", "leather sandals at a beach"}
    assert [found.code for found in exhausted.diagnostics] == ["space-exhausted"]


@pytest.mark.parametrize("mode", ["enumerate", "cycle"])
def test_rules_cannot_walk(coast: WildcardLibrary, mode: str) -> None:
    with pytest.raises(LunaError) as caught:
        coast.expand_many("{clothing}", 2, mode=mode, rules=RuleOptions())
    assert caught.value.code == "value-range"
    with pytest.raises(LunaError):
        list(itertools.islice(coast.enumerate("{clothing}", rules=RuleOptions()), 1))


def test_steps_under_rules_come_to_the_finished_text(coast: WildcardLibrary) -> None:
    whole = coast.expand("{clothing} at {place}", 3, rules=ONLY_CONSTRAINTS)
    states = list(coast.steps("{clothing} at {place}", 3, rules=ONLY_CONSTRAINTS))
    assert states[-1].text == whole.text
    assert items(whole) >= {
        choice.value for state in states for choice in state.choices if choice.kind is ChoiceKind.ITEM
    }
