"""The samples of a template: seed, text, and if asked for where each word came from. Only lines in view are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from luna_tui.plain import clean, fit
from luna_tui.widgets.wrapping import clean_offset, clean_text, wrap

if TYPE_CHECKING:
    from textual import events
    from textual.binding import BindingType

    from luna_engine.wildcards import Choice, Expansion
    from luna_tui.backend.wildcards import PreviewView

_GUTTER = 7
_MOST_VALUE = 48


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the view. ``start`` is where its text begins in the clean text of the sample."""

    entry: int
    sample: int
    choice: int | None
    gutter: str
    text: str
    start: int = 0
    place: str = ""
    share: str = ""


class Samples(ScrollView, can_focus=True):
    """A list of samples with a cursor; under each, if asked for, one line for each choice."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "samples--cursor",
        "samples--seed",
        "samples--value",
        "samples--place",
        "samples--span",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("home,g", "move_to(0)", "first", show=False),
        Binding("end,G", "move_to(-1)", "last", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "page down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "page up", show=False),
        Binding("enter", "open", "open", show=False),
    ]
    DEFAULT_CSS = "Samples { overflow-x: hidden; }"

    class Opened(Message):
        """Enter on a choice."""

        def __init__(self, choice: Choice) -> None:
            super().__init__()
            self.choice = choice

    class Moved(Message):
        """The cursor is on another sample or choice."""

    def __init__(self) -> None:
        super().__init__()
        self.preview: PreviewView | None = None
        self.shows_choices = False
        self.cursor = 0
        self._lines: list[_Line] = []
        self._entries: list[tuple[int, int | None]] = []

    # -- content

    def show(self, preview: PreviewView) -> None:
        """Show samples; the cursor stays where it was."""
        self.preview = preview
        self._lay()

    def turn_choices(self) -> None:
        """Show or hide the choices behind each sample; the cursor stays on its sample."""
        sample = self.current_sample_index
        self.shows_choices = not self.shows_choices
        self._lay()
        if sample is not None:
            self._move_to(next(at for at, (number, _) in enumerate(self._entries) if number == sample))

    @property
    def current(self) -> tuple[int, int | None] | None:
        """The sample and the choice under the cursor, as numbers."""
        return self._entries[self.cursor] if 0 <= self.cursor < len(self._entries) else None

    @property
    def current_sample_index(self) -> int | None:
        """The number of the sample under the cursor."""
        return self.current[0] if self.current else None

    @property
    def sample(self) -> Expansion | None:
        """The sample under the cursor."""
        at = self.current_sample_index
        return self.preview.samples[at] if self.preview is not None and at is not None else None

    @property
    def choice(self) -> Choice | None:
        """The choice under the cursor, None on a sample's own lines."""
        sample, current = self.sample, self.current
        return sample.choices[current[1]] if sample is not None and current and current[1] is not None else None

    @property
    def plain_text(self) -> str:
        """What is shown, line by line."""
        return "\n".join(f"{line.gutter}{line.text}{line.place}{line.share}".rstrip() for line in self._lines)

    def _lay(self) -> None:
        self._lines, self._entries = [], []
        width = max(10, self.scrollable_content_region.width - _GUTTER)
        for number, sample in enumerate(self.preview.samples if self.preview is not None else ()):
            self._add_sample(number, sample, width)
            if self.shows_choices:
                self._add_choices(number, sample, width)
        self.cursor = min(self.cursor, max(0, len(self._entries) - 1))
        self.virtual_size = Size(self.size.width, max(1, len(self._lines)))
        self.refresh()

    def _add_sample(self, number: int, sample: Expansion, width: int) -> None:
        text = clean_text(sample.text)
        seed = str(sample.seed)
        seed = f"…{seed[-5:]}" if len(seed) > 6 else seed
        for row, (start, end) in enumerate(wrap(text, width)):
            gutter = f"{seed:>6} " if row == 0 else " " * _GUTTER
            self._lines.append(_Line(len(self._entries), number, None, gutter, text[start:end], start))
        self._entries.append((number, None))

    def _add_choices(self, number: int, sample: Expansion, width: int) -> None:
        depths = [0] * len(sample.choices)
        for at, choice in enumerate(sample.choices):
            depths[at] = depths[choice.parent] + 1 if choice.parent is not None else 0
        for at, choice in enumerate(sample.choices):
            value = choice.value if len(choice.value) <= _MOST_VALUE else f"{choice.value[: _MOST_VALUE - 1]}…"
            is_last = at + 1 == len(sample.choices) or depths[at + 1] < depths[at]
            gutter = " " * (_GUTTER - 2) + "  " * min(depths[at], 8) + ("└ " if is_last else "├ ")
            share = f"  {choice.probability * 100:.3g} %" + (f"  :{choice.line}" if choice.line else "")
            place = clean(choice.address.rpartition(":")[2] if choice.address else choice.kind.value)
            room = max(8, width + _GUTTER - len(gutter) - len(share) - 2)
            value_room = max(room - len(place), room // 2)
            shown = fit(clean(value), value_room).rstrip()
            left = room - len(shown)
            place = f"  {fit(place, max(0, min(len(place), left))).rstrip()}" if left > 4 else ""
            self._lines.append(_Line(len(self._entries), number, at, gutter, shown, 0, place, share))
            self._entries.append((number, at))

    def on_resize(self) -> None:
        """Wrap anew."""
        self._lay()

    # -- drawing

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        width = self.scrollable_content_region.width
        base = self.rich_style
        at = round(self.scroll_y) + y
        if at >= len(self._lines):
            text = " nothing to show" if at == 0 and not self._lines else ""
            return Strip([Segment(fit(text, width), self.get_component_rich_style("samples--place"))])
        line = self._lines[at]
        back = Style()
        if line.entry == self.cursor and self.has_focus:
            back = Style(bgcolor=self.get_component_rich_style("samples--cursor").bgcolor)
        gutter = Segment(line.gutter, self.get_component_rich_style("samples--seed") + back)
        if line.choice is None:
            segments = [gutter, *self._text_segments(line, base + back)]
        else:
            quiet = self.get_component_rich_style("samples--place") + back
            value = self.get_component_rich_style("samples--value") + back
            segments = [gutter, Segment(line.text, value), Segment(line.place, quiet), Segment(line.share, quiet)]
        return Strip(segments).adjust_cell_length(width, base + back)

    def _text_segments(self, line: _Line, style: Style) -> list[Segment]:
        """Return a piece of a sample, the span of the choice under the cursor underlined."""
        start, end = self._span_in(line)
        if start >= end:
            return [Segment(line.text, style)]
        marked = style + self.get_component_rich_style("samples--span", partial=True)
        return [
            Segment(line.text[:start], style),
            Segment(line.text[start:end], marked),
            Segment(line.text[end:], style),
        ]

    def _span_in(self, line: _Line) -> tuple[int, int]:
        choice, sample = self.choice, self.sample
        if choice is None or sample is None or choice.span is None or line.sample != self.current_sample_index:
            return 0, 0
        start, end = (clean_offset(sample.text, at) - line.start for at in choice.span)
        return max(0, start), min(len(line.text), end)

    # -- moving

    def _move_to(self, entry: int) -> None:
        entry = max(0, min(entry, len(self._entries) - 1))
        if not self._entries:
            return
        self.cursor = entry
        rows = [at for at, line in enumerate(self._lines) if line.entry == entry]
        height, top = self.scrollable_content_region.height, round(self.scroll_y)
        if rows[0] < top:
            self.scroll_to(y=rows[0], animate=False, immediate=True)
        elif rows[-1] >= top + height > 0:
            self.scroll_to(y=min(rows[0], rows[-1] - height + 1), animate=False, immediate=True)
        self.refresh()
        self.post_message(self.Moved())

    def action_move(self, step: int) -> None:
        """Move by samples and choices."""
        self._move_to(self.cursor + step)

    def action_move_to(self, entry: int) -> None:
        """Move to the first (0) or last (-1)."""
        self._move_to(entry if entry >= 0 else len(self._entries) - 1)

    def action_page(self, pages: int) -> None:
        """Move by a pane's height."""
        self._move_to(self.cursor + pages * max(1, self.size.height - 1))

    def action_open(self) -> None:
        """Go where the choice under the cursor stands."""
        if self.choice is not None:
            self.post_message(self.Opened(self.choice))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on what is clicked; a second click opens it."""
        event.stop()
        at = round(self.scroll_y) + event.y
        if at < len(self._lines):
            again = self._lines[at].entry == self.cursor
            self._move_to(self._lines[at].entry)
            if again and event.chain > 1:
                self.action_open()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Redraw when scrolled."""
        super().watch_scroll_y(old_value, new_value)
        self.refresh()
