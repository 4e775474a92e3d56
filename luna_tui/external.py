"""The user's own editor: which command, and how it is told the line. Nothing goes through a shell."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from luna_engine.errors import LunaError

_PLUS_LINE = frozenset({"vi", "vim", "nvim", "view", "nano", "pico", "emacs", "emacsclient", "joe", "jed", "mg", "ne"})
_PLUS_LINE |= frozenset({"kak", "mcedit", "gedit", "gvim"})
_COLON_LINE = frozenset({"hx", "helix", "micro", "subl", "zed"})
_GOTO = frozenset({"code", "codium", "code-insiders"})
_DEFAULTS = ("nano", "vi")


def editor_command(path: Path, line: int, setting: str | None = None) -> list[str]:
    """Return the command that opens a file: VISUAL, EDITOR, the setting ``ui.editor``, else nano or vi.

    Raises:
        LunaError: ``no-editor`` if none is named and none is found, or the named one does not exist.
    """
    named = next((name for name in (os.environ.get("VISUAL"), os.environ.get("EDITOR"), setting) if name), None)
    try:
        words = shlex.split(named) if named else [next((name for name in _DEFAULTS if shutil.which(name)), "")]
    except ValueError as error:
        raise LunaError("no-editor", f"{named!r} cannot be read as a command: {error}", "mend EDITOR") from error
    if not words or not words[0] or shutil.which(words[0]) is None:
        raise LunaError("no-editor", f"no editor {words[0] if words else ''!r} was found", "set EDITOR to one")
    name = Path(words[0]).stem
    if name in _PLUS_LINE:
        return [*words, f"+{line}", str(path)]
    if name in _GOTO:
        return [*words, "--goto", f"{path}:{line}"]
    return [*words, f"{path}:{line}" if name in _COLON_LINE else str(path)]
