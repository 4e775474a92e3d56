"""Reading packs: archives made to harm, and folders with links. Nothing leaves the pack, nothing is spent unseen."""

from __future__ import annotations

import contextlib
import stat
import tracemalloc
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luna_engine.errors import InputFileError
from luna_engine.wildcards import WildcardLibrary
from luna_engine.wildcards.importing import apply_import, pack, plan_import
from luna_engine.wildcards.importing.pack import read_pack

if TYPE_CHECKING:
    from pathlib import Path


def zip_with(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def codes(found: pack.Pack) -> list[tuple[str, str | None]]:
    return [(one.code, one.file) for one in found.diagnostics]


@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "a/../../out.txt",
        "/etc/out.txt",
        "C:/out.txt",
        "C:\\out.txt",
        "..\\out.txt",
        "\\\\host\\share\\out.txt",
        "~/out.txt",
        "a/ .. /out.txt",
        "a/..  /out.txt",
        "con\x07.txt",
        "list.txt:stream.txt",
        "a./b.txt",
    ],
)
def test_a_member_whose_name_leaves_the_pack_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    source = zip_with(tmp_path / "p.zip", (name, b"evil\n"), ("good.txt", b"fine\n"))
    found = read_pack(source)
    assert [file.path for file in found.files] == ["good.txt"]
    assert [code for code, _ in codes(found)] == ["path-escape"]
    root = tmp_path / "root"
    root.mkdir()
    apply_import(plan_import(WildcardLibrary.load(root, cache=False), source))
    assert {path.name for path in tmp_path.iterdir()} == {"p.zip", "root"}
    assert {path.name for path in root.rglob("*.txt")} == {"good.txt"}


def test_a_link_in_an_archive_is_never_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    found = read_pack(zip_with(tmp_path / "p.zip", (link, b"/etc/passwd")))
    assert found.files == []
    assert codes(found) == [("path-escape", "link.txt")]


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    zeros = b"a\n" * (20 << 20)
    source = zip_with(tmp_path / "bomb.zip", ("bomb.txt", zeros), ("good.txt", b"fine\n"))
    del zeros
    assert source.stat().st_size < 1 << 17
    tracemalloc.start()
    try:
        found = read_pack(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [file.path for file in found.files] == ["good.txt"]
    assert codes(found) == [("limit", "bomb.txt")]
    assert peak < pack.MOST_FILE_BYTES + (8 << 20)


def test_what_a_header_says_of_a_members_size_is_not_believed(tmp_path: Path) -> None:
    source = zip_with(tmp_path / "p.zip", ("big.txt", b"x" * 5_000))
    data = bytearray(source.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (10).to_bytes(4, "little")  # the uncompressed size in the central directory
    source.write_bytes(data)
    found = read_pack(source)
    assert all(len(file.data) <= 5_000 for file in found.files)
    assert found.files or codes(found) == [("unreadable", "big.txt")]


def test_a_pack_of_too_much_in_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = zip_with(tmp_path / "p.zip", *((f"{number}.txt", b"x" * 400) for number in range(4)))
    monkeypatch.setattr(pack, "MOST_BYTES", 1_000)
    with pytest.raises(InputFileError) as caught:
        read_pack(source)
    assert caught.value.code == "limit"
    monkeypatch.undo()
    monkeypatch.setattr(pack, "MOST_FILES", 3)
    with pytest.raises(InputFileError) as caught:
        read_pack(source)
    assert caught.value.code == "limit"


def test_members_of_one_name_count_once_and_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    inner = zip_with(tmp_path / "inner.zip", ("deep.txt", b"deep\n")).read_bytes()
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = zip_with(tmp_path / "p.zip", ("a.txt", b"one\n"), ("a.txt", b"two\n"), ("inner.zip", inner))
    found = read_pack(source)
    assert [(file.path, file.data) for file in found.files] == [("a.txt", b"one\n")]
    assert codes(found) == [("duplicate-member", "a.txt")]


def test_names_in_other_spellings_are_read(tmp_path: Path) -> None:
    source = zip_with(
        tmp_path / "p.zip", ("a\\b\\win.txt", b"w\n"), ("./x//dot.txt", b"d\n"), ("__MACOSX/._a.txt", b"")
    )
    names = zip_with(tmp_path / "n.zip", ("cafe\u0301.txt", b"n\n"))
    data = names.read_bytes().replace((0x800).to_bytes(2, "little"), b"\0\0")  # UTF-8 without its flag
    names.write_bytes(data)
    assert [file.path for file in read_pack(source).files] == ["a/b/win.txt", "x/dot.txt"]
    assert [file.path for file in read_pack(names).files] == ["caf\u00e9.txt"]


def test_a_damaged_archive_is_an_error_and_a_damaged_member_a_report(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(InputFileError) as caught:
        read_pack(tmp_path / "no.zip")
    assert (caught.value.code, caught.value.exit_code) == ("file-damaged", 4)
    with pytest.raises(InputFileError) as caught:
        read_pack(tmp_path / "gone")
    assert caught.value.code == "file-missing"
    source = zip_with(tmp_path / "p.zip", ("a.txt", b"some text that is long enough\n" * 9), ("b.txt", b"fine\n"))
    data = bytearray(source.read_bytes())
    data[45] ^= 0xFF
    source.write_bytes(data)
    found = read_pack(source)
    assert [file.path for file in found.files] == ["b.txt"]
    assert codes(found) == [("unreadable", "a.txt")]


def test_encrypted_and_oddly_packed_members_are_reported(tmp_path: Path) -> None:
    source = zip_with(tmp_path / "p.zip", ("a.txt", b"secret\n"))
    data = bytearray(source.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    source.write_bytes(data)
    assert codes(read_pack(source)) == [("unreadable", "a.txt")]
    with zipfile.ZipFile(tmp_path / "q.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", b"odd\n")
    assert codes(read_pack(tmp_path / "q.zip")) == [("unreadable", "a.txt")]


def test_links_of_a_folder_stay_inside_it(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("one\n", "utf-8")
    (tmp_path / "secret.txt").write_text("secret\n", "utf-8")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "LICENSE").symlink_to(tmp_path / "secret.txt")
    (folder / "b.txt").symlink_to(folder / "inner" / "a.txt")
    (folder / "loop").symlink_to(folder)
    found = read_pack(folder)
    assert {file.path: file.data for file in found.files} == {"inner/a.txt": b"one\n", "b.txt": b"one\n"}
    assert sorted(code for code, _ in codes(found)) == ["path-escape", "path-escape"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_archive_with_flipped_bytes_ends_in_anything_but_an_answer(tmp_path: Path, data: st.DataObject) -> None:
    source = zip_with(tmp_path / "p.zip", ("a/b.txt", b"one\ntwo\n" * 20), ("c.yaml", b"k: [x, y]\n" * 3))
    held = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    source.write_bytes(held[: data.draw(st.integers(1, len(held)))] if data.draw(st.booleans()) else held)
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    plan = None
    with contextlib.suppress(InputFileError):  # the only error that a damaged archive may end in
        plan = plan_import(WildcardLibrary.load(root, cache=False), source)
    assert plan is None or all(not file.target.startswith(("/", "..")) for file in plan.files)
