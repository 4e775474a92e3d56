"""The filter grammar of every list: words (all of them), ``!not``, ``~regex``, ``a|b``, ``column:word``; smart case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_COLUMN = re.compile(r"^([A-Za-z_]+):(.*)$")


@dataclass(frozen=True, slots=True)
class _Term:
    column: str | None
    negative: bool
    patterns: tuple[re.Pattern[str], ...]

    def matches(self, cells: Mapping[str, str], whole: str) -> bool:
        text = whole if self.column is None else cells[self.column]
        return any(pattern.search(text) for pattern in self.patterns) is not self.negative


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter. ``problem`` tells what could not be read; such a term is taken as plain text."""

    text: str
    terms: tuple[_Term, ...] = ()
    problem: str | None = None

    def __bool__(self) -> bool:
        return bool(self.terms)

    def matches(self, cells: Mapping[str, str]) -> bool:
        """Tell whether a row passes; ``cells`` maps lower-case column names to their text."""
        whole = "\n".join(cells.values())
        return all(term.matches(cells, whole) for term in self.terms)


def parse(text: str, columns: tuple[str, ...] = ()) -> Filter:
    """Parse a filter. Case counts only in a term that has an upper-case letter.

    Args:
        text: what the user typed.
        columns: lower-case names that may stand before a colon; any other ``x:y`` is plain text.
    """
    terms: list[_Term] = []
    problem: str | None = None
    for word in text.split():
        term, trouble = _term(word, columns)
        problem = problem or trouble
        if term is not None:
            terms.append(term)
    return Filter(text, tuple(terms), problem)


def _term(word: str, columns: tuple[str, ...]) -> tuple[_Term | None, str | None]:
    negative = word.startswith("!")
    body = word[1:] if negative else word
    column = None
    if (match := _COLUMN.match(body)) and match[1].lower() in columns:
        column, body = match[1].lower(), match[2]
    if not body or body == "~":
        return None, None
    flags = re.MULTILINE | (re.RegexFlag(0) if any(letter.isupper() for letter in body) else re.IGNORECASE)
    if body.startswith("~"):
        try:
            return _Term(column, negative, (re.compile(body[1:], flags),)), None
        except re.error as error:
            return _Term(column, negative, (re.compile(re.escape(body), flags),)), f"~{body[1:]}: {error}"
    choices = [choice for choice in body.split("|") if choice] or [body]
    return _Term(column, negative, tuple(re.compile(re.escape(choice), flags) for choice in choices)), None
