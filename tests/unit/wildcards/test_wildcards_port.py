"""The port behind screen 4: files are opened and saved byte for byte, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.errors import InputFileError, LunaError
from luna_engine.settings import Settings, WildcardSettings
from luna_tui.backend.wildcard_files import MOST_FILE_BYTES
from luna_tui.backend.wildcards import LocalWildcards

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def port(folder: Path) -> Iterator[LocalWildcards]:
    made = LocalWildcards(Settings(wildcards=WildcardSettings(roots=(str(folder), "/nowhere/at/all"), bundled=False)))
    yield made
    made.close()


def test_saving_keeps_line_ends_bom_and_mode(port: LocalWildcards, folder: Path) -> None:
    path = folder / "crlf.yaml"
    path.write_bytes(b"\xef\xbb\xbfx: [a]\r\ny: [b]\r\n")
    path.chmod(0o604)
    port.library.refresh()
    file = port.open(0, "crlf.yaml")
    assert file.text == "x: [a]\ny: [b]\n"
    saved = port.save(file, file.text + "z: [c]\n")
    assert path.read_bytes() == b"\xef\xbb\xbfx: [a]\r\ny: [b]\r\nz: [c]\r\n"
    assert path.stat().st_mode & 0o777 == 0o604
    port.save(saved, saved.text)
    assert list(folder.glob(".*")) == []


def test_a_conflict_writes_nothing_until_told_to(port: LocalWildcards, folder: Path) -> None:
    file = port.open(0, "coast/mood.txt")
    (folder / "coast" / "mood.txt").write_text("theirs\n", "utf-8")
    with pytest.raises(LunaError) as caught:
        port.save(file, "mine\n")
    assert caught.value.code == "conflict"
    assert (folder / "coast" / "mood.txt").read_text("utf-8") == "theirs\n"
    port.save(file, "mine\n", overwrite=True)
    assert port.library.expand("__mood__").text == "mine"


def test_a_deleted_file_is_a_conflict_too(port: LocalWildcards, folder: Path) -> None:
    file = port.open(0, "coast/mood.txt")
    (folder / "coast" / "mood.txt").unlink()
    with pytest.raises(LunaError) as caught:
        port.save(file, "mine\n")
    assert caught.value.code == "conflict"
    with pytest.raises(InputFileError):
        port.open(0, "coast/mood.txt")


def test_a_touched_but_equal_file_is_no_conflict(port: LocalWildcards, folder: Path) -> None:
    file = port.open(0, "coast/mood.txt")
    path = folder / "coast" / "mood.txt"
    path.write_bytes(path.read_bytes())
    port.save(file, "mine\n")
    assert port.library.expand("__mood__").text == "mine"


def test_a_huge_file_is_refused_unread(port: LocalWildcards, folder: Path) -> None:
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(MOST_FILE_BYTES + 1)
    with pytest.raises(InputFileError) as caught:
        port.open(0, "huge.txt")
    assert caught.value.code == "limit"


def test_a_missing_root_is_a_notice(port: LocalWildcards) -> None:
    view = port.snapshot()
    assert view.notices == ("the wildcard folder /nowhere/at/all does not exist",)
    assert view.items == 15


def test_samples_say_if_they_come_from_a_last_good_version(port: LocalWildcards, folder: Path) -> None:
    assert port.preview("{harbor}", 3, 0).is_stale is False
    port.overlay(folder / "coast" / "harbor.yaml", "boats: [a\n")
    preview = port.preview("{harbor:boats.small}", 3, 0)
    assert preview.is_stale
    assert {sample.text for sample in preview.samples} <= {"skiff", "dinghy"}
    assert [problem.code for problem in port.problems()] == ["yaml-syntax"]


def test_read_only_refuses_to_save(folder: Path) -> None:
    settings = Settings(wildcards=WildcardSettings(roots=(str(folder),), bundled=False))
    port = LocalWildcards(settings, readonly=True)
    with pytest.raises(LunaError) as caught:
        port.save(port.open(0, "coast/mood.txt"), "x\n")
    assert caught.value.code == "read-only"
