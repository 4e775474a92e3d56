"""Lines of text files on the quick way: what a name means there, and how much of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.wildcards import WildcardLibrary
from luna_engine.wildcards.drawing import MOST_DRAWS
from luna_engine.wildcards.line_table import LineShelf
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import ItemList

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, **files: str) -> WildcardLibrary:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return WildcardLibrary.load(folder, cache=False)


@pytest.mark.parametrize("order", ["__a/list__ __b/list__ __list__", "__list__ __b/list__ __a/list__"])
def test_a_name_that_a_files_own_folder_has_is_taken_from_there_whoever_asked_before(
    tmp_path: Path, order: str
) -> None:
    line = "is __mood__\nis __A/mood__\nis __a/deep/mood__ now\n"
    library = write(tmp_path, list=line, a__list=line, b__list=line, mood="root", a__mood="near", a__deep__mood="deep")
    for seed in range(40):
        quick = library.expand(order, seed)
        assert library.snapshot.compiler.expand({"": order}, seed, "native") is not None
        long = library.expand_parts({"": order}, seed, most_draws=MOST_DRAWS - 1)
        assert quick == long
        for choice in quick.choices:
            if choice.site_text == "__mood__":
                parent = quick.choices[choice.parent or 0]
                assert choice.value == ("near" if parent.file == "a/list.txt" else "root")


def test_lines_are_kept_once_their_list_was_drawn_from_as_often_as_it_is_long_and_only_so_many(
    tmp_path: Path,
) -> None:
    library = write(tmp_path, top="plain\n" + "".join(f"{at} __mood__\n" for at in range(9)), mood="calm\ngrim\n")
    compiler = library.snapshot.compiler
    top = library.snapshot.index.documents[-1].top
    assert isinstance(top, ItemList)
    assert isinstance(top.items, Lines)
    table = LineShelf(most=4).table(compiler, top.items, frozenset())
    wanted = [compiler.entry(top.items, at) for at in range(10)]
    kept = []
    for _ in range(3):
        for at in range(10):
            assert table[at] == wanted[at]
            kept.append(len(table))
    assert kept[:11] == [0] * 11
    assert max(kept) == 4
    assert 0 not in table


def test_choices_of_lines_that_were_let_go_are_told_all_the_same(tmp_path: Path) -> None:
    library = write(tmp_path, top="one __mood__\ntwo __mood__\n", mood="calm\ngrim\n")
    result = library.expand("__top__", 5)
    for seed in range(20):
        library.expand("__top__", seed)
    assert [(choice.value, choice.line) for choice in result.choices] == [
        (choice.value, choice.line) for choice in library.expand_parts({"": "__top__"}, 5, most_draws=9).choices
    ]
