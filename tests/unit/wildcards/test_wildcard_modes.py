"""Modes of a batch: enumerate from anywhere by arithmetic, cycle, bag."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.errors import LunaError
from luna_engine.wildcards import WildcardLibrary
from luna_engine.wildcards.choosers import Bag

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATES = [
    "{a|{b|c}} {1-3} x",
    "{harbor}",
    "{2$$ $${a|b}|c|__mood__}",
    "{1-3$$ $$a|b|c}{d|e}",
    "{2$$, $$__coast/boats__} {x|y}",
    "{2$$2#__mood__}",
    "${v={a|b}}${v}${v}{c|d}",
    "${v=!{a|{b|c}}}${v} {d|e} ${v}",
    "${u:{a|b}} {harbor: a [boats.small] off {weather:sky}}",
    "%{a {x|y} ... z$${1-3}} <lora:{p|q}:{1|2}>",
    "{harbor:boats.tall.brig-1} __coast/*__ [x]",
    "{}{k 1} {0-2$$+$$a|b}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_enumeration_begins_anywhere_without_walking(library: WildcardLibrary, template: str) -> None:
    whole = [result.text for result in library.enumerate(template)]
    assert len(whole) == library.count(template)
    for start in {0, 1, len(whole) // 3, len(whole) - 1}:
        found = [(result.text, result.index) for result in library.enumerate(template, 3, start=start)]
        assert found == [(text, start + at) for at, text in enumerate(whole[start : start + 3])]
    assert list(library.enumerate(template, 3, start=len(whole))) == []


def test_a_start_far_into_a_huge_space_costs_nothing(library: WildcardLibrary) -> None:
    template = "{1-1000000} {1-1000000} {5$$ $${a|b}|c|d|e|f|g|h|i} __mood__"
    total = library.count(template)
    first, second = library.enumerate(template, 2, start=total - 2)
    assert first.text.startswith("1000000 1000000 ")
    assert (first.text.rsplit(" ", 1)[1], second.text.rsplit(" ", 1)[1]) == ("grim", "soft")
    assert [draw.text for draw in library.expand_many(template, 2, mode="enumerate", start=total - 2)] == [
        first.text,
        second.text,
    ]


def test_what_depends_on_earlier_draws_is_walked(library: WildcardLibrary) -> None:
    template = "${t=!{x|y}}${if t=x: {a|b} | c}"
    whole = [result.text for result in library.enumerate(template)]
    assert whole == ["a", "b", "c"]
    assert [result.text for result in library.enumerate(template, start=1)] == ["b", "c"]


def test_a_lazy_text_file_is_enumerated_from_anywhere(tmp_path: Path) -> None:
    lines = [f"line {at}" for at in range(50)]
    lines[7], lines[30] = "{a|b|c}", "{d|e}"
    (tmp_path / "long.txt").write_text("\n".join(lines), "utf-8")
    library = WildcardLibrary.load(tmp_path)
    whole = [result.text for result in library.enumerate("__long__")]
    assert len(whole) == 53
    for start in range(53):
        assert next(library.enumerate("__long__", start=start)).text == whole[start]


def test_cycling_moves_every_site_at_once(library: WildcardLibrary) -> None:
    batch = library.expand_many("{a|b|c} __mood__ {2$$$$p|q|r|s}", 4, unique=False, mode="cycle")
    assert [result.text for result in batch] == ["a calm pq", "b grim rs", "c soft pq", "a calm rs"]


@pytest.mark.parametrize("template", ["{a|b|c|d|e}", "__coast/boats__", "{1-7}", "x{5::a|b|c}"])
@pytest.mark.parametrize("seed", [0, 1, 7, -3])
def test_a_bag_gives_each_candidate_once_a_round(library: WildcardLibrary, template: str, seed: int) -> None:
    size = library.count(template)
    texts = [result.text for result in library.expand_many(template, 4 * size, seed, unique=False, mode="bag")]
    for at in range(0, len(texts), size):
        assert len(set(texts[at : at + size])) == size
    assert all(one != other for one, other in pairwise(texts))
    again = library.expand_many(template, size, seed, unique=False, mode="bag", start=size)
    assert [result.text for result in again] == texts[size : 2 * size]


def test_picks_of_a_bag_are_different_and_use_everything(library: WildcardLibrary) -> None:
    batch = library.expand_many("{2$$ $$a|b|c|d|e}", 10, 3, unique=False, mode="bag")
    words = [result.text.split() for result in batch]
    assert all(len(set(pair)) == 2 for pair in words)
    assert sorted(word for pair in words for word in pair) == sorted("abcde" * 4)


def test_nested_sites_have_bags_of_their_own(library: WildcardLibrary) -> None:
    texts = [result.text for result in library.expand_many("{x|{a|b|c}}", 12, 1, unique=False, mode="bag")]
    assert texts.count("x") == 6
    assert sorted(text for text in texts if text != "x") == sorted("abc" * 2)


def test_a_bag_cannot_begin_too_far_in(library: WildcardLibrary) -> None:
    with pytest.raises(LunaError, match="a bag can begin at"):
        library.expand_many("{a|b}", 1, mode="bag", start=10**6)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 2**64 - 1), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_every_round_of_a_bag_is_a_permutation(weights: list[int], key: int, width: int) -> None:
    bag = Bag(key, weights)
    width = min(width, len(weights))
    taken = [bag.take(width) for _ in range(3 * len(weights))]
    assert all(len(set(group)) == width for group in taken)
    flat = [at for group in taken for at in group]
    assert {flat.count(at) for at in range(len(weights))} == {3 * width}


def test_a_bag_of_a_huge_range_draws_only_what_is_needed() -> None:
    bag = Bag(5, 10**30)
    assert len({at for group in islice(iter(lambda: tuple(bag.take(1)), None), 200) for at in group}) == 200
