"""What every screen does with its lists and logs: filter, sort, copy, follow, and going back one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.widgets import Input

from luna_tui.plain import content
from luna_tui.screens.panes import PanedScreen
from luna_tui.widgets.log_view import LogView
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    from luna_tui.app import LunaApp


class ListScreen(PanedScreen):
    """A screen with lists or logs and a filter bar (``#filter``)."""

    def __init__(self) -> None:
        super().__init__()
        self._filtering: ListTable | LogView | None = None

    @property
    def luna(self) -> LunaApp:
        """The application, typed."""
        return cast("LunaApp", self.app)

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

    def on_log_view_opened(self, message: LogView.Opened) -> None:
        """Show a log line that is longer than the pane."""
        from luna_tui.screens.help import Reader

        message.stop()
        self.app.push_screen(Reader("log line", content(message.text)))

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
