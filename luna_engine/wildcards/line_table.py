"""The candidates of a text file: a line is read and compiled when it is drawn, and kept where that pays.

A pack may hold a million lines and a draw meets most of them once, so a cold draw has to be quick by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.parser import is_plain, match_lone_name
from luna_engine.wildcards.seeds import fresh_text_key

if TYPE_CHECKING:
    from luna_engine.wildcards.compiled import Compiler
    from luna_engine.wildcards.lines import Lines
    from luna_engine.wildcards.programs import Entry, Source

    Named = tuple[Source, int, str, str]  # what a name draws from, h of its reference, the reference, the first part

MOST_KEPT = 20_000
MOST_LINE = 10_000


class LineShelf:
    """What the tables of one snapshot share: how many lines they keep, and what names mean in all files alike."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.names: dict[str, Named] = {}
        self._tables: list[LineTable] = []
        self._most = most
        self._kept = 0

    def table(self, compiler: Compiler, lines: Lines, near: frozenset[str] | None) -> LineTable:
        """Return the candidates of a text file; ``near`` as `AddressIndex.names_near` gives it."""
        made = LineTable(self, compiler, lines, near)
        self._tables.append(made)
        return made

    def keep(self, table: LineTable, at: int, entry: Entry) -> None:
        """Keep a line; if there are too many, all are let go first, and what is drawn often is back at once."""
        if self._kept >= self._most:
            for other in self._tables:
                other.clear()
            self._kept = 0
        self._kept += 1
        table[at] = entry


class LineTable(dict[int, "Entry"]):
    """The lines of one file that are more than text, once it was drawn from as often as it has lines."""

    __slots__ = ("_compiler", "_lines", "_near", "_shelf", "_to_come")

    def __init__(self, shelf: LineShelf, compiler: Compiler, lines: Lines, near: frozenset[str] | None) -> None:
        super().__init__()
        self._shelf = shelf
        self._compiler = compiler
        self._lines = lines
        self._near = near
        self._to_come = len(lines)

    def __missing__(self, at: int) -> Entry:
        text = self._lines.text(at)
        if is_plain(text):
            return text, 0, None  # as quick to read again as to find
        # ``words __name__ words``, which most lines with a reference are, needs no tree.
        lone = match_lone_name(text) if self._near is not None and len(text) <= MOST_LINE else None
        if lone is None:
            found = self._compiler.entry(self._lines, at)
        else:
            before, name, behind = lone.groups()
            source, key, written, first = self._shelf.names.get(name) or self._named(name)
            if first in self._near:  # type: ignore[operator]  # a set where there is a match
                source = self._compiler.named(name, self._lines.document)
            start = len(before)
            site = (before, key, source, (start, start + len(written), written, written))
            found = text, fresh_text_key(text), ((site,), behind)
        self._to_come -= 1
        if self._to_come < 0 and found[2] is not None:
            self._shelf.keep(self, at, found)
        return found

    def _named(self, name: str) -> Named:
        """Return what a name means, and remember it for all files if the folder of this one has no say in it."""
        written = f"__{name}__"
        first = name.partition("/")[0].casefold()
        found = (self._compiler.named(name, self._lines.document), fresh_text_key(written), written, first)
        if "." not in name and first not in (self._near or ()):
            self._shelf.names[name] = found
        return found
