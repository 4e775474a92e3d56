"""The tree of a library as a list: rows are made for what is unfolded, cursor and folds survive a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding

from luna_tui.glyphs import Tone
from luna_tui.widgets.table import Cell, Column, ListTable, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from textual.binding import BindingType

    from luna_engine.wildcards import Severity, TreeNode
    from luna_tui import filtering

_TONES = {"error": Tone.BAD, "warning": Tone.WARN, "hint": Tone.DIM}
_SIGNS = {"error": "E", "warning": "W", "hint": "·"}


class TreeTable(ListTable):
    """Folders, files and keys with their numbers of items; ``h`` and ``l`` fold."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "unfold", "unfold", show=False),
        Binding("left,h", "fold", "fold", show=False),
    ]

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's word
        columns = (
            Column("address", "ADDRESS", 14, flex=True),
            Column("items", "ITEMS", 6, align="right", drop=2),
            Column("worst", "", 2, drop=1),
        )
        super().__init__(columns, id=id, empty="reading the library …")
        self.nodes: tuple[TreeNode, ...] = ()
        self.modified: frozenset[str] = frozenset()
        self.marks_of: Mapping[str, tuple[Severity, bool]] = {}
        self.unfolded: set[str] = set()
        self._by_key: dict[str, TreeNode] = {}

    def set_nodes(
        self,
        nodes: tuple[TreeNode, ...],
        modified: frozenset[str],
        marks: Mapping[str, tuple[Severity, bool]],
    ) -> None:
        """Show a library.

        Args:
            nodes: its top level.
            modified: the files with unsaved text.
            marks: by node key the worst problem at or below it, and whether a cycle is among them.
        """
        self.nodes, self.modified, self.marks_of = nodes, modified, marks
        self._lay()

    def _lay(self) -> None:
        self._by_key = {}
        rows = [self._row_of(node, level) for node, level in self._visible(self.nodes, 0)]
        self.set_rows(rows)

    def _visible(self, nodes: tuple[TreeNode, ...], level: int) -> Iterator[tuple[TreeNode, int]]:
        for node in nodes:
            yield node, level
            if node.children and (self.filter or node_key(node) in self.unfolded):
                yield from self._visible(node.children, level + 1)

    def _row_of(self, node: TreeNode, level: int) -> Row:
        key = node_key(node)
        self._by_key[key] = node
        fold = " " if not node.children else "▾" if key in self.unfolded or self.filter else "▸"
        if self._cursor_sign == ">":
            fold = {"▾": "-", "▸": "+"}.get(fold, fold)
        unsaved = " *" if node.kind == "file" and node.file in self.modified else ""
        severity, is_cycle = self.marks_of.get(key, (node.worst, False))
        worst = severity.value if severity else None
        name = node.address if self.filter else f"{'  ' * level}{fold} {node.name}{unsaved}"
        cells = (
            Cell(name, Tone.DIM if node.is_note else _TONES.get(worst or "")),
            Cell(str(node.items), Tone.DIM),
            Cell(_SIGNS.get(worst or "", "") + ("↻" if is_cycle else ""), _TONES.get(worst or "")),
        )
        return Row(key, cells)

    def set_filter(self, text: str) -> filtering.Filter:
        """Search all addresses, folded ones too."""
        was = bool(self.filter)
        parsed = super().set_filter(text)
        if was != bool(parsed):
            self._lay()
        return parsed

    @property
    def node(self) -> TreeNode | None:
        """The node under the cursor."""
        row = self.current
        return self._by_key.get(row.key) if row else None

    def action_unfold(self) -> None:
        """Open the node under the cursor, or go to its first child."""
        node, row = self.node, self.current
        if node is None or row is None or not node.children:
            return
        if row.key in self.unfolded:
            self.go_to(node_key(node.children[0]))
        else:
            self.unfolded.add(row.key)
            self._lay()

    def action_fold(self) -> None:
        """Close the node under the cursor, or go to its parent."""
        node, row = self.node, self.current
        if node is None or row is None:
            return
        if row.key in self.unfolded and node.children:
            self.unfolded.discard(row.key)
            self._lay()
            return
        parent = next((key for key, other in self._by_key.items() if node in other.children), None)
        if parent is not None:
            self.go_to(parent)


def node_key(node: TreeNode) -> str:
    """Return what tells one node from another."""
    return f"{node.root}:{node.file or ''}:{node.address}"
