"""Reading text files: one item a line, found block by block; no line is decoded before it is drawn."""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING

from luna_engine.wildcards.decode import to_utf8
from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import Content, Document, ItemList
from luna_engine.wildcards.parser import MOST_CHARACTERS
from luna_engine.wildcards.scan import item_without_comments

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_DIAGNOSTICS = 100
_BLOCK_BYTES = 1 << 16  # stays in the processor's cache while its lines are looked at
_COMMENT = 0x23
_FIRST_ABOVE_COMMENT = b"$"
# A comment, a control character, a blank; beyond ASCII the blanks of str.isspace, with some neighbours.
_DOUBTFUL_START = re.compile(rb"\n(?:[\0-#]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2[\x80\x81]|\xe3\x80\x80)")


def read_txt(document: Document, data: bytes, *, can_weigh: bool = True) -> Content:
    """Return the content of a txt file: LF, CRLF and CR end a line and nothing else does.

    Without ``can_weigh`` (the dynamicprompts profile) ``n::`` at the start of a line is text, and comments behind the
    text of a line go.
    """
    data, diagnostics = to_utf8(data, document.path)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not can_weigh and (b"#" in data or b"/" in data):
        lines = data.decode("utf-8").split("\n")
        data = "\n".join(line if line.startswith("#") else item_without_comments(line) for line in lines).encode()
    found = list(diagnostics)
    owner = ItemList(document, (), 1, 1)
    items = _find_items(owner, data, found, can_weigh=can_weigh)
    owner.items = items
    found += (
        Diagnostic("bad-weight", Severity.WARNING, problem, "write a positive number", document.path, number, 1)
        for number, problem in items.bad_weights
    )
    return Content(owner, tuple(found[:_MOST_DIAGNOSTICS]), digest_of=items.digest)


def _find_items(owner: ItemList, data: bytes, problems: list[Diagnostic], *, can_weigh: bool) -> Lines:
    """Find where each item begins, comments, blank lines and lines that are too long left out."""
    starts: array[int] = array("I")
    numbers: array[int] | None = None
    lines_before = 0
    for at, block in _blocks(data):
        lines = block.splitlines(keepends=True)
        offsets = accumulate(map(len, lines[:-1]), initial=at)
        if _are_items(block, lines):
            starts.extend(offsets)
            if numbers is not None:
                numbers.extend(range(lines_before + 1, lines_before + len(lines) + 1))
        else:
            for number, (offset, line) in enumerate(zip(offsets, lines, strict=True), lines_before + 1):
                if _is_item(line, number, owner, problems):
                    starts.append(offset)
                    if numbers is not None:
                        numbers.append(number)
                elif numbers is None:
                    numbers = array("I", range(1, number))
        lines_before += len(lines)
    return Lines(owner, data, starts, numbers, can_weigh=can_weigh)


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the file in blocks of whole lines, each with its offset."""
    at = 0
    while at < len(data):
        end = data.find(b"\n", at + _BLOCK_BYTES) + 1 or len(data)
        yield at, data[at:end]
        at = end


def _are_items(block: bytes, lines: list[bytes]) -> bool:
    """Tell quickly that all lines are items; no if in doubt, then each line is looked at."""
    if len(block) > MOST_CHARACTERS:
        return False
    if block.isascii():
        return min(lines) >= _FIRST_ABOVE_COMMENT  # blanks and line ends are lower still
    return _DOUBTFUL_START.search(b"\n" + block) is None


def _is_item(line: bytes, number: int, owner: ItemList, problems: list[Diagnostic]) -> bool:
    first = line[0]
    if first == _COMMENT or (not _COMMENT < first < 0x80 and not line.decode("utf-8").strip()):
        return False
    if len(line) > MOST_CHARACTERS:
        length = len(line.decode("utf-8").removesuffix("\n"))
        if length > MOST_CHARACTERS:
            message = f"a line of {length} characters is no item"
            problems.append(Diagnostic("limit", Severity.ERROR, message, None, owner.document.path, number, 1))
            return False
    return True
