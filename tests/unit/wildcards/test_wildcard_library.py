"""Files to lists: kinds, spellings, places, damage, and staying fresh."""

from __future__ import annotations

import gc
import json
import math
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.errors import InputFileError
from luna_engine.wildcards import Change, Severity, WildcardLibrary
from luna_engine.wildcards.build import build
from luna_engine.wildcards.model import Content, Document, Item, Kind
from luna_engine.wildcards.tree_events import read_yaml
from luna_engine.wildcards.watching import Watch

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 10.0


def load(tmp_path: Path, **files: str | bytes) -> WildcardLibrary:
    for name, text in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return WildcardLibrary.load(tmp_path)


def words(library: WildcardLibrary, address: str) -> list[str]:
    return [item.text for item in library.items(address)]


def test_scalars_are_their_source_text(tmp_path: Path) -> None:
    library = load(
        tmp_path, a__yaml='x: [no, off, 012, 0.50, 07:45, 1e3, 2031-05-06, ~, null, "", "a\\tb", \'q\']\n2024: [on]\n'
    )
    expected = ["no", "off", "012", "0.50", "07:45", "1e3", "2031-05-06", "~", "null", "", "a\tb", "q"]
    assert words(library, "a:x") == expected
    assert words(library, "a:2024") == ["on"]


def test_block_scalars_bare_dashes_and_nested_sequences(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml="x:\n  - |\n    two\n    lines\n  -\n  - [in, ner]\ny:\nz: one\n")
    assert words(library, "a:x") == ["two\nlines", "in", "ner"]
    assert words(library, "a:y") == []
    assert words(library, "a:z") == ["one"]
    assert [found.code for found in library.diagnostics] == ["empty-item"]


def test_unquoted_braces_and_colons_are_the_text_they_were_written_as(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml="x:\n  - {red|blue}\n  - foggy: very\n  - {harbor}\ny: {big|small}\n")
    assert words(library, "a:x") == ["{red|blue}", "foggy: very", "{harbor}"]
    assert words(library, "a:y") == ["{big|small}"]
    assert {found.severity for found in library.diagnostics} == {Severity.HINT}


def test_item_maps_carry_their_fields(tmp_path: Path) -> None:
    text = "x:\n  - {value: 2::brig, weight: 0.5, tags: [sail], id: b1, mood: grim}\n  - {value: raft, weight: heavy}\n"
    library = load(tmp_path, a__yaml=text)
    brig, raft = library.items("a:x")
    assert (brig.text, brig.weight.micro, brig.tags, brig.item_id, brig.extra) == (
        "2::brig",
        500_000,
        ("sail",),
        "b1",
        {"mood": "grim"},
    )
    assert raft.weight.micro == 1_000_000
    assert [found.code for found in library.diagnostics] == ["bad-weight"]


def test_duplicate_keys_join_and_warn_at_the_later_key(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml="x: [a]\ny: {p: [1], q: [2]}\nx: [b]\ny: {q: [3], r: [4]}\n")
    assert words(library, "a:x") == ["a", "b"]
    assert words(library, "a:y") == ["1", "2", "3", "4"]
    first = library.diagnostics[0]
    assert (first.code, first.severity, first.line, first.column) == ("duplicate-key", Severity.WARNING, 3, 1)
    assert "line 1" in first.message


def test_anchors_aliases_and_merges_work(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml="b: &b {p: [1], q: [2]}\nc:\n  <<: *b\n  q: [9]\nd: *b\n")
    assert words(library, "a:c") == ["9", "1"]
    assert words(library, "a:d.p") == ["1"]


def test_notes_are_never_drawn_but_reachable(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml="x: [1]\ndescription: about this\ncategory: c\n")
    assert words(library, "a") == ["1"]
    assert words(library, "a:description") == ["about this"]


def test_category_files_draw_from_items(tmp_path: Path) -> None:
    library = load(
        tmp_path, hats__yaml="name: Hats\ntype: clothing\nitems:\n  - {id: h1, text: a top hat, tags: [formal]}\n"
    )
    assert words(library, "hats") == ["a top hat"]
    assert library.expand("{hats:items.h1}").text == "a top hat"


def test_txt_lines_end_at_lf_crlf_cr_and_nothing_else(tmp_path: Path) -> None:
    library = load(tmp_path, a__txt="one\r\ntwo\rthree\n\n# no\n #yes\n 2.5:: four \x0b\x0cfive\u2028six".encode())
    assert words(library, "a") == ["one", "two", "three", "#yes", " four \x0b\x0cfive\u2028six"]
    assert library.items("a")[4].weight.micro == 2_500_000
    assert library.items("a")[3].line == 6


def test_json_keeps_number_spellings_and_places(tmp_path: Path) -> None:
    text = '{"x": [1.50, 1e3, true, null, "caf\\u00e9"],\n\t"y": {"z": ["{a|b}"]}}'
    library = load(tmp_path, a__json=text)
    assert words(library, "a:x") == ["1.50", "1e3", "true", "null", "café"]
    assert library.items("a:y.z")[0].line == 2
    assert library.expand("{a:y.z}").text in {"a", "b"}


@pytest.mark.parametrize(
    ("name", "data", "code", "line", "column"),
    [
        ("a.yaml", b"x:\n\t- a\n", "yaml-syntax", 2, 1),
        ("a.yaml", b'x:\n  - "elf\n  - b\n', "yaml-syntax", 2, 5),
        ("a.yaml", b"x:\n  - {a|b} hat\n", "yaml-syntax", 2, 11),
        ("a.yaml", b"x:\n  - %percent\n", "yaml-syntax", 2, 5),
        ("a.yaml", b"x: [a\n", "yaml-syntax", 2, 1),
        ("a.yaml", b"x: *nobody\n", "yaml-syntax", 1, 4),
        ("a.yaml", b"x: !!python/object:os.system [a]\n", "yaml-syntax", 1, 4),
        ("a.yaml", b"x: " + b"[" * 200, "limit", 1, 103),
        ("a.json", b'{"x": [1,]}', "yaml-syntax", 1, 10),
        ("a.json", b'{"x": [1]} extra', "yaml-syntax", 1, 12),
        ("a.json", b"[" * 100_000, "limit", 1, 101),
        ("a.txt", b"good\nbad \xe9 byte\n", "encoding", 2, 5),
        ("a.yaml", b"x: [nul\x00, b]\n", "encoding", 1, 8),
        ("a.yaml", b"x: [a\x07]\n", "yaml-syntax", 1, 6),
    ],
)
def test_damage_has_code_and_place(tmp_path: Path, name: str, data: bytes, code: str, line: int, column: int) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.txt").write_bytes(b"fine\n")
    library = WildcardLibrary.load(tmp_path)
    library.lint()
    found = next(problem for problem in library.diagnostics if problem.code == code)
    assert (found.file, found.line, found.column) == (name, line, column)
    assert library.expand("__good__").text == "fine"


def test_single_bytes_fall_back_to_windows_1252(tmp_path: Path) -> None:
    library = load(tmp_path, a__txt=b"caf\xe9 \xc3\xa9\n")
    assert words(library, "a") == ["café é"]


def test_bom_and_utf16_are_read(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml=b"\xef\xbb\xbfx: [a]\r\n", b__txt="ü\n".encode("utf-16"))
    assert words(library, "a:x") == ["a"]
    assert words(library, "b") == ["ü"]


def test_an_alias_bomb_is_refused_before_memory_is_spent(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.process_time()
    library = load(tmp_path, bomb__yaml="\n".join(rows), ok__txt="fine")
    assert time.process_time() - started < 20
    assert [found.code for found in library.diagnostics] == ["limit"]
    assert words(library, "ok") == ["fine"]
    assert words(library, "bomb") == []


def test_an_alias_that_holds_itself_is_refused(tmp_path: Path) -> None:
    library = load(tmp_path, a__yaml="x: &x [a, *x]\n")
    assert [found.code for found in library.diagnostics] == ["yaml-syntax"]


def test_links_out_of_the_library_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not read\n", "utf-8")
    root = tmp_path / "lib"
    root.mkdir()
    (root / "out.txt").symlink_to(secret)
    (root / "me").symlink_to(root)
    (root / "a.txt").write_text("one\n", "utf-8")
    library = WildcardLibrary.load(root)
    assert [(found.code, found.file) for found in library.diagnostics] == [("path-escape", "out.txt")]
    result = library.expand("{out} __a__")
    assert "do not read" not in result.text
    assert words(library, "a") == ["one"]
    assert words(WildcardLibrary.load(root, follow_outside=True), "out") == ["do not read"]


def test_hidden_and_switched_off_folders_are_skipped(tmp_path: Path) -> None:
    for name in (".git", "_!off"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x\n", "utf-8")
    (tmp_path / ".b.txt").write_text("x\n", "utf-8")
    (tmp_path / "notes.md").write_text("x\n", "utf-8")
    assert WildcardLibrary.load(tmp_path).tree() == ()


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError) as caught:
        WildcardLibrary.load(tmp_path / "gone")
    assert caught.value.code == "file-missing"


def test_no_root_is_an_empty_library() -> None:
    assert WildcardLibrary.load().expand("{a|a} {b}").text == "a {b}"


def test_ambiguous_names_are_taken_by_rule_and_reported(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hat.txt").write_text(f"{name}\n", "utf-8")
    library = WildcardLibrary.load(tmp_path)
    result = library.expand("__hat__")
    assert result.text == "x"
    assert [(found.code, found.severity) for found in result.diagnostics] == [("ambiguous-ref", Severity.WARNING)]
    assert "x/hat.txt, y/hat.txt" in result.diagnostics[0].message


def test_keys_with_dots_need_nothing_special(tmp_path: Path) -> None:
    library = load(tmp_path, m__yaml="v1.5: [old]\na/b: [slash]\n")
    assert library.expand("{m:v1.5} __m/v1.5__ {m:a/b}").text == "old old slash"


def test_own_file_and_folder_come_first_inside_items(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "t.yaml").write_text("templates: ['__hat__ __mood__']\nhat: [own]\n", "utf-8")
    (tmp_path / "sub" / "mood.txt").write_text("near\n", "utf-8")
    (tmp_path / "mood.txt").write_text("far\n", "utf-8")
    (tmp_path / "hat.txt").write_text("far\n", "utf-8")
    library = WildcardLibrary.load(tmp_path)
    assert library.expand("{t}").text == "own near"
    assert library.expand("__mood__").text == "far"


def test_load_problems_travel_with_the_expansion(tmp_path: Path) -> None:
    library = load(tmp_path, broken__yaml="x: [a\n", fine__txt="y\n")
    assert library.expand("__fine__").diagnostics == ()
    codes = [found.code for found in library.expand("{broken}").diagnostics]
    assert codes == ["yaml-syntax"]


def test_a_broken_save_keeps_the_last_good_version(folder: Path) -> None:
    library = WildcardLibrary.load(folder)
    path = folder / "coast" / "weather.yaml"
    path.write_text("sky:\n  calm: [clear\n", "utf-8")
    assert library.refresh()
    assert library.expand("{weather:sky.calm}", 1).text in {"clear", "hazy"}
    problem = library.expand("{weather:sky.calm}", 1).diagnostics[0]
    assert (problem.code, problem.file) == ("yaml-syntax", "coast/weather.yaml")
    path.write_text("sky:\n  calm: [blue]\n", "utf-8")
    assert library.refresh()
    assert library.expand("{weather:sky.calm}").text == "blue"
    assert library.diagnostics == ()
    path.unlink()
    assert library.refresh()
    assert "unknown-ref" in [found.code for found in library.expand("{weather:sky.calm}").diagnostics]
    assert not library.refresh()


def test_reloads_let_go_of_old_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    library = load(tmp_path, a__yaml="x: [old]\n")
    old = weakref.ref(library.snapshot)
    for number in range(5):
        path.write_text(f"x: [version {number}]\n", "utf-8")
        library.refresh()
    gc.collect()
    assert old() is None
    items = [found.text for found in gc.get_objects() if type(found) is Item and found.text.startswith("version ")]
    assert items == ["version 4"]


def test_an_edit_of_equal_size_and_time_is_seen(folder: Path) -> None:
    library = WildcardLibrary.load(folder)
    path = folder / "coast" / "mood.txt"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"calm", b"wild"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert library.refresh()
    assert "wild" in words(library, "mood")


def test_unsaved_text_lies_over_the_file(folder: Path) -> None:
    library = WildcardLibrary.load(folder)
    path = folder / "coast" / "mood.txt"
    library.overlay(path, "unsaved\n")
    assert library.expand("__mood__").text == "unsaved"
    path.write_text("on disk\n", "utf-8")
    library.refresh()
    assert library.expand("__mood__").text == "unsaved"
    library.overlay(path, None)
    assert library.expand("__mood__").text == "on disk"


@pytest.mark.parametrize("notifications", [True, False])
def test_changes_on_disk_reach_the_next_expansion(folder: Path, *, notifications: bool) -> None:
    library = WildcardLibrary.load(folder)
    changes: list[Change] = []
    watch = Watch(library, changes.append, use_notifications=notifications)
    try:
        assert watch.is_polling is not notifications
        temporary = folder / "coast" / ".new"
        temporary.write_text("new\n", "utf-8")
        temporary.replace(folder / "coast" / "mood.txt")
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until and not any("coast/mood.txt" in change.paths for change in changes):
            time.sleep(0.005)
        assert library.expand("__mood__").text == "new"
        (folder / "fresh").mkdir()
        (folder / "fresh" / "thing.txt").write_text("found\n", "utf-8")
        while time.monotonic() < until and library.expand("__thing__").text != "found":
            time.sleep(0.005)
        assert library.expand("__thing__").text == "found"
    finally:
        watch.stop()


def test_only_names_that_the_library_can_hold_start_a_reload(folder: Path) -> None:
    watch = Watch(WildcardLibrary.load(folder), lambda _: None, use_notifications=False)
    try:
        watch._take(str(folder / ".mood.swp"), "")
        watch._take(b"/library/.mood.new", b"/library/.mood.bak")
        assert watch._last_event_s == -math.inf
        watch._take(str(folder / ".new"), str(folder / "mood.txt"))
        assert watch._last_event_s > 0, "a save by renaming ends at a visible name"
    finally:
        watch.stop()


def test_the_tree_counts_items_and_combinations(library: WildcardLibrary) -> None:
    nodes = {node.address: node for top in library.tree(combinations=True) for node in top.walk()}
    assert (nodes["coast"].kind, nodes["coast"].items) == ("folder", 15)
    assert nodes["coast/harbor:boats.tall"].items == 2
    assert nodes["coast/harbor:boats"].line == 3
    assert nodes["coast/harbor"].combinations == 19


def test_the_pure_parser_gives_the_same_tree(folder: Path) -> None:
    text = (folder / "coast" / "harbor.yaml").read_text("utf-8")

    def shape(*, pure: bool) -> list[Any]:
        document = Document("harbor.yaml", 0, Kind.YAML, lambda _: Content(None))
        content = build(document, read_yaml(text, "harbor.yaml", pure=pure), text)
        from luna_engine.wildcards.model import ItemList, walk_places

        return [
            (place.keys, place.line, place.column, item.text, item.line, item.column, item.text_column)
            for place in walk_places(content.top)
            if isinstance(place, ItemList)
            for item in place.items
        ]

    assert shape(pure=True) == shape(pure=False)


def test_lint_finds_dead_references_loops_and_duplicates(tmp_path: Path) -> None:
    library = load(
        tmp_path,
        a__yaml="x: ['__nowhere__', red, Red, '{b:gone}']\ny: []\n",
        b__yaml="z: [1]\n",
        loop__txt="on __loop__\nup __loop__\n",
    )
    found = {(problem.code, problem.file, problem.line) for problem in library.lint()}
    assert found >= {
        ("unknown-ref", "a.yaml", 1),
        ("duplicate-item", "a.yaml", 1),
        ("empty", "a.yaml", 2),
        ("cycle", "loop.txt", 1),
        ("cycle", "loop.txt", 2),
    }
    column = next(problem.column for problem in library.lint() if "nowhere" in problem.message)
    assert column == 6


def test_diagnostics_have_three_forms(tmp_path: Path) -> None:
    problem = load(tmp_path, a__yaml="x:\n\t- a\n").diagnostics[0]
    assert problem.as_text().startswith("a.yaml:2:1: error yaml-syntax: ")
    assert problem.as_github().startswith("::error file=a.yaml,line=2,col=1,title=yaml-syntax::")
    assert json.loads(json.dumps(problem.as_dict()))["fix"]["line"] == 2
