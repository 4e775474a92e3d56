"""Reading the commands: ``${…}`` for variables and conditions, ``%{…}`` for wrapping."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from luna_engine.wildcards.syntax import Binding, Conditional, Kept, Node, Variable, Wrapper

if TYPE_CHECKING:
    from luna_engine.wildcards.parser import Reader

_IDENT = re.compile(r"[^\W\d]\w*")
_CONDITION_MARK = re.compile(r"[\\{\":]")


def variable(reader: Reader, at: int) -> tuple[Node, ...]:
    """Read the commands that begin with ``${``; nothing if the body is none."""
    close = reader.close[at + 1]
    if reader.text.startswith("if ", at + 2):
        return (_conditional(reader, at, close),)
    name = _IDENT.match(reader.text, at + 2, close)
    if name is None:
        return ()
    start, stop = name.end(), close + 1
    if start == close:
        return (Variable(at, stop, name[0], None),)
    for sign, unset, eager in (
        ("?=!", True, True),
        ("?=", True, False),
        ("=!", False, True),
        ("=", False, False),
    ):
        if reader.text.startswith(sign, start):
            value = reader.prompt(start + len(sign), close)
            return (Binding(at, stop, name[0], eager, unset, value),)
    if reader.text[start] == ":":
        return (Variable(at, stop, name[0], reader.prompt(start + 1, close)),)
    return ()


def _conditional(reader: Reader, at: int, close: int) -> Node:
    start = at + 5
    colon = _condition_end(reader, start, close)
    if colon is None:
        reader.report(
            "syntax",
            "a condition without a colon",
            "write ${if season=winter: fur coat | linen shirt}",
            at,
            close + 1,
        )
        return Kept(at, close + 1)
    bars = reader.tops(colon + 1, close).bars
    then = reader.prompt(*reader.trimmed(colon + 1, bars[0] if bars else close))
    otherwise = reader.prompt(*reader.trimmed(bars[0] + 1, close)) if bars else None
    return Conditional(at, close + 1, reader.text[start:colon].strip(), then, otherwise)


def _condition_end(reader: Reader, start: int, end: int) -> int | None:
    """Return the offset of the first colon outside double quotes and braces."""
    place = start
    while (mark := _CONDITION_MARK.search(reader.text, place, end)) is not None:
        sign, place = mark[0], mark.end()
        if sign == ":":
            return mark.start()
        if sign == "\\":
            place += 1
        elif sign == "{":
            place = reader.close.get(mark.start(), mark.start()) + 1
        else:
            quote = reader.text.find('"', place, end)
            place = quote + 1 if quote >= 0 else place
    return None


def wrapper(reader: Reader, at: int) -> tuple[Node, ...]:
    """Read ``%{outer$$inner}``; nothing if there is no ``$$``."""
    close = reader.close[at + 1]
    dollars = reader.tops(at + 2, close).dollars
    if not dollars:
        return ()
    outer, inner = reader.prompt(at + 2, dollars[0]), reader.prompt(dollars[0] + 2, close)
    return (Wrapper(at, close + 1, outer, inner),)
