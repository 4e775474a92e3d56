"""`luna wildcards import`: a pack into the library, shown first, written only when told to, and back out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from luna_engine import paths
from luna_engine.errors import LunaError
from luna_engine.wildcards.importing import (
    CONFLICTS,
    FileState,
    ImportOptions,
    apply_import,
    apply_undo,
    plan_import,
    plan_undo,
)
from luna_engine.wildcards.importing.dialects import PEERS
from luna_engine.wildcards.syntax import Profile
from luna_tui import frame
from luna_tui.commands.wildcards_group import check_writable, group, library_of, roots_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards import WildcardLibrary
    from luna_engine.wildcards.importing import ImportPlan, PlannedFile, UndoPlan

_SHOWN = 20
_EXIT_BAD_INPUT = 4
_STATES = {
    FileState.NEW: "+",
    FileState.RENAMED: "+",
    FileState.NOTICE: "+",
    FileState.EXISTS: "!",
    FileState.KNOWN: "=",
    FileState.BROKEN: "x",
}


@frame.verb(group, "import")
@click.argument("pack", metavar="PACK")
@click.option("--into", metavar="FOLDER", help="The folder of the library that takes it; default: the pack's name.")
@click.option(
    "--on-conflict",
    type=click.Choice(CONFLICTS),
    default="skip",
    show_default=True,
    help="Where another file has the address: leave the pack's out, or write it under a name of its own.",
)
@click.option("--skip-same", is_flag=True, help="Leave out files all of whose lists are there under other names.")
@click.option(
    "--profile",
    type=click.Choice(["any", *(profile.value for profile in Profile)]),
    default="any",
    show_default=True,
    help="The dialect the pack was written in; items that mean something else in the native one are listed.",
)
@click.option("--undo", is_flag=True, help="PACK is a folder of the library: take the last import into it back.")
@click.option("--write", is_flag=True, help="Do it; without it what would be done is only shown.")
@roots_option
def import_pack(
    pack: str,
    into: str | None,
    on_conflict: str,
    skip_same: bool,  # noqa: FBT001 - click passes by name
    profile: str,
    undo: bool,  # noqa: FBT001 - click passes by name
    write: bool,  # noqa: FBT001 - click passes by name
    roots: tuple[Path, ...],
) -> int:
    """Import PACK, a folder or a zip file of wildcards, into the first root; shows the plan, writes with --write."""
    library = library_of(roots)
    root = _root_of(library, roots)
    if write:
        check_writable("import --write")
    if undo:
        _undo(root, pack, write=write)
        return 0
    profiles = PEERS if profile == "any" else tuple(one for one in PEERS if one.value == profile)
    plan = plan_import(library, Path(pack), ImportOptions(into, on_conflict, skip_same, profiles))
    if write:
        apply_import(plan)
    is_written = write and bool(plan.written())
    fields = {**plan.as_dict(), "written": is_written}
    frame.output().data("luna.wildcards.import/1", fields, "\n".join(_told(plan)))
    if not frame.output().json:
        for found in plan.diagnostics:
            frame.output().note(found.as_text())
        if not write and plan.written():
            frame.output().note("nothing written; add --write to import")
        elif is_written:
            frame.output().note(f"imported; luna wildcards import --undo {plan.into or '.'} --write takes it back")
    return 0 if plan.is_complete else _EXIT_BAD_INPUT


def _root_of(library: WildcardLibrary, roots: tuple[Path, ...]) -> Path:
    """Return the folder that takes imports: the first root, never the bundled library unless it is named."""
    if not library.roots or (not roots and library.roots[0].path == paths.bundled("wildcards")):
        raise LunaError(
            "value-range",
            "there is no wildcard folder of yours to import into",
            "name one with --root, or add it to [wildcards] roots in the settings",
        )
    return library.roots[0].path


def _undo(root: Path, into: str, *, write: bool) -> None:
    plan = plan_undo(root, "" if into == "." else into.strip("/"))
    if write:
        apply_undo(plan)
    fields = {**plan.as_dict(), "written": write}
    frame.output().data("luna.wildcards.import-undo/1", fields, "\n".join(_undone(plan)))
    if not write and not frame.output().json:
        frame.output().note("nothing removed; add --write to do it")


def _undone(plan: UndoPlan) -> Iterator[str]:
    for sign, names, why in (
        ("-", plan.removed, ""),
        ("!", plan.kept, "  edited since: stays"),
        ("=", plan.gone, "  not there any more"),
    ):
        yield from (f"{sign} {name}{why}" for name in names)


def _told(plan: ImportPlan) -> Iterator[str]:
    """Yield the plan as lines: the files, what is to be reviewed, the numbers."""
    width = max((len(file.target) for file in plan.files), default=0)
    for file in plan.files:
        yield f"{_STATES[file.state]} {file.target:<{width}}  {_about(file)}".rstrip()
    yield from _short("listed twice in one list", (_repeat(file) for file in plan.files if file.repeats))
    yield from _short(
        "the same list under two names",
        (f"{same.address} = {same.other}" for file in plan.files for same in file.same_lists),
    )
    yield from _short(
        "reads differently in the native profile",
        (
            f"{file.source}:{one.line}: {one.text[:70]}  ({', '.join(one.profiles)})"
            for file in plan.files
            for one in file.differing
        ),
    )
    yield from _short(
        "nearly the same",
        (
            f"{one.similarity:.2f}  {one.text[:50]} ({one.place})  {one.other[:50]} ({one.other_place})"
            for one in plan.near
        ),
    )
    yield from plan.notes
    yield ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in plan.counts().items() if number)


def _about(file: PlannedFile) -> str:
    parts = [f"{file.lists} lists, {file.items} items"] if file.state.is_written and file.lists else [file.state.value]
    if file.state is FileState.RENAMED:
        parts.append(f"renamed: {file.source} is there already")
    if file.also_called:
        parts.append(f"also called so: {', '.join(file.also_called[:3])}")
    return "; ".join((*parts, *file.notes))


def _repeat(file: PlannedFile) -> str:
    dropped = [one for one in file.repeats if one.is_dropped]
    lines = ", ".join(str(one.line) for one in file.repeats[:8])
    return f"{file.source}: {len(dropped)} of {len(file.repeats)} dropped (lines {lines})"


def _short(title: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield a titled list, its first lines alone if it is long."""
    found = list(lines)
    if found:
        yield f"{title}: {len(found)}"
        yield from (f"  {line}" for line in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield "  … --json lists all"
