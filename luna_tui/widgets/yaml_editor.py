"""An editor for wildcard files: our own highlighting per line, and marks in a margin of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.text import Text
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import TextArea

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.wildcards import Diagnostic

_MOST_HIGHLIGHTED = 2_000
_SIGNS = {"error": "E", "warning": "W", "hint": "·"}
# One pass over a line; the first alternative that fits at a place wins. Nothing here can backtrack far.
_TOKENS = re.compile(
    r"(?P<comment>^\s*#.*|\s#\s.*$)"
    r"|(?P<key>^\s*(?:- +)?[^\s#:{}\[\]\"'][^#:{}\[\]]*:(?=\s|$))"
    r"|(?P<tag><[A-Za-z]\w*:[^<>]*>)"
    r"|(?P<wildcard>__[^_\s](?:[^_]|_(?!_))*__)"
    r"|(?P<weight>(?<![\w.])\d+(?:\.\d+)?::)"
    r"|(?P<brace>\$?\{[^{}\s:|]*|[{}|])"
    r"|(?P<bracket>\[[^\[\]{}]+\])"
)
_HOSTILE = {code: 0x2400 + code for code in range(0x20) if code != 0x09}
_HOSTILE |= dict.fromkeys((*range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F)), 0xFFFD)
_HOSTILE |= dict.fromkeys((*range(0x2066, 0x206A), 0xFEFF, *range(0xD800, 0xE000)), 0xFFFD)


class YamlEditor(TextArea):
    """A TextArea that colours wildcard syntax and underlines problems; foreign control characters become signs."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"yaml--{name}" for name in _TOKENS.groupindex),
        "yaml--error",
        "yaml--warning",
    }

    def __init__(self, text: str, *, id: str, read_only: bool = False) -> None:  # noqa: A002 - Textual's word
        super().__init__(
            text, id=id, show_line_numbers=True, soft_wrap=False, read_only=read_only, tab_behavior="focus"
        )
        self.indent_width = 2
        self._problems: dict[int, list[Diagnostic]] = {}

    def set_problems(self, problems: Iterable[Diagnostic]) -> None:
        """Underline these problems (of this file) from now on."""
        by_line: dict[int, list[Diagnostic]] = {}
        for problem in problems:
            if problem.line is not None:
                by_line.setdefault(problem.line - 1, []).append(problem)
        if by_line != self._problems:
            self._problems = by_line
            self.notify_style_update()  # a plain refresh() keeps the cached lines

    def worst(self, line: int) -> str | None:
        """Return the worst severity on a line."""
        found = self._problems.get(line)
        return min(found, key=lambda problem: problem.severity.rank).severity.value if found else None

    def get_line(self, line_index: int) -> Text:
        """Return a line with its colours; one character of the document is one character here."""
        line = self.document.get_line(line_index).translate(_HOSTILE)
        text = Text(line, end="", no_wrap=True)
        if len(line) <= _MOST_HIGHLIGHTED:
            for found in _TOKENS.finditer(line):
                style = self.get_component_rich_style(f"yaml--{found.lastgroup}", partial=True)
                text.stylize(style, *found.span())
        for problem in self._problems.get(line_index, ()):
            if problem.severity.value == "hint":
                continue
            start = (problem.column or 1) - 1
            is_short = problem.end_line == problem.line and problem.end_column is not None
            end = problem.end_column - 1 if is_short and problem.end_column else len(line)
            style = self.get_component_rich_style(f"yaml--{problem.severity.value}", partial=True)
            text.stylize(style, min(start, max(len(line) - 1, 0)), max(end, start + 1))
        return text

    def go_to(self, line: int, column: int = 1) -> None:
        """Put the cursor on a 1-based place and bring it into view."""
        row = min(max(line - 1, 0), self.document.line_count - 1)
        self.move_cursor((row, min(max(column - 1, 0), len(self.document.get_line(row)))), center=True)


class Marks(Widget):
    """The margin beside an editor: the worst problem of each line in view."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"marks--error", "marks--warning", "marks--hint"}

    def __init__(self, editor: YamlEditor) -> None:
        super().__init__()
        self.editor = editor

    def on_mount(self) -> None:
        """Follow the editor's scrolling."""
        self.watch(self.editor, "scroll_y", self._follow)

    def _follow(self) -> None:
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw the mark of one line."""
        severity = self.editor.worst(round(self.editor.scroll_y) + y)
        width = self.size.width
        if severity is None:
            return Strip.blank(width, self.rich_style)
        style = self.get_component_rich_style(f"marks--{severity}")
        return Strip([Segment(_SIGNS[severity].ljust(width), style)])
