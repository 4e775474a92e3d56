"""The quick way through an expansion gives what the long way gives, to the last character, choice and diagnostic."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.wildcards import Profile, Root, WildcardLibrary
from luna_engine.wildcards.drawing import MOST_DRAWS

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "woods.yaml": (
        "templates: ['[tall.big] by {2$$ and $$__ground__|a brook|{mood}}', plain]\n"
        "tall:\n  big: [3::oak, 'an {elm|2::{fir|__bush__}}', {value: ash, weight: 0.5, tags: [old], id: a}]\n"
        "  small: ['__woods/tall/small__ twig', '<lora:{x|y}:0.{4-7}> {1-3$$ $$[tall.big]|b|}', shrub]\n"
        "odd: ['{nofile}', '${c=!{p|q}}${c}', '{@k|l}', '\\{braces\\}', 'a {1-5}']\n"
    ),
    "sub/ground.txt": "moss\n2::fern __mood__\n# no\n\nrock __bush__ and __bush__\n{s|t} [tall.big]\na_b __mood__\n",
    "sub/bush.txt": "briar\nsloe {woods:tall.small}\n",
    "mood.txt": "calm\n0::never\n0.5::grim\nsoft __sub/bush__\n",
    "bad.yaml": "a: [x]\na: [y]\n",
}
PIECES = [
    "a tree, ",
    "[tall.big] ",
    "(w:1.2) ",
    r"\{x\} ",
    "{oak|elm|}",
    "{3::a|b {c|d} e|0::never}",
    "{oak|elm|}",
    "{2$$ and $$a|b|c}",
    "{0-2$$, $$a {x|y}|a {x|y}|__mood__|}",
    "{2$$+$$__sub/*__}",
    "{1-2$$__mood__}",
    "{2-9$$__mood__}",
    "{2$$3#__mood__}",
    "{2$${a|b}}",
    "{1-100}",
    "{0-10000000000}",
    "{0.2-0.65:0.15}",
    "__mood__",
    "__mood__",
    "__woods__",
    "__sub__",
    "__tall/*__",
    "__nothing__",
    "{woods}",
    "{woods:tall.big}",
    "{woods:tall}",
    "{woods:tall.big.a}",
    "{woods:odd}",
    "{woods: a [tall.small], {p|q} [tall.big]}",
    "<lora:ink__mood__v2:0.{4-6}>",
    "<lora:__mood__:1>",
    "{@a|b}",
    "__!mood__",
    "${v={a|b}}",
    "${v}",
    "{bad:a}",
    "{unclosed ",
    "\r\n",
    "{a\r\n|b}",
]


@pytest.fixture(scope="module", params=["native", "dynamicprompts", "impact"])
def woods(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WildcardLibrary:
    folder: Path = tmp_path_factory.mktemp("woods")
    (folder / "sub").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, "utf-8")
    return WildcardLibrary.load(Root(folder, profile=Profile(request.param)))


def both(library: WildcardLibrary, template: str, seed: int, negative: str | None = None) -> tuple[bool, bool]:
    """Return whether both ways agree, and whether the quick one was taken."""
    parts = {"": template} if negative is None else {"": template, "negative": negative}
    taken = library.snapshot.compiler.expand(parts, seed, "native") is not None
    quick = library.expand_parts(parts, seed)
    long = library.expand_parts(parts, seed, most_draws=MOST_DRAWS - 1)
    return quick == long and repr(quick) == repr(long), taken


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(-(2**70), 2**70), st.sampled_from([None, "{a|b}"]))
@settings(max_examples=400, deadline=None)
def test_both_ways_agree(woods: WildcardLibrary, pieces: list[str], seed: int, negative: str | None) -> None:
    assert both(woods, "".join(pieces), seed, negative)[0]


def test_the_quick_way_is_taken_where_it_can_be(woods: WildcardLibrary) -> None:
    rng = random.Random(3)
    compiled = [piece for piece in PIECES if woods.snapshot.compiler.expand({"": piece}, 1, "native") is not None]
    assert len(compiled) > len(PIECES) // 2
    for seed in range(200):
        template = "".join(rng.choices(compiled, k=6))
        assert both(woods, template, seed)[0]


@pytest.mark.parametrize(
    "template", ["__nothing__", "{@a|b}", "${v={a|b}}", "{bad:a}", "{unclosed ", "{nofile}", "{2-9$$__mood__}"]
)
def test_what_is_reported_or_counted_by_index_takes_the_long_way(woods: WildcardLibrary, template: str) -> None:
    assert woods.snapshot.compiler.expand({"": template}, 1, "native") is None


def test_limits_hold_on_the_quick_way(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(
        "".join(f"k{at}: ['a {{deep:k{at + 1}}}']\n" for at in range(300)) + "k300: [x]\n", "utf-8"
    )
    library = WildcardLibrary.load(tmp_path)
    for template, code in (("{deep:k0}", "limit"), ("{" * 90 + "a|b" + "|c}" * 90, None)):
        result = library.expand(template, 1)
        assert [found.code for found in result.diagnostics] == ([code] if code else [])
    many = "{a|b}" * 6_000
    assert len(library.expand(many, 1).text) == 6_000


def test_choices_are_told_only_when_looked_at(woods: WildcardLibrary) -> None:
    result = woods.expand("__woods/tall/big__ {1-3}", 5)
    again = woods.expand("__woods/tall/big__ {1-3}", 5)
    assert result.choices is result.choices
    assert result == again
    assert {result.text: 1}[again.text] == 1
