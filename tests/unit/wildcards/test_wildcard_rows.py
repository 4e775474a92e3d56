"""The quick YAML reader gives the tree that libyaml gives, or hands the file over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luna_engine.wildcards.build import build
from luna_engine.wildcards.decode import decode
from luna_engine.wildcards.model import NOTHING, Branch, Document, Kind, Place
from luna_engine.wildcards.rows import read_rows
from luna_engine.wildcards.tree_events import RefusedFile, read_yaml

PLAIN = (
    "# head\n\ncolour:\n  warm:\n  - red\n  - 3::deep red\n\n  # cool ones\n  cool:\n    - blue-green\n"
    "    - 'sky: pale'\n"
    '    - "quoted # text"\n    - (ice:1.2) <lora:x:0.8> {a|b}\n    - зима, 冬\n'
    '  none:\nmore words:\n- 12\n- no\n- ""\n'
)
LINES = [
    "a:", "b:", "a b:", "  c:", "  d:", "    e:", "templates:", "type:", "- one", "- two words", "  - x: y", "  - one",
    "  - two", "    - deep", "- 3::w", "-  wide", "-", "- -1", "- 'q'", "- 'it''s'", '- "d"', '- "e\\n"', "# c",
    "  # c", "", "   ", "- a #cut", "- a#b", "- a: b", "- a:b", "- http://x", "- a:", "key: value", "k: [a, b]", "---",
    "...", "  more text", "- {a|b}", "- &x a", "- *x", "- ~", "- é", "<<:", "- |", "    block", "- ? a", "'q k':", "0:",
    "no:",
    "- \u2028", "- a\x85b", "- tab\t", "\t- a", "- ::x", "- 2000000000::x", "- -1::x", "? a", ": b", "- @a", "- %a",
]  # fmt: skip


def shown(place: Place | None) -> Any:
    """Return all that a tree says, places included."""
    if place is None:
        return None
    if isinstance(place, Branch):
        own = shown(place.own) if place.own else None
        return ("branch", place.keys, place.line, place.column, own, [shown(one) for one in place.entries.values()])
    items = [
        (item.text, item.line, item.column, item.text_column, item.weight, item.item_id, item.tags)
        for item in place.items
    ]
    return ("list", place.keys, place.line, place.column, items)


def document(kind: Kind = Kind.YAML) -> Document:
    return Document("f.yaml", 0, kind, lambda _: NOTHING)


def agree(data: bytes) -> bool:
    """Compare the readers; return whether the quick one took the file."""
    quick = read_rows(document(), data)
    if quick is None:
        return False
    decoded = decode(data, "f.yaml")
    content = build(document(), read_yaml(decoded.text, "f.yaml"), decoded.text)
    assert shown(quick) == shown(content.top)
    assert content.diagnostics == decoded.diagnostics == ()
    assert not content.is_rules
    for place in [quick, *quick.entries.values()]:
        if not isinstance(place, Branch) and not isinstance(place.items, list):
            assert [place.items.text(at) for at in range(len(place.items))] == [item.text for item in place.items]  # type: ignore[attr-defined]
    return True


def test_the_plain_subset_is_taken() -> None:
    assert agree(PLAIN.encode())
    assert agree(PLAIN.removesuffix("\n").encode())


@pytest.mark.parametrize("line", LINES)
def test_any_line_anywhere_gives_an_equal_tree_or_is_handed_over(line: str) -> None:
    rows = PLAIN.splitlines()
    for at in range(len(rows) + 1):
        data = "\n".join([*rows[:at], line, *rows[at:]]).encode("utf-8", "surrogatepass")
        try:
            agree(data)
        except RefusedFile:
            pytest.fail(f"libyaml refuses what the quick reader took: {data!r}")


@given(
    st.lists(st.sampled_from(LINES), max_size=14), st.sampled_from(["\n", "\r\n", "\n\n"]), st.sampled_from(["", "\n"])
)
@example(["a:", "  c:", "    - deep", "  d:"], "\n", "\n")
@settings(max_examples=600, deadline=None)
def test_any_lines_give_an_equal_tree_or_are_handed_over(lines: list[str], newline: str, end: str) -> None:
    agree((newline.join(lines) + end).encode())


@given(st.binary(max_size=40), st.integers(0, len(PLAIN.encode())))
@settings(max_examples=200, deadline=None)
def test_any_bytes_inside_give_an_equal_tree_or_are_handed_over(odd: bytes, at: int) -> None:
    text = PLAIN.encode()
    agree(text[:at] + odd + text[at:])


def test_rule_files_are_left_to_libyaml() -> None:
    rules = Document("tags_a.yaml", 0, Kind.YAML, lambda _: NOTHING)
    assert read_rows(rules, b"a:\n- b\n") is None
