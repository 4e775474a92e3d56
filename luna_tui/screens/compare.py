"""Two versions of a text side by side."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen

from luna_tui.glyphs import Tone
from luna_tui.plain import content
from luna_tui.widgets.table import Cell, Column, ListTable, Row

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

_CONTEXT = 3
_COLUMNS = (
    Column("line", "LINE", 6, align="right"),
    Column("mine", "MINE", 10, flex=True),
    Column("theirs", "THEIRS", 10, flex=True),
)


class CompareDialog(ModalScreen[None]):
    """Shows where two texts differ, with three lines round each place."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "leave", "leave")]

    def __init__(self, title: str, rows: list[Row]) -> None:
        super().__init__()
        self._title = title
        self._rows = rows

    def compose(self) -> ComposeResult:
        """Yield the lines."""
        with Vertical(id="dialog", classes="compare") as box:
            box.border_title = content(self._title)
            box.border_subtitle = "esc closes"
            yield ListTable(_COLUMNS, id="lines", empty="both are the same")

    def on_mount(self) -> None:
        """Show the lines."""
        table = self.query_one(ListTable)
        table.set_rows(self._rows)
        table.focus()

    def action_leave(self) -> None:
        """Close."""
        self.dismiss(None)


def compared(mine: str, theirs: str) -> list[Row]:
    """Return the rows of a comparison; may take a second for thousands of changed lines, so run it in a worker."""
    ours, other = mine.split("\n"), theirs.split("\n")
    matcher = difflib.SequenceMatcher(None, ours, other, autojunk=False)
    rows: list[Row] = []
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        if rows:
            rows.append(_row(rows, "", "···", "···", Tone.DIM))
        for tag, a_start, a_end, b_start, b_end in group:
            for at in range(max(a_end - a_start, b_end - b_start)):
                left = ours[a_start + at] if a_start + at < a_end else ""
                right = other[b_start + at] if b_start + at < b_end else ""
                number = str(a_start + at + 1) if a_start + at < a_end else ""
                rows.append(_row(rows, number, left, right, Tone.NORMAL if tag == "equal" else Tone.WARN))
    return rows


def _row(rows: list[Row], number: str, left: str, right: str, tone: Tone) -> Row:
    return Row(str(len(rows)), (Cell(number, Tone.DIM), Cell(left, tone), Cell(right, tone)))
