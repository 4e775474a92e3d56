"""The one tree of errors that users, logs and other programs meet.

LunaError
├── SettingsError          a settings file or environment variable cannot be used
├── InputFileError         a file that was given is missing, damaged or of the wrong kind
├── WildcardError          a strict expansion or lint failed (luna_engine.wildcards)
├── ConversionError        a weights job failed (luna_engine.weights)
└── DaemonError            the model server refused, failed or cannot be reached (luna_daemon)

Every error has a stable code (in JSON, logs and tests), a message that names the thing, and a hint that says
what to do about it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LunaError(Exception):
    """Base of all expected failures.

    Args:
        code: stable, lower case with dashes, such as ``file-damaged``.
        message: one sentence that names the file, field or tensor, what was expected and what was found.
        hint: what the user can do, or None if nothing sensible can be said.
        file, line, column: the place, 1-based; None where there is none.
        details: JSON-safe facts for programs.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        hint: str | None = None,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.file = file
        self.line = line
        self.column = column
        self.details = details

    def __str__(self) -> str:
        place = ""
        if self.file is not None:
            place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None) + ": "
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.code}: {self.message}{hint}"

    def as_dict(self) -> dict[str, Any]:
        """Return the ``luna.error/1`` record."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            **({"details": self.details} if self.details else {}),
        }


class SettingsError(LunaError):
    """A settings file or environment variable cannot be used."""


class InputFileError(LunaError):
    """A given file is missing, damaged or of the wrong kind. Exit code 4 on the command line."""

    exit_code = 4


def error_from(record: dict[str, Any]) -> LunaError:
    """Rebuild an error from its ``luna.error/1`` record; one that names a file is that file's fault."""
    kind = InputFileError if record.get("file") else LunaError
    names = ("code", "message", "hint", "file", "line", "column", "details")
    return kind(**{name: record[name] for name in names if name in record})


class ConversionError(LunaError):
    """A weights job failed for a reason other than its source file."""


class WildcardError(LunaError):
    """A strict expansion or a lint failed; ``details["diagnostics"]`` holds all of them."""


class DaemonError(LunaError):
    """The model server refused or failed. ``retry_after_ms`` is set for *not now* errors."""

    def __init__(
        self,
        code: str,
        message: str,
        hint: str | None = None,
        *,
        retry_after_ms: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, hint, details=details)
        self.retry_after_ms = retry_after_ms


class DaemonUnreachableError(DaemonError):
    """Nothing that speaks Luna's protocol answers at the address. Exit code 3 on the command line."""

    exit_code = 3
