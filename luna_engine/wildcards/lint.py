"""Lint: reads the whole library, parses every item, follows every reference. Pure; draws nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Diagnostic, Severity, place_order
from luna_engine.wildcards.model import NOTE_KEYS, Branch, ItemList, Kind, walk_places
from luna_engine.wildcards.parser import MOST_NAME, is_plain
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.references import Trouble, read_braces, read_bracket, read_name
from luna_engine.wildcards.reports import place_of
from luna_engine.wildcards.rules.linting import lint_rules
from luna_engine.wildcards.sameness import evened
from luna_engine.wildcards.scan import is_name
from luna_engine.wildcards.syntax import Braces, Bracket, Parsed, Wildcard, children

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.snapshot import Snapshot
    from luna_engine.wildcards.syntax import Node

_MOST_PER_FILE = 1_000


def lint(snapshot: Snapshot, templates: Sequence[str] = ()) -> list[Diagnostic]:
    """Return every problem of a library and of templates that are to be used with it, in place order."""
    with recursion_room():
        linter = _Linter(snapshot)
        for document in snapshot.documents:
            linter.document(document)
        for text in templates:
            parsed = snapshot.template(text)
            linter.text(parsed, None, None)
        linter.loops()
        linter.found += lint_rules(snapshot)
    # Files shadowed or refused are in the snapshot's own list.
    found = dict.fromkeys([*snapshot.diagnostics, *linter.found])
    return sorted(found, key=place_order)


class _Linter:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.found: list[Diagnostic] = []
        self.per_file: dict[str | None, int] = {}

    def document(self, document: Document) -> None:
        if document.content.is_rules:
            return
        if any(not is_name(part) or len(part) > MOST_NAME for part in document.address.split("/")):
            self.add(
                "unreachable-name",
                Severity.WARNING,
                f"__{document.address}__ cannot reach this file",
                "use letters, digits, blanks and - . + ' in file names",
                document.path,
                (1, 1),
            )
        for place in walk_places(document.top):
            if isinstance(place, ItemList):
                self.items(document, place)
            elif place.keys and not place.entries and place.own is None:
                self.empty(document, place)

    def items(self, document: Document, place: ItemList) -> None:
        is_note = not NOTE_KEYS.isdisjoint(place.keys)
        if is_note:
            if len(place.items) > 1:
                self.add(
                    "note-list",
                    Severity.HINT,
                    f"{place.keys[-1]}: is a note and is never drawn",
                    "give the list another key",
                    document.path,
                    (place.line, place.column),
                )
            return
        if not place.items:
            self.empty(document, place)
        seen: dict[str, Item] = {}
        for item in place.items:
            first = seen.setdefault(evened(item.text), item)
            if first is not item:
                self.add(
                    "duplicate-item",
                    Severity.WARNING,
                    f"{item.text[:60]!r} equals the item of line {first.line}",
                    "remove one, or give it a weight",
                    document.path,
                    (item.line, item.column),
                )
            if item.weight.micro == 0 and item.weight.problem is None:
                self.add(
                    "never-drawn",
                    Severity.HINT,
                    "an item of weight 0 is never drawn",
                    None,
                    document.path,
                    (item.line, item.column),
                )
            if not is_plain(item.text):
                self.text(self.snapshot.parse_item(item), document, item)

    def empty(self, document: Document, place: Branch | ItemList) -> None:
        name = ".".join(place.keys) or document.path
        self.add(
            "empty",
            Severity.ERROR,
            f"{name} holds nothing to draw",
            "add an item, or remove it",
            document.path,
            (place.line, place.column),
        )

    def text(self, parsed: Parsed, document: Document | None, item: Item | None) -> None:
        for finding in parsed.findings:
            self.at(
                parsed, item, finding.start, finding.end, finding.code, finding.severity, finding.message, finding.hint
            )
        self.nodes(parsed.nodes, parsed, document, item)

    def nodes(self, nodes: tuple[Node, ...], parsed: Parsed, document: Document | None, item: Item | None) -> None:
        for node in nodes:
            inner = document
            troubles: tuple[Trouble, ...] = ()
            if isinstance(node, Braces):
                meaning = read_braces(node, parsed, self.snapshot, document)
                troubles = meaning.trouble
                inner = meaning.document if meaning.inline is not None else document
                if meaning.is_kept:
                    self.troubles(troubles, node, parsed, item)
                    continue
            elif isinstance(node, Wildcard):
                if "*" not in node.name:
                    target, troubles = read_name(node.name, self.snapshot, document, parsed.profile)
                    if target is None and node.in_tag:
                        troubles = ()
                elif self.snapshot.glob(node.name) is None:
                    troubles = (Trouble("unknown-ref", f"no list matches {node.name!r}", None),)
            elif isinstance(node, Bracket) and document is not None and document.kind is not Kind.TXT:
                _, troubles = read_bracket(node.path, document)
            self.troubles(troubles, node, parsed, item)
            self.nodes(children(node), parsed, inner, item)

    def troubles(self, troubles: tuple[Trouble, ...], node: Node, parsed: Parsed, item: Item | None) -> None:
        for trouble in troubles:
            self.at(parsed, item, node.start, node.end, trouble.code, trouble.severity, trouble.message, trouble.hint)

    def loops(self) -> None:
        """Report items that need themselves whatever is drawn: lists that can only loop."""
        endless = _endless_items(self.snapshot)
        for item in endless:
            if item.owner is not None:
                self.add(
                    "cycle",
                    Severity.ERROR,
                    f"{item.text[:60]!r} can only lead back to itself",
                    "add an item that ends the loop",
                    item.owner.document.path,
                    (item.line, item.column),
                )

    def at(
        self,
        parsed: Parsed,
        item: Item | None,
        start: int,
        end: int,
        code: str,
        severity: Severity,
        message: str,
        hint: str | None,
    ) -> None:
        file, begin, stop = place_of(parsed, item, start, end)
        self.add(code, severity, message, hint, file, begin, stop)

    def add(
        self,
        code: str,
        severity: Severity,
        message: str,
        hint: str | None,
        file: str | None,
        place: tuple[int, int],
        end: tuple[int, int] | None = None,
    ) -> None:
        self.per_file[file] = self.per_file.get(file, 0) + 1
        if self.per_file[file] <= _MOST_PER_FILE:
            stop = end or (None, None)
            self.found.append(Diagnostic(code, severity, message, hint, file, *place, *stop))


def _endless_items(snapshot: Snapshot) -> list[Item]:
    """Return the items that can never be finished.

    An item is finished once every list it surely draws from has a finished item; what never becomes finished loops.
    Only references at the top of an item are sure: one inside an option may not be drawn.
    """
    finished: set[int] = set()
    pending: list[tuple[Item, list[list[int]]]] = []
    for found in (*snapshot.index.lists(), *snapshot.index.hidden_lists()):
        for item in found.items:
            if is_plain(item.text):
                finished.add(id(found))
                continue
            parsed = snapshot.parse_item(item)
            sure = [
                [id(target) for target in lists]
                for node, _, lists in snapshot.references(parsed.nodes, parsed, found.document)
                if any(node is top for top in parsed.nodes) and lists
            ]
            if sure:
                pending.append((item, sure))
            else:
                finished.add(id(found))
    progress = True
    while progress and pending:
        progress = False
        rest = []
        for item, sure in pending:
            if all(any(target in finished for target in lists) for lists in sure):
                finished.add(id(item.owner))
                progress = True
            else:
                rest.append((item, sure))
        pending = rest
    return [item for item, _ in pending]
