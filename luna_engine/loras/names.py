"""From a typed name to one file of a list: exact, with a known extension, by base name; never by substring."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.loras.tags import without_extension

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_CLOSE = 3


def resolve(name: str, files: Iterable[str], kind: str = "lora") -> str:
    r"""Return the file that a name means.

    Args:
        name: as typed; ``\`` and ``/`` are the same, the extension may be left out.
        files: paths below their root, as ComfyUI lists them.
        kind: ``lora`` or ``embedding``, for the error's code.

    Raises:
        InputFileError: ``<kind>-missing`` with the closest names, ``name-ambiguous`` with all that fit.
    """
    known = {file.replace("\\", "/"): file for file in files}
    wanted = name.strip().replace("\\", "/")
    if wanted in known:
        return known[wanted]
    for fits in (
        [path for path in known if without_extension(path) == wanted],
        [path for path in known if _base(path) == _base(wanted) and "/" not in wanted],
    ):
        if len(fits) == 1:
            return known[fits[0]]
        if fits:
            raise InputFileError(
                "name-ambiguous", f"{name!r} fits several files: {', '.join(sorted(fits))}", "give the path too"
            )
    close = closest(wanted, known)
    hint = f"did you mean {', '.join(close)}?" if close else "the folder lists no name like it"
    raise InputFileError(f"{kind}-missing", f"there is no {kind} {name!r}", hint)


def _base(path: str) -> str:
    return without_extension(path.rpartition("/")[2]).casefold()


def closest(name: str, files: Iterable[str]) -> list[str]:
    """Return up to three files with names close to one, best first."""
    by_base: dict[str, str] = {}
    for file in files:
        by_base.setdefault(_base(file), file)
    return [by_base[base] for base in difflib.get_close_matches(_base(name), by_base, n=_MOST_CLOSE, cutoff=0.6)]
