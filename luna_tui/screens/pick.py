"""A dialog to find one of many rows by typing, with a word about the row under the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from luna_engine.errors import LunaError
from luna_tui import fuzzy
from luna_tui.plain import content
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from luna_tui.widgets.table import Column, Row


class PickDialog(ModalScreen[str]):
    """Dismisses with the key of the row that was taken, or with None.

    Args:
        title: what is asked.
        columns: of the list.
        rows: all rows; typing ranks them by their keys and their first cells.
        describe: called in a worker with a key; what it returns stands below the list.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave"),
        Binding("down", "move(1)", "down", show=False, priority=True),
        Binding("up", "move(-1)", "up", show=False, priority=True),
        Binding("pagedown", "move(10)", "page down", show=False, priority=True),
        Binding("pageup", "move(-10)", "page up", show=False, priority=True),
    ]

    class Ranked(Message):
        """Names ranked by what was typed."""

        def __init__(self, typed: str, names: list[str]) -> None:
            super().__init__()
            self.typed = typed
            self.names = names

    class Described(Message):
        """A word about a row."""

        def __init__(self, key: str, text: str) -> None:
            super().__init__()
            self.key = key
            self.text = text

    def __init__(
        self,
        title: str,
        columns: Sequence[Column],
        rows: Sequence[Row],
        describe: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__()
        self._title = title
        self._columns = columns
        self._rows = {f"{row.key} {row.cells[0].text}": row for row in rows}
        self._describe = describe

    def compose(self) -> ComposeResult:
        """Yield field, list and description."""
        with Vertical(id="dialog", classes="pick") as box:
            box.border_title = content(self._title)
            box.border_subtitle = "enter takes · esc leaves"
            yield Input(id="typed", placeholder="type to find")
            yield ListTable(self._columns, id="found", empty="nothing fits")
            yield Static("", id="about", classes="hint")

    def on_mount(self) -> None:
        """Show all; type at once."""
        self._table.set_rows(list(self._rows.values())[: fuzzy.MOST_RANKED])
        self.query_one("#typed").focus()

    @property
    def _table(self) -> ListTable:
        return self.query_one("#found", ListTable)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Rank in a worker."""
        event.stop()
        typed, names = event.value, tuple(self._rows)
        if not typed.strip():
            self._table.set_rows(list(self._rows.values())[: fuzzy.MOST_RANKED])
            return

        def work() -> None:
            self.post_message(self.Ranked(typed, fuzzy.rank(typed, names)))

        self.run_worker(work, thread=True, group="rank", exclusive=True, name="rank")

    def on_pick_dialog_ranked(self, message: PickDialog.Ranked) -> None:
        """Show what fits, unless more was typed meanwhile."""
        if message.typed == self.query_one("#typed", Input).value:
            self._table.set_rows([self._rows[name] for name in message.names])
            self._table.action_move_to(0)

    def on_list_table_highlighted(self, event: ListTable.Highlighted) -> None:
        """Describe the row."""
        event.stop()
        key, describe = event.key, self._describe
        if describe is None or key is None:
            self.query_one("#about", Static).update("")
            return

        def work() -> None:
            try:
                text = describe(key)
            except LunaError as error:
                text = error.message
            self.post_message(self.Described(key, text))

        self.run_worker(work, thread=True, group="describe", exclusive=True, name="describe")

    def on_pick_dialog_described(self, message: PickDialog.Described) -> None:
        """Show the description if the cursor is still there."""
        row = self._table.current
        if row is not None and row.key == message.key:
            self.query_one("#about", Static).update(content(message.text))

    def on_list_table_selected(self, event: ListTable.Selected) -> None:
        """Take the row that was clicked twice."""
        event.stop()
        self.dismiss(event.key)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the row under the cursor."""
        event.stop()
        row = self._table.current
        if row is not None:
            self.dismiss(row.key)

    def action_move(self, step: int) -> None:
        """Move in the list while typing."""
        self._table.action_move(step)

    def action_leave(self) -> None:
        """Take nothing."""
        self.dismiss(None)
