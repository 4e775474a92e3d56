"""The parsed cache: what comes out of it equals what reading gives, whatever happened to it meanwhile."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine import paths
from luna_engine.wildcards import WildcardLibrary, cache, files
from luna_engine.wildcards.cache import ParsedCache
from luna_engine.wildcards.model import Branch, Place

if TYPE_CHECKING:
    from pathlib import Path

ODD = (
    "templates: ['[tall] x', {value: t, weight: 0.5, tags: [a, b], id: q, payload: {k: [1, 2]}, note: more}]\n"
    "tall:\n- 3::oak\n- '{elm|fir}'\n- foggy: very\n- inner: [a, b]\n- -1::bad\n" + "# filling\n" * 300
)
PLAIN = (
    "woods:\n  tall:\n" + "".join(f"  - tree {at} зима\n" for at in range(200)) + "  small:\n  - 2::shrub\n  none:\n"
)
JSON = json.dumps({"a": ["x", 1.5, {"value": "v", "weight": 2}], "b": {"c": ["y"] * 800}})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "library"
    made.mkdir()
    for name, text in {"odd.yaml": ODD, "plain.yaml": PLAIN, "data.json": JSON}.items():
        (made / name).write_text(text, "utf-8")
    return made


def shown(place: Place | None) -> Any:
    if isinstance(place, Branch):
        own = shown(place.own)
        return (place.keys, place.line, place.column, own, {key: shown(one) for key, one in place.entries.items()})
    if place is None:
        return None
    fields = ("text", "line", "column", "weight", "text_column", "item_id", "tags", "payload", "extra")
    return (place.keys, place.line, [[getattr(item, name) for name in fields] for item in place.items])


def state(folder: Path, *, cached: bool = True) -> Any:
    library = WildcardLibrary.load(folder, cache=cached)
    trees = {document.path: shown(document.top) for document in library.snapshot.documents}
    texts = [library.expand("{odd} {odd:tall} {plain:woods} {data:a}", seed).text for seed in range(20)]
    return trees, library.diagnostics, texts, library.fingerprint("{odd} {plain}"), library.count("{plain} {odd}")


def entries() -> list[Path]:
    return sorted((paths.cache_dir() / "wildcards").glob("*.json"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of files that were parsed."""
    seen: list[str] = []
    real = files.read_content

    def note(document: Any, data: bytes, last_good: Any) -> Any:
        seen.append(document.path)
        return real(document, data, last_good)

    monkeypatch.setattr(files, "read_content", note)
    return seen


def test_a_warm_load_equals_a_cold_one_and_parses_nothing(folder: Path, reads: list[str]) -> None:
    cold = state(folder, cached=False)
    assert state(folder) == cold
    assert len(entries()) == 3
    reads.clear()
    assert state(folder) == cold
    assert reads == []


def test_an_edit_of_equal_size_and_time_is_never_hidden(folder: Path, reads: list[str]) -> None:
    state(folder)
    stat = (folder / "plain.yaml").stat()
    (folder / "plain.yaml").write_text(PLAIN.replace("shrub", "thorn"), "utf-8")
    os.utime(folder / "plain.yaml", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reads.clear()
    library = WildcardLibrary.load(folder)
    assert [item.text for item in library.items("plain:woods.small")] == ["thorn"]
    assert reads == ["plain.yaml"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "garbage", "older", "wrong shape"])
def test_a_damaged_or_foreign_entry_is_rebuilt(
    folder: Path, reads: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = state(folder)
    for path in entries():
        data = path.read_bytes()
        if damage == "empty":
            path.write_bytes(b"")
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "flipped":
            path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
        elif damage == "garbage":
            path.write_bytes(b"\xff\x00{]")
        elif damage == "wrong shape":
            body = json.dumps({"stamp": ParsedCache()._stamp, "top": ["b", 1], "diagnostics": []}).encode()
            path.write_bytes(cache._digest(body) + b"\n" + body)
    if damage == "older":
        monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    reads.clear()
    assert state(folder) == cold
    assert sorted(reads) == ["data.json", "odd.yaml", "plain.yaml"]
    reads.clear()
    assert state(folder) == cold
    assert reads == []


def test_many_writers_at_once_leave_whole_entries(folder: Path) -> None:
    cold = state(folder, cached=False)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(state(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cold] * 8
    assert not list((paths.cache_dir() / "wildcards").glob(".*"))


def test_a_cache_folder_that_cannot_be_written_changes_nothing(folder: Path, home: Path) -> None:
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "wildcards").write_text("a file in the way", "utf-8")
    assert state(folder) == state(folder, cached=False)


def test_broken_files_and_rules_are_not_kept(folder: Path, tmp_path: Path) -> None:
    del folder
    other = tmp_path / "other"
    other.mkdir()
    (other / "broken.yaml").write_text("a: [x\n" + "# filling\n" * 300, "utf-8")
    (other / "tags_a.yaml").write_text("place:\n  beach: [sea]\n" + "# filling\n" * 300, "utf-8")
    first, second = WildcardLibrary.load(other).diagnostics, WildcardLibrary.load(other).diagnostics
    assert first == second
    assert [found.code for found in first] == ["yaml-syntax"]
    assert entries() == []


def test_a_file_broken_as_it_once_was_keeps_its_last_good_version(folder: Path) -> None:
    broken = "a: [x\n" + "# filling\n" * 300
    (folder / "odd.yaml").write_text(broken, "utf-8")
    state(folder)
    (folder / "odd.yaml").write_text(ODD, "utf-8")
    library = WildcardLibrary.load(folder)
    (folder / "odd.yaml").write_text(broken, "utf-8")
    assert library.refresh()
    assert len(library.items("odd:tall")) == 5
    assert "yaml-syntax" in [found.code for found in library.diagnostics]


def test_old_entries_are_pruned_by_who_writes_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(folder)
    monkeypatch.setattr(cache, "MOST_ENTRIES", 2)
    WildcardLibrary.load(folder)
    assert len(entries()) == 3
    (folder / "plain.yaml").write_text(PLAIN + "# more\n", "utf-8")
    WildcardLibrary.load(folder)
    assert len(entries()) == 2


def test_edits_of_a_live_library_are_not_kept(folder: Path) -> None:
    library = WildcardLibrary.load(folder)
    known = entries()
    (folder / "plain.yaml").write_text(PLAIN + "# more\n", "utf-8")
    assert library.refresh()
    assert entries() == known
