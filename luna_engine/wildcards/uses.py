"""Where an address is used: every reference in the library, or in given templates, that can draw from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import lists_below
from luna_engine.wildcards.parser import is_plain
from luna_engine.wildcards.pools import target_lists
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.references import target_of_reference
from luna_engine.wildcards.reports import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.names import Target
    from luna_engine.wildcards.snapshot import Snapshot
    from luna_engine.wildcards.syntax import Parsed


@dataclass(frozen=True, slots=True)
class Use:
    """One reference. ``file`` is None for template number ``template``; ``address`` is where the item stands.

    ``is_direct``: the reference names the address itself or something below it; else it names a branch, file,
    folder or glob that only holds it. ``names`` is the address that the reference stands for.
    """

    reference: str
    names: str
    file: str | None
    root: int | None
    line: int
    column: int
    end_column: int
    address: str | None
    is_direct: bool
    template: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the use as JSON-safe data."""
        return {name: getattr(self, name) for name in self.__slots__}


def where_used(snapshot: Snapshot, address: str, templates: Sequence[str] = ()) -> tuple[Use, ...]:
    """Return every reference that can draw from an address, templates first, then files in address order.

    Every file is read. An address that nothing has is used nowhere.
    """
    found = snapshot.index.resolve(address)
    if found is None:
        return ()
    with recursion_room():
        finder = _Finder(snapshot, found.target)
        uses = [
            use
            for number, text in enumerate(templates)
            for use in finder.text(snapshot.template(text), None, None, number)
        ]
        for item in _items(snapshot):
            owner = item.owner
            if owner is not None:
                uses += finder.text(snapshot.parse_item(item), owner.document, item, None)
    return tuple(uses)


def _items(snapshot: Snapshot) -> Iterator[Item]:
    """Yield every item that can hold a reference."""
    for document in sorted(snapshot.documents, key=lambda found: found.address):
        for place in lists_below(document.top, with_templates=True):
            items = place.items
            if isinstance(items, Lines):
                yield from items.constructs()
            else:
                yield from (item for item in items if not is_plain(item.text))


class _Finder:
    def __init__(self, snapshot: Snapshot, target: Target) -> None:
        self.snapshot = snapshot
        self.target = target
        self.lists = {id(found) for found in self.lists_of(target)}

    def lists_of(self, target: Target) -> list[Any]:
        if target.item is not None:
            return [target.item.owner]
        document = target.document
        if document is not None and target.place is None:
            return list(lists_below(document.top, with_templates=True))
        return target_lists(target, self.snapshot.index, templates=False)

    def text(self, parsed: Parsed, home: Document | None, item: Item | None, template: int | None) -> Iterator[Use]:
        for node, document, lists in self.snapshot.references(parsed.nodes, parsed, home):
            target, _ = target_of_reference(node, parsed, self.snapshot, home)
            in_file = self.target.document is not None and self.target.place is None and self.target.item is None
            touches = in_file and document is self.target.document
            if not touches and not any(id(one) in self.lists for one in lists):
                continue
            if self.target.item is not None and target is not None and target.item not in {None, self.target.item}:
                continue
            names = target.address if target is not None else document.address if document is not None else ""
            file, (line, column), (_, end_column) = place_of(parsed, item, node.start, node.end)
            yield Use(
                parsed.text[node.start : node.end],
                names,
                file,
                home.root if home is not None else None,
                line,
                column,
                end_column,
                item.owner.address if item is not None and item.owner is not None else None,
                self.is_below(names),
                template,
            )

    def is_below(self, names: str) -> bool:
        """Tell whether an address is the wanted one or below it, cut at key borders."""
        wanted = self.target.address
        return names == wanted or (names.startswith(wanted) and names[len(wanted)] in "/:.")
