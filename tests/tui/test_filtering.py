"""The filter grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_tui import filtering

ROW = {"name": "ponyDiffusionV6XL", "arch": "sdxl", "note": "comfy:8188 uses fp8"}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("pony", True),
        ("PONY", False),
        ("ponyD", True),
        ("pony sdxl", True),
        ("pony flux", False),
        ("flux|sdxl", True),
        ("!flux", True),
        ("!pony", False),
        ("arch:sdxl", True),
        ("arch:pony", False),
        ("!arch:flux", True),
        ("~V\\dXL$", True),
        ("~^sdx$ arch:xl", False),
        ("arch:~^sdxl$", True),
        ("comfy:8188", True),
        ("nocolumn:sdxl", False),
    ],
)
def test_filter(text: str, passes: bool) -> None:  # noqa: FBT001 - a column of the table above
    assert filtering.parse(text, tuple(ROW)).matches(ROW) is passes


def test_a_broken_regex_is_told_and_taken_as_text() -> None:
    parsed = filtering.parse("~[", ("name",))
    assert parsed.problem is not None
    assert parsed.matches({"name": "a~[b"})


@given(st.text(), st.dictionaries(st.sampled_from(["name", "note"]), st.text(), min_size=2))
def test_any_text_is_a_filter(text: str, row: dict[str, str]) -> None:
    filtering.parse(text, ("name", "note")).matches(row)


@given(st.text(alphabet="abc", min_size=1, max_size=4), st.text(alphabet="abc", max_size=8))
def test_not_is_the_opposite(word: str, cell: str) -> None:
    row = {"name": cell}
    assert filtering.parse(word, ("name",)).matches(row) is not filtering.parse(f"!{word}", ("name",)).matches(row)
