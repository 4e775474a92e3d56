"""The places of one file by path, and its items by id or whole text. Nothing here touches the disk."""

from __future__ import annotations

from luna_engine.wildcards.model import TEMPLATES, Branch, Document, Item, ItemList, Place, lists_below, walk_places
from luna_engine.wildcards.names import Target, joined

_MOST_SEARCHED = 100_000


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
            item = item_named(place, wanted)
            if item is not None:
                return Target(f"{self.document.address_of(())}:{path}", self.document, place, item)
        return None


def item_named(place: Place, wanted: str) -> Item | None:
    """Return the item below a place that has an id or a whole text."""
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
