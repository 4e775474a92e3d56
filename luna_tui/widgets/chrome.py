"""The frame round every screen: the row of screens, the row of keys, titled panes and the error bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea

from luna_tui.actions import on_screen
from luna_tui.plain import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textual import events

    from luna_tui.actions import Action
    from luna_tui.views import Failure

Zone = tuple[int, int, str]
"""First cell, cell after the last, id of the action."""
KEY_NAMES = {
    "question_mark": "?",
    "slash": "/",
    "at": "@",
    "escape": "esc",
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "exclamation_mark": "!",
}


def key_name(keys: str) -> str:
    """Return how the first key of a binding is written."""
    key = keys.split(",", maxsplit=1)[0]
    return KEY_NAMES.get(key, key)


class HeaderRow(Widget):
    """Row 1: the screens, unread errors, role, badges, a summary and the clock."""

    summary: reactive[str] = reactive("")
    role: reactive[str] = reactive("")
    badges: reactive[str] = reactive("")
    unread: reactive[int] = reactive(0)
    clock: reactive[str] = reactive("")

    def __init__(self, screens: tuple[tuple[int, str, str], ...], current: str) -> None:
        super().__init__(id="header")
        self.screens = screens
        self.current = current
        self._zones: list[Zone] = []

    def on_mount(self) -> None:
        """Follow the clock."""
        self._tick()
        self.set_interval(1.0, self._tick)

    def _tick(self) -> None:
        if self.screen.is_current:  # also false while the app pops its last screens
            self.clock = self.app.clock_text()  # type: ignore[attr-defined]  # LunaApp, typed in base.py

    def render(self) -> Content:
        """Draw the row: tabs on the left, facts on the right."""
        narrow = self.screen.has_class("-narrow")
        self._zones = []
        left = self._narrow_tabs() if narrow else self._tabs()
        right = self._facts(self.size.width - left.cell_length - 1, narrow=narrow)
        return Content.assemble(left, " " * max(0, self.size.width - left.cell_length - right.cell_length), right)

    def _facts(self, room: int, *, narrow: bool) -> Content:
        """Return as many facts as fit, the role before the clock: it decides what the keys do."""
        role = "" if narrow else self.role
        wishes = (
            (self.badges, role, self.summary, self.clock),
            (self.badges, role, self.clock),
            (self.badges, role),
            (role.partition(",")[0],),
            (self.clock,),
        )
        for facts in wishes:
            text = clean(" · ".join(fact for fact in facts if fact)) + " "
            if text.strip() and cell_len(text) <= room:
                return Content.styled(text, "$foreground-muted")
        return Content("")

    def _tabs(self) -> Content:
        wide = self.screen.has_class("-wide")
        row = Content.styled(" luna ", "b $accent") if wide else Content("")
        for number, name, label in self.screens:
            unread = self._unread() if name == "events" else ""
            start = row.cell_length
            if name == self.current:
                row += Content.styled(f" {number} {label}{unread} ", "b $luna-tab-text on $luna-tab")
            else:
                row += Content.assemble((f" {number}", "$accent"), f" {label}", (unread, "b $text-error"), " ")
            self._zones.append((start, row.cell_length, f"screen.{name}"))
        return row

    def _narrow_tabs(self) -> Content:
        position = next(place for place, entry in enumerate(self.screens) if entry[1] == self.current)
        number, _, label = self.screens[position]
        text = f" {number}/6 {label}{self._unread()} "
        following = self.screens[(position + 1) % len(self.screens)][1]
        self._zones.append((0, len(text), f"screen.{following}"))
        return Content.styled(text, "b $luna-tab-text on $luna-tab")

    def _unread(self) -> str:
        alert = self.app.glyphs.alert  # type: ignore[attr-defined]  # LunaApp, typed in base.py
        return f" {alert}{self.unread}" if self.unread else ""

    async def on_click(self, event: events.Click) -> None:
        """Go to the clicked screen."""
        await _run_zone(self, self._zones, event.x)


class KeyBar(Widget):
    """Last row: the keys that work now, from the action table."""

    def __init__(self) -> None:
        super().__init__()
        self._zones: list[Zone] = []

    def on_mount(self) -> None:
        """Follow focus and state."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self.refresh())

    def render(self) -> Content:
        """Draw what is enabled, as far as it fits; help always has room."""
        self._zones = []
        if self.screen.has_class("-narrow"):
            self._zones.append((0, self.size.width, "app.help"))
            return Content.assemble((" ?", "b $accent"), (" keys", "$foreground-muted"))
        row = Content(" ")
        for key, action in self._working():
            entry = self._entry(key, action.label)
            if row.cell_length + entry.cell_length + len("? help") > self.size.width - 2:
                break
            self._zones.append((row.cell_length, row.cell_length + entry.cell_length, action.id))
            row += entry
        self._zones.append((row.cell_length, self.size.width, "app.help"))
        return row + self._entry("?", "help")

    def _working(self) -> Iterator[tuple[str, Action]]:
        """Yield what works now with its key; while text is typed only keys that are no letters work."""
        is_typing = isinstance(self.screen.focused, (Input, TextArea))
        for action in on_screen(getattr(self.screen, "SCREEN_ID", "")):
            keys = [key for key in action.keys.split(",") if not is_typing or "+" in key or key == "escape"]
            if action.shown and keys and action.id != "app.help" and self.screen.check_action("run", (action.id,)):
                yield key_name(keys[0]), action

    @staticmethod
    def _entry(key: str, label: str) -> Content:
        return Content.assemble((key, "b $accent"), (f" {label}  ", "$foreground-muted"))

    async def on_click(self, event: events.Click) -> None:
        """Do what the clicked key does."""
        await _run_zone(self, self._zones, event.x)


async def _run_zone(widget: Widget, zones: list[Zone], x: int) -> None:
    for start, end, action_id in zones:
        if start <= x < end:
            await widget.run_action(f"screen.run('{action_id}')")
            return


class Pane(Vertical):
    """A titled part of a screen. Panes with the class ``side`` become tabs of one place on smaller terminals."""

    def __init__(self, *children: Widget, title: str = "", id: str | None = None, classes: str = "") -> None:  # noqa: A002
        super().__init__(*children, id=id, classes=classes)
        self.set_title(title)

    def set_title(self, title: str) -> None:
        """Set the title from foreign text."""
        self.border_title = Content(clean(title))


class ErrorBar(Static):
    """One line above a list whose last reading failed: code, message, hint and the age of what is shown."""

    def __init__(self) -> None:
        super().__init__("", id="error-bar")
        self.display = False

    def show(self, failure: Failure | None, good_at: float | None) -> None:
        """Show a failure, or hide the bar."""
        self.display = failure is not None
        if failure is None:
            return
        age = "" if good_at is None else f" · below: as of {max(0, int(time.time() - good_at))} s ago"
        hint = f" → {failure.hint}" if failure.hint else ""
        self.update(
            Content.assemble(
                Content.styled(f" {clean(failure.code)} ", "b $text-error on $error-muted"),
                " ",
                Content(clean(failure.message)),
                Content.styled(clean(hint), "$foreground-muted"),
                Content.styled(age, "$foreground-muted"),
            )
        )
