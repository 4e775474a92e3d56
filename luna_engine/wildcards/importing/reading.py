"""One file of a pack made ready: decoded, repeats dropped, its origin noted. Every other byte of its text stays."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_engine.wildcards.decode import decode
from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.files import read_content
from luna_engine.wildcards.importing.records import Repeat
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import NOTE_KEYS, Content, Document, ItemList, Kind, walk_places
from luna_engine.wildcards.read_txt import read_txt
from luna_engine.wildcards.sameness import MOST_ITEMS, evened, texts_of
from luna_engine.wildcards.splices import FileText

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.diagnostics import Diagnostic
    from luna_engine.wildcards.importing.pack import PackFile
    from luna_engine.wildcards.model import Item

_MOST_EDITED = (
    64 * 1024 * 1024
)  # characters read to cut repeats out of one file: its length for each list that has some
_ONE = 1_000_000
_Keys = tuple[str, ...]
_Said = list[tuple[_Keys, list[tuple[str, int]]]]
_Cuts = dict[int, set[int]]  # by the identity of a list, the indices that go


@dataclass(frozen=True, slots=True)
class Ready:
    """A file that can be written. ``document`` is what the library would read; None: it cannot be read at all."""

    data: bytes
    document: Document | None
    repeats: tuple[Repeat, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Diagnostic, ...] = ()


def document_of(path: str, root: int, kind: Kind, data: bytes) -> Document:
    """Return the document that the library would make of a file."""

    def read(document: Document) -> Content:
        return read_txt(document, data) if kind is Kind.TXT else read_content(document, data, None)

    return Document(path, root, kind, read)


def make_ready(file: PackFile, target: str, root: int, pack_name: str) -> Ready:
    """Return a file of a pack as it is to be written to ``target``."""
    kind = file.kind
    decoded = decode(file.data, file.path)
    plain = decoded.text.encode("utf-8", "surrogatepass")
    as_it_is = document_of(target, root, kind, plain)
    problems = as_it_is.content.diagnostics
    if as_it_is.top is None and any(found.severity is Severity.ERROR for found in problems):
        return Ready(plain, None, problems=tuple(dataclasses.replace(one, file=file.path) for one in problems))
    notes = tuple(f"{found.message}; it is written as UTF-8" for found in decoded.diagnostics)
    if any(len(found.items) > MOST_ITEMS for found in lists_of(as_it_is)):
        notes = (*notes, f"a list of more than {MOST_ITEMS} items is not searched for repeats")
    text, repeats, cuts = _without_repeats(decoded.text, as_it_is, kind)
    marked = _with_origin(text, kind, f"{pack_name}: {file.path}").encode("utf-8", "surrogatepass")
    document = document_of(target, root, kind, marked)
    is_equal = document.content.is_rules == as_it_is.content.is_rules and _said(document, {}) == _said(as_it_is, cuts)
    if not is_equal:
        # A comment or a cut that changes anything else is not worth it: the pack's own text is.
        repeats = tuple(Repeat(one.text, one.line, one.first_line, is_dropped=False) for one in repeats)
        return Ready(plain, as_it_is, repeats, (*notes, "kept byte for byte: no origin comment fits in"))
    if kind is Kind.JSON:
        notes = (*notes, "JSON has no comments: the origin is in the import's record alone")
    return Ready(marked, document, repeats, notes)


def _with_origin(text: str, kind: Kind, origin: str) -> str:
    if kind is Kind.JSON:
        return text
    newline = next((end for end in ("\r\n", "\n", "\r") if end in text), "\n")
    shown = "".join(sign if sign.isprintable() else "?" for sign in origin)
    return f"# imported from {shown}{newline}{text}"


def lists_of(document: Document) -> Iterator[ItemList]:
    """Yield every list of a file, notes and templates included."""
    return (place for place in walk_places(document.top) if isinstance(place, ItemList))


def _said(document: Document, cuts: _Cuts) -> _Said:
    """Return what a file says: the keys of each list and its items with their weights, some left out."""
    found: _Said = []
    for place in lists_of(document):
        gone = cuts.get(id(place), set())
        said = zip(texts_of(place), _weights_of(place), strict=True)
        found.append((place.keys, [one for at, one in enumerate(said) if at not in gone]))
    return found


def _weights_of(place: ItemList) -> Iterator[int]:
    items = place.items
    if isinstance(items, Lines):
        return iter(items.micro or itertools.repeat(_ONE, len(items)))
    return (item.weight.micro for item in items)


def says_the_same(first: Document, second: Document) -> bool:
    """Tell whether two files hold the same items at the same keys, whatever their comments and layout."""
    return first.content.is_rules == second.content.is_rules and _said(first, {}) == _said(second, {})


# -- repeats


def _without_repeats(text: str, document: Document, kind: Kind) -> tuple[str, tuple[Repeat, ...], _Cuts]:
    """Return a text without items that their list has already, those items, and their indices in each list."""
    if document.content.is_rules:
        return text, (), {}
    repeats: list[Repeat] = []
    cuts: _Cuts = {}
    for place in lists_of(document):
        if not NOTE_KEYS.isdisjoint(place.keys):
            continue
        found = _repeats_in(place)
        droppable = {at for at, repeat in found if repeat.is_dropped}
        cut = None
        if droppable and (len(cuts) + 1) * len(text) <= _MOST_EDITED:
            cut = _cut(text, kind, document.path, place, droppable)
        if cut is not None:
            text, cuts[id(place)] = cut, droppable
        repeats += (Repeat(one.text, one.line, one.first_line, one.is_dropped and cut is not None) for _, one in found)
    return text, tuple(repeats), cuts


def _cut(text: str, kind: Kind, path: str, place: ItemList, indices: set[int]) -> str | None:
    """Return a text without some items of a list; None if the file is not one that can be edited."""
    try:
        editable = FileText(text, kind, path)
        if editable.count_items(place.keys) != len(place.items):
            return None
        return editable.remove_items(place.keys, indices)
    except LunaError:
        return None  # the caller keeps the items and says so


def _repeats_in(place: ItemList) -> list[tuple[int, Repeat]]:
    """Return the items of a list that it has already; those that say more than their text are kept."""
    if len(place.items) > MOST_ITEMS:
        return []
    seen: dict[str, int] = {}
    found: list[tuple[int, Repeat]] = []
    for at, text in enumerate(texts_of(place)):
        first = seen.setdefault(evened(text), at)
        if first != at:
            item, known = place.items[at], place.items[first]
            is_dropped = item.weight == known.weight and not _says_more(item)
            found.append((at, Repeat(item.text, item.line, known.line, is_dropped)))
    return found


def _says_more(item: Item) -> bool:
    return bool(item.item_id or item.tags or item.blacklist or item.whitelist or item.payload or item.extra)
