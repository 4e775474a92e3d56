"""Text files: one item a line, read at first use, an Item made only when it is drawn."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.model import Content, Document, Item, ItemList
from luna_engine.wildcards.parser import MOST_CHARACTERS
from luna_engine.wildcards.syntax import Weight
from luna_engine.wildcards.weights import read_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

_ONE = Weight()
_MOST_DIAGNOSTICS = 100


class Lines(Sequence[Item]):
    """The items of a txt file. Equal indices give the same Item object."""

    def __init__(self, owner: ItemList, lines: list[str], numbers: array[int]) -> None:
        self._owner = owner
        self._lines = lines
        self._numbers = numbers
        self._made: dict[int, Item] = {}
        self.has_weights = any("::" in line for line in lines)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self._lines)))]
        if index < 0:
            index += len(self._lines)
        found = self._made.get(index)
        if found is None:
            found = self._made.setdefault(index, self._make(index))
        return found

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self._lines)))

    def texts(self) -> list[str]:
        """Return the lines as they stand, weights included."""
        return self._lines

    def _make(self, index: int) -> Item:
        line = self._lines[index]
        text = line.strip()
        column = line.find(text) + 1
        weight, start = read_weight(text) if self.has_weights else (None, 0)
        item = Item(text[start:], self._numbers[index], column, weight or _ONE, column + start)
        item.owner = self._owner
        return item


def read_txt(document: Document, text: str, diagnostics: tuple[Diagnostic, ...]) -> Content:
    """Return the content of a txt file: LF, CRLF and CR end a line and nothing else does."""
    found = list(diagnostics)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines: list[str] = []
    numbers: array[int] = array("L")
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line[0] == "#" or line.isspace():
            continue
        if len(line) > MOST_CHARACTERS:
            message = f"a line of {len(line)} characters is no item"
            found.append(Diagnostic("limit", Severity.ERROR, message, None, document.path, number, 1))
            continue
        lines.append(line)
        numbers.append(number)
    owner = ItemList(document, (), 1, 1)
    items = Lines(owner, lines, numbers)
    owner.items = items
    if items.has_weights:
        found += _weight_problems(document, lines, numbers)
    return Content(owner, tuple(found[:_MOST_DIAGNOSTICS]))


_SUSPECT = re.compile(r"\s*(?:-|[0-9.]{8,})[0-9.]*::")


def _weight_problems(document: Document, lines: list[str], numbers: array[int]) -> list[Diagnostic]:
    found = []
    for line, number in zip(lines, numbers, strict=True):
        weight = read_weight(line)[0] if _SUSPECT.match(line) else None
        if weight is not None and weight.problem:
            found.append(
                Diagnostic(
                    "bad-weight",
                    Severity.WARNING,
                    weight.problem,
                    "write a positive number",
                    document.path,
                    number,
                    1,
                )
            )
    return found
