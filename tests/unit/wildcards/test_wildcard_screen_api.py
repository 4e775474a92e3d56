"""What screens and nodes ask a library for: odds, steps, completions, uses."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.wildcards import WildcardLibrary


def odds(library: WildcardLibrary, template: str, top: int = 50) -> list[dict[str, str]]:
    return [
        {share.text: str(share.probability) for share in site.shares} for site in library.probabilities(template, top)
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{oak|2::{elm|fir}} and {oak|oak}", [{"oak": "1/3", "elm": "1/3", "fir": "1/3"}, {"oak": "1"}]),
        ("__mood__ {harbor:boats}", [{"grim": "1/2", "calm": "1/4", "soft": "1/4"}, None]),
        ("{harbor:boats}", [{"schooner": "6/11", "skiff": "2/11", "dinghy": "2/11", "brig": "1/11"}]),
        ("{harbor:boats.tall.brig-1}", [{"brig": "1"}]),
        ("{2$$+$$a|b|2::c}", [{"a+b": "1/12", "a+c": "1/6", "b+a": "1/12", "b+c": "1/6", "c+a": "1/4", "c+b": "1/4"}]),
        ("{1-2$$+$$a|b}", [{"a": "1/4", "b": "1/4", "a+b": "1/4", "b+a": "1/4"}]),
        ("${t=!{x|y}}${t}", [{"x": "1/2", "y": "1/2"}]),
        ("${t={x|y}}${t}{1-2}", [{"x": "1/2", "y": "1/2"}, {"1": "1/2", "2": "1/2"}]),
        ("%{a ... b$${c|d}}", [{"a c b": "1/2", "a d b": "1/2"}]),
        ("<lora:ink:{0.5|1.0}> [a|b] __nothing__ {k 1}", [{"0.5": "1/2", "1.0": "1/2"}]),
        ("{harbor: a [boats.small] off {weather:sky}}", [None]),
        ("plain", []),
    ],
)
def test_odds_are_exact_with_nested_draws_multiplied_out(
    library: WildcardLibrary, template: str, expected: list[dict[str, str] | None]
) -> None:
    found = odds(library, template)
    assert len(found) == len(expected)
    for site, wanted in zip(found, expected, strict=True):
        assert wanted is None or site == wanted
    for site in library.probabilities(template):
        assert sum((share.probability for share in site.shares), site.rest) == 1


@pytest.mark.parametrize(
    "template", ["{harbor}", "{oak|{elm|{1-3}}}__coast/*__", "{2$$ $${a|b}|c|__mood__}", "{2$$, $$__coast/boats__}"]
)
def test_the_odds_name_every_text_there_is(library: WildcardLibrary, template: str) -> None:
    texts = {""}
    for site in library.probabilities(template, top=10_000):
        assert site.is_exact
        assert site.rest == 0
        texts = {text + share.text for text in texts for share in site.shares}
    assert texts == {result.text for result in library.enumerate(template)}


def test_the_tail_is_summed(library: WildcardLibrary) -> None:
    [site] = library.probabilities("{1-1000000}", top=3)
    assert [share.text for share in site.shares] == ["1", "2", "3"]
    assert site.rest == Fraction(999_997, 1_000_000)


def test_equal_sites_have_names_of_their_own(library: WildcardLibrary) -> None:
    names = [site.site for site in library.probabilities("{a|b} {a|b}")]
    assert names == [choice.site for choice in library.expand("{a|b} {a|b}").choices]


def test_what_depends_on_earlier_draws_is_not_called_exact(library: WildcardLibrary) -> None:
    *_, site = library.probabilities("${t=!{x|y}}${if t=x: a | b}")
    assert not site.is_exact
    assert [share.text for share in site.shares] == ["${if t=x: a | b}"]


def test_steps_show_one_draw_after_the_other(library: WildcardLibrary) -> None:
    template = "{oak|{elm|fir}} {2$$ and $$a|b|c} __mood__"
    states = list(library.steps(template, 1))
    assert states[0].text == template
    assert states[0].choices == ()
    assert states[-1].text == library.expand(template, 1).text
    assert states[-1].choices == library.expand(template, 1).choices
    seen = 0
    for state in states:
        assert state.first_new == seen
        seen = len(state.choices)
        for choice in state.choices:
            assert choice.span is None or state.text[slice(*choice.span)] == choice.value


def test_steps_of_a_text_without_draws_are_one(library: WildcardLibrary) -> None:
    assert [state.text for state in library.steps("plain")] == ["plain"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a __ha", "coast/harbor__"),
        ("__mood__ and __coast/wea", "coast/weather__"),
        ("{har", "coast/harbor}"),
        ("{harbor:boats.sm", "boats.small}"),
        ("{harbor: a [pi", "piers]"),
        ("{a|__mo", "coast/mood__"),
        ("{coast:wea", "weather}"),
        ("${season=winter} ${se", "season}"),
    ],
)
def test_completions_fit_what_is_typed(library: WildcardLibrary, text: str, wanted: str) -> None:
    first = library.complete(text, len(text))[0]
    assert first.text == wanted
    whole = text[: first.start] + first.text + text[first.end :]
    whole += "}" * (whole.count("{") - whole.count("}"))
    assert [found.code for found in library.expand(whole).diagnostics] == []


def test_completion_does_not_double_a_closing_mark(library: WildcardLibrary) -> None:
    first = library.complete("{har}", 4)[0]
    assert (first.text, first.start, first.end) == ("coast/harbor", 1, 4)


@pytest.mark.parametrize("text", ["ok", "__mood__ a", r"\{har", "a line\n", "{a|"])
def test_nothing_is_proposed_where_nothing_is_open(library: WildcardLibrary, text: str) -> None:
    assert library.complete(text, len(text)) == ()


def test_a_files_own_paths_complete_in_it(library: WildcardLibrary, folder: Path) -> None:
    text = "a [boats.t"
    assert library.complete(text, len(text)) == ()
    found = library.complete(text, len(text), file=folder / "coast" / "harbor.yaml")
    assert [one.text for one in found] == ["boats.tall]"]


def test_uses_are_found_with_their_places(library: WildcardLibrary) -> None:
    uses = library.where_used("harbor:boats.small", ["{harbor:boats.small} __boats__ {harbor:piers}"])
    assert [(use.reference, use.file, use.line, use.column, use.is_direct) for use in uses] == [
        ("{harbor:boats.small}", None, 1, 1, True),
        ("__boats__", None, 1, 22, False),
        ("[boats.small]", "coast/harbor.yaml", 2, 11, True),
    ]
    assert uses[-1].address == "coast/harbor:templates.view"


def test_a_text_file_is_used_by_name_and_by_glob(library: WildcardLibrary) -> None:
    uses = library.where_used("mood", ["__coast/*__"])
    assert [(use.reference, use.is_direct) for use in uses] == [("__coast/*__", False), ("__mood__", True)]
    assert library.where_used("nothing") == ()
