"""The parser: spans tile the text, odd input stays text, everything is linear."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.wildcards import WildcardLibrary, parse
from luna_engine.wildcards.syntax import (
    Braces,
    Kept,
    Multi,
    Number,
    Tag,
    Text,
    Variable,
    Variant,
    Wildcard,
    Wrapper,
    children,
)

CONSTRUCTS = [
    "{oak|elm|}",
    "{2$$ and $$a|b|c}",
    "{3-8}",
    "{0.2-0.65:0.15}",
    "__coast/mood__",
    "__mood(time=night, x=!{a|b})__",
    "{harbor: a [boats.tall] off the [piers]}",
    "{harbor:boats.small}",
    "<lora:ink__wash__v2:{0.5-1}>",
    "${x=!{a|b}}",
    "${x:default}",
    "${if x=1 and not #tag: a | b}",
    "%{a ... b$$__mood__}",
    "\\{oak\\}",
    "# a comment\n",
    '{"k": 1}',
    "[from:to:0.4]",
    "((word:1.2))",
    "{@a|2::b}",
    "{2$$, $$3#__mood__|x}",
    " ünï ",
    "\r\n",
    "{",
    "}",
    "__",
    "$$",
    "|",
    "::",
    "\\",
    "\ufeff",
]
texts = st.lists(st.sampled_from(CONSTRUCTS) | st.text(max_size=6), max_size=12).map("".join)
mutated = st.tuples(texts, st.integers(0, 200), st.text(alphabet="{}[]|_$%\\#<>:()@!~ a\n", max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
)


def check_tiling(nodes: Any, start: int, end: int) -> None:
    """Sibling spans touch each other and fill [start, end)."""
    at = start
    for node in nodes:
        assert node.start == at
        assert node.end > at
        at = node.end
    assert at == end


def check_deep(nodes: Any) -> None:
    """Children lie inside their parents, in order."""
    for node in nodes:
        inside = children(node)
        for child in inside:
            assert node.start <= child.start < child.end <= node.end
        check_deep(inside)


@given(texts | mutated)
@settings(max_examples=300, deadline=None)
def test_spans_tile_the_text(text: str) -> None:
    parsed = parse(text)
    check_tiling(parsed.nodes, 0, len(parsed.text))
    assert "".join(parsed.text[node.start : node.end] for node in parsed.nodes) == parsed.text
    check_deep(parsed.nodes)


@given(texts | mutated, st.sampled_from(["native", "dynamicprompts", "impact"]))
@settings(max_examples=200, deadline=None)
def test_every_profile_reads_anything(text: str, profile: str) -> None:
    parsed = parse(text, profile)
    check_tiling(parsed.nodes, 0, len(parsed.text))


@given(texts | mutated, st.integers(-5, 5))
@settings(max_examples=200, deadline=None)
def test_expanding_anything_gives_an_answer(text: str, seed: int) -> None:
    library = WildcardLibrary.load()
    result = library.expand(text, seed)
    for choice in result.choices:
        if choice.span is not None:
            assert result.text[slice(*choice.span)] == choice.value
        assert choice.parent is None or result.choices[choice.parent] is not choice


@pytest.mark.parametrize(
    "text",
    [
        "(w:1.2)",
        "((w))",
        "[from:to:0.4]",
        "[a|b]",
        "<lora:x:0.8>",
        "embedding:x",
        "a AND b BREAK c",
        r"\(smile\)",
        "https://example.org/a__b",
        "50% off",
        "$9",
        "C#",
        "a :: b",
        "stray } brace",
        "_ | _",
        "  two  blanks,, and\ttabs\n\n",
        "<lora:ink__wash__v2:0.7>",
        "say __hello",
        r"a\\b",
        "plain",
    ],
)
def test_comfyui_text_comes_out_byte_for_byte(text: str) -> None:
    result = WildcardLibrary.load().expand(text)
    assert result.text == text
    assert all(found.severity.value == "hint" for found in result.diagnostics)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{willow|rowan}", Variant),
        ("{2$$a|b}", Multi),
        ("{1-2$$|$$a|b}", Multi),
        ("{3-8}", Number),
        ("{3 - 8}", Braces),
        ("{harbor}", Braces),
        ("__a b-c__", Wildcard),
        ("<lora:x:1>", Tag),
        ("${x}", Variable),
        ("%{a...$$b}", Wrapper),
        ("{2$$}", Kept),
        ("100%{pine|oak}", (Text, Variant)),
        ("{<lora:a__b__c:1>}", Braces),
    ],
)
def test_what_a_body_is(text: str, kind: Any) -> None:
    nodes = parse(text).nodes
    kinds = kind if isinstance(kind, tuple) else (kind,)
    assert tuple(type(node) for node in nodes) == kinds


def test_only_the_nearest_underscores_belong_to_a_name() -> None:
    first, name, last = parse("___x___").nodes
    assert (first.value, name.name, last.value) == ("_", "x", "_")


def test_a_separator_may_be_a_bar() -> None:
    multi = parse("{2$$|$$a|b}").nodes[0]
    assert multi.separator == "|"
    assert len(multi.options) == 2


def test_bars_in_brackets_do_not_split_unless_the_bracket_is_open() -> None:
    assert len(parse("{[a|b]|c}").nodes[0].options) == 2
    assert len(parse("{[a|c}").nodes[0].options) == 2


def test_escapes_vanish_and_others_stay() -> None:
    assert WildcardLibrary.load().expand(r"\{oak\} {\~a|\~a} \(x\) \\ \_").text == r"{oak} ~a \(x\) \\ _"


def test_comment_lines_go_and_places_stay_true() -> None:
    parsed = parse("# note\nfirst\n#no\nsec {\n")
    assert parsed.text == "first\nsec {\n"
    brace = next(finding for finding in parsed.findings if finding.code == "syntax")
    assert parsed.line_column(brace.start) == (4, 5)
    assert any(finding.code == "comment" for finding in parsed.findings)


def test_braces_deeper_than_a_hundred_are_text() -> None:
    parsed = parse("{a|" * 150 + "x" + "}" * 150)
    assert [finding.code for finding in parsed.findings] == ["limit"]


@pytest.mark.parametrize(
    "text",
    [
        "{" * 1_000_000,
        "}" * 1_000_000,
        "<a:" * 300_000,
        "__a(" * 200_000,
        "[" * 1_000_000,
        "__" * 500_000,
        "\\" * 1_000_000,
        "{a|" * 200_000 + "}" * 200_000,
        "{a:" * 200_000 + "}" * 200_000,
        "{" + "a|" * 500_000 + "}",
        "{a:" * 99 + "x" * 900_000 + "}" * 99,
    ],
    ids=lambda text: text[:4],
)
def test_hostile_text_is_read_in_bounded_time(text: str) -> None:
    started = time.process_time()
    WildcardLibrary.load().expand(text)
    assert time.process_time() - started < 20  # the bar is 3 s of CPU on an idle machine; this catches quadratic code


def test_a_text_beyond_the_limit_stays_as_written() -> None:
    text = "{a|b}" * 300_000
    result = WildcardLibrary.load().expand(text)
    assert result.text == text
    assert [found.code for found in result.diagnostics] == ["limit"]
