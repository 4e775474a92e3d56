"""What every screen is made of: frame, panes, data loaded off the UI thread, actions from the one table.

To add a screen: subclass `LunaScreen` in ``screens/<id>.py``, name it in `luna_tui.app.SCREENS`, put its actions into
`luna_tui.actions` (handlers are methods ``do_<id with _ for .>``) and its styles into ``styles/<id>.tcss``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding
from textual.containers import Container
from textual.message import Message
from textual.widgets import Input, Static

from luna_engine.errors import LunaError
from luna_tui import actions
from luna_tui.actions import Action, Grade
from luna_tui.screens.lists import ListScreen
from luna_tui.views import EventRow, Failure, Outcome
from luna_tui.widgets.chrome import ErrorBar, HeaderRow, KeyBar
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult
    from textual.timer import Timer


_log = logging.getLogger(__name__)
_SMALLEST = (40, 12)
_BLURRED_S = 5.0  # between two readings while another window has the focus
# Global actions whose keys Textual's own Screen binds: they must stand on the screen to come first.
_OVER_TEXTUAL = frozenset({"pane.next", "pane.previous"})


class LunaScreen(ListScreen):
    """One of the six screens.

    Class attributes: ``SCREEN_ID`` (as in the action table), ``ABOUT`` (three sentences for the help),
    ``REFRESH_S`` (0 = only when asked), and ``PANES``.
    """

    SCREEN_ID: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    REFRESH_S: ClassVar[float] = 1.0

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
        self._timer: Timer | None = None

    # -- composition -----------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Yield frame and body."""
        yield HeaderRow(self.luna.screen_labels, self.SCREEN_ID)
        yield ErrorBar()
        with Container(id="body"):
            yield from self.body()
        yield Input(id="filter", placeholder="words  !not  ~regex  a|b  column:word", classes="bar")
        yield KeyBar()
        yield Static(f"{_SMALLEST[0]}x{_SMALLEST[1]} is the least", id="too-small")

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
            self._timer = self.set_interval(self.REFRESH_S, self._tick)
        self._show_pane()

    def on_resize(self) -> None:
        """Below the least size one line names it."""
        size = self.app.size
        self.set_class(size.width < _SMALLEST[0] or size.height < _SMALLEST[1], "-too-small")

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

    def _tick(self) -> None:
        """Read again; less often while another window has the focus."""
        if self.app.app_focus or time.time() - (self._good_at or 0.0) >= _BLURRED_S:
            self.refresh_data()

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

    def do_app_refresh(self) -> None:
        """Read everything again."""
        self.refresh_data()
