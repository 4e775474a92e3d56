"""The diagnostics of one expansion, each once, with the place of its construct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Diagnostic, Severity

if TYPE_CHECKING:
    from luna_engine.wildcards.drafts import Frame
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.syntax import Parsed

DROPPABLE = frozenset({"unknown-ref", "empty", "path-escape"})
_MOST_DIAGNOSTICS = 200


class Reports:
    """Diagnostics in the order they were met."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Diagnostic] = {}

    def all(self) -> tuple[Diagnostic, ...]:
        """Return the diagnostics."""
        return tuple(self._found.values())

    def add(
        self,
        frame: Frame,
        code: str,
        severity: Severity,
        message: str,
        hint: str | None,
        start: int,
        end: int,
    ) -> None:
        """Add a diagnostic, once, with its place."""
        if len(self._found) >= _MOST_DIAGNOSTICS:
            return
        file, (line, column), (end_line, end_column) = place_of(frame.parsed, frame.item, start, end)
        key = (code, file, line, column, message)
        if key not in self._found:
            self._found[key] = Diagnostic(code, severity, message, hint, file, line, column, end_line, end_column)

    def add_findings(self, frame: Frame) -> None:
        """Report the problems of the frame's own text."""
        for finding in frame.parsed.findings:
            self.add(
                frame,
                finding.code,
                finding.severity,
                finding.message,
                finding.hint,
                finding.start,
                finding.end,
            )

    def note_limit(self, message: str) -> None:
        """Report a limit that has no single place."""
        self._found["limit", message] = Diagnostic("limit", Severity.WARNING, message)


def place_of(
    parsed: Parsed, item: Item | None, start: int, end: int
) -> tuple[str | None, tuple[int, int], tuple[int, int]]:
    """Return file, start and end (line, column) of a span: exact in templates and one-line items."""
    if item is None:
        return None, parsed.line_column(start), parsed.line_column(end)
    file = item.owner.document.path if item.owner is not None else None
    if item.text_column is None:
        return file, (item.line, item.column), (item.line, item.column)
    return file, (item.line, item.text_column + start), (item.line, item.text_column + end)
