"""Names to places: the address index and the four lookup levels of WILDCARDS 3.3. Nothing here touches the disk."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from luna_engine.wildcards.model import NOTE_KEYS, Branch, Document, ItemList, Kind, lists_below
from luna_engine.wildcards.names import Entry, Found, Names, Target, joined, target_of
from luna_engine.wildcards.path_index import item_named, path_index
from luna_engine.wildcards.peer_names import PeerNames
from luna_engine.wildcards.syntax import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        self._full = Names()
        self._short = Names()
        self._files = Names()
        self._tails: Names | None = None
        self._peers: dict[Profile, PeerNames] = {}
        self._folders = folders
        self._starts: dict[str, frozenset[str]] | None = None
        self._prefixes: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {}
        self._by_tail: list[Entry] = []
        for folder in dict.fromkeys(folders):
            entry: Entry = (joined(folder), None, None, folder, folder.count("/") + 1)
            self._full.add(entry)
            self._files.add(entry)
        for document in documents:
            self._add_document(document)

    def _add_document(self, document: Document) -> None:
        address = joined(document.address)
        parts = document.address.count("/") + 1
        whole: Entry = (address, document, None, None, parts)
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
            entry: Entry = (spelling, document, place, None, parts)
            self._full.add(entry)
            is_below_hidden = is_hidden or key in NOTE_KEYS
            if not is_below_hidden:
                self._short.add((short + name, document, place, None, parts))
                self._by_tail.append(entry)
            if isinstance(place, Branch):
                self._add_branch(document, place, f"{spelling}/", f"{short}{name}/", parts, is_hidden=is_below_hidden)

    @property
    def tails(self) -> Names:
        """Every tail of every address, made when a name needs level 4."""
        if self._tails is None:
            tails = Names()
            for entry in self._by_tail:
                spelling = entry[0]
                tails.add(entry)
                at = spelling.find("/")
                while at >= 0:
                    tails.add((spelling[at + 1 :], *entry[1:]))
                    at = spelling.find("/", at + 1)
            self._tails = tails
        return self._tails

    def resolve(self, name: str, document: Document | None = None, profile: Profile = Profile.NATIVE) -> Found | None:
        """Find what ``__name__`` means, inside ``document`` if it stands in an item or inline template."""
        if profile is Profile.NATIVE:
            found = self._resolve(joined(name), document)
            if found is None:
                found = self._resolve_suffixed(name, document)
            found = found or self._resolve_item(name, document)
        else:
            found = self._peer_names(profile).resolve(name)
        own = self._own_hidden(document)
        return found if found is not None or own is None else own.resolve(name, document, profile)

    def _peer_names(self, profile: Profile) -> PeerNames:
        """Return the names as a peer spells them, made when a text of its profile asks first."""
        found = self._peers.get(profile)
        if found is None:
            found = self._peers[profile] = PeerNames(self.documents, self._folders, profile)
        return found

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
            item = item_named(place, spelling[cut + 1 :]) if place is not None else None
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
            names[target_of(entry).address] = None
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
