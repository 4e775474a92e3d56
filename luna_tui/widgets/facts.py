"""Label and value, line by line; a long value goes on below its own beginning, at any width."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from luna_tui.plain import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.geometry import Size

Fact = tuple[str, str, str]
"""Label, value (foreign text is welcome) and style."""
_LABEL = 10


def laid_out(facts: Iterable[Fact], width: int) -> Content:
    """Return facts as lines of at most ``width`` cells. A fact without label and value is an empty line."""
    lines: list[Content] = []
    room = max(12, width - _LABEL)
    for label, value, style in facts:
        for index, part in enumerate(textwrap.wrap(clean(value), room) or [""]):
            head = label if index == 0 else ""
            lines.append(Content.assemble((f"{head:<{_LABEL}}", "$foreground-muted"), (part, style) if style else part))
    return Content("\n").join(lines)


class Facts(Widget):
    """Facts about one thing."""

    DEFAULT_CSS = "Facts { height: auto; width: 1fr; }"

    facts: reactive[tuple[Fact, ...]] = reactive((), layout=True)

    def show(self, facts: Iterable[Fact]) -> None:
        """Show other facts."""
        self.facts = tuple(facts)

    def render(self) -> Content:
        """Lay the facts out for the width there is."""
        return laid_out(self.facts, self.size.width)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the number of lines at a width."""
        del container, viewport
        return laid_out(self.facts, width).plain.count("\n") + 1 if self.facts else 0
