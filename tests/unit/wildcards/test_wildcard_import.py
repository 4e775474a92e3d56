"""Importing packs: the plan, what is written, and taking it back."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import pytest

from luna_engine.errors import LunaError
from luna_engine.wildcards import WildcardLibrary
from luna_engine.wildcards.importing import (
    FileState,
    ImportOptions,
    ImportPlan,
    PlannedFile,
    apply_import,
    apply_undo,
    plan_import,
    plan_undo,
)
from luna_engine.wildcards.importing.similar import near_pairs
from luna_engine.wildcards.syntax import Profile

REAL_PACKS = os.environ.get("LUNA_REAL_WILDCARDS", "")  # read at import: tests see no LUNA_ variable of the user's
PACK = {
    "LICENSE": b"Anyone may use this.\n",
    "readme.txt": b"not a list\n",
    "beasts.yaml": b"beasts:\n  sea:\n    - kraken\n    - whale  # big\n    - Kraken\n    - 2::whale\n  sky: [heron]\n",
    "moods/calm.txt": b"serene\r\nstill water\r\nserene\r\n",
    "data.json": b'{"light": ["lamp", "candle"]}\n',
    "picture.png": b"\x89PNG",
}


def folder_of(parent: Path, files: dict[str, bytes], name: str = "pack") -> Path:
    for path, data in files.items():
        target = parent / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return parent / name


def zip_of(parent: Path, files: dict[str, bytes], name: str = "pack") -> Path:
    with zipfile.ZipFile(parent / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return parent / f"{name}.zip"


def file_of(plan: ImportPlan, source: str) -> PlannedFile:
    return next(file for file in plan.files if file.source == source)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> WildcardLibrary:
    root = tmp_path / "root"
    root.mkdir()
    (root / "known.txt").write_text("lamp\ncandle\ntorch\n", "utf-8")
    return WildcardLibrary.load(root, cache=False)


def test_a_plan_writes_nothing_and_counts_everything(home: WildcardLibrary, tmp_path: Path) -> None:
    before = tree(tmp_path / "root")
    plan = plan_import(home, folder_of(tmp_path, PACK))
    assert tree(tmp_path / "root") == before
    counts = plan.counts()
    assert (counts["files"], counts["lists"], counts["items"]) == (3, 4, 8)
    assert counts["duplicates_dropped"] == 2
    assert counts["duplicates_kept"] == 1  # 2::whale weighs something else
    assert {file.source for file in plan.files} == {*PACK} - {"picture.png"}
    assert plan.is_complete


def test_a_zip_and_the_folder_it_was_made_of_give_the_same_plan(home: WildcardLibrary, tmp_path: Path) -> None:
    first = plan_import(home, folder_of(tmp_path, PACK))
    second = plan_import(home, zip_of(tmp_path, PACK))
    assert dataclasses.replace(first, source="") == dataclasses.replace(second, source="")


def test_the_one_folder_round_an_archive_goes_if_the_target_has_its_name(home: WildcardLibrary, tmp_path: Path) -> None:
    wrapped = zip_of(tmp_path, {f"pack/{path}": data for path, data in PACK.items()})
    assert file_of(plan_import(home, wrapped), "beasts.yaml").target == "pack/beasts.yaml"
    elsewhere = plan_import(home, wrapped, ImportOptions(into="animals"))
    assert file_of(elsewhere, "pack/beasts.yaml").target == "animals/pack/beasts.yaml"


def test_written_files_keep_every_byte_but_repeats_and_name_their_origin(home: WildcardLibrary, tmp_path: Path) -> None:
    plan = plan_import(home, zip_of(tmp_path, PACK))
    apply_import(plan)
    assert home.refresh()
    root = tmp_path / "root" / "pack"
    assert (root / "beasts.yaml").read_bytes() == (
        b"# imported from pack: beasts.yaml\n"
        b"beasts:\n  sea:\n    - kraken\n    - whale  # big\n    - 2::whale\n  sky: [heron]\n"
    )
    assert (root / "moods/calm.txt").read_bytes() == (
        b"# imported from pack: moods/calm.txt\r\nserene\r\nstill water\r\n"
    )
    assert (root / "data.json").read_bytes() == PACK["data.json"]
    assert (root / "_!about/LICENSE").read_bytes() == PACK["LICENSE"]
    assert home.expand("{pack/data:light}", seed=0).text in {"lamp", "candle"}
    assert home.expand("__pack/readme__").diagnostics[0].code == "unknown-ref"
    record = json.loads((root / ".luna-import.json").read_text("utf-8"))["imports"][0]
    assert (record["name"], record["sha256"]) == ("pack", plan.digest)
    assert record["source"] == str(tmp_path / "pack.zip")


def test_importing_again_knows_everything_and_writes_nothing(home: WildcardLibrary, tmp_path: Path) -> None:
    source = folder_of(tmp_path, PACK)
    apply_import(plan_import(home, source))
    home.refresh()
    again = plan_import(home, source)
    assert {file.state for file in again.files} == {FileState.KNOWN}
    before = tree(tmp_path / "root")
    apply_import(again)
    assert tree(tmp_path / "root") == before


def test_what_exists_is_never_overwritten(home: WildcardLibrary, tmp_path: Path) -> None:
    mine = tmp_path / "root" / "pack" / "moods"
    mine.mkdir(parents=True)
    (mine / "calm.yaml").write_text("mine: [alone]\n", "utf-8")  # the same address with another suffix
    home.refresh()
    source = folder_of(tmp_path, PACK)
    skipped = file_of(plan_import(home, source), "moods/calm.txt")
    assert skipped.state is FileState.EXISTS
    plan = plan_import(home, source, ImportOptions(on_conflict="rename"))
    renamed = file_of(plan, "moods/calm.txt")
    assert (renamed.state, renamed.target) == (FileState.RENAMED, "pack/moods/calm-2.txt")
    apply_import(plan)
    assert (mine / "calm.yaml").read_text("utf-8") == "mine: [alone]\n"
    assert (mine / "calm-2.txt").exists()
    with pytest.raises(LunaError) as caught:
        plan_import(home, source, ImportOptions(on_conflict="overwrite"))
    assert caught.value.code == "value-range"


def test_names_that_differ_in_case_alone_collide_within_a_pack(home: WildcardLibrary, tmp_path: Path) -> None:
    files = {"Moods.txt": b"one\n", "moods.txt": b"two\n"}
    states = [file.state for file in plan_import(home, zip_of(tmp_path, files)).files]
    assert states == [FileState.NEW, FileState.EXISTS]
    plan = plan_import(home, tmp_path / "pack.zip", ImportOptions(on_conflict="rename"))
    assert [file.target for file in plan.files] == ["pack/Moods.txt", "pack/moods-2.txt"]


def test_a_file_that_appears_after_the_plan_stops_the_import_whole(home: WildcardLibrary, tmp_path: Path) -> None:
    (tmp_path / "root" / "pack").mkdir()
    plan = plan_import(home, folder_of(tmp_path, PACK))
    (tmp_path / "root" / "pack" / "moods").mkdir()
    (tmp_path / "root" / "pack" / "moods" / "calm.txt").write_text("mine\n", "utf-8")
    before = tree(tmp_path / "root")
    with pytest.raises(LunaError) as caught:
        apply_import(plan)
    assert caught.value.code == "conflict"
    assert tree(tmp_path / "root") == before
    assert [path.name for path in (tmp_path / "root").iterdir() if path.name.startswith(".")] == []


def test_the_same_list_under_another_name_is_told_and_left_out_if_asked(home: WildcardLibrary, tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"lights.txt": b"Torch\n2::lamp\n candle\n", "more.txt": b"a b\nc d\n"})
    found = file_of(plan_import(home, source), "lights.txt")
    assert [(same.address, same.other) for same in found.same_lists] == [("pack/lights", "known")]
    skipped = file_of(plan_import(home, source, ImportOptions(skip_same=True)), "lights.txt")
    assert skipped.state is FileState.KNOWN


def test_near_duplicates_are_listed_for_review_and_kept(home: WildcardLibrary, tmp_path: Path) -> None:
    (tmp_path / "root" / "old.txt").write_text("a long red coat\nan old house\n", "utf-8")
    home.refresh()
    plan = plan_import(home, folder_of(tmp_path, {"new.txt": b"a long red coats\nan olive tree\n"}))
    assert [(near.text, near.other, near.other_place) for near in plan.near] == [
        ("a long red coats", "a long red coat", "old.txt:1")
    ]
    assert plan.near[0].similarity >= 0.85
    assert plan.counts()["items"] == 2


def test_items_that_read_differently_in_the_native_profile_are_listed_and_not_rewritten(
    home: WildcardLibrary, tmp_path: Path
) -> None:
    lines = "plain\n{one|two}\n{calm} sea\n{2$$a|b}\n{[x|y]|z}\ncoat # warm\n${v} %{x...$$y}\n2::heavy\n{2-5}\n"
    source = folder_of(tmp_path, {"odd.txt": lines.encode()})
    found = file_of(plan_import(home, source), "odd.txt")
    assert {(one.text, one.profiles) for one in found.differing} == {
        ("{calm} sea", ("dynamicprompts", "impact")),
        ("{2$$a|b}", ("dynamicprompts", "impact")),
        ("{[x|y]|z}", ("dynamicprompts", "impact")),
        ("coat # warm", ("dynamicprompts",)),
        ("${v} %{x...$$y}", ("impact",)),
        ("heavy", ("dynamicprompts",)),
        ("{2-5}", ("dynamicprompts", "impact")),
    }
    assert found.data.endswith(lines.encode())
    native = plan_import(home, source, ImportOptions(profiles=(Profile.IMPACT,)))
    assert ("impact",) in {one.profiles for one in file_of(native, "odd.txt").differing}


def test_brackets_differ_only_where_they_are_substituted(home: WildcardLibrary, tmp_path: Path) -> None:
    files = {"b.yaml": b"a: [oak]\nb: ['[a] tree', '[else] tree']\n", "b2.txt": b"[a] tree\n"}
    plan = plan_import(home, folder_of(tmp_path, files))
    assert [one.text for file in plan.files for one in file.differing] == ["[a] tree"]
    assert file_of(plan, "b.yaml").state is FileState.NEW


def test_a_broken_file_is_left_out_with_its_place_and_the_rest_imported(home: WildcardLibrary, tmp_path: Path) -> None:
    plan = plan_import(home, folder_of(tmp_path, {"bad.yaml": b"a:\n  - 'open\n", "good.txt": b"fine\n"}))
    assert file_of(plan, "bad.yaml").state is FileState.BROKEN
    assert [(found.code, found.file, found.line) for found in plan.diagnostics] == [("yaml-syntax", "bad.yaml", 2)]
    assert not plan.is_complete
    apply_import(plan)
    assert {*tree(tmp_path / "root" / "pack")} == {"good.txt", ".luna-import.json"}


def test_other_encodings_are_written_as_utf8_and_told(home: WildcardLibrary, tmp_path: Path) -> None:
    files = {"latin.txt": b"caf\xe9\r\n", "wide.txt": "ünïcode\n".encode("utf-16")}
    plan = plan_import(home, folder_of(tmp_path, files))
    assert file_of(plan, "latin.txt").data.decode("utf-8") == "# imported from pack: latin.txt\r\ncafé\r\n"
    assert file_of(plan, "wide.txt").data.decode("utf-8").splitlines()[1] == "ünïcode"
    assert all("written as UTF-8" in file.notes[0] for file in plan.files)


def test_what_lint_finds_in_the_library_with_the_pack_is_told_before(home: WildcardLibrary, tmp_path: Path) -> None:
    plan = plan_import(home, folder_of(tmp_path, {"p.txt": b"a __nowhere__ b\n__calm__\n", "calm.txt": b"still\n"}))
    assert [(found.code, found.file, found.line, found.column) for found in plan.diagnostics] == [
        ("unknown-ref", "pack/p.txt", 2, 3)
    ]


def test_names_of_peers_that_begin_at_the_root_are_pointed_out(home: WildcardLibrary, tmp_path: Path) -> None:
    files = {"sea/boats.yaml": b"boats: {small: [skiff, dinghy]}\n", "p.txt": b"a __sea/boats/small__\n"}
    plan = plan_import(home, folder_of(tmp_path, files))
    assert plan.notes == ("--into . would mend 1 of 1 unknown references",)
    at_root = plan_import(home, tmp_path / "pack", ImportOptions(into=""))
    assert at_root.diagnostics == ()
    assert file_of(at_root, "p.txt").target == "p.txt"


def test_rule_files_stay_rule_files_byte_for_byte(home: WildcardLibrary, tmp_path: Path) -> None:
    head = b"# one\n" * 9 + b"type: constraints\n"
    rules = head + b"place:beach:\n  clothing: {incompatible: [parka]}\n"
    plan = plan_import(home, folder_of(tmp_path, {"wear.yaml": rules}))
    assert file_of(plan, "wear.yaml").data == rules  # with a comment before it type: would stand in line 11
    assert "byte for byte" in file_of(plan, "wear.yaml").notes[0]


@pytest.mark.parametrize("into", ["../out", "/abs", "a/../../b", "C:/x", "~/x", "\\\\host\\x"])
def test_the_target_folder_never_leaves_the_root(home: WildcardLibrary, tmp_path: Path, into: str) -> None:
    with pytest.raises(LunaError) as caught:
        plan_import(home, folder_of(tmp_path, PACK), ImportOptions(into=into))
    assert caught.value.code == "path-escape"


def test_a_target_folder_behind_a_link_is_refused(home: WildcardLibrary, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "pack").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LunaError) as caught:
        plan_import(home, folder_of(tmp_path / "from", PACK), ImportOptions(into="pack"))
    assert caught.value.code == "path-escape"


def test_undo_takes_back_what_is_as_it_was_written_and_keeps_what_was_edited(
    home: WildcardLibrary, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    before = tree(root)
    source = zip_of(tmp_path, PACK)
    apply_import(plan_import(home, source))
    plan = plan_undo(root, "pack")
    assert set(plan.removed) == {"beasts.yaml", "data.json", "moods/calm.txt", "_!about/LICENSE", "_!about/readme.txt"}
    apply_undo(plan)
    assert tree(root) == before
    assert not (root / "pack").exists()

    home.refresh()
    apply_import(plan_import(home, source))
    (root / "pack" / "beasts.yaml").write_text("beasts: [mine]\n", "utf-8")
    (root / "pack" / "data.json").unlink()
    plan = plan_undo(root, "pack")
    assert (plan.kept, plan.gone) == (("beasts.yaml",), ("data.json",))
    apply_undo(plan)
    assert {*tree(root / "pack")} == {"beasts.yaml"}
    with pytest.raises(LunaError) as caught:
        plan_undo(root, "pack")
    assert caught.value.code == "unknown-ref"


def test_undo_goes_back_one_import_at_a_time(home: WildcardLibrary, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("one", "two"):
        source = folder_of(tmp_path, {f"{name}.txt": name.encode()}, name)
        apply_import(plan_import(home, source, ImportOptions(into="p")))
        home.refresh()
    apply_undo(plan_undo(root, "p"))
    assert {*tree(root / "p")} == {"one.txt", ".luna-import.json"}
    apply_undo(plan_undo(root, "p"))
    assert not (root / "p").exists()


def test_undo_removes_nothing_outside_the_folder(home: WildcardLibrary, tmp_path: Path) -> None:
    root = tmp_path / "root"
    apply_import(plan_import(home, folder_of(tmp_path, PACK)))
    record = root / "pack" / ".luna-import.json"
    held = json.loads(record.read_text("utf-8"))
    held["imports"][0]["files"][0]["path"] = "../known.txt"
    record.write_text(json.dumps(held), "utf-8")
    with pytest.raises(LunaError) as caught:
        plan_undo(root, "pack")
    assert caught.value.code == "file-damaged"
    assert (root / "known.txt").exists()


def test_near_pairs_share_a_word_and_reach_the_bar() -> None:
    texts = ["a red coat", "a red coats", "blue", "blues", "a green hat", "the red coat of arms"]
    assert [(pair.first, pair.second) for pair in near_pairs(texts)] == [(0, 1)]
    assert near_pairs(texts, [False] * 6) == []
    many = [f"one word in all of them, {number:03d}" for number in range(300)]
    pairs = {(pair.first, pair.second) for pair in near_pairs(many)}
    assert (0, 1) in pairs
    assert len(pairs) <= 300 * 12  # a word of too many texts: neighbours alone are compared


@pytest.mark.skipif(not REAL_PACKS, reason="LUNA_REAL_WILDCARDS names no folder of packs")
def test_a_public_pack_goes_in_and_comes_out_again(home: WildcardLibrary, tmp_path: Path) -> None:
    for source in sorted(Path(REAL_PACKS).iterdir()):
        if source.is_dir():
            before = tree(tmp_path / "root")
            plan = plan_import(home, source)
            assert plan.counts()["items"] > 0
            apply_import(plan)
            home.refresh()
            for file in plan.written():
                if file.lists:
                    assert home.expand(f"__{file.target.rpartition('.')[0]}__").choices
            apply_undo(plan_undo(tmp_path / "root", plan.into))
            home.refresh()
            assert tree(tmp_path / "root") == before
