"""Edits of wildcard files: exactly the intended change, every other byte as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.errors import LunaError
from luna_engine.wildcards import WildcardLibrary, edits
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.splices import FileText

if TYPE_CHECKING:
    from pathlib import Path

PACK = """\
# harbour, kept by hand
boats:   # what floats
    small:
    - skiff      # two oars
    - 'dinghy'

    # the big ones
    tall: [ schooner, "3::brig" ]
    none:
piers:
  - stone pier
  - {value: old pier, weight: 0.5}
  - |
    block
    pier
  # the last word
notes: single
"""


def items(text: str, kind: Kind = Kind.YAML, keys: tuple[str, ...] = ("boats", "small")) -> FileText:
    del keys
    return FileText(text, kind, "pack.yaml")


@pytest.mark.parametrize(
    ("keys", "new", "old_piece", "new_piece"),
    [
        (("boats", "small"), ["raft"], "    - 'dinghy'\n", "    - 'dinghy'\n    - raft\n"),
        (("boats", "tall"), ["a, b"], '"3::brig" ]', "\"3::brig\", 'a, b' ]"),
        (("boats", "none"), ["x"], "    none:\n", "    none:\n      - x\n"),
        (("piers",), ["{red|blue}", "no: 1"], "    pier\n", "    pier\n  - '{red|blue}'\n  - 'no: 1'\n"),
        (("boats", "new"), ["x"], "    none:\n", "    none:\n    new:\n      - x\n"),
        (("a b", "c.d"), ["- x", "#y"], "notes: single\n", "notes: single\na b:\n  c.d:\n    - '- x'\n    - '#y'\n"),
    ],
)
def test_adding_changes_one_place(keys: tuple[str, ...], new: list[str], old_piece: str, new_piece: str) -> None:
    assert items(PACK).add_items(keys, new) == PACK.replace(old_piece, new_piece, 1)


def test_a_new_list_can_be_written_in_brackets() -> None:
    assert items(PACK).add_items(("more", "deep"), ["a", "b, c"], flow=True) == PACK + "more:\n  deep: [a, 'b, c']\n"


@pytest.mark.parametrize(
    ("keys", "line"), [(("notes",), 17), (("boats",), 3), (("notes", "deeper"), 17), (("piers", "deeper"), 11)]
)
def test_what_stands_in_the_way_is_never_replaced(keys: tuple[str, ...], line: int) -> None:
    with pytest.raises(LunaError) as caught:
        items(PACK).add_items(keys, ["x"])
    assert caught.value.code == "edit-shape"
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("keys", "index", "text", "old_piece", "new_piece"),
    [
        (("boats", "small"), 0, "big skiff", "- skiff ", "- big skiff "),
        (("boats", "small"), 1, "it's", "'dinghy'", "'it''s'"),
        (("boats", "tall"), 1, '4::"x"', '"3::brig"', '"4::\\"x\\""'),
        (("piers",), 1, "new: pier", "value: old pier", "value: 'new: pier'"),
        (("piers",), 2, "one line", "|\n    block\n    pier", "one line"),
        (("notes",), 0, "a, b", "single", "a, b"),
    ],
)
def test_replacing_keeps_the_rest(keys: tuple[str, ...], index: int, text: str, old_piece: str, new_piece: str) -> None:
    assert items(PACK).replace_item(keys, index, text) == PACK.replace(old_piece, new_piece, 1)


@pytest.mark.parametrize(
    ("keys", "indices", "old_piece", "new_piece"),
    [
        (("boats", "small"), {0}, "    - skiff      # two oars\n", ""),
        (("boats", "small"), {0, 1}, "    - skiff      # two oars\n    - 'dinghy'\n", ""),
        (("boats", "tall"), {0}, "[ schooner, ", "[ "),
        (("boats", "tall"), {0, 1}, '[ schooner, "3::brig" ]', "[]"),
        (("piers",), {2}, "  - |\n    block\n    pier\n", ""),
    ],
)
def test_removing_takes_whole_lines(keys: tuple[str, ...], indices: set[int], old_piece: str, new_piece: str) -> None:
    assert items(PACK).remove_items(keys, indices) == PACK.replace(old_piece, new_piece, 1)


def test_moving_swaps_lines_and_leaves_comments() -> None:
    moved = items(PACK).move_item(("piers",), 2, 0)
    assert moved == PACK.replace(
        "  - stone pier\n  - {value: old pier, weight: 0.5}\n  - |\n    block\n    pier\n",
        "  - |\n    block\n    pier\n  - stone pier\n  - {value: old pier, weight: 0.5}\n",
    )
    flow = items(PACK).move_item(("boats", "tall"), 0, 1)
    assert flow == PACK.replace('schooner, "3::brig"', '"3::brig", schooner')


def test_renaming_a_key_changes_the_key_alone() -> None:
    assert items(PACK).rename_key(("boats", "small"), "tiny ones") == PACK.replace("small:", "tiny ones:")
    with pytest.raises(LunaError, match="is a key beside it"):
        items(PACK).rename_key(("boats", "small"), "tall")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_missing_last_one_are_kept(newline: str) -> None:
    text = newline.join(["a:", "- x", "b:", "- y"])
    edited = items(text).add_items(("b",), ["z"])
    assert edited == text + newline + "- z"
    assert items(text).add_items(("a",), ["z"]) == newline.join(["a:", "- x", "- z", "b:", "- y"])
    assert items(text).remove_items(("b",), {0}) == newline.join(["a:", "- x", "b:"])


def test_text_files_are_edited_by_line() -> None:
    text = "# head\r\none\r\n\r\n  2::two  \r\nthree"
    made = FileText(text, Kind.TXT, "a.txt")
    assert made.add_items((), ["#four"]) == text + "\r\n\\#four\r\n"
    assert made.replace_item((), 1, "2") == text.replace("2::two", "2")
    assert made.remove_items((), {0, 2}) == "# head\r\n\r\n  2::two  "
    assert made.move_item((), 0, 2) == "# head\r\n2::two\r\n\r\n  three  \r\none"
    with pytest.raises(LunaError, match="cannot be a line"):
        made.add_items((), ["a\nb"])


def test_json_is_edited_too() -> None:
    text = '{\n  "a": [\n    "x",\n    1.50\n  ],\n  "b": {"c": []}\n}\n'
    made = FileText(text, Kind.JSON, "a.json")
    assert made.add_items(("a",), ['q"']) == text.replace("1.50\n", '1.50,\n    "q\\""\n')
    assert made.add_items(("b", "c"), ["z"]) == text.replace("[]", '["z"]')
    assert made.add_items(("b", "d"), ["z"]) == text.replace("[]", '[], "d": ["z"]')
    assert made.remove_items(("a",), {0}) == text.replace('"x",\n    ', "")
    assert made.rename_key(("b",), "e") == text.replace('"b"', '"e"')


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a: &x [1, 2]\nb: *x\n", ("b",)),
        ("a: [1]\na: [2]\n", ("a",)),
        ("--- \na: [1]\n---\nb: [2]\n", ("a",)),
        ("a: [1\n", ("a",)),
        ("a:\n- - 1\n", ("a", "b")),
    ],
)
def test_what_cannot_be_spliced_safely_is_refused(text: str, keys: tuple[str, ...]) -> None:
    with pytest.raises(LunaError):
        items(text).add_items(keys, ["x"])


WORDS = st.text(st.sampled_from("ab :#-'\"{}[],|>&*!%@é\t"), min_size=1, max_size=8).filter(lambda text: text.strip())


@given(st.lists(st.tuples(st.sampled_from(["add", "replace", "remove", "move"]), WORDS, st.integers(0, 5)), max_size=6))
@settings(max_examples=120, deadline=None)
def test_any_edits_leave_every_other_list_alone(plan: list[tuple[str, str, int]]) -> None:
    text = PACK
    wanted = ["skiff", "dinghy"]
    keys = ("boats", "small")
    for what, word, number in plan:
        made = FileText(text, Kind.YAML, "pack.yaml")
        at = number % len(wanted) if wanted else 0
        if what == "add":
            text = made.add_items(keys, [word])
            wanted.append(word)
        elif wanted and what == "replace":
            text = made.replace_item(keys, at, word)
            wanted[at] = word
        elif len(wanted) > 1 and what == "remove":
            text = made.remove_items(keys, {at})
            del wanted[at]
        elif wanted and what == "move":
            text = made.move_item(keys, at, 0)
            wanted.insert(0, wanted.pop(at))
        head, tail = PACK.split("    small:\n", maxsplit=1)[0], PACK[PACK.index("    # the big ones") :]
        assert text.startswith(head)
        assert text.endswith(tail)
    assert wanted == (WildcardTexts(text).small() if wanted else [])


class WildcardTexts:
    """The items of ``boats.small`` as the splicer reads them."""

    def __init__(self, text: str) -> None:
        made = FileText(text, Kind.YAML, "pack.yaml")
        self.node = made.list_at(("boats", "small"))

    def small(self) -> list[str]:
        return [getattr(entry, "value", "") for entry in self.node.entries]


def test_adding_skips_what_is_there_and_writes_once(library: WildcardLibrary, folder: Path) -> None:
    edit = edits.add_items(library, "harbor:boats.small", ["Skiff", "raft", "2::dinghy", "raft"])
    assert edit.skipped == ("Skiff", "2::dinghy", "raft")
    before = (folder / "coast" / "harbor.yaml").read_text("utf-8")
    assert "+  small: [skiff, dinghy, raft]" in edit.diff()
    edits.apply_edit(edit)
    assert (folder / "coast" / "harbor.yaml").read_text("utf-8") == before.replace("dinghy]", "dinghy, raft]")
    assert library.refresh()
    assert [item.text for item in library.items("harbor:boats.small")] == ["skiff", "dinghy", "raft"]


def test_a_file_changed_meanwhile_is_a_conflict(library: WildcardLibrary, folder: Path) -> None:
    edit = edits.add_items(library, "mood", ["glad"])
    (folder / "coast" / "mood.txt").write_bytes(b"other\n")
    with pytest.raises(LunaError) as caught:
        edits.apply_edit(edit)
    assert caught.value.code == "conflict"
    assert (folder / "coast" / "mood.txt").read_bytes() == b"other\n"


def test_a_bom_stays_and_other_encodings_are_refused(folder: Path) -> None:
    (folder / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: [x]\r\n")
    (folder / "odd.yaml").write_bytes(b"a: [caf\xe9]\n")
    library = WildcardLibrary.load(folder)
    edits.apply_edit(edits.add_items(library, "bom:a", ["y"]))
    assert (folder / "bom.yaml").read_bytes() == b"\xef\xbb\xbfa: [x, y]\r\n"
    with pytest.raises(LunaError) as caught:
        edits.add_items(library, "odd:a", ["y"])
    assert caught.value.code == "encoding"


def test_an_unsaved_overlay_is_a_conflict(library: WildcardLibrary, folder: Path) -> None:
    library.overlay(folder / "coast" / "mood.txt", "new")
    with pytest.raises(LunaError) as caught:
        edits.remove_items(library, "mood", [0])
    assert caught.value.code == "conflict"


def test_a_rename_takes_the_references_along(library: WildcardLibrary, folder: Path) -> None:
    (folder / "prompts.txt").write_text(
        "a {harbor:boats.small}\n__boats/small__ __small__\nsmall {harbor:boats}\n", "utf-8"
    )
    library.refresh()
    plan = edits.rename_key(library, "harbor:boats.small", "tiny")
    assert [use.reference for use in plan[0].uses] == [
        "[boats.small]",
        "{harbor:boats.small}",
        "__boats/small__",
        "__small__",
    ]
    for edit in plan:
        edits.apply_edit(edit)
    assert (folder / "prompts.txt").read_text("utf-8") == (
        "a {harbor:boats.tiny}\n__boats/tiny__ __tiny__\nsmall {harbor:boats}\n"
    )
    library.refresh()
    assert library.lint(["{harbor:boats.tiny}"]) == []
    assert "small" not in (folder / "coast" / "harbor.yaml").read_text("utf-8")


def test_a_branch_in_the_middle_can_be_renamed(library: WildcardLibrary, folder: Path) -> None:
    (folder / "prompts.txt").write_text("{harbor:boats.tall.brig-1} __coast/harbor/boats/tall__\n", "utf-8")
    library.refresh()
    for edit in edits.rename_key(library, "harbor:boats", "ships"):
        edits.apply_edit(edit)
    text = (folder / "prompts.txt").read_text("utf-8")
    assert text == "{harbor:ships.tall.brig-1} __coast/harbor/ships/tall__\n"


def test_pasted_text_is_split_at_commas_outside_brackets() -> None:
    text = "red, (blue, sky:1.2); {a, b|c}\n\"quoted\" ,, 'x'\n"
    assert edits.split_texts(text) == ("red", "(blue, sky:1.2)", "{a, b|c}", "quoted", "x")
    assert edits.split_texts("dark red", underscores=True) == ("dark_red",)
