"""The catalogue: states of converted files, what is remembered, names of earlier releases, roots and links."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from luna_engine.weights import content, header_pool, inspect, provenance, verification
from luna_engine.weights.catalog import Catalog, Listing
from luna_engine.weights.header_pool import read_headers
from luna_engine.weights.headers import read_header
from luna_engine.weights.memory import Check, Header, Memory
from luna_engine.weights.settling import data_content, duplicates, settle
from luna_engine.weights.usage import record_use, record_use_later
from luna_engine.weights.variants import VariantState
from luna_engine.weights.walking import stamp_of, walk
from tests.synthetic_models import TINY_SDXL, random_values, write_holes, write_values

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.weights.variants import Variant
    from tests.small_shelf import Shelf


def the_variant(found: Listing) -> Variant:
    (variant,) = found.variants
    return variant


def test_a_current_variant_stands_under_its_source(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    made = shelf.variant(source, "tiny_bf16_unet.safetensors")
    (row,) = catalog.sources()
    assert (row.path, row.inspection and row.inspection.family) == (source, "sdxl")
    (variant,) = row.variants
    assert (variant.path, variant.state, variant.precision, variant.reason) == (made, "current", "bf16", "")
    assert catalog.find(source, "bf16") == variant
    assert catalog.find(source, "fp16") is None


def test_hashes_are_those_that_the_conversion_noted(shelf: Shelf) -> None:
    source = shelf.source()
    for name, precision in (("tiny_bf16_unet.safetensors", "bf16"), ("tiny_F16.gguf", "gguf_F16")):
        made = shelf.variant(source, name, precision)
        known = provenance.read(read_header(made).metadata)
        assert known is not None
        assert content.source_hash(source) == known.source_sha256
        assert content.data_hash(made) == known.data_sha256


def test_another_time_makes_unsure_and_a_look_at_the_content_decides(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    shelf.variant(source, "tiny_bf16_unet.safetensors")
    shelf.age(source, 1)
    assert the_variant(catalog.whole()).state is VariantState.UNSURE
    settle(catalog, catalog.sources())
    assert the_variant(catalog.listing()).state is VariantState.TOUCHED
    shelf.source(seed=2)  # the same names and shapes, other values
    assert the_variant(catalog.whole()).state is VariantState.UNSURE
    settle(catalog, catalog.sources())
    assert the_variant(catalog.listing()).state is VariantState.STALE


def test_a_source_is_hashed_once_for_each_state(
    shelf: Shelf, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shelf.source()
    shelf.variant(source, "tiny_bf16_unet.safetensors")
    shelf.age(source, 1)
    settle(catalog, catalog.sources())
    monkeypatch.setattr(content, "source_hash", None)  # a second reading would raise
    with contextlib.closing(shelf.catalog()) as other:
        assert the_variant(other.whole()).state is VariantState.TOUCHED
        settle(other, other.sources())


def test_another_header_is_stale_at_once(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    shelf.variant(source, "tiny_bf16_unet.safetensors")
    write_values(source, random_values({**TINY_SDXL, "out.0.bias": (32,)}))
    assert the_variant(catalog.whole()).state is VariantState.STALE


def test_older_rules_are_outdated_and_still_usable(
    shelf: Shelf, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    monkeypatch.setattr(provenance, "RULES", provenance.RULES + 1)
    found = the_variant(catalog.whole())
    assert found.state is VariantState.OUTDATED
    assert found.state.is_usable


def test_a_source_that_is_gone_leaves_an_orphan(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    shelf.variant(source, "tiny_bf16_unet.safetensors")
    source.unlink()
    found = catalog.whole()
    assert found.sources == ()
    (stray,) = found.strays
    assert (stray.state, stray.reason) == (VariantState.ORPHANED, "its source tiny.safetensors is gone")


def test_an_orphan_of_a_folder_that_is_away_says_so(shelf: Shelf, tmp_path: Path) -> None:
    shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    (tmp_path / "elsewhere").mkdir()
    memory = Memory.open(shelf.database)
    with contextlib.closing(Catalog.open([tmp_path / "elsewhere"], [shelf.home], memory=memory)) as other:
        (stray,) = other.whole().strays
    assert stray.state is VariantState.ORPHANED
    assert "not among the known ones" in stray.reason


def test_files_luna_did_not_make_are_foreign_with_their_true_types(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    liar = write_values(shelf.home / "tiny_q4_k_m.gguf", random_values(TINY_SDXL))  # safetensors, F16
    liar.rename(shelf.home / "tiny_Q4_K_M_x.safetensors")
    write_holes(shelf.home / "tiny_FP8_e4m3fn_unet.safetensors", TINY_SDXL, "F16")
    write_holes(shelf.home / "other_bf16_unet.safetensors", TINY_SDXL, "BF16")
    found = {variant.path.name: variant for variant in catalog.whole().strays}
    named = found["tiny_FP8_e4m3fn_unet.safetensors"]
    assert (named.state, named.precision) == (VariantState.FOREIGN, "fp8_e4m3fn")
    assert named.reason == "named fp8_e4m3fn, holds mostly F16"
    assert named.suggestion == source
    assert set(named.dtypes) == {"F16"}
    honest = found["other_bf16_unet.safetensors"]
    assert (honest.reason, honest.suggestion) == ("Luna did not make it", None)
    assert [row.path for row in catalog.listing().sources] == [source]


@pytest.mark.parametrize("folder", ["checkpoints_converted", "converted/sub", "unet-converted/a", "gguf"])
def test_folders_of_earlier_releases_hold_variants_only_where_a_source_fits(
    shelf: Shelf, catalog: Catalog, folder: str
) -> None:
    source = shelf.source()
    write_holes(shelf.root / folder / "Tiny_bf16_unet.safetensors", TINY_SDXL, "BF16")
    downloaded = write_holes(shelf.root / folder / "flux-dev_Q8_0.safetensors", TINY_SDXL)
    found = catalog.whole()
    assert [(stray.state, stray.suggestion) for stray in found.strays] == [(VariantState.FOREIGN, source)]
    assert {row.path for row in found.sources} == {source, downloaded}


def test_a_broken_file_in_the_folder_of_variants_is_damaged_and_elsewhere_a_row_with_its_error(
    shelf: Shelf, catalog: Catalog
) -> None:
    for folder in (shelf.home, shelf.root):
        (folder / "broken.safetensors").write_bytes(b"<!DOCTYPE html>" + bytes(40))
    found = catalog.whole()
    assert [(stray.state, "file-damaged" in stray.reason) for stray in found.strays] == [(VariantState.DAMAGED, True)]
    (row,) = found.sources
    assert row.error is not None
    assert row.error["code"] == "file-damaged"


def test_a_verification_that_failed_makes_damaged_until_the_file_is_another(shelf: Shelf, catalog: Catalog) -> None:
    made = shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    error = {"code": "file-damaged", "message": "a hash differs", "hint": None}
    catalog.memory.keep_check(made, stamp_of(made), Check("2026-01-01T00:00:00Z", "1", error))
    assert the_variant(catalog.whole()).state is VariantState.DAMAGED
    os.utime(made)
    assert the_variant(catalog.whole()).state is VariantState.CURRENT


def test_what_verify_found_is_remembered_and_prune_need_not_read_the_file_again(
    shelf: Shelf, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shelf.source()
    made = shelf.variant(source, "tiny_bf16_unet.safetensors")
    monkeypatch.setenv("LUNA_HOME", str(shelf.root.parent / "home"))
    assert verification.main([str(made), "--source", str(source)]) == 0
    with contextlib.closing(Memory.open()) as memory:
        checked = memory.checks()[str(made)][1]
        assert (checked.error, checked.against) == (None, str(source))
        assert 0 < (checked.rms_error or 0) < 0.01
        monkeypatch.setattr(content, "data_hash", None)  # reading it would raise
        assert len(data_content(made, memory)) == 64
    with made.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x01")
    assert verification.main([str(made)]) == 4
    with contextlib.closing(Memory.open()) as memory:
        found = memory.checks()[str(made)][1].error
        assert found is not None
        assert found["code"] == "file-damaged"


def test_a_damaged_source_or_a_missing_file_says_nothing_of_the_variant(shelf: Shelf) -> None:
    source = shelf.source()
    made = shelf.variant(source, "tiny_bf16_unet.safetensors")
    other = write_holes(shelf.root / "other.safetensors", {**TINY_SDXL, "out.0.bias": (32,)})
    assert verification.main([str(made), "--source", str(other)]) == 4
    assert verification.main([str(shelf.home / "gone.gguf")]) == 4
    with contextlib.closing(Memory.open()) as memory:
        assert memory.checks() == {}


def test_two_roots_one_inside_the_other_list_each_file_once(shelf: Shelf, tmp_path: Path) -> None:
    source = shelf.source()
    shelf.variant(source, "tiny_bf16_unet.safetensors")
    memory = Memory.open(shelf.database)
    with contextlib.closing(Catalog.open([tmp_path, shelf.root], [shelf.home], memory=memory)) as nested:
        (row,) = nested.sources()
    assert [variant.state for variant in row.variants] == [VariantState.CURRENT]


# -- what is remembered -------------------------------------------------------------------------------------------


def test_a_known_file_is_not_opened_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    (shelf.root / "broken.safetensors").write_bytes(b"x")
    with contextlib.closing(shelf.catalog()) as first:
        before = first.whole()
    monkeypatch.setattr(header_pool, "inspect", None)  # reading one would raise
    with contextlib.closing(shelf.catalog()) as second:
        assert second.whole() == before


def test_a_changed_file_is_read_again_and_one_that_is_gone_is_forgotten(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    other = shelf.source("other.safetensors")
    assert len(catalog.sources()) == 2
    write_holes(source, {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)})
    other.unlink()
    (row,) = catalog.sources()
    assert row.inspection is not None
    assert row.inspection.kind.value == "vae"
    assert set(catalog.memory.headers()) == {str(source)}


def test_a_deleted_database_is_rebuilt_but_for_uses_and_pins(shelf: Shelf, catalog: Catalog) -> None:
    made = shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    catalog.memory.pin(made)
    record_use(made, "comfy:8188", memory=catalog.memory)
    known = the_variant(catalog.whole())
    assert (known.is_pinned, known.users) == (True, ("comfy:8188",))
    catalog.close()
    for file in shelf.database.parent.glob("luna.db*"):
        file.unlink()
    with contextlib.closing(shelf.catalog()) as again:
        rebuilt = the_variant(again.whole())
    assert (rebuilt.state, rebuilt.is_pinned, rebuilt.used_at) == (VariantState.CURRENT, False, None)


def test_rows_come_while_headers_are_still_being_read(shelf: Shelf, catalog: Catalog) -> None:
    for number in range(3):
        shelf.source(f"model-{number}.safetensors")
    steps = catalog.refresh()
    assert next(steps) == 3
    first = catalog.listing()
    assert (len(first.sources), first.unread) == (3, 3)
    assert not any(row.is_read for row in first.sources)
    assert list(steps) == [2, 1, 0]
    assert all(row.inspection is not None for row in catalog.listing().sources)


def test_a_disk_that_does_not_answer_costs_its_own_files_only(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(12)]
    answer = threading.Event()

    def read(path: Path) -> Header:
        if int(path.stem) % 2:
            answer.wait(30)
        return Header(None, None)

    found = dict(read_headers(paths, read, patience_s=0.05))
    answer.set()
    assert set(found) == set(paths)
    late = {path.name for path, header in found.items() if header.error is not None}
    assert late == {f"{number}.safetensors" for number in range(1, 12, 2)}
    assert {header.error["code"] for header in found.values() if header.error} == {"file-unreadable"}


# -- uses and duplicates ------------------------------------------------------------------------------------------


def test_a_use_is_noted_beside_the_load_and_a_locked_database_does_not_hold_it_up(shelf: Shelf) -> None:
    made = shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    thread = record_use_later(made, "comfy:8188")
    thread.join(30)
    with contextlib.closing(Memory.open()) as memory:
        (use,) = memory.uses()[os.path.realpath(made)]
        assert (use.holder, use.pid) == ("comfy:8188", os.getpid())
        memory.store.rows("BEGIN EXCLUSIVE")
        waiting = record_use_later(made, "comfy:8189")  # returns at once
        assert waiting.is_alive()
        memory.store.rows("ROLLBACK")
        waiting.join(30)
        assert len(memory.uses()[os.path.realpath(made)]) == 2


def test_a_process_that_ended_holds_nothing_but_its_load_counts(shelf: Shelf, catalog: Catalog) -> None:
    made = shelf.variant(shelf.source(), "tiny_bf16_unet.safetensors")
    record_use(made, "comfy:8188", memory=catalog.memory)
    catalog.memory.store.write([("UPDATE weights_uses SET create_time=1", ())])  # a process of another time
    known = the_variant(catalog.whole())
    assert known.users == ()
    assert known.used_at is not None


def test_duplicates_are_found_by_content_and_two_names_of_one_file_are_none(shelf: Shelf, catalog: Catalog) -> None:
    first = shelf.source("a.safetensors")
    copy = shelf.root / "b.safetensors"
    shutil.copy2(first, copy)
    shelf.source("same-header.safetensors", seed=2)
    os.link(first, shelf.root / "c.safetensors")
    (same,) = duplicates(catalog.sources(), catalog.memory)
    assert [row.path.name for row in same] == ["a.safetensors", "b.safetensors"]


# -- folders and links --------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed_inside_the_roots_only_and_told_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "checkpoints", tmp_path / "outside"
    write_holes(root / "sub" / "a.safetensors", TINY_SDXL)
    write_holes(outside / "b.safetensors", TINY_SDXL)
    (root / "again").symlink_to(root / "sub")
    (root / "loop").symlink_to(root)
    (root / "away").symlink_to(outside)
    files, notices = walk([root])
    assert [file.path.name for file in files] == ["a.safetensors"]
    assert [notice.code for notice in notices] == ["link-outside"]
    assert str(outside) in str(notices[0].hint)
    files, notices = walk([root, outside])
    assert {file.path.name for file in files} == {"a.safetensors", "b.safetensors"}
    assert notices == []


def test_a_link_to_a_file_is_listed_and_one_to_nothing_is_not(tmp_path: Path) -> None:
    write_holes(tmp_path / "elsewhere" / "a.safetensors", TINY_SDXL)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / "link.safetensors").symlink_to(tmp_path / "elsewhere" / "a.safetensors")
    (root / "dangling.safetensors").symlink_to(tmp_path / "gone.safetensors")
    files, _ = walk([root])
    assert [(file.path.name, file.is_link) for file in files] == [("link.safetensors", True)]


def test_a_summary_says_what_the_inspection_says(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    (row,) = catalog.sources()
    found = inspect(source)
    assert row.inspection is not None
    for name in ("kind", "family", "precision", "form", "confidence", "evidence", "name", "prediction"):
        assert getattr(row.inspection, name) == getattr(found, name)
