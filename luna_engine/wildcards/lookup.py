"""Names to places: the address index and the four lookup levels of WILDCARDS 3.3. Nothing here touches the disk."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.model import (
    NOTE_KEYS,
    TEMPLATES,
    Branch,
    Document,
    Item,
    ItemList,
    Kind,
    Place,
    lists_below,
    walk_places,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_SEARCHED = 100_000
_JOINERS = str.maketrans("\\.:", "///")


def joined(name: str) -> str:
    """Return a name as the index compares it: NFC, every separator a slash."""
    if name.isascii():
        return name.translate(_JOINERS)
    return unicodedata.normalize("NFC", name).translate(_JOINERS)


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for. Exactly one of document+place, item, folder is the subject.

    ``place`` is None for a whole file; ``stars`` is ``"*"`` or ``"**"`` behind a path.
    """

    address: str
    document: Document | None = None
    place: Place | None = None
    item: Item | None = None
    folder: str | None = None
    stars: str = ""

    @property
    def is_file(self) -> bool:
        """A file as a whole."""
        return self.document is not None and self.place is None and self.item is None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a lookup: what was taken, and all that fitted at that level."""

    target: Target
    others: tuple[str, ...] = ()


# One indexed address: its spelling as looked up, the file and the place in it, or the folder, and the parts of the
# file's path. A tuple, since a library has tens of thousands; the Target is made when somebody finds it.
_Entry = tuple[str, "Document | None", "Place | None", "str | None", int]


def _target(entry: _Entry) -> Target:
    _, document, place, folder, _ = entry
    if document is None:
        return Target(folder or "", folder=folder)
    return Target(document.address_of(place.keys) if place is not None else document.address, document, place)


def _order(entry: _Entry) -> tuple[int, int, int, int, str]:
    spelling, document, _, _, file_parts = entry
    return (
        -file_parts,
        spelling.count("/"),
        document.kind.rank if document else 9,
        document.root if document else 0,
        _target(entry).address,
    )


class _Names:
    """A case-aware map from joined names to what they may mean."""

    def __init__(self) -> None:
        self._known: dict[str, _Entry | list[_Entry]] = {}

    def add(self, entry: _Entry) -> None:
        key = entry[0].casefold()
        known = self._known.setdefault(key, entry)
        if known is entry:
            return
        if isinstance(known, list):
            known.append(entry)
        else:
            self._known[key] = [known, entry]

    def _fitting(self, name: str) -> list[_Entry]:
        known = self._known.get(name.casefold())
        return [] if known is None else known if isinstance(known, list) else [known]

    def find(self, name: str, *, files_only: bool = False) -> Found | None:
        known = self._known.get(name.casefold())
        if known is None:
            return None
        fitting = known if isinstance(known, list) else [known]
        if files_only:
            fitting = [entry for entry in fitting if entry[2] is None]
        return _choose(name, fitting)

    def find_kind(self, name: str, kind: Kind) -> Found | None:
        return _choose(
            name,
            [entry for entry in self._fitting(name) if entry[2] is None and entry[1] and entry[1].kind is kind],
        )


def _choose(name: str, fitting: list[_Entry]) -> Found | None:
    """Return what a name means: equal case wins, then the order of WILDCARDS 3.3."""
    if not fitting:
        return None
    if len(fitting) == 1:
        return Found(_target(fitting[0]))
    exact = [entry for entry in fitting if entry[0] == name]
    ordered = sorted(exact or fitting, key=_order)
    targets = [_target(entry) for entry in ordered]
    addresses = dict.fromkeys(_shown(target) for target in targets)
    return Found(targets[0], tuple(addresses) if len(addresses) > 1 else ())


def _shown(target: Target) -> str:
    return target.document.path if target.is_file and target.document is not None else target.address


class PathIndex:
    """The places of one file by path; put together when a path begins like one of the file's keys."""

    def __init__(self, document: Document) -> None:
        self.document = document
        keys: list[str] = []
        if isinstance(document.top, Branch):
            keys = list(document.top.entries)
            for key, entry in document.top.entries.items():
                if key.casefold() == TEMPLATES and isinstance(entry, Branch):
                    keys += entry.entries
        self._starts = frozenset(joined(key).partition("/")[0].casefold() for key in keys)
        self._maps: tuple[dict[str, Place], dict[str, Place]] | None = None

    def _names(self) -> tuple[dict[str, Place], dict[str, Place]]:
        """Return the places by joined path, and by joined path with case evened."""
        if self._maps is None:
            exact: dict[str, Place] = {}
            folded: dict[str, Place] = {}
            for place in walk_places(self.document.top):
                if place.keys:
                    name = joined("/".join(place.keys))
                    for names, key in ((exact, name), (folded, name.casefold())):
                        known = names.get(key)
                        if known is None or len(place.keys) > len(known.keys):
                            names[key] = place
            self._maps = (exact, folded)
        return self._maps

    def names(self) -> list[str]:
        """Return the paths of the file as they are written in references."""
        return [".".join(place.keys) for place in self._names()[0].values()]

    def find(self, path: str, *, bare_items: bool = True) -> Target | None:
        """Resolve a path: ``templates.<path>`` before ``<path>``, then an item by id or whole text.

        Args:
            path: as written.
            bare_items: in a file that is one list, the path may be an item alone (``{mood:calm}``).
        """
        name = joined(path.strip())
        stars = ""
        for ending in ("/**", "/*"):
            if name.endswith(ending):
                name, stars = name[: -len(ending)], ending[1:]
                break
        place = self.place(name)
        if place is not None:
            return Target(self.document.address_of(place.keys), self.document, place, stars=stars)
        bare = bare_items and isinstance(self.document.top, ItemList)
        return None if stars else self._item(path.strip(), name, bare=bare)

    def place(self, name: str) -> Place | None:
        """Return the place with a joined name."""
        if name.partition("/")[0].casefold() not in self._starts:
            return None
        exact, folded = self._names()
        for spelling in (f"{TEMPLATES}/{name}", name):
            found = exact.get(spelling)
            if found is not None:
                return found
        for spelling in (f"{TEMPLATES}/{name}", name):
            found = folded.get(spelling.casefold())
            if found is not None:
                return found
        return None

    def _item(self, path: str, name: str, *, bare: bool) -> Target | None:
        """Find the one item that the last part of a path names."""
        cuts = [at for at, sign in enumerate(name) if sign == "/"]
        for cut in (*reversed(cuts[-8:]), *((-1,) if bare else ())):
            place = self.place(name[:cut]) if cut >= 0 else self.document.top
            if place is None:
                continue
            wanted = name[cut + 1 :]
            item = _item_named(place, wanted)
            if item is not None:
                return Target(f"{self.document.address_of(())}:{path}", self.document, place, item)
        return None


def _item_named(place: Place, wanted: str) -> Item | None:
    lists = list(lists_below(place))
    if not wanted or sum(len(found.items) for found in lists) > _MOST_SEARCHED:
        return None
    folded: Item | None = None
    for found in lists:
        for item in found.items:
            for name in (item.item_id, item.text):
                if name is None or len(name) != len(wanted):
                    continue
                if joined(name) == wanted:
                    return item
                if folded is None and joined(name).casefold() == wanted.casefold():
                    folded = item
    return folded


def path_index(document: Document) -> PathIndex:
    """Return the path index of a document, made when first asked for."""
    if document.paths is None:
        document.paths = PathIndex(document)
    return document.paths


class AddressIndex:
    """All addresses of a library.

    ``hidden`` are files that stand behind one of equal address in an earlier root. Only texts of their own root see
    them, and only where the file in front does not offer an address: a pack keeps working beside a user's own files.
    """

    def __init__(self, documents: list[Document], folders: list[str], hidden: Sequence[Document] = ()) -> None:
        self.documents = documents
        self._hidden = {
            root: AddressIndex([found for found in hidden if found.root == root], [])
            for root in {found.root for found in hidden}
        }
        self._full = _Names()
        self._short = _Names()
        self._files = _Names()
        self._tails: _Names | None = None
        self._folders = folders
        self._starts: dict[str, frozenset[str]] | None = None
        self._prefixes: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {}
        self._by_tail: list[_Entry] = []
        for folder in dict.fromkeys(folders):
            entry: _Entry = (joined(folder), None, None, folder, folder.count("/") + 1)
            self._full.add(entry)
            self._files.add(entry)
        for document in documents:
            self._add_document(document)

    def _add_document(self, document: Document) -> None:
        address = joined(document.address)
        parts = document.address.count("/") + 1
        whole: _Entry = (address, document, None, None, parts)
        self._full.add(whole)
        self._files.add(whole)
        if document.kind is Kind.TXT:
            self._by_tail.append(whole)
            return
        is_rules = document.content.is_rules
        if not is_rules:
            self._by_tail.append(whole)
        if isinstance(document.top, Branch):
            short = joined(document.folder) + "/" if document.folder else ""
            self._add_branch(document, document.top, f"{address}/", short, parts, is_hidden=is_rules)

    def _add_branch(
        self, document: Document, branch: Branch, full: str, short: str, parts: int, *, is_hidden: bool
    ) -> None:
        """Add the places below a branch; hidden ones (rules, notes) are reached by their full address alone."""
        for key, place in branch.entries.items():
            name = joined(key)
            spelling = full + name
            entry: _Entry = (spelling, document, place, None, parts)
            self._full.add(entry)
            is_below_hidden = is_hidden or key in NOTE_KEYS
            if not is_below_hidden:
                self._short.add((short + name, document, place, None, parts))
                self._by_tail.append(entry)
            if isinstance(place, Branch):
                self._add_branch(document, place, f"{spelling}/", f"{short}{name}/", parts, is_hidden=is_below_hidden)

    @property
    def tails(self) -> _Names:
        """Every tail of every address, made when a name needs level 4."""
        if self._tails is None:
            tails = _Names()
            for entry in self._by_tail:
                spelling = entry[0]
                tails.add(entry)
                at = spelling.find("/")
                while at >= 0:
                    tails.add((spelling[at + 1 :], *entry[1:]))
                    at = spelling.find("/", at + 1)
            self._tails = tails
        return self._tails

    def resolve(self, name: str, document: Document | None = None) -> Found | None:
        """Find what ``__name__`` means, inside ``document`` if it stands in an item or inline template."""
        found = self._resolve(joined(name), document)
        if found is None:
            found = self._resolve_suffixed(name, document)
        found = found or self._resolve_item(name, document)
        own = self._own_hidden(document)
        return found if found is not None or own is None else own.resolve(name, document)

    def _own_hidden(self, document: Document | None) -> AddressIndex | None:
        """Return the index of what is hidden in a text's own root, None if nothing is."""
        return self._hidden.get(document.root) if document is not None and self._hidden else None

    def _at(self, spelling: str, document: Document | None) -> Found | None:
        """Find a full address, in the asking text's own root where the visible files do not have it."""
        found = self._full.find(spelling)
        if found is not None or not self._hidden:
            return found
        own = self._own_hidden(document)
        return None if own is None else own.full(spelling)

    def full(self, spelling: str) -> Found | None:
        """Find a full address among the files of this index alone."""
        return self._full.find(spelling)

    def own_versions(self, front: Document, asking: Document | None) -> list[Document]:
        """Return the files of the asking text's own root that ``front`` hides, the preferred kind first."""
        own = self._own_hidden(asking)
        if own is None:
            return []
        found = [one for one in own.documents if joined(one.address) == joined(front.address)]
        return sorted(found, key=lambda one: one.kind.rank)

    def _resolve(self, name: str, document: Document | None) -> Found | None:
        if document is not None:
            place = path_index(document).place(name) if document.kind is not Kind.TXT else None
            if place is not None:
                return Found(Target(document.address_of(place.keys), document, place))
            first = name.partition("/")[0].casefold()
            for above, starts in self._above(document.folder):
                found = self._at(above + name, document) if first in starts or self._hidden else None
                if found is not None:
                    return found
        return self._at(name, document) or self._short.find(name) or self.tails.find(name)

    def names_near(self, document: Document) -> frozenset[str] | None:
        """Return the first parts, case evened, of the names that a text file's folder and those above it offer.

        Any other name without a dot means the same in all text files. None if a name's meaning may hang on more.
        """
        if self._hidden or document.kind is not Kind.TXT:
            return None
        return frozenset().union(*(starts for _, starts in self._above(document.folder)))

    def _above(self, folder: str) -> tuple[tuple[str, frozenset[str]], ...]:
        """Return what addresses in a folder and in each folder above it begin with, and the first parts behind that."""
        found = self._prefixes.get(folder)
        if found is None:
            prefixes = [f"{joined(name)}/" for name in _folders_up(folder)]
            found = self._prefixes[folder] = tuple((prefix, self._first_parts(prefix)) for prefix in prefixes)
        return found

    def _first_parts(self, prefix: str) -> frozenset[str]:
        if self._starts is None:
            starts: defaultdict[str, set[str]] = defaultdict(set)
            for address in (*(document.address for document in self.documents), *self._folders):
                parts = joined(address).casefold().split("/")
                for at in range(1, len(parts)):
                    starts["/".join(parts[:at]) + "/"].add(parts[at])
            self._starts = {above: frozenset(found) for above, found in starts.items()}
        return self._starts.get(prefix.casefold(), frozenset())

    def _resolve_suffixed(self, name: str, document: Document | None) -> Found | None:
        """Find a file named with its suffix, ``__mood.txt__``."""
        stem, dot, suffix = name.rpartition(".")
        kind = next((kind for kind in Kind if kind.value == f"{dot}{suffix.lower()}"), None)
        if kind is None:
            return None
        folders = _folders_up(document.folder) if document is not None else []
        for spelling in (*(f"{joined(folder)}/{joined(stem)}" for folder in folders), joined(stem)):
            found = self._full.find_kind(spelling, kind)
            if found is not None:
                return found
        return self.tails.find_kind(joined(stem), kind)

    def _resolve_item(self, name: str, document: Document | None) -> Found | None:
        """Find one item by the id or text that is the name's last part."""
        spelling = joined(name)
        cuts = [at for at, sign in enumerate(spelling) if sign == "/"][-8:]
        for cut in reversed(cuts):
            found = self._resolve(spelling[:cut], document)
            if found is None or found.target.document is None:
                continue
            place = found.target.place or found.target.document.top
            item = _item_named(place, spelling[cut + 1 :]) if place is not None else None
            if item is not None:
                address = f"{found.target.address}{'.' if found.target.place else ':'}{name[cut + 1 :]}"
                return Found(Target(address, found.target.document, place, item), found.others)
        return None

    def resolve_file(self, head: str, document: Document | None = None) -> Found | None:
        """Find the file or folder that the head of ``{…}`` names: levels 1, 2 and 4, never keys."""
        name = joined(head)
        if document is not None:
            for folder in _folders_up(document.folder):
                found = self._files.find(f"{joined(folder)}/{name}")
                if found is not None:
                    return found
        found = self._files.find(name) or self.tails.find(name, files_only=True)
        if found is None:
            found = self._resolve_suffixed(head, document)
        own = self._own_hidden(document)
        return found if found is not None or own is None else own.resolve_file(head, document)

    def resolve_in_folder(self, folder: str, path: str) -> Found | None:
        """Find a place by its path below a folder."""
        return self._full.find(f"{joined(folder)}/{joined(path)}")

    def below_folder(self, folder: str) -> list[Document]:
        """Return the files below a folder by address, rule files left out."""
        prefix = f"{folder}/"
        found = [
            document
            for document in self.documents
            if document.path.startswith(prefix) and not (document.kind is not Kind.TXT and document.content.is_rules)
        ]
        return sorted(found, key=lambda document: document.address)

    def names(self) -> list[str]:
        """Return the names for "did you mean": file stems, addresses and the last keys."""
        names: dict[str, None] = {}
        for entry in self._by_tail:
            names[_target(entry).address] = None
            names[entry[0].rpartition("/")[2]] = None
        return list(names)

    def file_names(self) -> list[str]:
        """Return the names of files for "did you mean"."""
        names: dict[str, None] = {}
        for document in self.documents:
            names[document.stem] = None
            names[document.address] = None
        return list(names)

    def hidden_lists(self) -> list[ItemList]:
        """Return the lists of the hidden files."""
        return [found for index in self._hidden.values() for found in index.lists()]

    def lists(self) -> list[ItemList]:
        """Return every list that globs and bare names can reach, by address of its file, in file order."""
        ordered = sorted(self.documents, key=lambda document: (document.address, document.kind.rank, document.root))
        found: list[ItemList] = []
        for document in ordered:
            if document.kind is not Kind.TXT and document.content.is_rules:
                continue
            found += lists_below(document.top)
        return found


def _folders_up(folder: str) -> list[str]:
    """Return a folder and each folder above it, the root left out."""
    folders = []
    while folder:
        folders.append(folder)
        folder = folder.rpartition("/")[0]
    return folders
