"""`luna weights list`, `prune`, `undo`, `pin` and `unpin`: what is there, what can go, and bringing it back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from luna_engine import settings
from luna_engine.errors import LunaError
from luna_tui import filtering, frame
from luna_tui.commands import weights_shelf_output as words
from luna_tui.commands.weights_group import FILE, catalogue, group, printable
from luna_tui.progress import Bar
from luna_tui.wording import size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from luna_engine.weights.assembly import SourceRow
    from luna_engine.weights.catalog import Catalog, Listing
    from luna_engine.weights.pruning import PrunePlan
    from luna_engine.weights.variants import Variant

_SORTS: dict[str, Callable[[SourceRow], Any]] = {
    "name": lambda row: row.path.name.casefold(),
    "size": lambda row: -row.size_bytes,
    "family": lambda row: (row.inspection.family or "~") if row.inspection else "~",
    "modified": lambda row: -row.modified_s,
    "variants": lambda row: -sum(variant.size_bytes for variant in row.variants),
    "used": lambda row: -max((variant.used_at or 0.0 for variant in row.variants), default=0.0),
}
_MANY = 10  # more want a typed yes
_COLUMNS = ("source", "arch", "precision", "folder")


@frame.verb(group, "list")
@click.argument("folders", type=FILE, nargs=-1)
@click.option("--family", metavar="F", help="Only this family, such as sdxl.")
@click.option("--filter", "wanted", metavar="WORDS", default="", help="As in the application: words !not ~regex a|b.")
@click.option("--missing", metavar="P", help="Only convertible sources without a usable file of this precision.")
@click.option("--stale", is_flag=True, help="Only sources with a variant that is no longer theirs.")
@click.option("--orphans", is_flag=True, help="Only converted files whose source is gone.")
@click.option("--foreign", is_flag=True, help="Only files in Luna's folders that Luna did not make.")
@click.option("--duplicates", is_flag=True, help="Also compare the contents of files that look alike.")
@click.option("--check", is_flag=True, help="Read sources whose time changed: are their converted files stale?")
@click.option("--stats", is_flag=True, help="Also sum up per precision, family and root.")
@click.option("--sort", type=click.Choice(list(_SORTS)), default="name", show_default=True, help="Order of sources.")
def list_sources(
    folders: tuple[Path, ...],
    family: str | None,
    wanted: str,
    missing: str | None,
    sort: str,
    *,
    stale: bool,
    orphans: bool,
    foreign: bool,
    duplicates: bool,
    check: bool,
    stats: bool,
) -> None:
    """List the sources below FOLDERS (default: the configured ones) with their converted files."""
    from luna_engine.weights.naming import missing_roots
    from luna_engine.weights.precisions import find_precision

    parsed = filtering.parse(wanted, _COLUMNS)
    if parsed.problem:
        raise click.UsageError(f"--filter: {parsed.problem}")
    wish = _Wish(parsed, family, find_precision(missing).label if missing else None, sort, stale, orphans, foreign)
    with catalogue(folders) as catalog:
        found = catalog.whole()
        if check:
            found = _settled(catalog, found)
        for notice in found.notices:
            frame.output().note(f"luna: {notice.code}: {printable(notice.message)} -> {notice.hint}")
        rows, strays = wish.sources(found), wish.strays(found)
        fields, text = _listed(catalog, found, rows, strays), words.list_text(rows, strays)
        fields["missing"] = [] if folders else [str(root) for root in missing_roots(settings.load())]
        if duplicates:
            groups = _duplicates(catalog, rows)
            fields["duplicates"] = [[str(row.path) for row in same] for same in groups]
            text = f"{text}\n{words.duplicates_text(groups)}"
        if stats:
            fields["stats"] = catalog.stats()
            text = f"{text}\n{words.stats_text(fields['stats'])}"
    frame.output().data("luna.weights.list/1", fields, text)


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which rows are asked for, and in which order."""

    words: filtering.Filter
    family: str | None
    lacking: str | None
    sort: str
    is_stale: bool
    is_orphans: bool
    is_foreign: bool

    def sources(self, found: Listing) -> list[SourceRow]:
        """Return the sources that fit, in order."""
        if self.is_orphans or self.is_foreign:
            return []
        return sorted((row for row in found.sources if self._fits(row)), key=_SORTS[self.sort])

    def _fits(self, row: SourceRow) -> bool:
        family = row.inspection.family if row.inspection is not None else None
        return (
            self.words.matches(_texts(row))
            and self.family in {None, family}
            and (not self.is_stale or any(not variant.state.is_usable for variant in row.variants))
            and (self.lacking is None or _lacks(row, self.lacking))
        )

    def strays(self, found: Listing) -> list[Variant]:
        """Return the files without a source that fit: all where nothing narrows the list down."""
        if not (self.is_orphans or self.is_foreign):
            is_narrowed = self.words.text or self.family or self.lacking or self.is_stale
            return [] if is_narrowed else list(found.strays)
        states = {"orphaned"} if self.is_orphans else set()
        states |= {"foreign", "damaged"} if self.is_foreign else set()
        return [variant for variant in found.strays if variant.state.value in states]


def _listed(catalog: Catalog, found: Listing, rows: list[SourceRow], strays: list[Variant]) -> dict[str, Any]:
    from luna_engine.weights.disks import disks

    return {
        "roots": [str(root) for root in catalog.roots],
        "disks": [words.disk_fields(disk) for disk in disks(found, catalog.homes, catalog.memory)],
        "sources": [words.source_fields(row) for row in rows],
        "orphans": [words.variant_fields(variant) for variant in strays if variant.state.value == "orphaned"],
        "foreign": [words.variant_fields(variant) for variant in strays if variant.state.value != "orphaned"],
        "notices": [notice.as_dict() for notice in found.notices],
    }


def _texts(row: SourceRow) -> dict[str, str]:
    found = row.inspection
    texts = (row.path.name, found.name if found else "", found.precision if found else "", str(row.path.parent))
    return dict(zip(_COLUMNS, texts, strict=True))


def _lacks(row: SourceRow, label: str) -> bool:
    has_it = any(variant.precision == label and variant.state.is_usable for variant in row.variants)
    return row.inspection is not None and row.inspection.is_convertible and not has_it


def _settled(catalog: Catalog, found: Listing) -> Listing:
    """Read the sources whose time changed and return the listing with what came out."""
    from luna_engine.weights.settling import doubtful, settle

    with _told("reading sources", doubtful(found.sources)) as tell:
        settle(catalog, found.sources, tell)
    return catalog.listing()


def _duplicates(catalog: Catalog, rows: list[SourceRow]) -> list[tuple[SourceRow, ...]]:
    from luna_engine.weights.settling import alike, duplicates

    with _told("comparing files", [row for group in alike(rows) for row in group]) as tell:
        return duplicates(rows, catalog.memory, tell)


@contextlib.contextmanager
def _told(name: str, rows: Iterable[SourceRow]) -> Iterator[Callable[[int], None]]:
    """Show a bar over the bytes of some files; gives what is to be called with each part."""
    total, done = sum(row.size_bytes for row in rows), 0
    with Bar(frame.output()) as bar:

        def tell(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            bar.update(name, done, total)

        yield tell


@frame.verb(group, "prune")
@click.argument("files", type=FILE, nargs=-1)
@click.option("--stale", is_flag=True, help="Files made from another state of their source, and damaged ones.")
@click.option("--orphans", is_flag=True, help="Files whose source is gone.")
@click.option(
    "--unused-days", "--older-than", type=click.IntRange(0), metavar="N", help="Files nobody has loaded for N days."
)
@click.option("--max-total-gb", type=click.FloatRange(0), metavar="N", help="The longest unused beyond N GB in all.")
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Of each source all but the N used last.")
@click.option("--apply", "is_applied", is_flag=True, help="Do it: move them into the trash (default: only say).")
@click.option("--permanent", is_flag=True, help="With --apply: delete at once, and the whole trash with it.")
@click.option("--trash", "shows_trash", is_flag=True, help="List what waits in the trash.")
def prune(
    files: tuple[Path, ...],
    unused_days: int | None,
    max_total_gb: float | None,
    keep: int | None,
    *,
    stale: bool,
    orphans: bool,
    is_applied: bool,
    permanent: bool,
    shows_trash: bool,
) -> int:
    """Say which converted files can go, and with --apply move them into the trash. Only files that Luna made go.

    Without a rule: the stale and the orphaned ones.
    """
    from luna_engine.weights import trash
    from luna_engine.weights.pruning import PruneRules, apply_prune, plan_prune

    if permanent and not is_applied:
        raise click.UsageError("--permanent needs --apply")
    if is_applied and frame.output().readonly:
        raise LunaError("read-only", "luna weights prune --apply changes something and --readonly is set")
    has_rule = bool(files) or stale or orphans or any(rule is not None for rule in (unused_days, max_total_gb, keep))
    limit = None if max_total_gb is None else int(max_total_gb * 1e9)
    rules = PruneRules(
        tuple(file.absolute() for file in files), stale or not has_rule, orphans or not has_rule, unused_days, limit,
        keep,
    )  # fmt: skip
    with catalogue() as catalog:
        if shows_trash:
            return _show_trash(trash.batches(catalog.homes, catalog.memory))
        found = catalog.whole()
        if rules.stale:
            found = _settled(catalog, found)
        plan = plan_prune(found, rules, catalog.homes)
        if not is_applied:
            return _told_plan(plan)
        waiting = trash.batches(catalog.homes, catalog.memory) if permanent else ()
        _require_yes(plan, sum(batch.size_bytes for batch in waiting), is_permanent=permanent)
        with Bar(frame.output()) as bar:
            plan = apply_prune(plan, catalog.memory, lambda path, _: bar.update(f"checking {path.name}", 0, 0))
        if permanent:
            for batch in trash.batches(catalog.homes, catalog.memory):
                trash.empty(batch, catalog.memory)
        else:
            trash.empty_old(catalog.homes, catalog.memory)
        return _told_plan(plan, trash.trash_bytes(catalog.homes, catalog.memory))


def _require_yes(plan: PrunePlan, waiting_bytes: int, *, is_permanent: bool) -> None:
    """Ask before files are deleted for good; more than ten want --yes even for the trash."""
    going = [item for item in plan.items if item.refused is None]
    if not (is_permanent or len(going) > _MANY):
        return
    what = f"{len(going)} files, {size(plan.total_bytes)}"
    if is_permanent:
        what = f"{what}, and {size(waiting_bytes)} in the trash for good"
    frame.ask(f"remove {what}?")


def _told_plan(plan: PrunePlan, trash_bytes: int | None = None) -> int:
    fields = {
        "dry_run": plan.is_dry_run,
        "items": [item.as_dict() for item in plan.items],
        "total_bytes": plan.total_bytes,
        "batch": plan.batch,
        "trash_bytes": trash_bytes,
    }
    for problem in plan.problems:
        frame.fail(problem, as_json=frame.output().json)
    frame.output().data("luna.weights.prune/1", fields, words.prune_text(plan, trash_bytes))
    return 1 if plan.problems else 0


def _show_trash(batches: Any) -> int:
    fields = {"batches": [words.batch_fields(batch) for batch in batches]}
    frame.output().data("luna.weights.trash/1", fields, words.trash_text(batches))
    return 0


@frame.verb(group, "undo", mutates=True)
@click.argument("batch", required=False)
def undo(batch: str | None) -> int:
    """Bring the files of a pruning back (default: the last one). A name that is taken again is left alone."""
    from luna_engine.weights import trash

    with catalogue() as catalog:
        found = trash.find_batches(batch, catalog.homes, catalog.memory)
        moved = [one for part in found for one in trash.undo(part, catalog.memory)]
    for one in moved:
        if one.error is not None:
            frame.fail(one.error, as_json=frame.output().json)
    fields = {
        "batch": found[0].id,
        "items": [
            {"path": str(one.path), "bytes": one.size_bytes, "error": one.error.as_dict() if one.error else None}
            for one in moved
        ],
    }
    back = [one for one in moved if one.error is None]
    text = f"{len(back)} of {len(moved)} files are back, {size(sum(one.size_bytes for one in back))}"
    frame.output().data("luna.weights.undo/1", fields, text)
    return 0 if len(back) == len(moved) else 1


@frame.verb(group, "pin", mutates=True)
@click.argument("files", type=FILE, nargs=-1, required=True)
def pin(files: tuple[Path, ...]) -> None:
    """Let converted FILES stay whatever is pruned."""
    _pin(files, is_pinned=True)


@frame.verb(group, "unpin", mutates=True)
@click.argument("files", type=FILE, nargs=-1, required=True)
def unpin(files: tuple[Path, ...]) -> None:
    """Let converted FILES go again when they are pruned."""
    _pin(files, is_pinned=False)


def _pin(files: tuple[Path, ...], *, is_pinned: bool) -> None:
    from luna_engine.weights.pruning import require_pinnable

    with catalogue() as catalog:
        for file in files:
            if is_pinned:
                require_pinnable(file, catalog.memory)
                catalog.memory.pin(file.absolute())
            else:
                catalog.memory.unpin(file.absolute())
    fields = {"files": [{"path": str(file.absolute()), "pinned": is_pinned} for file in files]}
    text = "\n".join(f"{printable(file.name)} {'stays' if is_pinned else 'may go'}" for file in files)
    frame.output().data("luna.weights.pins/1", fields, text)


VERBS = (list_sources, prune, undo, pin, unpin)
