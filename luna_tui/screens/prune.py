"""The dialog before a pruning: rules, the files they choose, why some stay. Nothing is moved before it is confirmed."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Static

from luna_engine.errors import LunaError
from luna_tui.glyphs import Tone
from luna_tui.plain import content
from luna_tui.screens.tabbing import TAB_BINDINGS
from luna_tui.widgets.table import Cell, Column, ListTable, Row
from luna_tui.widgets.tick import Tick
from luna_tui.wording import UNKNOWN, count, size

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from luna_tui.app import LunaApp
    from luna_tui.backend.weights_views import PruneRow

UNUSED_DAYS = 30
_RULES = (("stale", "stale"), ("orphans", "orphans"), ("unused", f"unused {UNUSED_DAYS} d"))
_COLUMNS = (
    Column("box", "", 3),
    Column("file", "FILE", 12, flex=True),
    Column("size", "SIZE", 9, align="right", drop=1),
    Column("why", "WHY", 10, flex=True),
)


class PruneDialog(ModalScreen[tuple[str, ...]]):
    """Choose files that can go. Dismisses with their paths, or with None.

    Args:
        paths: marked files; with none the rules choose.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave"),
        Binding("enter", "confirm", "move to the trash", priority=True),
        Binding("space", "turn", "tick", priority=True),
        *TAB_BINDINGS,
    ]

    class Planned(Message):
        """The dry run for the rules that were ticked when it began, or the error it met."""

        def __init__(self, rules: tuple[str, ...], rows: tuple[PruneRow, ...], problem: str) -> None:
            super().__init__()
            self.rules = rules
            self.rows = rows
            self.problem = problem

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__()
        self._paths = paths
        self._rows: tuple[PruneRow, ...] = ()
        self._kept: set[str] = set()

    def compose(self) -> ComposeResult:
        """Yield rules, files and the sum."""
        with Vertical(id="dialog", classes="reader prune") as box:
            box.border_title = "prune: what can go"
            box.border_subtitle = "space ticks · enter moves to the trash · esc leaves"
            if not self._paths:
                with Horizontal(classes="boxes"):
                    for rule, label in _RULES:
                        yield Tick(label, value=rule != "unused", id=f"rule-{rule}")
            yield ListTable(_COLUMNS, id="items", empty="looking …")
            yield Static("", id="sum")

    def on_mount(self) -> None:
        """Plan."""
        self._table.focus()
        self._plan()

    @property
    def _table(self) -> ListTable:
        return self.query_one("#items", ListTable)

    @property
    def rules(self) -> tuple[str, ...]:
        """The ticked rules."""
        return tuple(rule for rule, _ in _RULES if not self._paths and self.query_one(f"#rule-{rule}", Tick).value)

    @property
    def chosen(self) -> tuple[PruneRow, ...]:
        """The files that go: not refused and not unticked."""
        return tuple(row for row in self._rows if row.refused is None and row.path not in self._kept)

    def on_tick_changed(self) -> None:
        """Plan anew."""
        self._plan()

    def _plan(self) -> None:
        rules = self.rules

        def work() -> None:
            backend, problem, rows = cast("LunaApp", self.app).backend, "", ()
            try:
                rows = backend.weights.prune_plan(self._paths, rules, UNUSED_DAYS)
            except LunaError as error:
                problem = f"{error.code}: {error.message}"
            self.post_message(self.Planned(rules, rows, problem))

        self.run_worker(work, thread=True, exclusive=True, group="plan", exit_on_error=False, name="prune plan")

    def on_prune_dialog_planned(self, message: PruneDialog.Planned) -> None:
        """Show the dry run unless the rules have changed since."""
        message.stop()
        if message.rules == self.rules:
            self._rows = message.rows
            self._table.empty = message.problem or "nothing can go by these rules"
            self._show()

    def _show(self) -> None:
        self._table.set_rows([self._row(row) for row in self._rows])
        going = self.chosen
        stays = len(self._rows) - len(going)
        text = (
            f"{count(len(going), 'file')}, {size(sum(row.bytes for row in going))} leave the catalogue: "
            f"u brings them back for 14 days"
        )
        self.query_one("#sum", Static).update(content(f"{text} · {stays} stay" if stays else text))

    def _row(self, row: PruneRow) -> Row:
        box = UNKNOWN if row.refused is not None else "[ ]" if row.path in self._kept else "[x]"
        why = row.reason if row.refused is None else f"stays: {row.refused}"
        cells = (Cell(box), Cell(PurePath(row.path).name), Cell(size(row.bytes)), Cell(why))
        return Row(row.path, cells, None, Tone.NORMAL if row.refused is None else Tone.DIM)

    def action_turn(self) -> None:
        """Turn the rule in focus, or keep the file under the cursor or let it go."""
        if isinstance(self.focused, Tick):
            self.focused.action_turn()
            return
        current = self._table.current
        row = next((row for row in self._rows if current is not None and row.path == current.key), None)
        if row is not None and row.refused is None:
            self._kept ^= {row.path}
            self._show()

    def action_confirm(self) -> None:
        """Let the chosen files go, or turn the rule in focus."""
        if isinstance(self.focused, Tick):
            self.focused.action_turn()
        elif self.chosen:
            self.dismiss(tuple(row.path for row in self.chosen))

    def action_leave(self) -> None:
        """Prune nothing."""
        self.dismiss(None)
