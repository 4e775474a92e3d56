"""What a wildcard file holds: branches of lists of items, each with its place. Built once, never changed."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.syntax import Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from luna_engine.wildcards.diagnostics import Diagnostic
    from luna_engine.wildcards.path_index import PathIndex
    from luna_engine.wildcards.rules.records import RuleFile
    from luna_engine.wildcards.syntax import Parsed

NOTE_KEYS = frozenset({"usage_notes", "category", "description", "_suffix"})
CATEGORY_HEAD = frozenset({"name", "description", "type", "common_tags"})
TEMPLATES = "templates"


class Kind(enum.Enum):
    """The kinds of file the library reads; the order breaks ties between equal names."""

    YAML = ".yaml"
    YML = ".yml"
    JSON = ".json"
    TXT = ".txt"

    @property
    def rank(self) -> int:
        """Preference among files of equal name, lower first."""
        return (".yaml", ".yml", ".json", ".txt").index(self.value)


@dataclass(slots=True, eq=False)
class Item:
    """One item. ``text_column`` is where its text begins, None where places inside it are not known exactly.

    Items are compared by identity: two equal lines are two items. ``owner`` is set once, by the list that takes
    the item; ``parsed`` caches the syntax tree.
    """

    text: str
    line: int
    column: int
    weight: Weight = field(default_factory=Weight)
    text_column: int | None = None
    item_id: str | None = None
    tags: tuple[str, ...] = ()
    blacklist: tuple[str, ...] = ()
    whitelist: tuple[str, ...] = ()
    payload: Any = None
    extra: dict[str, Any] | None = None
    owner: ItemList | None = None
    parsed: Parsed | None = None


@dataclass(slots=True, eq=False)
class ItemList:
    """A list of items at an address; ``keys`` lead to it inside its file."""

    document: Document
    keys: tuple[str, ...]
    line: int
    column: int
    items: Sequence[Item] = field(default_factory=list)
    _address: str | None = None

    @property
    def address(self) -> str:
        """The canonical address, ``folder/file:key.key``, put together once: each draw records it."""
        if self._address is None:
            self._address = self.document.address_of(self.keys)
        return self._address

    def add(self, item: Item) -> None:
        """Take an item (only while the file is being read)."""
        item.owner = self
        self.items.append(item)  # type: ignore[attr-defined]  # a list while the file is read; a cast costs a call


@dataclass(slots=True, eq=False)
class Branch:
    """A map from keys to branches and lists, in file order; ``own`` holds items that stand in it directly."""

    document: Document
    keys: tuple[str, ...]
    line: int
    column: int
    entries: dict[str, Branch | ItemList] = field(default_factory=dict)
    own: ItemList | None = None


Place = Branch | ItemList


def _no_digest() -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class Content:
    """What reading a file gave. ``is_stale``: the file is broken and ``top`` is its last good version.

    ``rules`` are those of a rule file. ``digest_of`` returns a digest of the file's bytes; large files are hashed only
    when it is called.
    """

    top: Place | None
    diagnostics: tuple[Diagnostic, ...] = ()
    rules: RuleFile | None = None
    digest_of: Callable[[], bytes] = _no_digest
    is_stale: bool = False

    @property
    def is_rules(self) -> bool:
        """Tell whether this is a rule file: never drawn from unless named in full."""
        return self.rules is not None


NOTHING = Content(None)


class Document:
    """One file. ``path`` is relative to its root with ``/``; ``address`` has no suffix.

    The content is read at once (YAML, JSON) or at first use (txt); reading twice in two threads gives the same.
    """

    __slots__ = ("_content", "_read", "address", "kind", "path", "paths", "root")

    def __init__(
        self,
        path: str,
        root: int,
        kind: Kind,
        read: Callable[[Document], Content],
    ) -> None:
        self.path = path
        self.root = root
        self.kind = kind
        self.address = path[: len(path) - len(kind.value)]
        self.paths: PathIndex | None = None
        self._read: Callable[[Document], Content] | None = read
        self._content: Content | None = None

    @property
    def content(self) -> Content:
        """The file's content, read when first asked for."""
        read = self._read
        if read is not None:
            self._content = read(self)
            self._read = None  # the reader holds the version before; kept, each reload would keep all before it
        return self._content or NOTHING

    @property
    def is_read(self) -> bool:
        """Tell whether the content is in memory."""
        return self._read is None

    @property
    def top(self) -> Place | None:
        """The branch or list at the top of the file, None if nothing could be read."""
        return self.content.top

    @property
    def stem(self) -> str:
        """The file's name without folder and suffix."""
        return self.address.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder's address, ``""`` for the root."""
        return self.address.rpartition("/")[0]

    def address_of(self, keys: tuple[str, ...]) -> str:
        """Return the canonical address of a place in the file."""
        return f"{self.address}:{'.'.join(keys)}" if keys else self.address


def lists_below(place: Place | None, *, with_templates: bool = False) -> Iterator[ItemList]:
    """Yield the lists a place draws from, in file order: notes never, ``templates`` of the top level only if asked."""
    if place is None:
        return
    if isinstance(place, ItemList):
        yield place
        return
    if not place.keys:
        items = place.entries.get("items")
        if isinstance(items, ItemList) and not with_templates:
            yield items
            return
    if place.own is not None:
        yield place.own
    for key, entry in place.entries.items():
        is_templates = not place.keys and key == TEMPLATES
        if (key in NOTE_KEYS and not is_templates) or (is_templates and not with_templates):
            continue
        yield from lists_below(entry, with_templates=with_templates)


def walk_places(place: Place | None) -> Iterator[Place]:
    """Yield a place and every place below it, notes and templates included."""
    if place is None:
        return
    yield place
    if isinstance(place, Branch):
        if place.own is not None:
            yield place.own
        for entry in place.entries.values():
            yield from walk_places(entry)
