"""What constructs mean: references, templates, numbers, variants, picks, variables, and what is reported."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.errors import LunaError, WildcardError
from luna_engine.wildcards import ChoiceKind, WildcardLibrary

if TYPE_CHECKING:
    from pathlib import Path


def texts(library: WildcardLibrary, template: str, count: int = 200) -> set[str]:
    return {library.expand(template, seed).text for seed in range(count)}


def codes(result: Any) -> list[str]:
    return [found.code for found in result.diagnostics]


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("{harbor:boats.small}", {"skiff", "dinghy"}),
        ("{harbor:boats}", {"skiff", "dinghy", "schooner", "brig"}),
        ("{harbor:boats.*}", {"skiff", "dinghy", "schooner", "brig"}),
        ("{coast/harbor:piers}", {"stone pier", "12", "no", "07:45"}),
        ("__coast/harbor/boats/tall__", {"schooner", "brig"}),
        ("__coast/boats/tall__", {"schooner", "brig"}),
        ("__tall__", {"schooner", "brig"}),
        ("__boats/tall__", {"schooner", "brig"}),
        ("__TALL__", {"schooner", "brig"}),
        ("__mood__", {"calm", "grim", "soft"}),
        ("__mood.txt__", {"calm", "grim", "soft"}),
        ("{mood}", {"calm", "grim", "soft"}),
        ("{harbor:boats.tall.brig-1}", {"brig"}),
        ("{harbor:boats.tall.schooner}", {"schooner"}),
        ("{mood:soft}", {"soft"}),
        ("__coast/*__", {"calm", "grim", "soft", "stone pier", "12", "no", "07:45"}),
        ("__**/tall*__", {"schooner", "brig"}),
        ("{harbor: a [boats.tall]}", {"a schooner", "a brig"}),
        ("{harbor: a {x|y}}", {"a x", "a y"}),
        ("{harbor:[boats.tall]!}", {"schooner!", "brig!"}),
        ("{3-5}", {"3", "4", "5"}),
        ("{-3--1}", {"-3", "-2", "-1"}),
        ("{0.2-0.65:0.15}", {"0.20", "0.35", "0.50", "0.65"}),
        ("{1.5-4:1}", {"1.5", "2.5", "3.5"}),
        ("{6-9:40}", {"6"}),
        ("{4-4}", {"4"}),
        ("{oak|elm|}", {"oak", "elm", ""}),
        ("{0::oak|elm}", {"elm"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{0$$a|b}", {""}),
        ("{2$$, $$|x|}", {"x", ""}),
        ("${x=!{a|b}}${x}${x}", {"aa", "bb"}),
        ("${x={a|b}}${x}${x}", {"aa", "bb", "ab", "ba"}),
        ("${x:{a|b}}", {"a", "b"}),
        ("${x=a}${x?=b}${x}", {"a"}),
        ("${x?=b}${x}", {"b"}),
        ("${s=winter}${if s=WINTER: coat | shirt}", {"coat"}),
        ("${if not s: coat | shirt}", {"coat"}),
        ("${n=3}${if n>=3 and (n<4 or n=9): yes|no}", {"yes"}),
        ("{harbor:boats.tall.brig-1} ${if #sail: sails|rows}", {"brig sails"}),
        ("{harbor:boats.small} ${if #sail: sails|rows}", {"skiff rows", "dinghy rows"}),
        ("%{a ..., 35mm$$__mood__ pier}", {"a calm pier, 35mm", "a grim pier, 35mm", "a soft pier, 35mm"}),
        ("100%{pine|oak}", {"100%pine", "100%oak"}),
    ],
)
def test_values(library: WildcardLibrary, template: str, values: set[str]) -> None:
    assert texts(library, template) == values


def test_templates_read_their_own_file(library: WildcardLibrary) -> None:
    found = texts(library, "{harbor}")
    assert "calm harbor at dawn" in found
    assert any(text.startswith("skiff near the ") and text.endswith(", clear") for text in found)


def test_weights_are_relative(library: WildcardLibrary) -> None:
    drawn = collections.Counter(library.expand("{harbor:boats}", seed).text for seed in range(3000))
    assert 0.48 < drawn["schooner"] / 3000 < 0.61  # 3 of 5.5
    assert 0.06 < drawn["brig"] / 3000 < 0.13  # 0.5 of 5.5


def test_a_multi_pick_of_a_list_never_repeats(library: WildcardLibrary) -> None:
    for seed in range(50):
        words = library.expand("{2-4$$, $$__coast/boats__}", seed).text.split(", ")
        assert len(words) == len(set(words))


def test_quantified_options_may_repeat(library: WildcardLibrary) -> None:
    assert "calm calm" in texts(library, "{2$$ $$3#__mood__}", 400)


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{open", "syntax"),
        ("{2$$}", "syntax"),
        ("{harbor:}", "syntax"),
        ("%{no dots$$x}", "syntax"),
        ("${if x: }${if", "syntax"),
        ("{nofile}", "unknown-ref"),
        ("{harbor:boats.smal}", "unknown-ref"),
        ("__nothing__", "unknown-ref"),
        ("${unset}", "unknown-ref"),
        ("{../secret}", "path-escape"),
        ("{/etc/passwd}", "path-escape"),
        ("__../secret__", "path-escape"),
        (r"{C:\x}", "path-escape"),
        ("{harbor:../../x}", "path-escape"),
        ("${y=${y} oak}${y}", "cycle"),
        ("{0-" + "9" * 40 + "}", "bad-range"),
        ("{0::a|0::b}", "bad-weight"),
    ],
)
def test_what_cannot_be_evaluated_stays_and_is_reported(library: WildcardLibrary, template: str, code: str) -> None:
    result = library.expand(template)
    assert code in codes(result)
    kept = "${y} oak" if code == "cycle" else template if "if x" not in template else "${if"
    assert result.text == kept
    assert all(found.line == 1 and found.column >= 1 for found in result.diagnostics)


def test_near_names_are_offered(library: WildcardLibrary) -> None:
    result = library.expand("{harbour}")
    assert result.diagnostics[0].hint == "did you mean harbor?"
    hint = library.expand("{harbor:boats.smal}").diagnostics[0].hint
    assert "boats.small" in hint


def test_a_bad_step_is_drawn_with_one_and_warned_of(library: WildcardLibrary) -> None:
    result = library.expand("{1-3:0}")
    assert result.text in {"1", "2", "3"}
    assert [(found.code, found.severity.value) for found in result.diagnostics] == [("bad-range", "warning")]


def test_reversed_bounds_are_swapped(library: WildcardLibrary) -> None:
    assert texts(library, "{5-3}") == {"3", "4", "5"}


def test_a_huge_range_costs_nothing(library: WildcardLibrary) -> None:
    text = library.expand("{0-5000000000:0.001}", 3).text
    whole, _, fraction = text.partition(".")
    assert whole.isdigit()
    assert len(fraction) == 3


def test_a_drawn_value_is_never_read_again(folder: Path) -> None:
    (folder / "odd.txt").write_text("\\{\n__moo\nd__\n", "utf-8")
    library = WildcardLibrary.load(folder)
    assert texts(library, "{odd}calm|x}", 40) >= {"{calm|x}"}
    joined = {text for text in texts(library, "{odd}{odd}", 80) if text.startswith("__moo")}
    assert "__mood__" in joined  # two drawn halves of a name stay text


def test_missing_can_be_dropped_or_raise(library: WildcardLibrary) -> None:
    assert library.expand("a {nofile} b", missing="drop").text == "a  b"
    with pytest.raises(WildcardError) as caught:
        library.expand("a {nofile}", missing="error")
    assert (caught.value.code, caught.value.line, caught.value.column) == ("unknown-ref", 1, 3)
    with pytest.raises(WildcardError):
        library.expand("{open", strict=True)
    assert library.expand("plain", strict=True).text == "plain"
    with pytest.raises(LunaError):
        library.expand("x", missing="maybe")


def test_an_item_that_names_its_own_list_ends(folder: Path) -> None:
    (folder / "adverbs.txt").write_text("very __adverbs__\nquite\n", "utf-8")
    (folder / "loop.txt").write_text("on __loop__\n", "utf-8")
    library = WildcardLibrary.load(folder)
    assert texts(library, "__adverbs__", 40) == {"quite", "very quite"}
    result = library.expand("__loop__")
    assert result.text == "on __loop__"
    cycle = next(found for found in result.diagnostics if found.code == "cycle")
    assert (cycle.file, cycle.line, cycle.column) == ("loop.txt", 1, 4)
    assert "loop.txt:1" in cycle.hint


def test_choices_say_where_each_word_came_from(library: WildcardLibrary) -> None:
    result = library.expand("{harbor: a [boats.tall]} {x|y} {3-5}", 2)
    item, option, number = result.choices
    assert (item.kind, item.address, item.file) == (ChoiceKind.ITEM, "coast/harbor:boats.tall", "coast/harbor.yaml")
    assert item.line in {6, 7}
    assert item.pool_size == 2
    assert abs(item.probability - item.weight / 3.5) < 1e-12
    assert (option.kind, number.kind) == (ChoiceKind.OPTION, ChoiceKind.NUMBER)
    for choice in result.choices:
        assert result.text[slice(*choice.span)] == choice.value


def test_nested_choices_follow_their_parent(library: WildcardLibrary) -> None:
    result = library.expand("{harbor}", 0)
    template, *inner = result.choices
    assert template.kind is ChoiceKind.TEMPLATE
    assert all(choice.parent == 0 for choice in inner)
    assert template.span == (0, len(result.text))


def test_spans_survive_wrapping_and_empty_picks(library: WildcardLibrary) -> None:
    for seed in range(30):
        result = library.expand("%{{a|b ... c} {x|y}$$__mood__ {1-9}} {3$$-$$||{q|r}}", seed)
        for choice in result.choices:
            if choice.span is not None:
                assert result.text[slice(*choice.span)] == choice.value


def test_an_eager_value_is_recorded_once_and_used_by_reference(library: WildcardLibrary) -> None:
    result = library.expand("${x=!__mood__}${x} ${x}", 1)
    drawn, item, first, second = result.choices
    assert drawn.span is None
    assert item.span is None
    assert (first.kind, first.parent, second.parent) == (ChoiceKind.VARIABLE, 0, 0)
    assert first.value == item.value


def test_pins_and_rerolls_touch_one_site(library: WildcardLibrary) -> None:
    plain = library.expand("__mood__ {300-900}", 5)
    site = plain.choices[0].site
    pinned = library.expand("__mood__ {300-900}", 5, pins={site: "soft"})
    assert pinned.text.startswith("soft ")
    assert pinned.text.split(" ")[1] == plain.text.split(" ")[1]
    rerolled = {library.expand("__mood__ {300-900}", 5, reroll={site: times}).text for times in range(1, 9)}
    assert len(rerolled) > 1
    assert {text.split(" ")[1] for text in rerolled} == {plain.text.split(" ")[1]}


def test_parts_share_variables_and_have_keys_of_their_own(library: WildcardLibrary) -> None:
    result = library.expand_parts({"": "${x=!__mood__}${x} {a|b|c|d}", "negative": "not ${x} {a|b|c|d}"}, 4)
    assert result.parts["negative"].startswith(f"not {result.text.split()[0]}")
    pairs = {tuple(library.expand_parts({"": "{a|b}", "negative": "{a|b}"}, seed).parts.values()) for seed in range(40)}
    assert len(pairs) == 4


def test_callers_pass_variables(library: WildcardLibrary) -> None:
    assert library.expand("${x} {a|b}", variables={"x": "{raw}"}).text.startswith("{raw} ")


def test_loras_and_embeddings_are_found_in_the_finished_text(library: WildcardLibrary) -> None:
    result = library.expand("<lora:ink__wash:{0.5-0.5}:1:LBW=A> (embedding:bad-hands:1.2) <lora:{x|x}>", 0)
    first, second = result.loras
    assert (first.name, first.model_weight, first.clip_weight, first.extra) == (
        "ink__wash",
        0.5,
        1.0,
        (("LBW", "A"),),
    )
    assert (second.name, second.model_weight) == ("x", None)
    assert result.choices[second.choice].value == "x"
    assert (result.embeddings[0].name, result.embeddings[0].weight) == ("bad-hands", 1.2)


def test_cyclical_sites_follow_the_index(library: WildcardLibrary) -> None:
    assert [library.expand("{@a|b|c}", 9, index=index).text for index in range(5)] == list("abcab")


def test_combinatorial_sites_count_like_an_odometer(library: WildcardLibrary) -> None:
    found = [library.expand("{!a|b} {!x|y|z} {@1|2}", 0, index=index).text for index in range(7)]
    assert found == ["a x 1", "a y 2", "a z 1", "b x 2", "b y 1", "b z 2", "a x 1"]
    assert [library.expand("__!mood__", 0, index=index).text for index in (0, 1, 2, 3)] == [
        "calm",
        "grim",
        "soft",
        "calm",
    ]


def test_nested_combinatorial_sites_are_stepped_through(library: WildcardLibrary) -> None:
    found = [library.expand("{!a{!1|2}|b}", 0, index=index).text for index in range(4)]
    assert found == ["a1", "a2", "b", "a1"]
    pairs = [library.expand("{!2$$ $$a|b|c}", 0, index=index).text for index in range(6)]
    assert len(set(pairs)) == 6


@pytest.mark.parametrize(
    ("template", "number"),
    [
        ("plain", 1),
        ("{oak|oak}", 2),
        ("{harbor:boats} {3-8}", 24),
        ("{2$$a|b|c}", 6),
        ("{1-2$$a|{b|c}}", 1 + 2 + 4),
        ("{0-5000000000:0.001}", 5_000_000_000_001),
        ("{harbor}", 2 * 4 * 2 + 3),
        ("{nofile} {open", 1),
        ("${x=!{a|b}}${x}${x}", 2),
        ("${x={a|b}}${x}${x}", 4),
        ("%{a ... {b|c}$$__mood__}", 6),
        ("${if x: a | {b|c}}", 2),
        ("${x=!{a|b}}${if x=a: {1-3}|{1-4}}", 7),
        ("{0::a|b|{c|d}}", 3),
        ("${x=!{a|b}}${if x=a: {1-3}|c}{0-1000000}", 4 * 1_000_001),
        ("{harbor:boats.tall} ${if #sail: {a|b}|c}", 3),
    ],
)
def test_counts_are_exact_and_enumerated(library: WildcardLibrary, template: str, number: int) -> None:
    assert library.count(template) == number
    if number < 1000:
        assert len(list(library.enumerate(template))) == number


def test_counting_a_space_that_cannot_be_summed_says_so(library: WildcardLibrary) -> None:
    with pytest.raises(LunaError) as caught:
        library.count("${x=!{0-1000000}}${if x=3: a|b}")
    assert caught.value.code == "limit"


def test_enumeration_turns_the_last_site_fastest(library: WildcardLibrary) -> None:
    assert [result.text for result in library.enumerate("{a|b}{x|y}", 4)] == ["ax", "ay", "bx", "by"]
    assert [result.text for result in library.enumerate("{a|b}{x|y}", 9, start=2)] == ["bx", "by"]


def test_batches_repeat_or_are_distinct(library: WildcardLibrary) -> None:
    batch = library.expand_many("__mood__", 10, 7, unique=False)
    assert len(batch) == 10
    assert [library.expand("__mood__", seed, index=at).text for at, seed in enumerate(batch.seeds)] == [
        result.text for result in batch
    ]
    unique = library.expand_many("__mood__", 10, 7)
    assert {result.text for result in unique} == {"calm", "grim", "soft"}
    assert unique.distinct_total == 3
    assert [found.code for found in unique.diagnostics] == ["space-exhausted"]
    assert len(library.expand_many("{1-100000}", 50, 1)) == 50


def test_the_fingerprint_follows_only_reachable_files(folder: Path) -> None:
    library = WildcardLibrary.load(folder)
    before = library.fingerprint("{harbor}"), library.expand("{harbor}", 3).fingerprint
    (folder / "other.txt").write_text("x\n", "utf-8")
    library.refresh()
    assert (library.fingerprint("{harbor}"), library.expand("{harbor}", 3).fingerprint) == before
    (folder / "coast" / "mood.txt").write_text("stormy\n", "utf-8")
    library.refresh()
    assert library.fingerprint("{harbor}") != before[0]


@pytest.mark.parametrize(
    ("template", "values"),
    [("{name} [x]", {"name [x]"}), ("{2$$a|b}", {"a,b", "b,a"}), ("{3-8}", {"3-8"})],
)
def test_the_dynamicprompts_profile(library: WildcardLibrary, template: str, values: set[str]) -> None:
    assert {library.expand(template, seed, profile="dynamicprompts").text for seed in range(30)} == values


def test_limits_keep_the_rest_as_written(library: WildcardLibrary) -> None:
    result = library.expand("{a|b}" * 100_050, 0)
    assert result.text.endswith("{a|b}")
    assert "limit" in codes(result)
