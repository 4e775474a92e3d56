"""Which converted files can go, and moving them into the trash. Only files that Luna made, looked at once more before.

Selecting reads nothing but what the catalogue knows; moving reads each file's provenance and tensors again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights import provenance, trash
from luna_engine.weights.headers import read_header
from luna_engine.weights.jobs import JobStore, new_id
from luna_engine.weights.leftovers import leftover_parts
from luna_engine.weights.locking import maker_of
from luna_engine.weights.settling import data_content
from luna_engine.weights.variants import VariantState
from luna_engine.weights.walking import Stamp, stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from luna_engine.weights.catalog import Listing
    from luna_engine.weights.memory import Memory
    from luna_engine.weights.trash import Moved
    from luna_engine.weights.variants import Variant

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class PruneRules:
    """What is to go. A file that any rule names goes, unless something holds it.

    Attributes:
        files: these, whatever their state.
        stale: made from another state of their source, or damaged since.
        orphans: their source is gone.
        unused_days: not loaded (or, never loaded, not made) for so many days.
        max_total_bytes: the longest unused ones, until the rest is no larger.
        keep: of each source all but so many, those used last staying.
    """

    files: tuple[Path, ...] = ()
    stale: bool = False
    orphans: bool = False
    unused_days: int | None = None
    max_total_bytes: int | None = None
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class PruneItem:
    """One file: why it would go and, in ``refused``, why it stays all the same. Times are Unix seconds.

    ``home`` is the folder whose trash takes it; None for what a dead conversion left, which is deleted.
    """

    path: Path
    size_bytes: int
    reason: str
    refused: str | None
    used_at: float | None
    stamp: Stamp
    home: Path | None
    trash_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of ``luna.weights.prune/1``."""
        return {
            "path": str(self.path), "bytes": self.size_bytes, "reason": self.reason, "refused": self.refused,
            "trash_id": self.trash_id,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a pruning would do, or did (``is_dry_run`` False). ``problems`` are of files that could not be moved."""

    items: tuple[PruneItem, ...] = ()
    is_dry_run: bool = True
    problems: tuple[LunaError, ...] = ()
    batch: str | None = None

    @property
    def total_bytes(self) -> int:
        """Return the bytes that leave the catalogue."""
        return sum(item.size_bytes for item in self.items if item.refused is None)

    def without(self, paths: Iterable[Path]) -> PrunePlan:
        """Return the plan without some files, which the user wants to keep."""
        left_out = set(paths)
        return dataclasses.replace(self, items=tuple(item for item in self.items if item.path not in left_out))


def plan_prune(found: Listing, rules: PruneRules, homes: Iterable[Path]) -> PrunePlan:
    """Say what would go, and why; nothing is changed.

    Raises:
        LunaError: ``file-missing`` for a named file that the catalogue does not know.
    """
    chosen = _chosen(found, rules)
    busy = _job_files()
    items = [_item(variant, reason, busy, is_named=is_named) for variant, reason, is_named in chosen]
    if not rules.files:
        folders = {*homes, *(variant.path.parent for variant in found.variants)}
        items += [
            PruneItem(path, size, reason, None, None, stamp, None)
            for path, size, reason, stamp in leftover_parts(folders)
        ]
    return PrunePlan(tuple(sorted(items, key=lambda item: item.path)))


def _chosen(found: Listing, rules: PruneRules) -> list[tuple[Variant, str, bool]]:
    """Return (file, reason, whether it was named) of what the rules select, each file once."""
    known = {str(variant.path): variant for variant in found.variants}
    reasons: dict[str, tuple[str, bool]] = {}
    for file in rules.files:
        if str(file.absolute()) not in known:
            raise LunaError(
                "file-missing", f"{file} is no converted file that Luna knows", "`luna weights list` shows them"
            )
        reasons[str(file.absolute())] = ("named", True)
    made = [variant for variant in known.values() if variant.provenance is not None]
    for variant in made:
        if (reason := _reason(variant, rules)) is not None:
            reasons.setdefault(str(variant.path), (reason, False))
    if rules.keep is not None:
        for row in found.sources:
            newest = sorted(row.variants, key=lambda variant: -variant.age_from)
            for variant in newest[rules.keep :]:
                reasons.setdefault(str(variant.path), (f"not among the {rules.keep} used last of its source", False))
    if rules.max_total_bytes is not None:
        _choose_by_size(made, rules.max_total_bytes, reasons)
    return [(known[path], reason, is_named) for path, (reason, is_named) in reasons.items()]


def _reason(variant: Variant, rules: PruneRules) -> str | None:
    if rules.stale and variant.state in {VariantState.STALE, VariantState.UNSURE, VariantState.DAMAGED}:
        return f"{variant.state.value}: {variant.reason}"
    if rules.orphans and variant.state is VariantState.ORPHANED:
        return f"orphan: {variant.reason}"
    idle_days = (time.time() - variant.age_from) / _DAY_S
    if rules.unused_days is not None and idle_days >= rules.unused_days:
        return f"unused for {int(idle_days)} days"
    return None


def _choose_by_size(made: Sequence[Variant], limit: int, reasons: dict[str, tuple[str, bool]]) -> None:
    """Choose the longest unused until the rest, what other rules take not counted, fits the limit."""
    left = [variant for variant in made if str(variant.path) not in reasons]
    total = sum(variant.size_bytes for variant in left)
    for variant in sorted(left, key=lambda variant: variant.age_from):
        if total <= limit:
            return
        if variant.is_pinned or variant.users:
            continue
        reasons[str(variant.path)] = (f"longest unused beyond {limit / 1e9:g} GB", False)
        total -= variant.size_bytes


def _item(variant: Variant, reason: str, busy: dict[str, str], *, is_named: bool) -> PruneItem:
    return PruneItem(
        variant.path,
        0 if variant.is_link else variant.size_bytes,
        reason,
        _refusal(variant, busy, is_named=is_named),
        variant.used_at,
        variant.stamp,
        variant.home or variant.path.parent,
    )


def _refusal(variant: Variant, busy: dict[str, str], *, is_named: bool) -> str | None:
    """Say what keeps a file, None if nothing does."""
    if variant.provenance is None:
        return "Luna did not make it"
    if variant.is_pinned:
        return "pinned"
    if variant.users:
        return f"in use by {', '.join(variant.users)}"
    if (maker := maker_of(variant.path)) is not None:
        return f"being made by {maker}"
    if (job := busy.get(str(variant.path))) is not None:
        return f"job {job} has it"
    if variant.is_link and variant.home is None:
        return "a link outside the folders of converted files"
    if variant.state is VariantState.UNSURE and not is_named:
        return "maybe stale: nobody has compared its source's content"
    if variant.state is VariantState.ORPHANED and "not among the known" in variant.reason and not is_named:
        return "its source's folder is not among the known ones: it may only be away"
    return None


def _job_files() -> dict[str, str]:
    """Return the files that unfinished jobs read or write, with the job's id."""
    found: dict[str, str] = {}
    for job in JobStore.open().all():
        if not job.state.is_over:
            found |= {job.source: job.id, job.destination: job.id}
    return found


def apply_prune(plan: PrunePlan, memory: Memory, tell: Callable[[Path, int], None] | None = None) -> PrunePlan:
    """Move what a plan selected into the trash; a file that fails does not stop the rest.

    Args:
        plan: files whose ``refused`` is None go.
        memory: what is pinned and used by now; where batches are remembered.
        tell: called with a file and the number of its bytes that were looked at since.

    Returns:
        The plan as done: refusals that came up, and the trash id of what was moved.

    Raises:
        LunaError: ``pins-unknown`` where `luna.db` cannot be read: nobody knows what shall stay.
    """
    _require_memory(memory)
    checked = [_looked_at(item, memory, tell) if item.refused is None else item for item in plan.items]
    problems: list[LunaError] = []
    done: dict[Path, PruneItem] = {}
    batch_id = new_id()
    homes = {item.home for item in checked if item.refused is None and item.home is not None}
    for home in sorted(homes):
        mine = [item for item in checked if item.home == home and item.refused is None]
        try:
            batch = trash.new_batch(batch_id, home, [(i.path, i.size_bytes, i.reason) for i in mine], memory)
        except OSError as error:
            problems.append(LunaError("trash-failed", f"{home} cannot hold a trash: {error.strerror or error}",
                                      "check who may write to it"))  # fmt: skip
            done |= {item.path: dataclasses.replace(item, refused="its folder cannot be written to") for item in mine}
            continue
        for item, entry in zip(mine, batch.items, strict=True):
            moved = trash.move_in(batch, entry)
            done[item.path] = _after(item, moved)
            problems += [moved.error] if moved.error is not None else []
            _drop_empty_folders(item.path.parent, home)
        trash.drop_if_empty(batch, memory)
    for item in checked:
        if item.home is None and item.refused is None:
            with contextlib.suppress(FileNotFoundError):
                item.path.unlink()
    items = tuple(done.get(item.path, item) for item in checked)
    return PrunePlan(items, is_dry_run=False, problems=tuple(problems), batch=batch_id if done else None)


def _after(item: PruneItem, moved: Moved) -> PruneItem:
    if moved.error is not None:
        return dataclasses.replace(item, refused=moved.error.message)
    return dataclasses.replace(item, trash_id=moved.batch)


def _looked_at(item: PruneItem, memory: Memory, tell: Callable[[Path, int], None] | None) -> PruneItem:
    """Look at a file once more, right before it goes: is it the same, is it ours, does anybody hold it now."""
    if item.home is None:
        return item
    try:
        refusal = _second_thoughts(item, memory, None if tell is None else lambda size: tell(item.path, size))
    except LunaError as error:
        refusal = f"{error.code}: {error.message}"
    except OSError as error:
        refusal = f"cannot be read: {error.strerror or error}"
    return item if refusal is None else dataclasses.replace(item, refused=refusal)


def _second_thoughts(item: PruneItem, memory: Memory, tell: Callable[[int], None] | None) -> str | None:
    if stamp_of(item.path) != item.stamp:
        return "it has changed since the plan"
    if str(item.path) in memory.pins():
        return "pinned"
    if (maker := maker_of(item.path)) is not None:
        return f"being made by {maker}"
    if users := users_of(item.path, memory):
        return f"in use by {', '.join(users)}"
    made = provenance.read(read_header(item.path).metadata)
    if made is None:
        return "Luna did not make it"
    if data_content(item.path, memory, tell) != made.data_sha256:
        return "its tensors are not those that Luna wrote: delete it yourself"
    return None


def require_pinnable(path: Path, memory: Memory) -> None:
    """Raise unless a file can be pinned so that it is remembered.

    Raises:
        InputFileError: ``file-missing``; ``wrong-type`` for a file that Luna did not make, which nothing prunes.
        LunaError: ``pins-unknown`` where `luna.db` cannot be used.
    """
    if provenance.read(read_header(path).metadata) is None:
        raise InputFileError(
            "wrong-type", f"{path.name} was not made by Luna: nothing prunes it", "pin converted files", file=str(path)
        )
    _require_memory(memory)


def _require_memory(memory: Memory) -> None:
    if not memory.store.is_kept:
        raise LunaError(
            "pins-unknown",
            "luna.db cannot be used: what is pinned or in use is not known",
            memory.store.notices[-1].hint,
        )


def users_of(path: Path, memory: Memory) -> tuple[str, ...]:
    """Return who loaded a file and still runs."""
    from luna_engine.weights.assembly import is_held

    uses = memory.uses().get(os.path.realpath(path), ())
    return tuple(dict.fromkeys(use.holder for use in uses if is_held(use)))


def _drop_empty_folders(folder: Path, home: Path) -> None:
    """Remove folders below ``home`` that are empty now."""
    while folder != home and folder.is_relative_to(home):
        try:
            folder.rmdir()
        except OSError:  # not empty
            return
        folder = folder.parent
