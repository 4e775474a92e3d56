"""A quick reader for the plain subset of YAML: keys on lines of their own, lists of one-line items, comments.

Anything else in a file, however small, hands the whole file to libyaml; both readers give equal trees. Items are cut
out of the file's bytes when they are drawn.
"""

from __future__ import annotations

import bisect
import re
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING

from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import Branch, Document, Item, ItemList
from luna_engine.wildcards.rules.reading import kind_of
from luna_engine.wildcards.syntax import Weight
from luna_engine.wildcards.weights import read_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_DEPTH = 50
_MOST_BYTES = 64 << 20
_MOST_RUN = 1 << 20
_MOST_LINES = 500_000
_QUOTES = b"'\""
_ONE = Weight()

_CONTROLS = bytes([*range(10), *range(11, 32), 127])
# C1, the line breaks of Unicode, a byte order mark, what YAML does not allow.
_UNUSUAL = re.compile(rb"\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]|\xef(?:\xbb\xbf|\xbf[\xbe\xbf])")
_PLAIN = rb"[A-Za-z0-9(<_\x80-\xff][^\n:#]*(?:(?::(?=[^ \n])|(?<=[^ \n])#)[^\n:#]*)*(?<! )"
_ITEM = rb"(?:" + _PLAIN + rb"|'[^'\n]*'|\"[^\"\\\n]*\")"
_KEY = rb"[A-Za-z_][A-Za-z0-9_]{0,60}(?:[ ./-][A-Za-z0-9_]{1,60}){0,10}"
_LINE = re.compile(rb"( *)(?:(?:#[^\n]*)?\n|(" + _KEY + rb"):\n|-(?= ))")
_ROWS = {indent: re.compile(rb"(?: {%d}- " % indent + _ITEM + rb"\n)+") for indent in range(41)}


class Rows(Lines):
    """The items of one list: lines ``- text`` of a YAML file, one below the other."""

    is_long = False

    def __init__(
        self,
        owner: ItemList,
        data: bytes,
        start: int,
        end: int,
        count: int,
        first_line: int,
        has_weights: bool,  # noqa: FBT001 - the parsed cache keeps these in a row
    ) -> None:
        self._owner = owner
        self._data = data
        self._extent = (start, end, count, first_line, has_weights)
        self._first_line = first_line
        self._offsets: array[int] | None = None
        self._made = None
        self._special = None
        self._digest = None
        self._has_weights = has_weights
        self.micro = None
        self.bad_weights = []
        if has_weights:
            self._read_weights()

    def __len__(self) -> int:
        return self._extent[2]

    def extent(self) -> tuple[int, int, int, int, bool]:
        """Return start and end in the file, the number of items, the first line, and whether weights are written."""
        return self._extent

    @property
    def _starts(self) -> array[int]:  # type: ignore[override]  # found when first asked for
        if self._offsets is None:
            start, end, _, _, _ = self._extent
            rows = self._data[start:end].splitlines(keepends=True)
            self._offsets = array("I", accumulate(map(len, rows[:-1]), initial=start))
        return self._offsets

    def number(self, index: int) -> int:
        """Return the line number of an item."""
        return self._first_line + index

    def text(self, index: int) -> str:
        """Return the text of an item without making the item."""
        text = self._written(index)[0]
        return text[read_weight(text)[1] :] if self._has_weights else text

    def _written(self, index: int) -> tuple[str, int]:
        """Return an item's scalar, and how many bytes before it stand in its line."""
        start = self._starts[index]
        end = self._data.find(b"\n", start)
        begin = self._data.index(b"-", start) + 2
        if self._data[begin] in _QUOTES:
            return self._data[begin + 1 : end - 1].decode("utf-8"), begin + 1 - start
        return self._data[begin:end].decode("utf-8"), begin - start

    def _line(self, index: int) -> str:
        return self._written(index)[0]

    def _make(self, index: int) -> Item:
        text, before = self._written(index)
        weight, start = read_weight(text) if self._has_weights else (None, 0)
        is_quoted = self._data[self._starts[index] + before - 1] in _QUOTES
        column = before if is_quoted else before + 1
        item = Item(text[start:], self.number(index), column, weight or _ONE, before + 1 + start)
        item.owner = self._owner
        return item

    def _with(self, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
        place, end, _, _, _ = self._extent
        while (found := pattern.search(self._data, place, end)) is not None:
            yield bisect.bisect_right(self._starts, found.start()) - 1, found.start()
            place = self._data.index(b"\n", found.start())


def read_rows(document: Document, data: bytes) -> Branch | None:
    """Return the top of a YAML file that is plain throughout, None if libyaml has to read it."""
    if not data or len(data) > _MOST_BYTES or len(data.translate(None, _CONTROLS)) != len(data):
        return None
    if kind_of(document.stem, []) is not None:
        return None  # rules are read from libyaml's nodes
    if not data.endswith(b"\n"):
        data += b"\n"
    if data.count(b"\n") > _MOST_LINES:
        return None
    if not data.isascii():
        if _UNUSUAL.search(data) is not None:
            return None
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return _Reader(document, data).read()


class _Reader:
    """Walks keys and runs of items; ``open`` holds the branches round the place reached, with their indentation."""

    def __init__(self, document: Document, data: bytes) -> None:
        self.document = document
        self.data = data
        self.top: Branch | None = None
        self.open: list[tuple[int, Branch]] = []
        self.key: tuple[str, int, int] | None = None  # a key without value yet, its indentation, its line
        self.list_of: int | None = None  # the indentation of the key whose list was read last

    def read(self) -> Branch | None:
        at, line, end = 0, 1, len(self.data)
        while at < end:
            found = _LINE.match(self.data, at)
            if found is None:
                return None
            indent = found.end(1) - at
            name = found[2]
            if name is not None:
                if not self.take_key(name.decode("ascii"), indent, line):
                    return None
                at, line = found.end(), line + 1
            elif self.data[found.end(1)] == 0x2D:
                taken = self.take_rows(at, indent, line)
                if taken is None:
                    return None
                at, line = taken[0], line + taken[1]
            else:
                at, line = found.end(), line + 1
        self.finish_key()
        return self.top

    def take_key(self, name: str, indent: int, line: int) -> bool:
        """Take a key; False if it does not stand where it must."""
        if self.top is None:
            if indent:
                return False
            self.top = Branch(self.document, (), line, 1)
            self.open.append((0, self.top))
        elif self.key is not None and indent > self.key[1]:
            self.open_branch()
            self.open[-1] = (indent, self.open[-1][1])
        else:
            self.finish_key()
            if self.list_of is not None and indent > self.list_of:
                return False
            while self.open and self.open[-1][0] > indent:
                self.open.pop()
        self.list_of = None
        if not self.open or self.open[-1][0] != indent or len(self.open) > _MOST_DEPTH:
            return False
        if name in self.open[-1][1].entries:
            return False
        self.key = (name, indent, line)
        return True

    def open_branch(self) -> None:
        """Make the waiting key a branch."""
        if self.key is not None:
            name, indent, line = self.key
            above = self.open[-1][1]
            branch = Branch(self.document, (*above.keys, name), line, indent + 1)
            above.entries[name] = branch
            self.open.append((indent, branch))
            self.key = None

    def finish_key(self) -> None:
        """Make the waiting key an empty list."""
        if self.key is not None:
            self.add_list()

    def add_list(self) -> ItemList:
        name, indent, line = self.key or ("", 0, 0)
        above = self.open[-1][1]
        made = ItemList(self.document, (*above.keys, name), line, indent + 1)
        above.entries[name] = made
        self.key = None
        return made

    def take_rows(self, at: int, indent: int, line: int) -> tuple[int, int] | None:
        """Take the run of items at an offset; return its end and its lines, None if it is out of place or not plain."""
        if self.key is None or indent < self.key[1] or indent not in _ROWS:
            return None
        found = _ROWS[indent].match(self.data, at)
        if found is None or found.end() - at > _MOST_RUN:
            return None
        self.list_of = self.key[1]
        owner = self.add_list()
        end = found.end()
        count = self.data.count(b"\n", at, end)
        items = Rows(owner, self.data, at, end, count, line, self.data.find(b"::", at, end) >= 0)
        if items.bad_weights:
            return None
        owner.items = items
        return end, count
