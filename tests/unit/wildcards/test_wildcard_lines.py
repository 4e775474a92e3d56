"""Text files by offsets give what reading them whole, line by line, would give."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luna_engine.wildcards import WildcardLibrary, read_txt
from luna_engine.wildcards.decode import decode
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import Document, Item, ItemList, Kind
from luna_engine.wildcards.parser import is_plain
from luna_engine.wildcards.read_txt import read_txt as read
from luna_engine.wildcards.weights import read_weight

if TYPE_CHECKING:
    from pathlib import Path

BLANKS = [chr(code) for code in range(0x10FFFF) if chr(code).isspace()]
FRAGMENTS = st.one_of(
    st.sampled_from(
        ["\n", "\n", "\r\n", "\r", "#", "::", "2::", "-1::", "0::", ".5::", "__", "{a|b}", "x", "oak ", "é", "松", "\0"]
    ),
    st.sampled_from(BLANKS),
    st.text(max_size=3),
)


def items_of(data: bytes) -> Lines:
    document = Document("a.txt", 0, Kind.TXT, lambda found: read(found, data))
    top = document.top
    assert isinstance(top, ItemList)
    assert isinstance(top.items, Lines)
    return top.items


def expected(data: bytes) -> list[tuple[str, int, int, int]]:
    """Text, line, column and weight of each item, read in the plainest way."""
    text = decode(data, "a.txt").text
    found = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if line.strip() and not line.startswith("#"):
            weight, start = read_weight(line.strip())
            micro = 1_000_000 if weight is None else weight.micro
            found.append((line.strip()[start:], number, len(line) - len(line.lstrip()) + 1, micro))
    return found


def check(data: bytes) -> None:
    items, wanted = items_of(data), expected(data)
    assert [(item.text, item.line, item.column, item.weight.micro) for item in items] == wanted
    assert list(items.micro or [1_000_000] * len(items)) == [micro for _, _, _, micro in wanted]
    plain = {item.line for item in items if is_plain(item.text)}
    assert {item.line for item in items} - {item.line for item in items.constructs()} <= plain


@given(st.lists(FRAGMENTS, max_size=30).map("".join))
@example("# a\n\u3000\nb\n")
@example("a\n#{b}\n{c}")
@example("\ufeff#c\r\r\n2::d")
def test_items_are_those_of_reading_line_by_line(text: str) -> None:
    check(text.encode("utf-8"))


@given(st.binary(max_size=40))
@example(b"\xff\xfea\0\n\0b\0")
@example(b"\x80\xc3\n\xa0\n")
def test_any_bytes_are_read_like_their_text(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("blank", BLANKS)
def test_a_line_of_any_blank_is_no_item(blank: str) -> None:
    check(f"oak\n{blank}\n{blank}elm".encode())


def test_places_hold_beyond_the_first_block() -> None:
    rows = [f"row {number}" for number in range(20_000)]
    rows[15_000] = "# a comment"
    rows[15_001] = ""
    rows[18_000] = "3::{heavy|light}"
    data = "\n".join(rows).encode()
    assert len(data) > 2 * read_txt._BLOCK_BYTES
    check(data)
    (special,) = items_of(data).constructs()
    assert (special.text, special.line, special.weight.micro) == ("{heavy|light}", 18_001, 3_000_000)


def test_no_item_is_made_that_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Item] = []

    def make(*facts: Any) -> Item:
        made.append(Item(*facts))
        return made[-1]

    monkeypatch.setattr("luna_engine.wildcards.lines.Item", make)
    (tmp_path / "big.txt").write_text("".join(f"{1 + n % 2}::item {n}\n" for n in range(5_000)), "utf-8")
    library = WildcardLibrary.load(tmp_path)
    result = library.expand("__big__", 7)
    assert result.choices[0].pool_size == 5_000
    assert library.count("__big__") == 5_000
    assert result.fingerprint == library.expand("__big__", 7).fingerprint
    assert len(made) == 1
