"""Whether an entry of a rule meets an item: as whole words of its tags, id or text, or as a path above it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.linking import covers
from luna_engine.wildcards.names import joined

if TYPE_CHECKING:
    from luna_engine.wildcards.lookup import AddressIndex
    from luna_engine.wildcards.model import Document, Item, ItemList
    from luna_engine.wildcards.names import Target
    from luna_engine.wildcards.rules.records import Entry

_WORD = re.compile("[\\w'\u2019-]+")
_BORDER = "|"
_CATEGORY_POOL = ("items",)


def as_words(text: str) -> str:
    """Return a text's words, case folded, one blank round each; empty if it has none.

    A hyphen and an apostrophe belong to a word, so that the id ``brig-1`` is not met by ``brig``.
    """
    words = _WORD.findall(text.casefold())
    return f" {' '.join(words)} " if words else ""


def in_words(phrase: str, text: str) -> bool:
    """Tell whether a phrase stands in a text as whole words."""
    wanted = as_words(phrase)
    return bool(wanted) and wanted in as_words(text)


def blob(texts: tuple[str, ...]) -> str:
    """Return texts as words in one string, borders between them so that no phrase spans two."""
    return _BORDER.join(("", *map(as_words, texts), ""))


def list_address(found: ItemList) -> str:
    """Return the joined, case-folded address of a list; the pool of a category file is the file itself."""
    document = found.document
    keys = () if found.keys == _CATEGORY_POOL else found.keys
    return joined(document.address_of(keys)).casefold()


def item_address(item: Item) -> str:
    """Return the joined, case-folded address of an item: its list's, then its id or text."""
    name = joined(item.item_id or item.text).casefold()
    return f"{list_address(item.owner)}/{name}" if item.owner is not None else name


def resolve_target(path: str, index: AddressIndex, document: Document) -> Target | None:
    """Return what a path of a rule file names, None if the library has nothing there.

    A path is looked for near the rule file first (its folder and those above), then like any ``__name__``.
    """
    name = joined(path)
    folder = document.folder
    while folder:
        found = index.full(f"{joined(folder)}/{name}")
        if found is not None:
            return found.target
        folder = folder.rpartition("/")[0]
    found = index.resolve(path)
    return found.target if found is not None else None


def resolve_path(path: str, index: AddressIndex, document: Document) -> str | None:
    """Return the joined address that a path of a rule file names, None if the library has nothing there."""
    target = resolve_target(path, index, document)
    return _address_of(target) if target is not None else None


def _address_of(target: Target) -> str | None:
    if target.item is not None:
        return item_address(target.item)
    if target.place is not None and target.document is not None:
        keys = () if target.place.keys == _CATEGORY_POOL else target.place.keys
        return joined(target.document.address_of(keys)).casefold()
    return joined(target.address).casefold()


@dataclass(frozen=True, slots=True)
class Needle:
    """An entry made ready for matching. ``path`` is None where the entry names no place."""

    entry: Entry
    words: str
    path: str | None

    @classmethod
    def of(cls, entry: Entry, index: AddressIndex, document: Document) -> Needle:
        """Return the needle of an entry; a bare word is a path only if it is a full address."""
        if any(sign in entry.text for sign in ":/."):
            path = resolve_path(entry.text, index, document)
        else:
            found = index.full(joined(entry.text))
            path = _address_of(found.target) if found is not None else None
        return cls(entry, as_words(entry.text), path)

    def meets(self, words: str, address: str) -> bool:
        """Tell whether the entry meets an item with these words and this address."""
        return bool(self.words and self.words in words) or (self.path is not None and covers(self.path, address))
