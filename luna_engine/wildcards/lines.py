"""The items of a text file: its bytes and where each line begins, an Item made only when it is drawn."""

from __future__ import annotations

import bisect
import hashlib
import re
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from luna_engine.wildcards.model import Item
from luna_engine.wildcards.syntax import Weight
from luna_engine.wildcards.weights import read_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.model import Document, ItemList

_ONE = Weight()
SPECIAL = re.compile(rb"[\\{<\[$%]|__")  # the signs of parser.is_plain, all of them ASCII


class Lines(Sequence[Item]):
    """The items of a txt file. Equal indices give the same Item object.

    ``starts`` holds the offset of each item's line in ``data``, ``numbers`` its line number (None: index + 1).
    ``micro`` holds the items' weights in millionths, None if none is written. ``is_long``: too many to keep each
    text that was drawn.
    """

    is_long = True

    def __init__(
        self,
        owner: ItemList,
        data: bytes,
        starts: array[int],
        numbers: array[int] | None,
        *,
        can_weigh: bool = True,
    ) -> None:
        self._owner = owner
        self._data = data
        self._starts = starts
        self._numbers = numbers
        self._made: dict[int, Item] | None = None
        self._special: array[int] | None = None
        self._digest: bytes | None = None
        self._has_weights = can_weigh and self._find_weights()
        self.micro: array[int] | None = None
        self.bad_weights: list[tuple[int, str]] = []
        if self._has_weights:
            self._read_weights()

    def _find_weights(self) -> bool:
        return b":" in self._data and b"::" in self._data  # one sign is looked for much faster than two

    @property
    def document(self) -> Document:
        """The file the lines stand in."""
        return self._owner.document

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if self._made is None:
            self._made = {}
        found = self._made.get(index)
        if found is None:
            found = self._made.setdefault(index, self._make(index))
        return found

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def text(self, index: int) -> str:
        """Return the text of an item without making the item: a quick draw needs no more."""
        start = self._starts[index]
        end = self._data.find(b"\n", start)
        text = self._data[start : end if end >= 0 else None].decode("utf-8").strip()
        return text[read_weight(text)[1] :] if self._has_weights else text

    def constructs(self) -> Iterator[Item]:
        """Yield the items that may hold a construct; the file is searched once, other items are not made."""
        return (self[index] for index in self.special())

    def special(self) -> array[int]:
        """Return the indices of the items that may hold a construct."""
        if self._special is None:
            self._special = array("I", (index for index, _ in self._with(SPECIAL)))
        return self._special

    def may_hold(self, word: str) -> bool:
        """Tell whether a case-folded word may stand in some item; beyond ASCII the answer is yes."""
        return not word.isascii() or not self._data.isascii() or word.encode() in self._data.lower()

    def digest(self) -> bytes:
        """Return a digest of the file's content, taken when first asked for."""
        if self._digest is None:
            self._digest = hashlib.blake2b(self._data, digest_size=16).digest()
        return self._digest

    def number(self, index: int) -> int:
        """Return the line number of an item."""
        return index + 1 if self._numbers is None else self._numbers[index]

    def _line(self, index: int) -> str:
        start = self._starts[index]
        end = self._data.find(b"\n", start)
        return self._data[start : end if end >= 0 else len(self._data)].decode("utf-8")

    def _make(self, index: int) -> Item:
        line = self._line(index)
        text = line.strip()
        column = line.find(text) + 1
        weight, start = read_weight(text) if self._has_weights else (None, 0)
        item = Item(text[start:], self.number(index), column, weight or _ONE, column + start)
        item.owner = self._owner
        return item

    def _with(self, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
        """Yield the index of each item that a pattern occurs in, and the offset of its first place there."""
        place, end = 0, len(self._data)
        while (found := pattern.search(self._data, place)) is not None:
            index = bisect.bisect_right(self._starts, found.start()) - 1
            place = self._data.find(b"\n", found.end())
            if index >= 0 and self._data.find(b"\n", self._starts[index], found.start()) < 0:
                yield index, found.start()  # else it stands in a comment
            if place < 0:
                place = end

    def _read_weights(self) -> None:
        micro: array[int] | None = None
        for index, _ in self._with(re.compile(rb"::")):
            weight, _ = read_weight(self._line(index).strip())
            if weight is None:
                continue
            if micro is None:
                micro = array("q", [_ONE.micro]) * len(self)
            micro[index] = weight.micro
            if weight.problem:
                self.bad_weights.append((self.number(index), weight.problem))
        self.micro = micro
