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

    from textual import events

    from luna_engine.wildcards import Completion, Diagnostic, TextFix
    from luna_tui.widgets.completions import Completions

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
    """A TextArea that colours wildcard syntax and underlines problems; foreign control characters become signs.

    Lines and columns given to it and told by it are those of the file, 1-based: the text may be a section that
    begins at ``first_line``.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"yaml--{name}" for name in _TOKENS.groupindex),
        "yaml--error",
        "yaml--warning",
    }

    def __init__(
        self,
        text: str,
        *,
        id: str,  # noqa: A002 - Textual's word
        read_only: bool = False,
        first_line: int = 1,
        completions: Completions | None = None,
    ) -> None:
        super().__init__(
            text,
            id=id,
            show_line_numbers=True,
            soft_wrap=False,
            read_only=read_only,
            tab_behavior="focus",
            line_number_start=first_line,
        )
        self.indent_width = 2
        self._completions = completions
        self._problems: dict[int, list[Diagnostic]] = {}

    def set_problems(self, problems: Iterable[Diagnostic]) -> None:
        """Underline these problems (of this file) from now on."""
        by_line: dict[int, list[Diagnostic]] = {}
        for problem in problems:
            if problem.line is not None:
                by_line.setdefault(problem.line - self.line_number_start, []).append(problem)
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

    def show_section(self, text: str, first_line: int) -> None:
        """Hold another text; what was undone before is forgotten."""
        self.line_number_start = first_line
        self.load_text(text)

    def replace_all(self, text: str) -> None:
        """Put another text in place of all, as one step that can be undone."""
        place = self.cursor_location
        self.replace(text, (0, 0), self.document.end)
        row = min(place[0], self.document.line_count - 1)
        self.move_cursor((row, min(place[1], len(self.document.get_line(row)))))

    def go_to(self, line: int, column: int = 1) -> None:
        """Put the cursor on a place of the file and bring it into view."""
        row = min(max(line - self.line_number_start, 0), self.document.line_count - 1)
        self.move_cursor((row, min(max(column - 1, 0), len(self.document.get_line(row)))), center=True)

    @property
    def place(self) -> tuple[int, int]:
        """Line and column of the cursor in the file."""
        row, column = self.cursor_location
        return row + self.line_number_start, column + 1

    @property
    def current_line(self) -> str:
        """The text of the line the cursor is in."""
        return self.document.get_line(self.cursor_location[0])

    def apply_fix(self, fix: TextFix) -> None:
        """Mend a problem as one step that can be undone."""
        row = fix.line - self.line_number_start
        if 0 <= row < self.document.line_count:
            self.replace(fix.text, (row, fix.column - 1), (row, fix.end_column - 1))

    def accept(self, completion: Completion) -> None:
        """Put a completion of the current line in; its offsets count from the line's start.

        More may have been typed since it was asked for: that is replaced too, unless it no longer fits.
        """
        row, column = self.cursor_location
        typed = self.document.get_line(row)[completion.start : column]
        if column < completion.start or typed.strip().casefold() not in completion.text.casefold():
            return
        self.replace(completion.text, (row, completion.start), (row, column))
        self.move_cursor((row, completion.start + len(completion.text)))

    def on_key(self, event: events.Key) -> None:
        """Move in the list of completions while it is open; all other keys are the editor's."""
        shown = self._completions
        if shown is None or not shown.found:
            return
        if event.key in {"up", "down"}:
            shown.move(1 if event.key == "down" else -1)
        elif event.key == "tab" or (event.key == "enter" and shown.is_chosen):
            if shown.current is not None:
                self.accept(shown.current)
            shown.close()
        elif event.key == "escape":
            shown.close()
        else:
            return
        event.stop()
        event.prevent_default()

    def find(self, text: str, *, step: int = 1) -> bool:
        """Select the next place of a text (case ignored unless it has capitals); tell whether there is one.

        Args:
            text: what to find, on one line.
            step: 1 from behind the selection on, -1 backwards, 0 from where it begins.
        """
        is_exact = text != text.lower()
        lines = self.document.lines if is_exact else [line.lower() for line in self.document.lines]
        start = min(self.selection.start, self.selection.end)
        places = [
            (row, at)
            for row, line in enumerate(lines)
            for at in _occurrences(line, text)
        ]  # fmt: skip
        if not text or not places:
            return False
        if step < 0:
            place = next((found for found in reversed(places) if found < start), places[-1])
        else:
            place = next((found for found in places if found > start or (not step and found == start)), places[0])
        row, at = place
        self.move_cursor((row, at), center=True)
        self.move_cursor((row, at + len(text)), select=True)
        return True


def _occurrences(line: str, text: str) -> Iterable[int]:
    at = line.find(text)
    while at >= 0:
        yield at
        at = line.find(text, at + max(1, len(text)))


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
