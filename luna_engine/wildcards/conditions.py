"""The conditions of ``${if …: a | b}``: tests joined by and, or, not and brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = re.compile(r'\s*("(?:[^"]*)"|!=|<=|>=|[=<>()]|[^\s=<>!()"]+)')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_COMPARISONS = frozenset({"=", "!=", "<", "<=", ">", ">="})


class ConditionSyntaxError(ValueError):
    """The condition cannot be read."""


@dataclass(slots=True)
class Condition:
    """Evaluates one condition by recursive descent over its tokens.

    Args:
        text: the condition as written.
        value_of: the text of a variable, or None if unset.
        has_tag: whether a choice drawn so far carries a tag.
        unset: told each variable that is not set.
    """

    text: str
    value_of: Callable[[str], str | None]
    has_tag: Callable[[str], bool]
    unset: Callable[[str], None]
    tokens: list[str] | None = None
    at: int = 0
    depth: int = 0

    def evaluate(self) -> bool:
        """Return the truth of the condition.

        Raises:
            ConditionSyntaxError: it cannot be read.
        """
        self.tokens = _tokens(self.text)
        result = self._either()
        if self.at != len(self.tokens):
            raise ConditionSyntaxError(f"unexpected {self._peek()!r}")
        return result

    def _peek(self) -> str:
        tokens = self.tokens or []
        return tokens[self.at] if self.at < len(tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self.at += 1
        return token

    def _either(self) -> bool:
        result = self._both()
        while self._peek() == "or":
            self.at += 1
            result = self._both() or result
        return result

    def _both(self) -> bool:
        result = self._one()
        while self._peek() == "and":
            self.at += 1
            result = self._one() and result
        return result

    def _one(self) -> bool:
        self.depth += 1
        if self.depth > 200:
            raise ConditionSyntaxError("too many brackets")
        token = self._take()
        if token == "not":  # noqa: S105 - a word of the condition, no password
            return not self._one()
        if token == "(":  # noqa: S105 - likewise
            result = self._either()
            if self._take() != ")":
                raise ConditionSyntaxError("a bracket is not closed")
            return result
        if not token or token in _COMPARISONS or token in {")", "and", "or"}:
            raise ConditionSyntaxError("a test is missing")
        if token.startswith("#"):
            return self.has_tag(token[1:])
        return self._test(token)

    def _test(self, name: str) -> bool:
        value = self.value_of(name)
        if self._peek() not in _COMPARISONS:
            if value is None:
                self.unset(name)
            return bool(value)
        sign, wanted = self._take(), []
        while self._peek() and self._peek() not in {"and", "or", ")"} | _COMPARISONS:
            wanted.append(self._take().strip('"'))
        if not wanted:
            raise ConditionSyntaxError(f"nothing stands behind {sign}")
        if value is None:
            self.unset(name)
            return False
        return _compare(value.strip(), sign, " ".join(wanted).strip())


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ConditionSyntaxError(f"unexpected {text[at:].strip()[:1]!r}")
        tokens.append(found[1])
        at = found.end()
    return tokens


def _compare(value: str, sign: str, wanted: str) -> bool:
    if sign in {"=", "!="}:
        return (value.casefold() == wanted.casefold()) == (sign == "=")
    if not _NUMBER.fullmatch(value) or not _NUMBER.fullmatch(wanted):
        return False
    left, right = float(value), float(wanted)
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]
