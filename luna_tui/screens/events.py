"""Screen 6: what happened, newest first, and the logs of the house below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, VerticalScroll

from luna_tui.glyphs import Tone
from luna_tui.screens.base import LunaScreen
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.facts import Facts
from luna_tui.widgets.log_pane import LogPane
from luna_tui.widgets.table import Cell, Column, ListTable, Row
from luna_tui.wording import clock, count

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from luna_tui.glyphs import Glyphs
    from luna_tui.views import EventRow, EventsView
    from luna_tui.widgets.facts import Fact

EMPTY = (
    "Nothing happened yet.\n\n"
    "Daemon changes, crashes, jobs and what you do will stand here, also those while Luna was shut."
)
_LEVEL_TONES = {"error": Tone.BAD, "warning": Tone.WARN, "info": Tone.DIM}
_SCREEN_OF = {"weights": "weights", "wildcards": "wildcards"}


def row_of(event: EventRow, glyphs: Glyphs) -> Row:
    """Return an event's row."""
    times = "x" if glyphs.ascii else "\u00d7"
    message = event.message + (f"  {times}{event.count}" if event.count > 1 else "")
    tone = _LEVEL_TONES.get(event.level, Tone.NORMAL)
    cells = (
        Cell(clock(event.at), Tone.DIM),
        Cell(event.level, tone),
        Cell(event.source),
        Cell(event.code, Tone.DIM),
        Cell(message, tone if event.level == "error" else None),
    )
    return Row(event.id, cells, (event.at, event.level, event.source, event.code, event.message))


class EventsScreen(LunaScreen):
    """Events and logs."""

    SCREEN_ID = "events"
    ABOUT = (
        "Everything that happened to daemons and jobs, and what you did, as command lines. "
        "Repeats within ten seconds are counted in one row. "
        "Below is the log of the daemon that the event under the cursor came from."
    )
    CSS_PATH = "../styles/events.tcss"
    PANES: ClassVar[tuple[str, ...]] = ("events", "detail", "log")

    def __init__(self) -> None:
        super().__init__()
        self.view: EventsView | None = None

    def body(self) -> ComposeResult:
        """Yield list, detail and log."""
        columns = (
            Column("time", "TIME", 8),
            Column("level", "LEVEL", 7, drop=1),
            Column("source", "SOURCE", 9, drop=3),
            Column("code", "CODE", 18, drop=2),
            Column("message", "MESSAGE", 20, flex=True),
        )
        with Pane(id="events"):
            yield ListTable(columns, id="event-list", empty="reading …")
        with Horizontal(id="lower"):
            yield Pane(VerticalScroll(Facts()), id="detail", classes="side")
            yield LogPane(id="log", classes="side")

    def load(self) -> EventsView:
        """Read events."""
        return self.luna.backend.events.snapshot()

    def show(self, snapshot: EventsView) -> None:
        """Show events; being here, they count as seen."""
        self.view = snapshot
        table = self.query_one("#event-list", ListTable)
        table.empty = EMPTY
        at_top = table.cursor == 0
        table.set_rows([row_of(event, self.luna.glyphs) for event in snapshot.events])
        if at_top:
            table.action_move_to(0)
        errors = sum(event.level == "error" for event in snapshot.events)
        title = f"{count(len(snapshot.events), 'event')} · {count(errors, 'error')}"
        self.query_one("#events", Pane).set_title(title if snapshot.events else "events")
        self._show_current()
        if snapshot.events:
            self.run_worker(self.luna.backend.events.mark_read, thread=True, exit_on_error=False, name="mark read")

    @property
    def current(self) -> EventRow | None:
        """The event under the cursor."""
        row = self.query_one("#event-list", ListTable).current
        events = self.view.events if self.view else ()
        return next((event for event in events if row and event.id == row.key), None)

    def on_list_table_highlighted(self) -> None:
        """Show the event under the cursor."""
        self._show_current()

    def on_list_table_selected(self) -> None:
        """Open the event."""
        self.do_item_open()

    def _show_current(self) -> None:
        event = self.current
        self.query_one("#detail", Pane).set_title(event.code if event else "event")
        self.query_one(Facts).show(facts_of(event) if event else ())
        logs = dict(self.view.logs) if self.view else {}
        name = event.source if event and event.source in logs else next(iter(logs), "")
        self.query_one("#log", LogPane).follow_file(name, logs.get(name))

    def do_item_open(self) -> None:
        """Go to where it happened: the daemon, the screen of its source, else the details."""
        event = self.current
        if event is None:
            return
        if self.has_class("-narrow"):
            self.open_pane("detail")
        elif event.source in _SCREEN_OF:
            self.luna.go(_SCREEN_OF[event.source])
        elif event.source in (dict(self.view.logs) if self.view else {}):
            self.open_pane("log")
        else:
            self.open_pane("detail")

    def copy_text(self, key: str) -> str:
        """Return the command line of an event, or its message."""
        event = next((event for event in (self.view.events if self.view else ()) if event.id == key), None)
        return (event.command or event.message) if event else ""


def facts_of(event: EventRow) -> list[Fact]:
    """Return label, value and style of what is known of one event."""
    style = {"error": "b $text-error", "warning": "b $text-warning"}.get(event.level, "b")
    facts: list[Fact] = [("what", event.message, style)]
    if event.hint:
        facts.append(("hint", event.hint, ""))
    if event.command:
        facts.append(("command", event.command, "$accent"))
    facts.append(("when", f"{clock(event.at)}  ·  {event.level}, {event.source}", ""))
    if event.count > 1:
        facts.append(("repeated", f"{event.count} times", ""))
    return facts
