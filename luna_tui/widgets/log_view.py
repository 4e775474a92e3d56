"""A log that is drawn line by line from a ring of 20,000; it follows, and scrolling up pauses it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from luna_tui import filtering
from luna_tui.glyphs import LEVELS, Tone
from luna_tui.plain import fit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual import events
    from textual.binding import BindingType

    from luna_tui.logtail import LogLine

CAPACITY = 20_000
_ORDER = ("debug", "info", "warning", "error")
_SHORT = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "FATAL"}


class LogView(ScrollView, can_focus=True):
    """Lines of one log with follow, filter, least level and time."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log--time",
        "log--cursor",
        "log--hit",
        "log--empty",
        *(f"log--{tone.value}" for tone in Tone),
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("home,g", "move_to(0)", "first", show=False),
        Binding("end,G", "move_to(-1)", "last", show=False),
        Binding("pagedown", "page(1.0)", "page down", show=False),
        Binding("pageup", "page(-1.0)", "page up", show=False),
        Binding("enter", "open", "whole line", show=False),
        Binding("ctrl+d", "page(0.5)", "half down", show=False),
        Binding("ctrl+u", "page(-0.5)", "half up", show=False),
    ]

    DEFAULT_CSS = "LogView { overflow-x: hidden; }"

    class Changed(Message):
        """Follow, filter, level or the count of lines changed."""

    class Opened(Message):
        """Enter on a line."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None, empty: str = "") -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self.empty = empty
        self.lines: deque[LogLine] = deque(maxlen=CAPACITY)
        self.shown: deque[LogLine] = deque(maxlen=CAPACITY)
        self.filter = filtering.Filter("")
        self.least = "debug"
        self.show_time = True
        self.following = True
        self.unseen = 0
        self._cursor = 0

    # -- content ---------------------------------------------------------------------------------------------

    def append(self, lines: Iterable[LogLine]) -> None:
        """Add a batch of lines."""
        lines = list(lines)
        if not lines:
            return
        self.lines.extend(lines)
        fresh = [line for line in lines if self._passes(line)]
        dropped = max(0, len(self.shown) + len(fresh) - CAPACITY)
        self.shown.extend(fresh)
        self._update(added=len(fresh), dropped=dropped)

    def clear(self) -> None:
        """Forget all lines."""
        self.lines.clear()
        self.shown.clear()
        self._cursor = 0
        self.unseen = 0
        self.following = True
        self._update()

    def set_filter(self, text: str) -> filtering.Filter:
        """Show only lines that pass."""
        self.filter = filtering.parse(text)
        self._choose()
        return self.filter

    def turn_level(self) -> None:
        """Raise the least level by one, or start again."""
        self.least = _ORDER[(_ORDER.index(self.least) + 1) % len(_ORDER)]
        self._choose()

    def turn_time(self) -> None:
        """Show or hide the time."""
        self.show_time = not self.show_time
        self._update()

    def follow(self) -> None:
        """Go to the end and stay there."""
        self.following = True
        self.unseen = 0
        self._cursor = max(0, len(self.shown) - 1)
        self._update()

    def _choose(self) -> None:
        self.shown = deque((line for line in self.lines if self._passes(line)), maxlen=CAPACITY)
        self._cursor = max(0, min(self._cursor, len(self.shown) - 1))
        self._update()

    def _passes(self, line: LogLine) -> bool:
        level = line.level or "info"
        rank = _ORDER.index(level) if level in _ORDER else len(_ORDER)
        if rank < _ORDER.index(self.least):
            return False
        return not self.filter or self.filter.matches({"level": level, "text": line.text})

    def _update(self, added: int = 0, dropped: int = 0) -> None:
        self.virtual_size = Size(self.size.width, len(self.shown))
        if self.following:
            self._cursor = max(0, len(self.shown) - 1)
            self.call_after_refresh(self._scroll_down)
        else:
            self.unseen += added
            self._cursor = max(0, self._cursor - dropped)
            if dropped:
                self.scroll_to(y=max(0, self.scroll_y - dropped), animate=False, immediate=True)
        self.refresh()
        self.post_message(self.Changed())

    def _scroll_down(self) -> None:
        if self.following:
            self.scroll_to(y=max(0, len(self.shown) - self.size.height), animate=False, immediate=True)

    @property
    def status(self) -> str:
        """Following or paused, and what is left out, for the pane's title."""
        parts = ["following" if self.following else f"paused, {self.unseen} new, F resumes"]
        if self.least != "debug":
            parts.append(f"{self.least} and up")
        if self.filter:
            parts.append(f"/{self.filter.text} · {len(self.shown)} of {len(self.lines)}")
        return " · ".join(parts)

    @property
    def current_text(self) -> str:
        """The line under the cursor."""
        return self.shown[self._cursor].text if self._cursor < len(self.shown) else ""

    # -- drawing ---------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Keep the end in view while following."""
        self._update()

    def render_line(self, y: int) -> Strip:
        """Render one line of the log."""
        width = self.scrollable_content_region.width
        if not self.shown:
            style = self.get_component_rich_style("log--empty")
            text = "no line passes the filter" if self.lines else self.empty
            return Strip([Segment(fit(f" {text}" if y == 0 else "", width), style)])
        index = round(self.scroll_y) + y
        if index >= len(self.shown):
            return Strip.blank(width, self.rich_style)
        line = self.shown[index]
        tone = LEVELS.get(line.level or "", Tone.NORMAL)
        style = self.rich_style if tone is Tone.NORMAL else self.get_component_rich_style(f"log--{tone.value}")
        segments = [*self._stamp(line), *self._text(line.text, style)]
        strip = Strip(segments).adjust_cell_length(width, self.rich_style)
        if index == self._cursor and self.has_focus:
            strip = strip.apply_style(Style(bgcolor=self.get_component_rich_style("log--cursor").bgcolor))
        return strip

    def _stamp(self, line: LogLine) -> list[Segment]:
        segments = []
        quiet = self.get_component_rich_style("log--time")
        if self.show_time and line.at is not None:
            clock = time.strftime("%H:%M:%S", time.localtime(line.at))
            segments.append(Segment(f"{clock}.{int(line.at % 1 * 1000):03d} ", quiet))
        if line.level is not None:
            tone = LEVELS.get(line.level, Tone.NORMAL)
            style = quiet if tone is Tone.NORMAL else self.get_component_rich_style(f"log--{tone.value}")
            segments.append(Segment(f"{_SHORT.get(line.level, line.level.upper())[:5]:<5} ", style))
        return segments

    def _text(self, text: str, style: Style) -> list[Segment]:
        patterns = [pattern for term in self.filter.terms if not term.negative for pattern in term.patterns]
        hit = next((found for pattern in patterns if (found := pattern.search(text))), None)
        if hit is None or hit.start() == hit.end():
            return [Segment(text, style)]
        marked = self.get_component_rich_style("log--hit")
        parts = (text[: hit.start()], style), (hit.group(), marked), (text[hit.end() :], style)
        return [Segment(part, look) for part, look in parts if part]

    # -- moving ----------------------------------------------------------------------------------------------

    def _go(self, index: int) -> None:
        last = max(0, len(self.shown) - 1)
        self._cursor = max(0, min(index, last))
        self._pause_or_follow(at_end=self._cursor >= last)
        top, height = round(self.scroll_y), max(1, self.size.height)
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, immediate=True)
        elif self._cursor >= top + height:
            self.scroll_to(y=self._cursor - height + 1, animate=False, immediate=True)
        self.refresh()

    def _pause_or_follow(self, *, at_end: bool) -> None:
        if at_end != self.following:
            self.following = at_end
            self.unseen = 0
            self.post_message(self.Changed())

    def action_move(self, step: int) -> None:
        """Move the cursor by lines; moving up pauses."""
        self._go(self._cursor + step)

    def action_open(self) -> None:
        """Ask for the whole line under the cursor."""
        if self.current_text:
            self.post_message(self.Opened(self.current_text))

    def action_move_to(self, index: int) -> None:
        """Move the cursor to the first (0) or last (-1) line."""
        self._go(index if index >= 0 else len(self.shown) - 1)

    def action_page(self, pages: float) -> None:
        """Move the cursor by pages."""
        self._go(self._cursor + round(pages * max(1, self.size.height - 1)))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Pause when somebody scrolls up."""
        del event
        self._pause_or_follow(at_end=False)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Follow again at the end."""
        del event
        if self.scroll_y + self.size.height >= len(self.shown) - 1:
            self._pause_or_follow(at_end=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Redraw when scrolled."""
        super().watch_scroll_y(old_value, new_value)
        self.refresh()
