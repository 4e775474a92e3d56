"""Names as the index compares them, and what each may stand for; of several, the order of WILDCARDS 3.3 decides."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_engine.wildcards.model import Document, Item, Kind, Place

_JOINERS = str.maketrans("\\.:", "///")


def joined(name: str) -> str:
    """Return a name as the index compares it: NFC, every separator a slash."""
    if name.isascii():
        return name.translate(_JOINERS)
    return unicodedata.normalize("NFC", name).translate(_JOINERS)


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for. Exactly one of document+place, item, folder, union is the subject.

    ``place`` is None for a whole file; ``stars`` is ``"*"`` or ``"**"`` behind a path. ``union`` holds the places that
    an ambiguous name of a peer's profile stands for together.
    """

    address: str
    document: Document | None = None
    place: Place | None = None
    item: Item | None = None
    folder: str | None = None
    stars: str = ""
    union: tuple[Target, ...] = ()

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
Entry = tuple[str, "Document | None", "Place | None", "str | None", int]


def target_of(entry: Entry) -> Target:
    """Return what an entry of the index stands for."""
    _, document, place, folder, _ = entry
    if document is None:
        return Target(folder or "", folder=folder)
    return Target(document.address_of(place.keys) if place is not None else document.address, document, place)


def _order(entry: Entry) -> tuple[int, int, int, int, str]:
    spelling, document, _, _, file_parts = entry
    return (
        -file_parts,
        spelling.count("/"),
        document.kind.rank if document else 9,
        document.root if document else 0,
        target_of(entry).address,
    )


class Names:
    """A case-aware map from joined names to what they may mean."""

    def __init__(self) -> None:
        self._known: dict[str, Entry | list[Entry]] = {}

    def add(self, entry: Entry) -> None:
        """Take an entry under its spelling."""
        key = entry[0].casefold()
        known = self._known.setdefault(key, entry)
        if known is entry:
            return
        if isinstance(known, list):
            known.append(entry)
        else:
            self._known[key] = [known, entry]

    def _fitting(self, name: str) -> list[Entry]:
        known = self._known.get(name.casefold())
        return [] if known is None else known if isinstance(known, list) else [known]

    def find(self, name: str, *, files_only: bool = False) -> Found | None:
        """Return what a joined name means; with ``files_only`` among files and folders."""
        known = self._known.get(name.casefold())
        if known is None:
            return None
        fitting = known if isinstance(known, list) else [known]
        if files_only:
            fitting = [entry for entry in fitting if entry[2] is None]
        return _choose(name, fitting)

    def find_kind(self, name: str, kind: Kind) -> Found | None:
        """Return the file of one kind that has a joined name."""
        return _choose(
            name,
            [entry for entry in self._fitting(name) if entry[2] is None and entry[1] and entry[1].kind is kind],
        )


def _choose(name: str, fitting: list[Entry]) -> Found | None:
    """Return what a name means: equal case wins, then the order of WILDCARDS 3.3."""
    if not fitting:
        return None
    if len(fitting) == 1:
        return Found(target_of(fitting[0]))
    exact = [entry for entry in fitting if entry[0] == name]
    ordered = sorted(exact or fitting, key=_order)
    targets = [target_of(entry) for entry in ordered]
    addresses = dict.fromkeys(_shown(target) for target in targets)
    return Found(targets[0], tuple(addresses) if len(addresses) > 1 else ())


def _shown(target: Target) -> str:
    return target.document.path if target.is_file and target.document is not None else target.address
