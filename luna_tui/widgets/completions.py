"""The list of completions under the editor: shown while something is open at the cursor, moved by the editor's keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from luna_tui.plain import clean, fit

if TYPE_CHECKING:
    from luna_engine.wildcards import Completion

MOST_SHOWN = 6


class Completions(Widget):
    """Up to six lines; hidden while empty."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"completions--current", "completions--detail"}
    DEFAULT_CSS = "Completions { dock: bottom; height: auto; display: none; }"

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[Completion, ...] = ()
        self.cursor = 0
        self.times_closed = 0  # what was asked before the last closing must not open it again
        self.is_chosen = False  # only then enter takes it: it is also the end of a line

    def show(self, found: tuple[Completion, ...]) -> None:
        """Show completions; none hides the list."""
        self.found, self.cursor, self.is_chosen = found, 0, False
        self.display = bool(found)
        self.styles.height = min(MOST_SHOWN, len(found))
        self.refresh()

    def close(self) -> None:
        """Hide the list until the next edit."""
        self.times_closed += 1
        self.show(())

    def move(self, step: int) -> None:
        """Move the cursor, round at the ends."""
        if self.found:
            self.cursor = (self.cursor + step) % len(self.found) if self.is_chosen else 0
            self.is_chosen = True
            self.refresh()

    @property
    def current(self) -> Completion | None:
        """The completion under the cursor."""
        return self.found[self.cursor] if self.found else None

    def render_line(self, y: int) -> Strip:
        """Draw one completion."""
        top = max(0, min(self.cursor - MOST_SHOWN // 2, len(self.found) - MOST_SHOWN))
        at = top + y
        if at >= len(self.found):
            return Strip.blank(self.size.width, self.rich_style)
        one = self.found[at]
        name = "completions--current" if at == self.cursor else "completions--detail"
        style = self.get_component_rich_style(name)
        detail = f"{one.kind}  {clean(one.detail)}"
        room = max(10, self.size.width - min(len(detail), self.size.width // 2) - 3)
        text = f" {fit(clean(one.text), room)} {detail}"
        return Strip([Segment(fit(text, self.size.width), style)])
