"""What every screen is made of: frame, panes, data loaded off the UI thread, actions from the one table.

To add a screen: subclass `LunaScreen` in ``screens/<id>.py``, name it in `luna_tui.app.SCREENS`, put its actions into
`luna_tui.actions` (handlers are methods ``do_<id with _ for .>``) and its styles into ``styles/<id>.tcss``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.binding import Binding
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from luna_engine.errors import LunaError
from luna_tui import actions
from luna_tui.actions import Action, Grade
from luna_tui.views import EventRow, Failure, Outcome
from luna_tui.widgets.chrome import ErrorBar, HeaderRow, KeyBar, Pane
from luna_tui.widgets.log_view import LogView
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult
    from textual.timer import Timer

    from luna_tui.app import LunaApp

_log = logging.getLogger(__name__)
# Global actions whose keys Textual's own Screen binds: they must stand on the screen to come first.
_OVER_TEXTUAL = frozenset({"pane.next", "pane.previous"})


class LunaScreen(Screen[None]):
    """One of the six screens.

    Class attributes: ``SCREEN_ID`` (as in the action table), ``ABOUT`` (three sentences for the help),
    ``REFRESH_S`` (0 = only when asked), ``PANES`` (ids of the panes in tab order).
    """

    SCREEN_ID: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    REFRESH_S: ClassVar[float] = 1.0
    PANES: ClassVar[tuple[str, ...]] = ()

    class Loaded(Message):
        """A snapshot came from the worker, or the error that it met."""

        def __init__(self, snapshot: Any, failure: Failure | None, role: str, unread: int) -> None:
            super().__init__()
            self.snapshot = snapshot
            self.failure = failure
            self.role = role
            self.unread = unread

    class Done(Message):
        """A verb ended in its worker."""

        def __init__(self, action: Action, outcome: Outcome, command: str | None) -> None:
            super().__init__()
            self.action = action
            self.outcome = outcome
            self.command = command

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the bindings from the action table; an action without a handler is a mistake in the table."""
        if cls.SCREEN_ID:
            cls.BINDINGS = [
                Binding(action.keys, f"run('{action.id}')", action.label, show=False, id=action.id,
                        priority=action.priority)
                for action in actions.on_screen(cls.SCREEN_ID)
                if action.screens or action.id in _OVER_TEXTUAL
            ]  # fmt: skip
        super().__init_subclass__(**options)

    def __init__(self) -> None:
        super().__init__()
        self._loading = False
        self._good_at: float | None = None
        self._current_pane = self.PANES[0] if self.PANES else ""
        self._side_pane = self.PANES[1] if len(self.PANES) > 1 else ""
        self._timer: Timer | None = None
        self._filtering: ListTable | LogView | None = None

    # -- composition -----------------------------------------------------------------------------------------

    @property
    def luna(self) -> LunaApp:
        """The application, typed."""
        return cast("LunaApp", self.app)

    def compose(self) -> ComposeResult:
        """Yield frame and body."""
        yield HeaderRow(self.luna.screen_labels, self.SCREEN_ID)
        yield ErrorBar()
        with Container(id="body"):
            yield from self.body()
        yield Input(id="filter", placeholder="words  !not  ~regex  a|b  column:word", classes="bar")
        yield KeyBar()

    def body(self) -> ComposeResult:
        """Yield the screen's own widgets."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Start the timer; it runs only while the screen is the current one."""
        self.query_one("#filter", Input).display = False
        if self.luna.glyphs.ascii:
            for table in self.query(ListTable):
                table.set_ascii()
        if self.REFRESH_S:
            self._timer = self.set_interval(self.REFRESH_S, self.refresh_data)
        self._show_pane()

    def on_screen_resume(self) -> None:
        """Read anew and go on reading."""
        if self._timer is not None:
            self._timer.resume()
        self.refresh_data()

    def on_screen_suspend(self) -> None:
        """Stop reading while hidden."""
        if self._timer is not None:
            self._timer.pause()

    # -- data ------------------------------------------------------------------------------------------------

    def load(self) -> Any:
        """Return the screen's snapshot. Runs in a worker thread; may block; may raise LunaError."""
        raise NotImplementedError

    def show(self, snapshot: Any) -> None:
        """Put a snapshot into the widgets."""
        raise NotImplementedError

    def refresh_data(self) -> None:
        """Start a reading unless one is under way."""
        if self._loading or not self.is_attached:
            return
        self._loading = True
        self.run_worker(self._load, thread=True, group="load", exit_on_error=False, name=f"load {self.SCREEN_ID}")

    def _load(self) -> None:
        snapshot, failure = None, None
        try:
            snapshot = self.load()
        except LunaError as error:
            failure = Failure(error.code, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - a task border: the screen must show what happened and go on
            _log.exception("reading %s failed", self.SCREEN_ID)
            failure = Failure("internal", f"{type(error).__name__}: {error}", "see luna-tui.log in the state folder")
        backend = self.luna.backend
        self.post_message(self.Loaded(snapshot, failure, backend.role(), backend.events.unread()))

    def on_luna_screen_loaded(self, message: LunaScreen.Loaded) -> None:
        """Show what came; on an error the last good data stay below it."""
        message.stop()
        self._loading = False
        self.header.role, self.header.unread = message.role, message.unread
        if message.failure is None:
            self._good_at = time.time()
            self.show(message.snapshot)
        elif self._good_at is None:
            for table in self.query(ListTable):
                table.empty = "nothing could be read yet"
                table.refresh()
        self.query_one(ErrorBar).show(message.failure, self._good_at)
        self.set_class(message.failure is not None, "-stale")
        self.refresh_bindings()

    @property
    def header(self) -> HeaderRow:
        """The first row."""
        return self.query_one(HeaderRow)

    # -- actions ---------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide what cannot run: changes in read-only mode, and what the screen says cannot run now."""
        if action != "run" or not parameters:
            return True
        found = actions.TABLE[str(parameters[0])]
        return not (found.mutates and self.luna.readonly) and self.why_not(found) is None

    def why_not(self, action: Action) -> str | None:
        """Return why an action cannot run now, or None. Screens override it."""
        del action
        return None

    async def action_run(self, action_id: str) -> None:
        """Run an action of the table: read-only and reasons first, then its handler."""
        action = actions.TABLE[action_id]
        reason = "Luna is read-only" if action.mutates and self.luna.readonly else self.why_not(action)
        if reason is not None:
            self.luna.toast(reason, "warning")
            return
        owner = self if hasattr(self, action.handler) else self.app
        getattr(owner, action.handler)()

    def verb(
        self, action_id: str, call: Callable[[], Outcome], *, target: str = "", loss: str = "", typed: str = ""
    ) -> None:
        """Run a verb of a port in a worker after asking as the action's grade demands.

        Args:
            action_id: the row of the action table.
            call: the port's verb with its arguments.
            target: what it is applied to, for the command line and the question.
            loss: what is lost, one sentence for the question.
            typed: what must be typed for grade TYPED; the target if empty.
        """
        action = actions.TABLE[action_id]
        command = action.cli.format(target=target) if action.cli else None
        if action.grade is Grade.NONE:
            self._start(action, call, command)
            return
        from luna_tui.screens.confirm import ConfirmDialog

        def answered(answer: bool | None) -> None:  # noqa: FBT001 - Textual's callback
            if answer:
                self._start(action, call, command)

        word = (typed or target) if action.grade is Grade.TYPED else ""
        self.app.push_screen(ConfirmDialog(f"{action.label} {target}", loss, word), answered)

    def _start(self, action: Action, call: Callable[[], Outcome], command: str | None) -> None:
        def work() -> None:
            try:
                outcome = call()
            except LunaError as error:
                outcome = Outcome.failed(error)
            except Exception as error:  # noqa: BLE001 - a task border, as in _load
                _log.exception("%s failed", action.id)
                outcome = Outcome(ok=False, message=f"{type(error).__name__}: {error}", code="internal")
            self.post_message(self.Done(action, outcome, command))

        self.run_worker(work, thread=True, group=f"verb {action.id}", exit_on_error=False, name=action.id)

    def on_luna_screen_done(self, message: LunaScreen.Done) -> None:
        """Tell what came of it, record it and read anew."""
        message.stop()
        outcome = message.outcome
        hint = f" → {outcome.hint}" if outcome.hint and not outcome.ok else ""
        self.luna.toast(f"{outcome.message}{hint}", "information" if outcome.ok else "error")
        self.luna.remember(message.command)
        self.luna.record(
            EventRow("", time.time(), "info" if outcome.ok else "error", "you",
                     "command" if outcome.ok else outcome.code, outcome.message, outcome.hint, message.command)
        )  # fmt: skip
        self._loading = False
        self.refresh_data()

    # -- panes -----------------------------------------------------------------------------------------------

    def do_pane_next(self) -> None:
        """Go to the next pane."""
        self._turn(1)

    def do_pane_previous(self) -> None:
        """Go to the pane before."""
        self._turn(-1)

    def _turn(self, step: int) -> None:
        if not self.PANES:
            return
        panes = self.PANES
        self.open_pane(panes[(panes.index(self._current_pane) + step) % len(panes)])

    def open_pane(self, pane: str) -> None:
        """Make a pane the current one and give it the focus."""
        self._current_pane = pane
        self._show_pane()
        self.call_after_refresh(self._focus_pane, pane)  # a hidden pane is shown first

    def _focus_pane(self, pane: str) -> None:
        target = self.query_one(f"#{pane}")
        inner = next((child for child in (target, *target.query("*")) if child.focusable), None)
        if inner is not None:
            inner.focus()

    def _show_pane(self) -> None:
        """Mark the current pane; styles decide what that hides at each size."""
        if not self.PANES:
            return
        if self._current_pane in self.PANES[1:]:
            self._side_pane = self._current_pane
        for pane in self.PANES:
            widget = self.query_one(f"#{pane}")
            widget.set_class(pane == self._current_pane, "-current")
            widget.set_class(pane == self._side_pane, "-side")
            self.set_class(pane == self._current_pane, f"-at-{pane}")

    def do_pane_zoom(self) -> None:
        """Give the whole screen to the current pane, or back."""
        self.toggle_class("-zoom")

    def on_descendant_focus(self) -> None:
        """Make the pane of the focused widget the current one."""
        focused = self.focused
        for pane in self.PANES:
            widget = self.query_one(f"#{pane}")
            if focused is not None and (widget is focused or widget in focused.ancestors):
                self._current_pane = pane
                self._show_pane()

    # -- what all screens share ------------------------------------------------------------------------------

    def do_app_refresh(self) -> None:
        """Read everything again."""
        self.refresh_data()

    def do_app_back(self) -> None:
        """Undo one layer: filter bar, filter, zoom, opened pane. It never quits."""
        bar = self.query_one("#filter", Input)
        filtered = next((view for view in (self._filter_target(), self.main_table) if view and view.filter), None)
        if bar.display:
            self._close_filter(keep=False)
        elif filtered is not None:
            filtered.set_filter("")
        elif self.has_class("-zoom"):
            self.remove_class("-zoom")
        elif self.PANES and self._current_pane != self.PANES[0]:
            self.open_pane(self.PANES[0])

    @property
    def main_table(self) -> ListTable | None:
        """The list that filter and sort act on: the focused one, else the first."""
        if isinstance(self.focused, ListTable):
            return self.focused
        return next(iter(self.query(ListTable)), None)

    def do_list_filter(self) -> None:
        """Open the filter bar for the focused list or log."""
        target = self._filter_target()
        if target is None:
            return
        bar = self.query_one("#filter", Input)
        bar.display = True
        bar.value = target.filter.text
        self._filtering = target
        bar.focus()

    def _filter_target(self) -> ListTable | LogView | None:
        return self.focused if isinstance(self.focused, LogView) else self.main_table

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        if event.input.id == "filter" and self._filtering is not None:
            event.stop()
            parsed = self._filtering.set_filter(event.value)
            event.input.border_subtitle = parsed.problem or ""

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter and go back to the list."""
        if event.input.id == "filter":
            event.stop()
            self._close_filter(keep=True)

    def _close_filter(self, *, keep: bool) -> None:
        self.query_one("#filter", Input).display = False
        target, self._filtering = self._filtering, None
        if target is not None:
            if not keep:
                target.set_filter("")
            target.focus()

    def do_list_sort(self) -> None:
        """Ask for the letter of a column."""
        if self.main_table is not None:
            self.main_table.choose_sort()

    def do_item_copy(self) -> None:
        """Copy the line or name under the cursor."""
        if isinstance(self.focused, LogView):
            text = self.focused.current_text
        else:
            row = self.main_table.current if self.main_table else None
            text = self.copy_text(row.key) if row else ""
        if text:
            self.luna.copy(text)

    def copy_text(self, key: str) -> str:
        """Return what `y` copies for a row: its key, unless the screen knows better."""
        return key

    def _log(self) -> LogView | None:
        return self.focused if isinstance(self.focused, LogView) else next(iter(self.query(LogView)), None)

    def do_log_follow(self) -> None:
        """Follow the log again."""
        if (view := self._log()) is not None:
            view.follow()

    def do_log_level(self) -> None:
        """Turn the least level that is shown."""
        if (view := self._log()) is not None:
            view.turn_level()

    def do_log_time(self) -> None:
        """Turn the form of the time."""
        if (view := self._log()) is not None:
            view.turn_time()

    def do_log_clear(self) -> None:
        """Clear the view."""
        if (view := self._log()) is not None:
            view.clear()


__all__ = ["LunaScreen", "Pane"]
