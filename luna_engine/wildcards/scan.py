"""The lexical half of the parser: comments, brace matching, top-level marks, names. All linear, nothing backtracks."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

ESCAPABLE = frozenset("{}[]|_$%#")
SAMPLER_SIGNS = frozenset("~@!")
MOST_NESTED = 100

_COMMENT = re.compile(r"(?:\A|(?<=\n)|(?<=\r)(?!\n))#[^\r\n]*(?:\r\n|\r|\n|\Z)")
# A whole line, the rest of a line behind a blank and #, or behind // that no colon precedes; /* is closed by a search.
_PEER_COMMENT = re.compile(
    r"(?:\A|(?<=\n)|(?<=\r)(?!\n))#[^\r\n]*(?:\r\n|\r|\n|\Z)|(?<=[ \t])#[^\r\n]*|(?<!:)//[^\r\n]*|/\*"
)
_BRACES = re.compile(r"[\\{}]")
_PARENTHESES = re.compile(r"[\\{}()]")
_TOPS = re.compile(r"[\\{|:$\[\]]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w \-.+'/\\*]+")
_NAME_MARKS = frozenset(" -.+'/\\*_")


def drop_comments(
    text: str, *, is_dynamicprompts: bool = False
) -> tuple[str, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Drop a leading BOM and the comments: lines whose first column is ``#``, each with its line break.

    With ``is_dynamicprompts`` also `` #`` and ``//`` (not behind a colon) to the line's end, and ``/* */``.

    Returns:
        The rest; (offset in the rest, offset in ``text``) pairs behind each cut; the (start, end) of each comment
        line in ``text``.
    """
    start = 1 if text.startswith("\ufeff") else 0
    lines = [
        (found.start() + start, found.end() + start) for found in _COMMENT.finditer(text[start:] if start else text)
    ]
    spans = _peer_comments(text, start) if is_dynamicprompts else lines
    pieces: list[str] = []
    cuts: list[tuple[int, int]] = [(0, 1)] if start else []
    kept_to, length = start, 0
    for begin, end in spans:
        pieces.append(text[kept_to:begin])
        length += begin - kept_to
        kept_to = end
        cuts.append((length, end))
    pieces.append(text[kept_to:])
    return "".join(pieces), tuple(cuts), () if is_dynamicprompts else tuple(lines)


def item_without_comments(text: str) -> str:
    """Return an item as dynamicprompts reads it: without comments, and without the blanks before one that ends it."""
    if "#" not in text and "/" not in text:
        return text
    rest = drop_comments(text, is_dynamicprompts=True)[0]
    return rest if rest == text else rest.rstrip(" \t")


def _peer_comments(text: str, start: int) -> list[tuple[int, int]]:
    """Return the spans of comments as dynamicprompts writes them; what is never closed is text."""
    spans: list[tuple[int, int]] = []
    at, can_close = start, True
    while (found := _PEER_COMMENT.search(text, at)) is not None:
        begin, at = found.start(), found.end()
        if found[0] == "/*":
            close = text.find("*/", at) if can_close else -1
            can_close = close >= 0
            if not can_close:
                continue
            at = close + 2
        spans.append((begin, at))
    return spans


@dataclass(frozen=True, slots=True)
class BraceMap:
    """Which brace closes which: ``close`` maps the offset of an opening brace to that of its closing one."""

    close: dict[int, int]
    unclosed: tuple[int, ...]
    too_deep: int | None


def match_braces(text: str) -> BraceMap:
    """Match braces in one pass; a closing brace closes the nearest open one, a stray one is text."""
    close: dict[int, int] = {}
    open_at: list[int] = []
    at = 0
    while (found := _BRACES.search(text, at)) is not None:
        at = found.end()
        sign = found[0]
        if sign == "\\":
            at += 1
        elif sign == "{":
            open_at.append(found.start())
        elif open_at:
            close[open_at.pop()] = found.start()
    return BraceMap(close, tuple(open_at), _drop_deep(close))


def _drop_deep(close: dict[int, int]) -> int | None:
    """Remove pairs nested deeper than the limit; return the offset of the first of them."""
    if len(close) <= MOST_NESTED:
        return None
    first: int | None = None
    ends: list[int] = []
    for start in sorted(close):
        while ends and ends[-1] < start:
            ends.pop()
        if len(ends) >= MOST_NESTED:
            first = start if first is None else first
            del close[start]
        else:
            ends.append(close[start])
    return first


def match_parentheses(text: str, braces: dict[int, int]) -> dict[int, int]:
    """Map each ``(`` to the ``)`` that closes it at the same brace depth."""
    close: dict[int, int] = {}
    levels: list[list[int]] = [[]]
    closers = set(braces.values())
    at = 0
    while (found := _PARENTHESES.search(text, at)) is not None:
        at, sign, place = found.end(), found[0], found.start()
        if sign == "\\":
            at += 1
        elif sign == "{":
            if place in braces:
                levels.append([])
        elif sign == "}":
            if place in closers and len(levels) > 1:
                levels.pop()
        elif sign == "(":
            levels[-1].append(place)
        elif levels[-1]:
            close[levels[-1].pop()] = place
    return close


@dataclass(frozen=True, slots=True)
class Tops:
    """Where the top-level bars, the first colon and the ``$$`` of a body stand."""

    bars: list[int]
    colon: int | None
    dollars: list[int]


def find_tops(text: str, start: int, end: int, close: dict[int, int], *, brackets_hide: bool) -> Tops:
    """Find the marks at brace depth 0 of ``text[start:end]`` that are not escaped.

    Args:
        brackets_hide: bars inside a ``[``…``]`` pair that opens and closes within the body do not count.
    """
    bars: list[int] = []
    dollars: list[int] = []
    open_brackets: list[int] = []
    colon: int | None = None
    at = start
    while (found := _TOPS.search(text, at, end)) is not None:
        place, sign = found.start(), found[0]
        at = place + 1
        if sign == "\\":
            at += 1
        elif sign == "{":
            at = close.get(place, place) + 1
        elif sign == "|":
            bars.append(place)
        elif sign == ":":
            colon = place if colon is None else colon
        elif sign == "$":
            if text.startswith("$$", place) and place + 2 <= end:
                dollars.append(place)
                at = place + 2
        elif sign == "[":
            open_brackets.append(len(bars))
        elif open_brackets:
            first = open_brackets.pop()
            if brackets_hide:
                del bars[first:]
    return Tops(bars, colon, dollars)


def unescape(text: str) -> str:
    """Take the backslash off escaped signs; every other backslash stays."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: found[1] if found[1] in ESCAPABLE else found[0], text)


def is_name(name: str) -> bool:
    """Tell whether the text between two ``__`` is a name."""
    if not name or name[0] in "_ " or name[-1] in "_ \\":
        return False
    if _PLAIN_NAME.fullmatch(name):
        return True
    return all(c in _NAME_MARKS or c.isalnum() or unicodedata.category(c)[0] in "LMN" for c in name)
