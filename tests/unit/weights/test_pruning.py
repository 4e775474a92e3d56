"""Pruning: what is chosen and what stays, the trash and the way back, and dying in the middle of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luna_engine.errors import LunaError
from luna_engine.weights import trash
from luna_engine.weights.catalog import Catalog
from luna_engine.weights.jobs import Job, JobStore, new_id
from luna_engine.weights.memory import Memory
from luna_engine.weights.pruning import PrunePlan, PruneRules, apply_prune, plan_prune
from luna_engine.weights.usage import record_use
from tests.small_shelf import DAY_S, Shelf
from tests.synthetic_models import TINY_SDXL, write_holes

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "tiny_bf16_unet.safetensors"
STALE, ORPHANS = PruneRules(stale=True), PruneRules(orphans=True)


def planned(catalog: Catalog, rules: PruneRules) -> PrunePlan:
    return plan_prune(catalog.whole(), rules, catalog.homes)


def fates(plan: PrunePlan) -> dict[str, str | None]:
    return {item.path.name: item.refused for item in plan.items}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("luna.db")
    }


def stale_one(shelf: Shelf) -> Path:
    """Make a variant, then another source under the same name."""
    source = shelf.source()
    made = shelf.variant(source, NAME)
    write_holes(source, {**TINY_SDXL, "out.0.bias": (32,)})
    return made


# -- choosing -----------------------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(shelf: Shelf, catalog: Catalog, tmp_path: Path) -> None:
    made = stale_one(shelf)
    write_holes(shelf.home / "foreign_Q8_0.safetensors", TINY_SDXL)
    before = tree(tmp_path)
    plan = planned(catalog, STALE)
    assert plan.is_dry_run
    assert fates(plan) == {NAME: None}
    assert plan.items[0].reason.startswith("stale: ")
    assert plan.total_bytes == made.stat().st_size
    assert tree(tmp_path) == before


def test_current_and_foreign_files_are_never_chosen(shelf: Shelf, catalog: Catalog) -> None:
    shelf.variant(shelf.source(), NAME)
    write_holes(shelf.home / "tiny_Q8_0.safetensors", TINY_SDXL)
    assert planned(catalog, PruneRules(stale=True, orphans=True)).items == ()
    everything = planned(catalog, PruneRules(unused_days=0, max_total_bytes=0, keep=0))
    assert [item.path.name for item in everything.items] == [NAME]


def test_a_foreign_file_stays_even_if_it_is_named(shelf: Shelf, catalog: Catalog) -> None:
    foreign = write_holes(shelf.home / "tiny_bf16_unet.safetensors", TINY_SDXL)
    plan = apply_prune(planned(catalog, PruneRules((foreign,))), catalog.memory)
    assert fates(plan) == {foreign.name: "Luna did not make it"}
    assert foreign.exists()


def test_a_file_that_nobody_knows_is_an_error(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(LunaError, match="no converted file"):
        planned(catalog, PruneRules((tmp_path / "nonesuch.gguf",)))


def test_the_unused_go_by_last_load_and_else_by_age(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    old, used = shelf.variant(source, "old.gguf", "gguf_F16"), shelf.variant(source, "used.safetensors", "bf16")
    shelf.variant(source, "new.gguf", "gguf_BF16")
    for path in (old, used):
        shelf.age(path, 40)
    record_use(used, "comfy:8188", memory=catalog.memory)
    catalog.memory.store.write([("UPDATE weights_uses SET create_time=1", ())])
    plan = planned(catalog, PruneRules(unused_days=30))
    assert [(item.path, item.reason) for item in plan.items] == [(old, "unused for 40 days")]


def test_the_total_is_kept_by_taking_the_longest_unused(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    made = (("a.safetensors", "bf16"), ("b.gguf", "gguf_F16"), ("c.gguf", "gguf_BF16"))
    files = [shelf.variant(source, *names) for names in made]
    for days, path in enumerate(files):
        shelf.age(path, 10 * (days + 1))
    catalog.memory.pin(files[2])  # the oldest, but pinned
    total = sum(path.stat().st_size for path in files)
    plan = planned(catalog, PruneRules(max_total_bytes=total - 1))
    assert [item.path for item in plan.items] == [files[1]]


def test_of_each_source_so_many_stay(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    first, second = shelf.variant(source, "a.gguf", "gguf_BF16"), shelf.variant(source, "b.gguf", "gguf_F16")
    shelf.age(first, 5)
    lonely = shelf.variant(shelf.source("other.safetensors"), "other.gguf", "gguf_F16")
    plan = planned(catalog, PruneRules(keep=1))
    assert [item.path for item in plan.items] == [first]
    assert second.exists()
    assert lonely.exists()


def test_what_is_pinned_used_made_or_wanted_by_a_job_stays_with_the_holders_name(
    shelf: Shelf, catalog: Catalog
) -> None:
    source = shelf.source()
    names = ("pinned.gguf", "used.gguf", "locked.gguf", "job.gguf")
    files = [shelf.variant(source, name, "gguf_F16") for name in names]
    catalog.memory.pin(files[0])
    record_use(files[1], "comfy:8188", memory=catalog.memory)
    me = psutil.Process()
    lock = {"host": os.uname().nodename, "pid": me.pid, "create_time": me.create_time(), "job": "x"}
    files[2].with_name("locked.gguf.lock").write_text(json.dumps(lock))
    job = JobStore.open().save(Job(new_id(), str(source), "gguf_F16", str(files[3])))
    found = fates(planned(catalog, PruneRules(tuple(files))))
    assert found["pinned.gguf"] == "pinned"
    assert found["used.gguf"] == "in use by comfy:8188"
    assert str(found["locked.gguf"]).startswith(f"being made by process {me.pid}")
    assert found["job.gguf"] == f"job {job.id} has it"


def test_a_variant_that_may_be_stale_stays_until_somebody_has_looked(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    shelf.variant(source, NAME)
    shelf.age(source, 1)
    assert "nobody has compared" in str(fates(planned(catalog, STALE))[NAME])


def test_an_orphan_of_a_folder_that_may_only_be_away_stays(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.variant(shelf.source(), NAME)
    (tmp_path / "else").mkdir()
    memory = Memory.open(shelf.database)
    with contextlib.closing(Catalog.open([tmp_path / "else"], [shelf.home], memory=memory)) as other:
        assert "may only be away" in str(fates(planned(other, ORPHANS))[NAME])
        assert fates(planned(other, PruneRules((made,)))) == {NAME: None}  # named, it goes


# -- the trash and the way back -----------------------------------------------------------------------------------


def test_pruned_files_wait_in_the_trash_and_come_back_byte_for_byte(
    shelf: Shelf, catalog: Catalog, tmp_path: Path
) -> None:
    made = stale_one(shelf)
    inner = shelf.home / "sub" / "deep" / "x.gguf"
    shelf.variant(shelf.source("x.safetensors"), "sub/deep/x.gguf", "gguf_F16")
    before = tree(tmp_path)
    done = apply_prune(planned(catalog, PruneRules((made, inner))), catalog.memory)
    assert not done.is_dry_run
    assert {item.trash_id for item in done.items} == {done.batch}
    assert not made.exists()
    assert not inner.parent.parent.exists()  # empty folders go
    assert shelf.home.is_dir()
    assert catalog.whole().variants == ()
    held = [path for path in (shelf.home / trash.FOLDER).rglob("*") if path.is_file()]
    assert sorted({path.suffix for path in held}) == [".json", ".trash"]
    assert trash.trash_bytes(catalog.homes, catalog.memory) == done.total_bytes
    (batch,) = trash.find_batches(None, catalog.homes, catalog.memory)
    assert [one.error for one in trash.undo(batch, catalog.memory)] == [None, None]
    assert tree(tmp_path) == before
    with pytest.raises(LunaError, match="nothing to bring back"):
        trash.find_batches(None, catalog.homes, catalog.memory)


def test_undo_never_overwrites(shelf: Shelf, catalog: Catalog) -> None:
    made = stale_one(shelf)
    done = apply_prune(planned(catalog, STALE), catalog.memory)
    made.write_bytes(b"newer")
    (batch,) = trash.find_batches(done.batch, catalog.homes, catalog.memory)
    (one,) = trash.undo(batch, catalog.memory)
    assert one.error is not None
    assert one.error.code == "target-exists"
    assert made.read_bytes() == b"newer"
    assert len(batch.held) == 1  # the older one is still there
    made.unlink()
    assert [one.error for one in trash.undo(batch, catalog.memory)] == [None]
    assert made.stat().st_size > 5


def test_a_batch_is_found_without_the_database_too(shelf: Shelf, catalog: Catalog, tmp_path: Path) -> None:
    stale_one(shelf)
    apply_prune(planned(catalog, STALE), catalog.memory)
    with contextlib.closing(Memory.open(tmp_path / "another.db")) as memory:
        assert len(trash.batches(catalog.homes, memory)) == 1


def test_a_variant_outside_the_folders_of_variants_goes_to_a_trash_beside_it(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    made = shelf.variant(source, "../../checkpoints/beside.gguf", "gguf_F16").resolve()
    done = apply_prune(planned(catalog, PruneRules((made,))), catalog.memory)
    (batch,) = trash.batches((), catalog.memory)
    assert batch.folder.parent.parent == made.parent
    assert batch.id == done.batch
    trash.undo(batch, catalog.memory)
    assert made.exists()


def test_only_a_link_in_the_folder_of_variants_goes_and_never_what_it_leads_to(shelf: Shelf, catalog: Catalog) -> None:
    source = shelf.source()
    real = shelf.variant(source, "../../elsewhere.gguf", "gguf_F16").resolve()
    inside, outside = shelf.home / "inside.gguf", shelf.root / "outside.gguf"
    for link in (inside, outside):
        link.symlink_to(real)
    foreign = write_holes(shelf.root.parent / "foreign.safetensors", TINY_SDXL)
    (shelf.home / "foreign_bf16_unet.safetensors").symlink_to(foreign)
    rules = PruneRules((inside, outside, shelf.home / "foreign_bf16_unet.safetensors"))
    done = apply_prune(planned(catalog, rules), catalog.memory)
    assert fates(done) == {
        "inside.gguf": None,
        "outside.gguf": "a link outside the folders of converted files",
        "foreign_bf16_unet.safetensors": "Luna did not make it",
    }
    assert (inside.is_symlink(), outside.is_symlink(), real.exists()) == (False, True, True)
    assert done.total_bytes == 0  # a link frees nothing
    (batch,) = trash.find_batches(done.batch, catalog.homes, catalog.memory)
    trash.undo(batch, catalog.memory)
    assert inside.readlink() == real


@pytest.mark.parametrize("change", ["content", "stamp", "pin", "use", "gone"])
def test_what_changed_since_the_plan_stays(shelf: Shelf, catalog: Catalog, change: str) -> None:
    made = stale_one(shelf)
    status = made.stat()
    if change == "content":  # written to by another tool that kept header and time
        with made.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))
    plan = planned(catalog, STALE)
    if change == "stamp":
        os.utime(made)
    elif change == "pin":
        catalog.memory.pin(made)
    elif change == "use":
        record_use(made, "comfy:8188", memory=catalog.memory)
    elif change == "gone":
        made.unlink()
    done = apply_prune(plan, catalog.memory)
    assert done.items[0].refused is not None
    assert made.exists() == (change != "gone")
    expected = {
        "content": "its tensors are not those that Luna wrote: delete it yourself",
        "stamp": "it has changed since the plan",
        "pin": "pinned",
        "use": "in use by comfy:8188",
    }
    assert expected.get(change, done.items[0].refused) == done.items[0].refused


def test_without_a_database_nothing_is_pruned(shelf: Shelf, catalog: Catalog, tmp_path: Path) -> None:
    made = stale_one(shelf)
    plan = planned(catalog, STALE)
    with contextlib.closing(Memory.open(tmp_path / "no" / "luna.db")) as memory, pytest.raises(LunaError) as caught:
        apply_prune(plan, memory)
    assert caught.value.code == "pins-unknown"
    assert made.exists()


def test_a_file_that_cannot_move_does_not_stop_the_others(
    shelf: Shelf, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shelf.source()
    first, second = shelf.variant(source, "a.gguf", "gguf_F16"), shelf.variant(source, "b.gguf", "gguf_BF16")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == first:
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)  # a share where another program holds the file: not to be had here
    done = apply_prune(planned(catalog, PruneRules((first, second))), catalog.memory)
    assert [problem.code for problem in done.problems] == ["trash-failed"]
    assert (first.exists(), second.exists()) == (True, False)


def test_the_trash_is_emptied_after_fourteen_days(shelf: Shelf, catalog: Catalog) -> None:
    stale_one(shelf)
    apply_prune(planned(catalog, STALE), catalog.memory)
    assert trash.empty_old(catalog.homes, catalog.memory, time.time() + 13.9 * DAY_S) == 0
    assert trash.empty_old(catalog.homes, catalog.memory, time.time() + 14.1 * DAY_S) > 0
    assert not (shelf.home / trash.FOLDER).exists()
    assert trash.batches(catalog.homes, catalog.memory) == ()


@pytest.mark.parametrize(
    ("name", "original"),
    [("../../escaped.trash", "a.gguf"), ("a.trash", "../../../escaped.gguf"), ("a.trash", "/etc/passwd"),
     ("manifest.json", "a.gguf")],
)  # fmt: skip
def test_a_manifest_that_leads_out_of_its_folders_is_none(tmp_path: Path, name: str, original: str) -> None:
    folder = tmp_path / "home" / trash.FOLDER / "b"
    folder.mkdir(parents=True)
    item = {"name": name, "original": original, "bytes": 1, "reason": ""}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "id": "b", "at": 0, "items": [item]}))
    assert trash.read_batch(folder) is None


def test_parts_of_dead_conversions_go_and_those_of_live_ones_stay(shelf: Shelf, catalog: Catalog) -> None:
    dead, alive, young = (shelf.home / f"{name}.gguf.20260101-ab12.part" for name in ("dead", "alive", "young"))
    for path in (dead, alive, young):
        path.write_bytes(b"half")
    for path in (dead, alive):
        shelf.age(path, 1)
    me = psutil.Process()
    lock = {"host": os.uname().nodename, "pid": me.pid, "create_time": me.create_time(), "job": "x"}
    (shelf.home / "alive.gguf.lock").write_text(json.dumps(lock))
    (shelf.home / "notes.part").write_bytes(b"not ours")
    shelf.age(shelf.home / "notes.part", 1)
    plan = planned(catalog, STALE)
    assert [item.path for item in plan.items] == [dead]
    apply_prune(plan, catalog.memory)
    assert [path.exists() for path in (dead, alive, young)] == [False, True, True]
    assert (shelf.home / "notes.part").exists()


# -- dying in the middle ------------------------------------------------------------------------------------------

CHANGES = ("rename", "unlink", "replace", "mkdir", "rmdir")


class Died(BaseException):
    """Stands for the end of the process: from then on nothing changes any more."""


def dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Died
        return function(*arguments, **options)

    return call


def survives(shelf: Shelf, work: Callable[[Catalog], object], steps: int) -> bool:
    """Do the work but die at a step; tell whether it ended before that."""
    left = [steps]
    with contextlib.closing(shelf.catalog()) as catalog, pytest.MonkeyPatch.context() as patch:
        catalog.whole()
        for name in CHANGES:
            patch.setattr(Path, name, dying(getattr(Path, name), left))
        patch.setattr(os, "link", dying(os.link, left))
        with contextlib.suppress(Died):
            work(catalog)
            return True
    return False


def prune_all(catalog: Catalog) -> None:
    apply_prune(plan_prune(catalog.listing(), PruneRules(unused_days=0), catalog.homes), catalog.memory)


def undo_last(catalog: Catalog) -> None:
    for batch in trash.find_batches(None, catalog.homes, catalog.memory):
        for one in trash.undo(batch, catalog.memory):
            assert one.error is None


def models(shelf: Shelf) -> dict[str, bytes]:
    return {name: data for name, data in tree(shelf.home).items() if not name.startswith(trash.FOLDER)}


@pytest.mark.parametrize("verb", [prune_all, undo_last])
def test_dying_at_any_step_of_pruning_or_undoing_loses_nothing(shelf: Shelf, verb: Callable[[Catalog], object]) -> None:
    """Every change of the file system is a step; after a death at it, undo brings all bytes back."""
    source = shelf.source()
    for number in range(2):
        shelf.variant(source, f"{number}.gguf", "gguf_F16")
    before = models(shelf)
    steps = 0
    is_done = False
    while not is_done:
        if verb is undo_last:
            with contextlib.closing(shelf.catalog()) as catalog:
                catalog.whole()
                prune_all(catalog)
        is_done = survives(shelf, verb, steps)
        steps += 1
        with contextlib.closing(shelf.catalog()) as catalog, contextlib.suppress(LunaError):
            undo_last(catalog)  # there is nothing to undo if it died before anything moved, or when all was back
        assert models(shelf) == before
    assert steps >= 6


KILLED = """
import os, signal, sys
from pathlib import Path
from luna_engine.weights import trash
from luna_engine.weights.catalog import Catalog
from luna_engine.weights.memory import Memory
from luna_engine.weights.pruning import PruneRules, apply_prune, plan_prune
root, home, database = map(Path, sys.argv[1:])
catalog = Catalog.open([root], [home], memory=Memory.open(database))
plan = plan_prune(catalog.whole(), PruneRules(unused_days=0), catalog.homes)
move = trash.move_in
def once(batch, item):
    move(batch, item)
    os.kill(os.getpid(), signal.SIGKILL)
trash.move_in = once
apply_prune(plan, catalog.memory)
"""


def test_kill_9_between_two_files_leaves_one_in_the_trash_and_undo_brings_it_back(shelf: Shelf) -> None:
    source = shelf.source()
    for number in range(2):
        shelf.variant(source, f"{number}.gguf", "gguf_F16")
    before = models(shelf)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", KILLED, shelf.root, shelf.home, shelf.database]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run(command, check=False, cwd=root, env=environment).returncode == -signal.SIGKILL
    assert list(models(shelf)) == ["1.gguf"]
    with contextlib.closing(shelf.catalog()) as catalog:
        undo_last(catalog)
    assert models(shelf) == before
