"""A list with columns that takes tens of thousands of rows at once: only the lines in view are ever rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip

from luna_tui import filtering
from luna_tui.glyphs import Tone
from luna_tui.plain import clean, fit
from luna_tui.widgets.rows import Cell, Column, Row, fitting, sort_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.binding import BindingType


class ListTable(ScrollView, can_focus=True):
    """Columns, a cursor, marks, filter and sort over an immutable tuple of rows."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "list--header",
        "list--cursor",
        "list--cursor-blurred",
        "list--mark",
        "list--empty",
        *(f"list--{tone.value}" for tone in Tone),
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("home,g", "move_to(0)", "first", show=False),
        Binding("end,G", "move_to(-1)", "last", show=False),
        Binding("pagedown", "page(1.0)", "page down", show=False),
        Binding("pageup", "page(-1.0)", "page up", show=False),
        Binding("ctrl+d", "page(0.5)", "half down", show=False),
        Binding("ctrl+u", "page(-0.5)", "half up", show=False),
        Binding("enter", "select", "open", show=False),
        Binding("space", "mark", "mark", show=False),
    ]

    DEFAULT_CSS = "ListTable { overflow-x: hidden; }"

    cursor: var[int] = var(0)

    class Highlighted(Message):
        """The cursor is on another row, or on the same one with new content. ``key`` is None in an empty list."""

        def __init__(self, table: ListTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> ListTable:
            """The list that sent it."""
            return self.table

    class Selected(Message):
        """Enter or a click on the row under the cursor."""

        def __init__(self, table: ListTable, key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> ListTable:
            """The list that sent it."""
            return self.table

    class SortChanged(Message):
        """Rows are ordered by another column."""

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        id: str | None = None,  # noqa: A002 - Textual's word
        empty: str = "",
        markable: bool = False,
    ) -> None:
        super().__init__(id=id)
        self.columns = tuple(columns)
        self.empty = empty
        self.markable = markable
        self.marks: set[str] = set()
        self.rows: tuple[Row, ...] = ()
        self.shown: tuple[Row, ...] = ()
        self.filter = filtering.Filter("")
        self.sort_key: str | None = None
        self.sort_reverse = False
        self.choosing_sort = False
        self._widths: tuple[tuple[int, int], ...] = ()
        self._cursor_sign = "▸"

    # -- content ---------------------------------------------------------------------------------------------

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show these rows; cursor and marks stay with their keys."""
        rows = tuple(rows)
        if rows == self.rows and self.shown:
            return
        self.rows = rows
        self.marks &= {row.key for row in rows}
        self._arrange()

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Show other columns for the rows to come."""
        self.columns = tuple(columns)
        self._layout_columns()

    def set_filter(self, text: str) -> filtering.Filter:
        """Show only rows that pass; returns the parsed filter with its problem, if any."""
        names = tuple(column.key for column in self.columns)
        self.filter = filtering.parse(text, names)
        self._arrange()
        return self.filter

    def sort_by(self, key: str) -> None:
        """Order by a column; the same column again reverses."""
        self.sort_reverse = not self.sort_reverse if self.sort_key == key else False
        self.sort_key = key
        self._arrange()
        self.post_message(self.SortChanged())

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self.shown[self.cursor] if 0 <= self.cursor < len(self.shown) else None

    def targets(self) -> tuple[str, ...]:
        """Return the marked keys in the order shown, else the key under the cursor."""
        marked = tuple(row.key for row in self.shown if row.key in self.marks)
        if marked:
            return marked
        return (self.current.key,) if self.current else ()

    def go_to(self, key: str) -> bool:
        """Put the cursor on a key; tell whether it is shown."""
        for index, row in enumerate(self.shown):
            if row.key == key:
                self._move_cursor(index)
                return True
        return False

    def _arrange(self) -> None:
        before = self.current.key if self.current else None
        shown = self.rows
        if self.filter:
            keys = [column.key for column in self.columns]
            shown = tuple(
                row
                for row in shown
                if self.filter.matches(dict(zip(keys, (cell.text for cell in row.cells), strict=False)))
            )
        if self.sort_key is not None:
            index = next(i for i, column in enumerate(self.columns) if column.key == self.sort_key)
            shown = tuple(sorted(shown, key=lambda row: sort_value(row, index), reverse=self.sort_reverse))
        self.shown = shown
        position = next((i for i, row in enumerate(shown) if row.key == before), None)
        self.set_reactive(
            ListTable.cursor, position if position is not None else min(self.cursor, max(0, len(shown) - 1))
        )
        self._resize()
        self.refresh()
        self.post_message(self.Highlighted(self, self.current.key if self.current else None))

    # -- geometry --------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self._layout_columns()

    def _resize(self) -> None:
        self.virtual_size = Size(self.size.width, len(self.shown) + 1)

    def _layout_columns(self) -> None:
        self._widths = fitting(self.columns, self.scrollable_content_region.width - 2)
        self._resize()
        self.refresh()

    @property
    def visible_columns(self) -> tuple[str, ...]:
        """The keys of the columns that fit."""
        return tuple(self.columns[index].key for index, _ in self._widths)

    def _scroll_to_cursor(self) -> None:
        height = self.scrollable_content_region.height - 1
        if height <= 0:
            return
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    # -- drawing ---------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """Render the header (line 0, always in view) or a row."""
        width = self.scrollable_content_region.width
        base = self.rich_style
        if not self.shown:
            return self._empty_line(y, width)
        if y == 0:
            return self._header(width)
        index = round(self.scroll_y) + y - 1
        if index >= len(self.shown):
            return Strip.blank(width, base)
        return self._row(self.shown[index], width, is_cursor=index == self.cursor)

    def _header(self, width: int) -> Strip:
        style = self.get_component_rich_style("list--header")
        accent = self.get_component_rich_style("list--accent")
        segments = [Segment("  ", style)]
        letters = self.sort_letters() if self.choosing_sort else {}
        for position, (index, cells) in enumerate(self._widths):
            column = self.columns[index]
            label = column.label
            if column.key in letters:
                label = f"{letters[column.key]}:{label}"
            if column.key == self.sort_key:
                label += ("v" if self.sort_reverse else "^") if self._cursor_sign == ">" else (
                    "↓" if self.sort_reverse else "↑"
                )  # fmt: skip
            gap = "" if position == len(self._widths) - 1 else "  "
            shown_style = style + accent if column.key in letters or column.key == self.sort_key else style
            segments.append(Segment(fit(label, cells, column.align) + gap, shown_style))
        return Strip(segments).adjust_cell_length(width, style)

    def _row(self, row: Row, width: int, *, is_cursor: bool) -> Strip:
        base = self.rich_style
        back: Style | None = None
        if is_cursor:
            look = self.get_component_rich_style("list--cursor" if self.has_focus else "list--cursor-blurred")
            back = Style(bgcolor=look.bgcolor, bold=look.bold, reverse=look.reverse)
        sign = self._cursor_sign if is_cursor else ("*" if row.key in self.marks else " ")
        edge = self.get_component_rich_style("list--mark" if row.key in self.marks else "list--accent")
        segments = [Segment(sign + " ", _over(edge, back))]
        for position, (index, cells) in enumerate(self._widths):
            cell = row.cells[index] if index < len(row.cells) else Cell("")
            tone = cell.tone or row.tone
            style = base if tone is Tone.NORMAL else self.get_component_rich_style(f"list--{tone.value}")
            gap = "" if position == len(self._widths) - 1 else "  "
            text = fit(clean(cell.text), cells, self.columns[index].align) + gap
            segments.append(Segment(text, _over(style, back)))
        return Strip(segments).adjust_cell_length(width, _over(base, back))

    def _empty_line(self, y: int, width: int) -> Strip:
        style = self.get_component_rich_style("list--empty")
        text = "nothing matches the filter (esc clears it)" if self.rows and self.filter else self.empty
        lines = [part for line in text.split("\n") for part in _wrap(line, max(10, width - 4))]
        first = max(0, min(2, self.size.height - len(lines)))
        if first <= y < first + len(lines):
            return Strip([Segment("  " + fit(lines[y - first], width - 2), style)])
        return Strip.blank(width, self.rich_style)

    def set_ascii(self) -> None:
        """Use plain signs."""
        self._cursor_sign = ">"

    # -- moving ----------------------------------------------------------------------------------------------

    def _move_cursor(self, index: int) -> None:
        index = max(0, min(index, len(self.shown) - 1))
        if not self.shown or index == self.cursor:
            return
        self.cursor = index
        self._scroll_to_cursor()
        self.refresh()
        self.post_message(self.Highlighted(self, self.shown[index].key))

    def action_move(self, step: int) -> None:
        """Move the cursor by rows."""
        self._move_cursor(self.cursor + step)

    def action_move_to(self, index: int) -> None:
        """Move the cursor to the first (0) or last (-1) row."""
        self._move_cursor(index if index >= 0 else len(self.shown) - 1)

    def action_page(self, pages: float) -> None:
        """Move the cursor by pages."""
        self._move_cursor(self.cursor + round(pages * max(1, self.size.height - 2)))

    def action_select(self) -> None:
        """Open the row under the cursor."""
        if self.current:
            self.post_message(self.Selected(self, self.current.key))

    def action_mark(self) -> None:
        """Mark the row, or unmark it, and go to the next."""
        if self.markable and self.current:
            self.marks ^= {self.current.key}
            self.refresh()
            self._move_cursor(self.cursor + 1)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the clicked row, or sort by the clicked header."""
        event.stop()
        if event.y == 0 and self.shown:
            if (key := self._column_at(event.x)) is not None:
                self.sort_by(key)
            return
        index = round(self.scroll_y) + event.y - 1
        if 0 <= index < len(self.shown):
            again = index == self.cursor
            self._move_cursor(index)
            if again and event.chain > 1:
                self.action_select()

    def _column_at(self, x: int) -> str | None:
        start = 2
        for index, cells in self._widths:
            if start <= x < start + cells + 2:
                return self.columns[index].key
            start += cells + 2
        return None

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Redraw when scrolled by wheel or bar."""
        super().watch_scroll_y(old_value, new_value)
        self.refresh(Region(0, 0, *self.size))

    # -- choosing a column to sort by ------------------------------------------------------------------------

    def sort_letters(self) -> dict[str, str]:
        """Return a letter for each visible column: its first one that is still free."""
        taken: dict[str, str] = {}
        for key in self.visible_columns:
            letter = next((sign for sign in key if sign not in taken.values()), None)
            if letter:
                taken[key] = letter
        return taken

    def choose_sort(self) -> None:
        """Wait for the letter of a column."""
        if self.shown:
            self.choosing_sort = True
            self.refresh()

    def on_key(self, event: events.Key) -> None:
        """Take the letter of a column while one is asked for."""
        if not self.choosing_sort:
            return
        self.choosing_sort = False
        event.stop()
        event.prevent_default()
        key = next((name for name, letter in self.sort_letters().items() if letter == event.key), None)
        if key is not None:
            self.sort_by(key)
        self.refresh()


def _over(style: Style, back: Style | None) -> Style:
    return style if back is None else style + back


def _wrap(line: str, width: int) -> list[str]:
    """Break own text at spaces so that it fits ``width`` cells."""
    lines, current = [], ""
    for word in line.split(" "):
        if current and len(current) + 1 + len(word) > width:
            lines.append(current)
            current = word
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]


__all__ = ["Cell", "Column", "ListTable", "Row"]
