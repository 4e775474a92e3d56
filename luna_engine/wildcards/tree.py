"""The library as a tree for screens and the command line: folders, files, keys, with counts and problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.counting import Counter, NeedsWalkError
from luna_engine.wildcards.model import NOTE_KEYS, Branch, Kind, Place, lists_below
from luna_engine.wildcards.names import Target
from luna_engine.wildcards.recursion import recursion_room

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from luna_engine.wildcards.diagnostics import Severity
    from luna_engine.wildcards.model import Document
    from luna_engine.wildcards.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One address. ``kind`` is folder, file, branch or list.

    ``combinations`` is None where it was not asked for or depends on earlier draws. ``worst`` is the worst problem
    of the file, or below the folder. ``line`` is where a key stands in its file.
    """

    address: str
    name: str
    kind: str
    items: int
    combinations: int | None = None
    worst: Severity | None = None
    file: str | None = None
    root: int = 0
    line: int | None = None
    is_note: bool = False
    children: tuple[TreeNode, ...] = field(default=())

    def walk(self) -> Iterator[TreeNode]:
        """Yield this node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def as_dict(self) -> dict[str, Any]:
        """Return the node and what is below it as JSON-safe data."""
        return {
            "address": self.address,
            "name": self.name,
            "kind": self.kind,
            "items": self.items,
            "combinations": self.combinations,
            "worst": self.worst.value if self.worst else None,
            "file": self.file,
            "line": self.line,
            "children": [child.as_dict() for child in self.children],
        }


def make_tree(snapshot: Snapshot, *, combinations: bool = False) -> tuple[TreeNode, ...]:
    """Return the top-level nodes of a library."""
    with recursion_room():
        return _TreeMaker(snapshot, combinations=combinations).folder("")


class _TreeMaker:
    def __init__(self, snapshot: Snapshot, *, combinations: bool) -> None:
        self.snapshot = snapshot
        self.combinations = combinations

    def folder(self, folder: str) -> tuple[TreeNode, ...]:
        inside = [name for name in dict.fromkeys(self.snapshot.folders) if name.rpartition("/")[0] == folder]
        made = [self.folder_node(name) for name in sorted(inside)]
        documents = [document for document in self.snapshot.documents if document.folder == folder]
        made += [self.file_node(document) for document in sorted(documents, key=lambda found: found.path)]
        return tuple(made)

    def folder_node(self, folder: str) -> TreeNode:
        children = self.folder(folder)
        items = sum(child.items for child in children)
        target = Target(folder, folder=folder)
        return TreeNode(
            folder,
            folder.rpartition("/")[2],
            "folder",
            items,
            self.count(target),
            _worst(child.worst for child in children),
            children=children,
        )

    def file_node(self, document: Document) -> TreeNode:
        top = document.top
        children: tuple[TreeNode, ...] = ()
        if isinstance(top, Branch):
            children = tuple(self.place_node(document, key, entry) for key, entry in top.entries.items())
        return TreeNode(
            document.address,
            document.path.rpartition("/")[2],
            "file",
            sum(len(found.items) for found in lists_below(top, with_templates=True)),
            self.count(Target(document.address, document), templates=True),
            _worst(problem.severity for problem in document.content.diagnostics),
            document.path,
            document.root,
            1,
            children=children,
        )

    def place_node(self, document: Document, key: str, place: Place) -> TreeNode:
        is_branch = isinstance(place, Branch) and document.kind is not Kind.TXT
        children: tuple[TreeNode, ...] = ()
        if isinstance(place, Branch):
            children = tuple(self.place_node(document, name, entry) for name, entry in place.entries.items())
        address = document.address_of(place.keys)
        return TreeNode(
            address,
            key,
            "branch" if is_branch else "list",
            sum(len(found.items) for found in lists_below(place)),
            self.count(Target(address, document, place)),
            None,
            document.path,
            document.root,
            place.line,
            key in NOTE_KEYS,
            children,
        )

    def count(self, target: Target, *, templates: bool = False) -> int | None:
        if not self.combinations:
            return None
        try:
            return Counter(self.snapshot).pool(self.snapshot.pool(target, templates=templates))
        except NeedsWalkError:
            return None


def _worst(severities: Iterable[Severity | None]) -> Severity | None:
    found = [severity for severity in severities if severity is not None]
    return min(found, key=lambda severity: severity.rank) if found else None
