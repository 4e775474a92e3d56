"""The frame round every screen: the row of screens, the row of keys, titled panes and the error bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from luna_tui.actions import TABLE
from luna_tui.plain import clean

if TYPE_CHECKING:
    from luna_tui.views import Failure

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
    key = keys.split(",")[0].removeprefix("shift+") if keys.startswith("shift+question") else keys.split(",")[0]
    return KEY_NAMES.get(key, key)


class HeaderRow(Widget):
    """Row 1: the screens, unread errors, role, badges, a summary and the clock."""

    summary: reactive[str] = reactive("")
    role: reactive[str] = reactive("")
    badges: reactive[str] = reactive("")
    unread: reactive[int] = reactive(0)
    clock: reactive[str] = reactive("")

    def __init__(self, screens: tuple[tuple[str, str], ...], current: str) -> None:
        super().__init__(id="header")
        self.screens = screens
        self.current = current

    def on_mount(self) -> None:
        """Follow the clock."""
        self._tick()
        self.set_interval(1.0, self._tick)

    def _tick(self) -> None:
        if self.app.screen is self.screen:
            self.clock = self.app.clock_text()  # type: ignore[attr-defined]  # LunaApp, typed in base.py

    def render(self) -> Content:
        """Draw the row: tabs on the left, facts on the right."""
        narrow = self.screen.has_class("-narrow")
        left = self._narrow_tabs() if narrow else self._tabs()
        facts = [self.badges, self.role if not narrow else "", self.summary if not narrow else "", self.clock]
        right_text = " · ".join(fact for fact in facts if fact)
        right = Content.styled(clean(right_text) + " ", "$foreground-muted")
        room = self.size.width - left.cell_length - 2
        if right.cell_length > room:
            right = Content.styled(self.clock + " ", "$foreground-muted")
        if right.cell_length > room:
            return left
        return Content.assemble(left, " " * (self.size.width - left.cell_length - right.cell_length), right)

    def _tabs(self) -> Content:
        wide = self.screen.has_class("-wide")
        parts: list[Any] = [Content.from_markup(" [b $accent]luna[/] " if wide else " ")]
        for number, (name, label) in enumerate(self.screens, 1):
            unread = self._unread() if name == "events" else ""
            if name == self.current:
                style = "b $luna-tab-text on $luna-tab"
                parts.append(Content.from_markup(f"[{style}] {number} {label}{unread} [/]"))
            else:
                sign = f"[$error b]{unread}[/]" if unread else ""
                parts.append(
                    Content.from_markup(
                        f"[@click=app.run('screen.{name}')] [$accent]{number}[/] {label}{sign} [/]"
                    )
                )
        return Content.assemble(*parts)

    def _narrow_tabs(self) -> Content:
        names = [name for name, _ in self.screens]
        position = names.index(self.current)
        label = self.screens[position][1]
        return Content.from_markup(
            f"[b $luna-tab-text on $luna-tab] {position + 1}/{len(names)} {label}{self._unread()} [/]"
        )

    def _unread(self) -> str:
        alert = self.app.glyphs.alert  # type: ignore[attr-defined]  # LunaApp, typed in base.py
        return f" {alert}{self.unread}" if self.unread else ""


class KeyBar(Widget):
    """Last row: the keys that work now, from the action table."""

    def on_mount(self) -> None:
        """Follow focus and state."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self.refresh())

    def render(self) -> Content:
        """Draw what is enabled, as far as it fits; help always has room."""
        if self.screen.has_class("-narrow"):
            return Content.from_markup(" [$accent b]?[/] [$foreground-muted]keys[/]")
        enabled = {
            active.binding.id for active in self.screen.active_bindings.values() if active.enabled
        }
        entries = [
            (key_name(action.keys), action.label, action.id)
            for action in TABLE.values()
            if action.shown and action.id in enabled and action.id != "app.help"
        ]
        pieces, used = [], len("? help") + 2
        for key, label, name in entries:
            width = len(key) + len(label) + 3
            if used + width > self.size.width:
                break
            used += width
            pieces.append(f"[@click=screen.run('{name}')][$accent b]{key}[/] [$foreground-muted]{label}[/][/]")
        pieces.append("[@click=screen.run('app.help')][$accent b]?[/] [$foreground-muted]help[/][/]")
        return Content.from_markup(" " + "  ".join(pieces))


class Pane(Vertical):
    """A titled part of a screen. Panes with the class ``side`` become tabs of one place on smaller terminals."""

    def __init__(self, *children: Widget, title: str = "", id: str | None = None, classes: str = "") -> None:  # noqa: A002
        super().__init__(*children, id=id, classes=classes)
        self.set_title(title)

    def set_title(self, title: str) -> None:
        """Set the title from foreign text."""
        self.border_title = Content(clean(title))  # type: ignore[assignment]  # Textual renders Content as it is


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
