"""One file's text and its places: which characters a list, an item or a key takes up. Nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass

from luna_engine.errors import LunaError
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.read_json import read_json
from luna_engine.wildcards.text_lines import LINE_END
from luna_engine.wildcards.tree_events import Mapping, Raw, RefusedFile, Scalar, Sequence, read_yaml


@dataclass(slots=True)
class Spot:
    """A node, and the map entries that lead to it. ``missing`` are the keys nothing has yet."""

    node: Raw
    key: Scalar | None
    missing: tuple[str, ...] = ()


class LocatedText:
    """The text of a YAML, JSON or txt file, read so that every place in it can be found by its keys."""

    def __init__(self, text: str, kind: Kind, file: str) -> None:
        self.text = text
        self.kind = kind
        self.file = file
        first = LINE_END.search(text)
        self.newline = first[0] if first and first[0] else "\n"
        self.root = self._read(text)

    def _read(self, text: str) -> Raw | None:
        if self.kind is Kind.TXT:
            return None
        read = read_json if self.kind is Kind.JSON else read_yaml
        try:
            documents = read(text, self.file).documents
        except RefusedFile as refused:
            found = refused.diagnostic
            raise self.error(found.code, found.message, "mend the file first", found.line, found.column) from refused
        if len(documents) > 1:
            raise self.error("edit-shape", "a file of several documents cannot be edited", "split it into files")
        return documents[0] if documents else None

    def error(
        self, code: str, message: str, hint: str | None = None, line: int | None = None, column: int | None = None
    ) -> LunaError:
        """Return the error that tells why an edit is refused."""
        return LunaError(code, message, hint, file=self.file, line=line, column=column)

    def refuse(self, node: Raw, message: str, hint: str | None = None) -> LunaError:
        """Return the error about a place that does not allow an edit."""
        return self.error("edit-shape", message, hint, node.line + 1, node.column + 1)

    def find(self, keys: tuple[str, ...]) -> Spot | None:
        """Follow keys as far as they exist; None in a file that holds nothing."""
        if self.root is None:
            return None
        spot = Spot(self.root, None)
        for depth, wanted in enumerate(keys):
            if not isinstance(spot.node, Mapping):
                return Spot(spot.node, spot.key, keys[depth:])
            found = [(key, value) for key, value in spot.node.entries if key.value == wanted]
            if len(found) > 1:
                message = f"{wanted}: stands twice, first at line {found[0][0].line + 1}"
                raise self.refuse(found[1][0], message, "rename one of the two first")
            if not found:
                return Spot(spot.node, spot.key, keys[depth:])
            key, value = found[0]
            if not isinstance(value, Scalar) and value.start < key.start:
                raise self.refuse(key, f"{wanted}: is an alias of line {value.line + 1}", "edit it there")
            spot = Spot(value, key)
        return spot

    def list_at(self, keys: tuple[str, ...]) -> Sequence:
        """Return the list at a path."""
        spot = self.find(keys)
        if spot is None or spot.missing:
            raise self.error("unknown-ref", f"{self.file} has no {'.'.join(keys)!r}")
        if not isinstance(spot.node, Sequence):
            raise self.refuse(spot.node, f"{'.'.join(keys) or self.file} is no list")
        for entry in spot.node.entries:
            if isinstance(entry, Sequence):
                raise self.refuse(entry, "a list in a list cannot be edited", "write its items into the outer list")
        return spot.node

    def entry_at(self, keys: tuple[str, ...], index: int) -> tuple[Raw, Raw]:
        """Return a list and one of its entries; of a single text that text, twice."""
        spot = self.find(keys)
        if spot is not None and not spot.missing and isinstance(spot.node, Scalar) and index == 0:
            return spot.node, spot.node
        node = self.list_at(keys)
        self.check_indices(node, {index})
        return node, node.entries[index]

    def check_indices(self, node: Sequence, indices: set[int]) -> None:
        """Refuse indices that a list does not have, and lists that hold aliases."""
        if any(not 0 <= at < len(node.entries) for at in indices):
            raise self.refuse(node, f"the list has {len(node.entries)} items")
        starts = [entry.start for entry in node.entries]
        if starts != sorted(starts) or (starts and starts[0] < node.start):
            raise self.refuse(node, "the list holds aliases", "edit the items where they are written")
