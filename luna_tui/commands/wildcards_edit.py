"""`luna wildcards add`: changes of wildcard files, shown first and written only when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from luna_engine.wildcards import add_items, apply_edit, plan_fixes, split_texts
from luna_tui import frame
from luna_tui.commands.wildcards_group import check_writable, group, library_of, roots_option, template_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from luna_engine.wildcards import Diagnostic, WildcardLibrary


@frame.verb(group, "add")
@click.argument("address")
@click.argument("texts", nargs=-1, required=True)
@click.option("--key", metavar="KEY", help="A new key below ADDRESS that takes the items; dots make levels.")
@click.option("--flow", is_flag=True, help="Write a new list in brackets instead of one item a line.")
@click.option("--split", is_flag=True, help="Split each text at commas, semicolons and line breaks.")
@click.option("--underscores", is_flag=True, help="With --split: write blanks as underscores.")
@click.option("--write", is_flag=True, help="Write the change; without it the change is only shown.")
@roots_option
def add(
    address: str,
    texts: tuple[str, ...],
    key: str | None,
    flow: bool,  # noqa: FBT001 - click passes by name
    split: bool,  # noqa: FBT001 - click passes by name
    underscores: bool,  # noqa: FBT001 - click passes by name
    write: bool,  # noqa: FBT001 - click passes by name
    roots: tuple[Path, ...],
) -> None:
    """Add TEXTS (@FILE reads a file, - reads stdin) to the list at ADDRESS; shows the change, writes with --write."""
    given = [template_of(text) for text in texts]
    items = [item for text in given for item in split_texts(text, underscores=underscores)] if split else given
    edit = add_items(library_of(roots), address, items, key=key, flow=flow)
    if write:
        check_writable("add --write")
        apply_edit(edit)
    fields = {
        "file": edit.file,
        "diff": edit.diff(),
        "skipped": list(edit.skipped),
        "written": write and edit.is_change,
    }
    frame.output().data("luna.wildcards.add/1", fields, edit.diff().rstrip("\n"))
    if not frame.output().json:
        for item in edit.skipped:
            frame.output().note(f"already there: {item}")
        if edit.is_change and not write:
            frame.output().note("nothing written; add --write to write it")


def fix(library: WildcardLibrary, found: Iterable[Diagnostic], *, write: bool) -> None:
    """Show the fixes of diagnostics as a diff on stderr, stdout being the list; write them if told to."""
    if write:
        check_writable("lint --write")
    edits = plan_fixes(library, found)
    for edit in edits:
        frame.output().note(edit.diff().rstrip("\n"))
        if write:
            apply_edit(edit)
    if write:
        library.refresh()
    number = f"{len(edits)} file{'' if len(edits) == 1 else 's'}"
    frame.output().note(f"{number} fixed" if write else f"{number} would be fixed; add --write to do it")
