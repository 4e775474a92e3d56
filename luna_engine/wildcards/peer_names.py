"""Names as packs for other engines spell them (WILDCARDS 2.4): folder and keys, or keys alone; unions of bare ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.model import NOTE_KEYS, Branch, ItemList, Kind
from luna_engine.wildcards.names import Entry, Found, Names, Target, joined, target_of
from luna_engine.wildcards.syntax import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.model import Document


class PeerNames:
    """The names of a library in one peer's profile.

    A text file has its folder and name. A place in YAML or JSON has its keys, behind its folder in the dynamicprompts
    profile and alone in the impact one, where a blank equals ``-`` too; the name of such a file is no name, unless the
    whole file is one list. A name that nothing has is the tail of others: all lists it fits, together.
    """

    def __init__(self, documents: list[Document], folders: list[str], profile: Profile) -> None:
        self._profile = profile
        self._whole = Names()
        self._by_tail: dict[str, list[Entry]] = {}
        for folder in dict.fromkeys(folders):
            self._whole.add((self._spelled(folder), None, None, folder, folder.count("/") + 1))
        for document in documents:
            for entry in self._entries(document):
                self._whole.add(entry)
                at = entry[0].find("/")
                while at >= 0:
                    self._by_tail.setdefault(entry[0][at + 1 :].casefold(), []).append(entry)
                    at = entry[0].find("/", at + 1)

    def _spelled(self, name: str) -> str:
        name = joined(name)
        return name.replace(" ", "-") if self._profile is Profile.IMPACT else name

    def _entries(self, document: Document) -> Iterator[Entry]:
        parts = document.address.count("/") + 1
        if document.kind is Kind.TXT or (isinstance(document.top, ItemList) and not document.content.is_rules):
            yield self._spelled(document.address), document, None, None, parts
        elif isinstance(document.top, Branch) and not document.content.is_rules:
            is_below_folder = document.folder and self._profile is Profile.DYNAMICPROMPTS
            yield from self._places(document, document.top, f"{document.folder}/" if is_below_folder else "", parts)

    def _places(self, document: Document, branch: Branch, before: str, parts: int) -> Iterator[Entry]:
        for key, place in branch.entries.items():
            if key not in NOTE_KEYS:
                yield self._spelled(before + key), document, place, None, parts
                if isinstance(place, Branch):
                    yield from self._places(document, place, f"{before}{key}/", parts)

    def resolve(self, name: str) -> Found | None:
        """Find what ``__name__`` means; several places that a bare name fits are one target."""
        spelling = self._spelled(name)
        found = self._whole.find(spelling)
        if found is not None:
            return found
        entries = self._by_tail.get(spelling.casefold(), [])
        exact = [entry for entry in entries if entry[0].endswith(f"/{spelling}")]
        targets = tuple(target_of(entry) for entry in exact or entries)
        if len(targets) <= 1:
            return Found(targets[0]) if targets else None
        return Found(Target(name, union=targets))
