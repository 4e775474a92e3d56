"""The fixes that diagnostics offer, as edits of files: shown first, written only when told to."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

from luna_engine.wildcards.edits import Edit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.wildcards.diagnostics import Diagnostic, TextFix
    from luna_engine.wildcards.files import Entry
    from luna_engine.wildcards.library import WildcardLibrary


def plan_fixes(library: WildcardLibrary, diagnostics: Iterable[Diagnostic]) -> tuple[Edit, ...]:
    """Plan the fixes of diagnostics, one edit for each file.

    A path that several roots have is left alone, and so are files that are no UTF-8 or lie under unsaved text. Of fixes
    that overlap the first is taken; the others come up again when the file is checked next.
    """
    fixes: dict[str, list[TextFix]] = {}
    for found in diagnostics:
        if found.fix is not None and found.file is not None:
            fixes.setdefault(found.file, []).append(found.fix)
    edits = [_edit(library, file, wanted) for file, wanted in sorted(fixes.items())]
    return tuple(edit for edit in edits if edit is not None and edit.is_change)


def _edit(library: WildcardLibrary, file: str, fixes: list[TextFix]) -> Edit | None:
    entries: list[Entry] = [entry for (_, path), entry in library.snapshot.entries.items() if path == file]
    if len(entries) != 1 or entries[0].path in library.overlays():
        return None
    data = entries[0].path.read_bytes()
    bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    try:
        text = data[len(bom) :].decode("utf-8")
    except UnicodeDecodeError:
        return None
    return Edit(entries[0].path, file, data, bom + fixed(text, fixes).encode("utf-8"))


def fixed(text: str, fixes: Iterable[TextFix]) -> str:
    """Return a text with fixes applied, from the last to the first so that places stay true."""
    lines = re.split(r"(\r\n|\r|\n)", text)
    reached = (len(lines) + 1, 0)
    for fix in sorted(set(fixes), key=lambda one: (one.line, one.column, one.end_column), reverse=True):
        at = 2 * (fix.line - 1)
        if at >= len(lines) or (fix.line, fix.end_column) > reached:
            continue
        line = lines[at]
        lines[at] = line[: fix.column - 1] + fix.text + line[fix.end_column - 1 :]
        reached = (fix.line, fix.column)
    return "".join(lines)
