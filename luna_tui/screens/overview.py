"""Screen 1: the daemons, why they are in their state, their log, and the verbs that change it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

from luna_tui.screens.base import LunaScreen
from luna_tui.screens.overview_text import columns, facts_of, row_of, strip
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.facts import Facts
from luna_tui.widgets.log_pane import LogPane
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from luna_tui.actions import Action
    from luna_tui.views import DaemonRow, DaemonsView, GpusView

_DOWN = frozenset({"stopped", "failed", "crashed", "backoff"})
EMPTY = (
    "No daemon yet.\n\n"
    "c sets one up: a text encoder or VAE server that several ComfyUI instances share.\n"
    "luna demo-models DIR makes small model files to try it with."
)


@dataclass(frozen=True, slots=True)
class OverviewView:
    """What the screen shows at one moment."""

    daemons: DaemonsView
    gpus: GpusView


class OverviewScreen(LunaScreen):
    """Daemons."""

    SCREEN_ID = "overview"
    ABOUT = (
        "The model servers (daemons) that ComfyUI instances share, as configured and as they run. "
        "Whoever holds the supervisor's lock restarts what crashes; a second Luna is a viewer with the same verbs. "
        "Quitting stops nothing: the next start finds the daemons and adopts them."
    )
    PANES: ClassVar[tuple[str, ...]] = ("daemons", "detail", "log")

    def __init__(self) -> None:
        super().__init__()
        self.view: OverviewView | None = None

    def body(self) -> ComposeResult:
        """Yield list, detail, log and strip."""
        with Pane(id="daemons"):
            yield ListTable(columns(), id="daemon-list", empty="reading …")
        with Horizontal(id="lower"):
            yield Pane(VerticalScroll(Facts(), id="detail-scroll"), id="detail", classes="side")
            yield LogPane(id="log", classes="side")
        yield Static(id="strip")

    # -- data ------------------------------------------------------------------------------------------------

    def load(self) -> OverviewView:
        """Read daemons and cards."""
        return OverviewView(self.luna.backend.daemons.snapshot(), self.luna.backend.gpus.snapshot())

    def show(self, snapshot: OverviewView) -> None:
        """Update rows in place, then the panes of the row under the cursor."""
        self.view = snapshot
        table = self.query_one("#daemon-list", ListTable)
        table.empty = EMPTY
        glyphs = self.luna.glyphs
        table.set_rows([row_of(daemon, glyphs) for daemon in snapshot.daemons.daemons])
        self.query_one("#strip", Static).update(strip(snapshot.gpus, glyphs))
        self._summarise(snapshot.daemons)
        self._show_current()

    def _summarise(self, view: DaemonsView) -> None:
        up = sum(daemon.state in {"ready", "busy"} for daemon in view.daemons)
        pane = self.query_one("#daemons", Pane)
        pane.set_title(f"daemons · {up} of {len(view.daemons)} ready" if view.daemons else "daemons")
        pane.border_subtitle = f"{len(view.problems)} settings ignored: see 6" if view.problems else ""

    @property
    def current(self) -> DaemonRow | None:
        """The daemon under the cursor."""
        row = self.query_one("#daemon-list", ListTable).current
        if row is None or self.view is None:
            return None
        return next((daemon for daemon in self.view.daemons.daemons if daemon.name == row.key), None)

    def on_list_table_highlighted(self) -> None:
        """Show the daemon under the cursor."""
        self._show_current()
        self.refresh_bindings()

    def on_list_table_selected(self) -> None:
        """Open the daemon's pane."""
        self.open_pane("detail")

    def _show_current(self) -> None:
        daemon = self.current
        pane = self.query_one("#detail", Pane)
        pane.set_title(daemon.name if daemon else "daemon")
        self.query_one(Facts).show(facts_of(daemon, self.luna.glyphs) if daemon else ())
        self.query_one("#log", LogPane).follow_file(daemon.name if daemon else "", daemon.log_path if daemon else None)

    # -- verbs -----------------------------------------------------------------------------------------------

    def why_not(self, action: Action) -> str | None:
        """Say why a verb does not fit the daemon under the cursor."""
        if not action.id.startswith("daemon.") or action.id in {"daemon.adopt", "daemon.configure"}:
            return None
        daemon = self.current
        if daemon is None:
            return "no daemon under the cursor: c sets one up"
        is_down = daemon.state in _DOWN
        if action.id == "daemon.start" and not is_down:
            return f"{daemon.name} is {daemon.state} already"
        if action.id == "daemon.forget" and not (is_down and daemon.configured):
            return f"{daemon.name} is {daemon.state}: stop it first" if daemon.configured else "not in the settings"
        if action.id in {"daemon.stop", "daemon.kill"} and is_down and daemon.state != "backoff":
            return f"{daemon.name} is not running"
        if action.id == "daemon.kill" and daemon.pid is None:
            return f"{daemon.name} has no process"
        if action.id == "daemon.edit" and not daemon.configured:
            return f"{daemon.name} is not in the settings"
        return None

    def _loss(self, daemon: DaemonRow) -> str:
        if daemon.state == "backoff":
            return "It waits to start again; it will stay down."
        parts = []
        if daemon.queue_depth:
            parts.append(f"{daemon.queue_depth} requests wait")
        if daemon.clients:
            parts.append("used by " + ", ".join(daemon.clients[:4]))
        loaded = [entry.name for entry in daemon.sets if entry.bytes]
        if loaded:
            parts.append("unloads " + ", ".join(loaded))
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}." if parts else "Nobody uses it now."

    def do_daemon_start(self) -> None:
        """Start the daemon under the cursor."""
        if (daemon := self.current) is not None:
            self._expect(daemon.name, "starting")
            self.verb("daemon.start", partial(self.luna.backend.daemons.start, daemon.name), target=daemon.name)

    def do_daemon_stop(self) -> None:
        """Stop it after asking."""
        if (daemon := self.current) is not None:
            call = partial(self.luna.backend.daemons.stop, daemon.name)
            self.verb("daemon.stop", call, target=daemon.name, loss=self._loss(daemon))

    def do_daemon_restart(self) -> None:
        """Restart it after asking; from back-off it starts at once."""
        if (daemon := self.current) is not None:
            call = partial(self.luna.backend.daemons.restart, daemon.name)
            self.verb("daemon.restart", call, target=daemon.name, loss=self._loss(daemon))

    def do_daemon_kill(self) -> None:
        """Kill it after the name is typed."""
        if (daemon := self.current) is not None:
            call = partial(self.luna.backend.daemons.kill, daemon.name)
            loss = f"Its process {daemon.pid} ends at once. {self._loss(daemon)}"
            self.verb("daemon.kill", call, target=daemon.name, loss=loss)

    def do_daemon_adopt(self) -> None:
        """Look for running daemons."""
        self.verb("daemon.adopt", self.luna.backend.daemons.adopt)

    def do_daemon_forget(self) -> None:
        """Remove it from the settings after asking."""
        if (daemon := self.current) is not None:
            call = partial(self.luna.backend.daemons.forget, daemon.name)
            loss = f"Its table leaves settings.toml; its log stays at {daemon.log_path or 'its place'}."
            self.verb("daemon.forget", call, target=daemon.name, loss=loss)

    def do_daemon_configure(self) -> None:
        """Open the form of a new daemon."""
        self._open_form(None)

    def do_daemon_edit(self) -> None:
        """Open the form of the daemon under the cursor."""
        if (daemon := self.current) is not None:
            self._open_form(daemon.name)

    def _open_form(self, name: str | None) -> None:
        from luna_tui.screens.daemon_form import DaemonForm

        def saved(new_name: str | None) -> None:
            self.refresh_data()
            if new_name is not None:
                self.set_timer(0.2, lambda: self.query_one("#daemon-list", ListTable).go_to(new_name))

        self.app.push_screen(DaemonForm(name), saved)

    def do_daemon_log(self) -> None:
        """Go to the log."""
        self.open_pane("log")

    def _expect(self, name: str, state: str) -> None:
        """Show at once that a key was taken; the next snapshot tells what came of it."""
        self.query_one("#daemons", Pane).set_title(f"daemons · {name}: {state} …")
