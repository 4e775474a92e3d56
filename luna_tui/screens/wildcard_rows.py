"""What screen 4 writes into its lists and titles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_tui.glyphs import Tone
from luna_tui.widgets.table import Cell, Column, Row

if TYPE_CHECKING:
    from luna_engine.wildcards import Diagnostic
    from luna_tui.backend.wildcards import PreviewView

PROBLEM_COLUMNS = (
    Column("severity", "", 1),
    Column("place", "PLACE", 26),
    Column("code", "CODE", 15, drop=2),
    Column("message", "PROBLEM", 20, flex=True),
    Column("hint", "WHAT TO DO", 20, flex=True, drop=1),
)
_TONES = {"error": Tone.BAD, "warning": Tone.WARN, "hint": Tone.DIM}
_SIGNS = {"error": "E", "warning": "W", "hint": "·"}


def place_of(problem: Diagnostic) -> str:
    """Return file:line:column."""
    parts = (problem.file or "<template>", problem.line, problem.column)
    return ":".join(str(part) for part in parts if part is not None)


def problem_key(problem: Diagnostic) -> str:
    """Return what tells one problem from another."""
    return f"{place_of(problem)} {problem.code} {problem.message}"


def problem_row(problem: Diagnostic) -> Row:
    """Return a problem's row."""
    word = problem.severity.value
    cells = (
        Cell(_SIGNS[word], _TONES[word]),
        Cell(place_of(problem)),
        Cell(problem.code, _TONES[word]),
        Cell(problem.message),
        Cell(problem.hint or "", Tone.DIM),
    )
    return Row(
        problem_key(problem), cells, (problem.severity.rank, place_of(problem), problem.code, problem.message, "")
    )


def title_of_samples(preview: PreviewView) -> str:
    """Return what is shown, from which seed, how many and how fast."""
    parts = ["samples", preview.template[:40] or "nothing", f"seed {preview.seed}"]
    number = str(len(preview.samples))
    parts.append(f"{number} of {preview.wanted}" if preview.is_partial else number)
    if preview.is_stale:
        parts.insert(1, "last good text")
    parts.append(f"{preview.elapsed_s * 1000:.0f} ms")
    return " · ".join(parts)
