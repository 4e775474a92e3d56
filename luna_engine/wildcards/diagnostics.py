"""What the engine reports: a code, a place, a sentence, and what to do about it. Never a silent repair."""

from __future__ import annotations

import difflib
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class Severity(enum.Enum):
    """How much a diagnostic weighs; hints never change an exit code."""

    ERROR = "error"
    WARNING = "warning"
    HINT = "hint"

    @property
    def rank(self) -> int:
        """0 for errors, 1 for warnings, 2 for hints."""
        return ("error", "warning", "hint").index(self.value)


@dataclass(frozen=True, slots=True)
class TextFix:
    """A text edit that mends a problem: replace columns [column, end_column) of a line by ``text``. 1-based."""

    line: int
    column: int
    end_column: int
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem. Lines and columns are 1-based, columns count characters; ``file`` is None for the template."""

    code: str
    severity: Severity
    message: str
    hint: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    end_line: int | None = None
    end_column: int | None = None
    fix: TextFix | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-safe data."""
        fix = self.fix
        return {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "hint": self.hint,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
            "fix": None
            if fix is None
            else {
                "line": fix.line,
                "column": fix.column,
                "end_column": fix.end_column,
                "text": fix.text,
            },
        }

    def as_text(self) -> str:
        """Return ``file:line:col: severity code: message``, the hint indented on a second line."""
        place = ":".join(str(part) for part in (self.file or "<template>", self.line, self.column) if part is not None)
        hint = f"\n    {self.hint}" if self.hint else ""
        return f"{place}: {self.severity.value} {self.code}: {self.message}{hint}"

    def as_github(self) -> str:
        """Return a GitHub workflow command."""
        level = "notice" if self.severity is Severity.HINT else self.severity.value
        fields = {"file": self.file, "line": self.line, "col": self.column, "title": self.code}
        properties = ",".join(
            f"{name}={_escape_property(str(value))}" for name, value in fields.items() if value is not None
        )
        text = self.message + (f" - {self.hint}" if self.hint else "")
        return f"::{level} {properties}::{_escape_data(text)}"


def _escape_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")


def place_order(diagnostic: Diagnostic) -> tuple[str, int, int, int, str]:
    """Sort key: file, line, column, severity, code."""
    return (
        diagnostic.file or "",
        diagnostic.line or 0,
        diagnostic.column or 0,
        diagnostic.severity.rank,
        diagnostic.code,
    )


def near_names(wanted: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return up to ``most`` names close to ``wanted``, best first; bounded work however many names there are."""
    folded = wanted.casefold()
    close = [name for name in names if abs(len(name) - len(wanted)) <= 3]
    if len(close) > 400:
        first = folded[:1]
        close = [name for name in close if name[:1].casefold() == first][:400]
    by_folded = {name.casefold(): name for name in sorted(close, reverse=True)}
    found = difflib.get_close_matches(folded, by_folded, n=most, cutoff=0.72)
    return [by_folded[name] for name in found]


def did_you_mean(names: list[str]) -> str | None:
    """Return the hint for near names, or None."""
    return f"did you mean {', '.join(names)}?" if names else None
