"""`luna weights list`, `prune`, `undo` and `pin` as a shell sees them: streams, JSON and exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from luna_tui.cli import luna
from luna_tui.frame import run
from tests.small_shelf import Shelf
from tests.synthetic_models import TINY_SDXL, write_holes

if TYPE_CHECKING:
    from pathlib import Path

NAME = "tiny_bf16_unet.safetensors"


class Shell:
    """Runs command lines in this process: a process each would cost a second, and others test the streams."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.errors = ""

    def __call__(self, *words: object, code: int = 0) -> dict[str, Any]:
        text = self.text(*words, "--json", code=code)
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def text(self, *words: object, code: int = 0) -> str:
        self._capsys.readouterr()
        assert run(luna, ["weights", *map(str, words)]) == code, self._capsys.readouterr()
        out, self.errors = self._capsys.readouterr()
        return out


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("LUNA_MODELS", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return Shelf(tmp_path)


def stale_one(shelf: Shelf) -> Path:
    source = shelf.source()
    made = shelf.variant(source, NAME)
    write_holes(source, {**TINY_SDXL, "out.0.bias": (32,)})
    return made


def test_the_list_has_every_field_of_its_schema(shelf: Shelf, shell: Shell) -> None:
    source = shelf.source()
    made = shelf.variant(source, NAME)
    write_holes(shelf.home / "foreign_bf16_unet.safetensors", TINY_SDXL)
    shell("pin", made)
    found = shell("list")
    (disk,) = found["disks"]
    assert disk["variants_bytes"] == made.stat().st_size
    assert disk["trash_bytes"] == 0
    (row,) = found["sources"]
    assert row["architecture"] == {"value": "sdxl", "source": "header", "confidence": "certain"}
    (variant,) = row["variants"]
    assert {key: variant[key] for key in ("path", "format", "precision", "state", "stale", "pinned")} == {
        "path": str(made), "format": "safetensors", "precision": "bf16", "state": "current", "stale": False,
        "pinned": True,
    }  # fmt: skip
    assert set(variant) >= {"source_sha256", "tool_version", "created_at", "verified", "stale_reason", "used_by",
                            "last_used", "bytes"}  # fmt: skip
    assert [stray["state"] for stray in found["foreign"]] == ["foreign"]
    assert found["orphans"] == []


def test_the_list_is_narrowed_and_ordered_as_asked(shelf: Shelf, shell: Shell) -> None:
    shelf.source("b.safetensors")
    shelf.variant(shelf.source("a.safetensors"), "a_bf16_unet.safetensors")
    write_holes(shelf.root / "large_vae.safetensors", {"decoder.conv_in.weight": (512, 512, 9, 9), "a": (1,),
                                                       "b": (1,), "encoder.conv_in.weight": (8, 3, 3, 3)})  # fmt: skip

    def names(*words: str) -> list[str]:
        return [row["path"].rpartition("/")[2].partition(".")[0] for row in shell("list", *words)["sources"]]

    assert names() == ["a", "b", "large_vae"]
    assert names("--sort", "size")[0] == "large_vae"
    assert names("--family", "sdxl") == ["a", "b"]
    assert names("--filter", "!vae") == ["a", "b"]
    assert names("--missing", "bf16") == ["b"]
    assert names("--stale") == []
    shell("list", "--filter", "~[", code=2)


def test_check_settles_what_may_be_stale(shelf: Shelf, shell: Shell) -> None:
    source = shelf.source()
    shelf.variant(source, NAME)
    shelf.age(source, 1)
    (row,) = shell("list")["sources"]
    assert [variant["state"] for variant in row["variants"]] == ["unsure"]
    (row,) = shell("list", "--check")["sources"]
    assert [variant["state"] for variant in row["variants"]] == ["touched"]


def test_stats_and_duplicates_are_summed_up(shelf: Shelf, shell: Shell) -> None:
    source = shelf.source()
    made = shelf.variant(source, NAME)
    (shelf.root / "copy.safetensors").write_bytes(source.read_bytes())
    found = shell("list", "--stats", "--duplicates")
    assert [[path.rpartition("/")[2] for path in same] for same in found["duplicates"]] == [
        ["copy.safetensors", "tiny.safetensors"]
    ]
    entry = found["stats"]["by_precision"]["bf16"]
    assert (entry["files"], entry["bytes"]) == (1, made.stat().st_size)
    assert 0.9 < entry["share"] < 1.5  # bf16 of halves: the same but for the header
    assert "by family" in shell.text("list", "--stats")


def test_prune_says_first_then_does_and_undo_brings_it_back(shelf: Shelf, shell: Shell) -> None:
    made = stale_one(shelf)
    data = made.read_bytes()
    plan = shell("prune")
    assert plan["dry_run"] is True
    (item,) = plan["items"]
    assert (item["path"], item["bytes"], item["refused"], item["trash_id"]) == (str(made), len(data), None, None)
    assert plan["total_bytes"] == len(data)
    assert "--apply" in shell.text("prune")
    assert made.exists()
    done = shell("prune", "--apply")
    assert (done["dry_run"], done["trash_bytes"]) == (False, len(data))
    assert done["items"][0]["trash_id"] == done["batch"]
    assert not made.exists()
    (batch,) = shell("prune", "--trash")["batches"]
    assert batch["id"] == done["batch"]
    back = shell("undo", done["batch"])
    assert [entry["error"] for entry in back["items"]] == [None]
    assert made.read_bytes() == data


def test_undo_into_a_taken_name_fails_and_says_so(shelf: Shelf, shell: Shell) -> None:
    made = stale_one(shelf)
    shell("prune", "--stale", "--apply")
    made.write_bytes(b"newer")
    shell("undo", code=1)
    assert "target-exists" in shell.errors
    assert made.read_bytes() == b"newer"
    shell("undo", "nonesuch", code=1)
    assert "batch-missing" in shell.errors


def test_a_pinned_file_is_refused_with_the_reason(shelf: Shelf, shell: Shell) -> None:
    made = stale_one(shelf)
    shell("pin", made)
    assert shell("prune", made, "--apply")["items"][0]["refused"] == "pinned"
    shell("unpin", made)
    shell("prune", made, "--apply")
    assert not made.exists()


def test_only_files_luna_made_can_be_pinned(shelf: Shelf, shell: Shell) -> None:
    shell("pin", shelf.source(), code=4)
    assert "was not made by Luna" in shell.errors


def test_permanent_wants_a_yes_and_empties_the_trash(shelf: Shelf, shell: Shell) -> None:
    made = stale_one(shelf)
    shell("prune", "--permanent", code=2)
    shell("prune", "--apply", "--permanent", code=2)  # nobody is there to answer
    assert made.exists()
    done = shell("prune", "--apply", "--permanent", "--yes")
    assert done["trash_bytes"] == 0
    assert not made.exists()
    assert shell("prune", "--trash")["batches"] == []


def test_read_only_plans_and_changes_nothing(shelf: Shelf, shell: Shell) -> None:
    made = stale_one(shelf)
    shell("prune", "--readonly")
    for words in (("prune", "--apply"), ("undo",), ("pin", made)):
        shell(*words, "--readonly", code=1)
        assert "read-only" in shell.errors
    assert made.exists()


def test_a_database_of_a_newer_luna_is_told_and_keeps_files_from_being_pruned(
    shelf: Shelf, shell: Shell, luna_home: Path
) -> None:
    import sqlite3

    made = stale_one(shelf)
    (luna_home / "state").mkdir(exist_ok=True)
    newer = sqlite3.connect(luna_home / "state" / "luna.db")
    newer.execute("PRAGMA user_version=99")
    newer.close()
    assert [notice["code"] for notice in shell("list")["notices"]] == ["database-newer"]
    assert "database-newer" in shell.errors
    shell("prune", "--apply", code=1)
    assert "pins-unknown" in shell.errors
    assert made.exists()
