"""From a reference under the cursor to the place it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards import Profile
from luna_engine.wildcards.parser import parse
from luna_engine.wildcards.references import target_of_reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luna_engine.wildcards.model import Document
    from luna_engine.wildcards.names import Target
    from luna_engine.wildcards.snapshot import Snapshot

_MOST_LINE = 4_000  # longer lines are looked at round the cursor only
_WILDCARD = re.compile(r"__[~@!]?[^\s_](?:[^_]|_(?!_))*__")
_CLOSING = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class Destination:
    """A place in a file of the library, 1-based."""

    address: str
    root: int
    file: str
    line: int


def destination_of(snapshot: Snapshot, address: str) -> Destination | None:
    """Return where an address stands; None for a folder and for what nothing has."""
    found = snapshot.index.resolve(address)
    return _destination(found.target) if found is not None else None


def definition_at(snapshot: Snapshot, text: str, offset: int, path: Path | None) -> Destination | None:
    """Return where the innermost reference round an offset leads.

    Args:
        snapshot: the library.
        text: a line of a file, or a prompt.
        offset: a place in it.
        path: the file, whose own keys ``[path]`` can name; None for a prompt.
    """
    home = _document(snapshot, path)
    cut = max(0, offset - _MOST_LINE // 2)
    text, offset = text[cut : cut + _MOST_LINE], offset - cut
    for part, document in _constructs(snapshot, text, offset, home):
        parsed = parse(part, Profile.NATIVE, comments=False)
        for node in parsed.nodes:
            target, _ = target_of_reference(node, parsed, snapshot, document)
            place = _destination(target) if target is not None else None
            if place is not None:
                return place
    return None


def _constructs(
    snapshot: Snapshot, text: str, offset: int, home: Document | None
) -> Iterator[tuple[str, Document | None]]:
    """Yield the constructs that hold an offset, innermost first, each with the file its brackets read."""
    for found in _WILDCARD.finditer(text):
        if found.start() <= offset <= found.end():
            yield found[0], home
    for start, end in _enclosing(text, offset):
        document = home
        if text[start] == "[":  # in an inline template: the file named by the braces round it
            for outer, _ in _enclosing(text, start):
                if text[outer] == "{" and outer < start:
                    named = snapshot.index.resolve_file(text[outer + 1 : start].partition(":")[0].strip(), home)
                    document = named.target.document if named is not None and named.target.document else home
                    break
        yield text[start:end], document


def _enclosing(text: str, offset: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of the bracket pairs round an offset, innermost first."""
    depth = {"}": 0, "]": 0}
    for start in range(min(offset, len(text) - 1), -1, -1):
        sign = text[start]
        if sign in depth and start < offset:
            depth[sign] += 1
        elif sign in _CLOSING:
            closing = _CLOSING[sign]
            if depth[closing]:
                depth[closing] -= 1
            elif (end := _closing(text, start, closing)) is not None and end > offset - 1:
                yield start, end


def _closing(text: str, start: int, closing: str) -> int | None:
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == text[start]) - (text[at] == closing)
        if not depth:
            return at + 1
    return None


def _document(snapshot: Snapshot, path: Path | None) -> Document | None:
    found = next((key for key, entry in snapshot.entries.items() if entry.path == path), None) if path else None
    return snapshot.document(*found) if found is not None else None


def _destination(target: Target) -> Destination | None:
    document = target.document
    if document is None:
        return None
    line = target.item.line if target.item is not None else target.place.line if target.place is not None else 1
    return Destination(target.address, document.root, document.path, line)
