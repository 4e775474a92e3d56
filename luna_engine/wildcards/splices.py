"""Edits of one file's text as splices: what is not named in an edit keeps every byte. Pure; no library, no disk.

The edited text is read again and compared with what was intended; if it differs in anything else, nothing is returned.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.wildcards.located_text import LocatedText, Spot
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.shapes import as_list, changed, shape_of
from luna_engine.wildcards.text_lines import LINE_END, add_lines, line_spans, written_line
from luna_engine.wildcards.tree_events import Mapping, Raw, Scalar, Sequence
from luna_engine.wildcards.written_scalars import written_key, written_scalar

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT_FIELDS = ("value", "text", "prompt")


class FileText(LocatedText):
    """The text of a YAML, JSON or txt file, and the edits it can take. Each edit returns the whole new text."""

    def count_items(self, keys: tuple[str, ...]) -> int:
        """Return the number of entries of a list as it is written."""
        if self.kind is Kind.TXT:
            return len(line_spans(self.text))
        spot = self.find(keys)
        if spot is None or spot.missing:
            return 0
        return len(spot.node.entries) if isinstance(spot.node, Sequence) else 1

    # -- edits

    def add_items(self, keys: tuple[str, ...], items: list[str], *, flow: bool = False) -> str:
        """Add items at the end of a list; keys that do not exist are made.

        Args:
            keys: the path inside the file, empty for a txt file or a top-level list.
            items: texts as they are to stand in a prompt, weights included.
            flow: write a new list in brackets instead of one item a line.
        """
        if self.kind is Kind.TXT:
            return add_lines(self.text, items, self.newline, self.file)
        spot = self.find(keys)

        def intended(shape: Any) -> Any:
            return changed(shape, keys, lambda found: [*as_list(found), *items], make=True)

        if spot is None:
            new = self._fill_empty_file(keys, items, flow=flow)
        elif spot.missing:
            new = self._add_key(spot, items, flow=flow)
        else:
            new = self._extend(spot, items, flow=flow)
        return self._checked(new, intended)

    def replace_item(self, keys: tuple[str, ...], index: int, item: str) -> str:
        """Replace the text of one item, weight included; quotes stay as they were where they can."""
        if self.kind is Kind.TXT:
            start, end = line_spans(self.text)[index]
            return self.text[:start] + written_line(item, self.file) + self.text[end:]
        node, entry = self.entry_at(keys, index)
        fields = {key.value: value for key, value in entry.entries} if isinstance(entry, Mapping) else {}
        name = next((name for name in _TEXT_FIELDS if isinstance(fields.get(name), Scalar)), None)
        target = fields[name] if name is not None else entry
        start, end = _extent(target)
        style = target.style if isinstance(target, Scalar) else ""
        in_flow = isinstance(node, Sequence) and node.is_flow
        written = self._scalar(item, style, flow=in_flow or (name is not None and _is_flow(entry)))
        if style in {"|", ">"}:
            end = start + len(self.text[start:end].rstrip())

        def change(found: Any) -> Any:
            made = as_list(found)
            old = made[index]
            made[index] = item
            if name is not None:
                made[index] = ("map", [(key, item if key == name else value) for key, value in old[1]])
            return made if isinstance(node, Sequence) else made[0]

        new = self.text[:start] + written + self.text[end:]
        return self._checked(new, lambda shape: changed(shape, keys, change))

    def remove_items(self, keys: tuple[str, ...], indices: set[int]) -> str:
        """Remove items, each with its line; comment lines of their own stay."""
        if self.kind is Kind.TXT:
            spans = [self._whole_line(start, end) for start, end in (line_spans(self.text)[at] for at in indices)]
            return _without(self.text, spans)
        node = self.list_at(keys)
        self.check_indices(node, indices)
        entries = [entry for at, entry in enumerate(node.entries) if at not in indices]
        if node.is_flow:
            new = self._flow_of(node, entries)
        else:
            spans = [self._whole_line(*self._chunk(node, node.entries[at])) for at in indices]
            new = _without(self.text, spans)

        def change(found: Any) -> Any:
            return [entry for at, entry in enumerate(as_list(found)) if at not in indices]

        return self._checked(new, lambda shape: changed(shape, keys, change))

    def move_item(self, keys: tuple[str, ...], index: int, to: int) -> str:
        """Move one item so that it stands at ``to``; comment lines of their own stay where they are."""
        if self.kind is Kind.TXT:
            return self._permuted(line_spans(self.text), index, to)
        node = self.list_at(keys)
        self.check_indices(node, {index, to})
        if node.is_flow:
            entries = list(node.entries)
            entries.insert(to, entries.pop(index))
            new = self._flow_of(node, entries)
        else:
            new = self._permuted([self._chunk(node, entry) for entry in node.entries], index, to)

        def change(found: Any) -> Any:
            made = as_list(found)
            made.insert(to, made.pop(index))
            return made

        return self._checked(new, lambda shape: changed(shape, keys, change))

    def rename_key(self, keys: tuple[str, ...], name: str) -> str:
        """Rename the last of ``keys``."""
        spot = self.find(keys) if keys else None
        if spot is None or spot.missing or spot.key is None:
            raise self.error("unknown-ref", f"{self.file} has no key {'.'.join(keys)!r}")
        above = self.find(keys[:-1])
        if (
            above is not None
            and isinstance(above.node, Mapping)
            and any(k.value == name for k, _ in above.node.entries)
        ):
            raise self.refuse(spot.key, f"{name!r} is a key beside it already", "take another name, or move the items")
        written = self._key(name)
        new = self.text[: spot.key.start] + written + self.text[spot.key.end :]

        def change(found: Any) -> Any:
            return ("map", [(name if key == keys[-1] else key, value) for key, value in found[1]])

        return self._checked(new, lambda shape: changed(shape, keys[:-1], change))

    # -- adding

    def _fill_empty_file(self, keys: tuple[str, ...], items: list[str], *, flow: bool) -> str:
        if self.kind is Kind.JSON:
            value: Any = list(items)
            for key in reversed(keys):
                value = {key: value}
            return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        before = self.text if not self.text or self.text.endswith(("\n", "\r")) else self.text + self.newline
        return before + self._block(keys, items, 0, flow=flow)

    def _block(self, keys: tuple[str, ...], items: list[str], column: int, *, flow: bool) -> str:
        """Return the lines of new keys and their list, each ended."""
        lines: list[str] = []
        for depth, key in enumerate(keys):
            lines.append(f"{' ' * (column + 2 * depth)}{self._key(key)}:")
        inner = column + 2 * len(keys)
        if keys and (flow or not items):
            lines[-1] += f" [{', '.join(self._scalar(item, '', flow=True) for item in items)}]"
        else:
            lines += (f"{' ' * inner}- {self._scalar(item, '')}" for item in items)
        return "".join(line + self.newline for line in lines)

    def _add_key(self, spot: Spot, items: list[str], *, flow: bool) -> str:
        node = spot.node
        if isinstance(node, Scalar) and node.is_absent and spot.key is not None:
            return self._below_key(spot.key, self._block(spot.missing, items, spot.key.column + 2, flow=flow))
        if not isinstance(node, Mapping):
            what = "a list" if isinstance(node, Sequence) else "a single text"
            raise self.refuse(node, f"{what} stands where {spot.missing[0]!r} would have to go", "choose another path")
        if node.is_flow:
            written = f"[{', '.join(self._scalar(item, '', flow=True) for item in items)}]"
            for key in reversed(spot.missing[1:]):
                written = f"{{{self._key(key)}: {written}}}"
            return self._into_flow(node, f"{self._key(spot.missing[0])}: {written}")
        column = node.entries[0][0].column
        return self._behind(self._last_leaf(node), self._block(spot.missing, items, column, flow=flow))

    def _extend(self, spot: Spot, items: list[str], *, flow: bool) -> str:
        node = spot.node
        if isinstance(node, Scalar) and node.is_absent and spot.key is not None:
            if flow:
                written = ", ".join(self._scalar(item, "", flow=True) for item in items)
                at = self.text.index(":", spot.key.end) + 1
                return f"{self.text[:at]} [{written}]{self.text[at:]}"
            return self._below_key(spot.key, self._block((), items, spot.key.column + 2, flow=False))
        if not isinstance(node, Sequence):
            what = "a branch" if isinstance(node, Mapping) else "a single text"
            raise self.refuse(node, f"{what} stands where the list would have to be", "name a list, or a new key")
        if not items:
            return self.text
        if node.is_flow:
            return self._into_flow(node, ", ".join(self._scalar(item, "", flow=True) for item in items))
        return self._behind(self._last_leaf(node), self._block((), items, node.column, flow=False))

    def _into_flow(self, node: Sequence | Mapping, written: str) -> str:
        """Put text behind the last entry of a flow collection, on a line of its own where entries have one each."""
        if not node.entries:
            at = node.start + 1
            return self.text[:at] + written + self.text[node.end - 1 :]
        last = node.entries[-1]
        at = _extent(last[1] if isinstance(last, tuple) else last)[1]
        first = node.entries[0]
        begin = first[0].start if isinstance(first, tuple) else first.start
        lead = self.text[node.start + 1 : begin]
        glue = "," + lead if "\n" in lead and "#" not in lead and len(node.entries) > 1 else ", "
        return self.text[:at] + glue + written + self.text[at:]

    def _below_key(self, key: Scalar, block: str) -> str:
        return self._insert_line(self._line_end(key.end), block)

    def _behind(self, leaf: Raw, block: str) -> str:
        start, end = _extent(leaf)
        if isinstance(leaf, Scalar) and leaf.style in {"|", ">"}:
            end = start + len(self.text[start:end].rstrip())
        return self._insert_line(self._line_end(end), block)

    def _insert_line(self, at: int, block: str) -> str:
        """Insert whole lines behind the line that ends at ``at``."""
        end = LINE_END.match(self.text, at)
        if end is None or not end[0]:
            return self.text[:at] + self.newline + block.removesuffix(self.newline) + self.text[at:]
        return self.text[: end.end()] + block + self.text[end.end() :]

    def _line_end(self, at: int) -> int:
        found = LINE_END.search(self.text, at)
        return found.start() if found else len(self.text)

    def _last_leaf(self, node: Raw) -> Raw:
        while not isinstance(node, Scalar) and node.entries and not node.is_flow:
            last = node.entries[-1]
            inner = last[1] if isinstance(last, tuple) else last
            key = last[0] if isinstance(last, tuple) else None
            if isinstance(inner, Scalar) and inner.is_absent and key is not None:
                return key
            if not isinstance(inner, Scalar) and inner.start < node.start:
                raise self.refuse(node, "it ends with an alias", "add the items where they are written")
            node = inner
        return node

    # -- chunks of block lists

    def _chunk(self, node: Sequence, entry: Raw) -> tuple[int, int]:
        """Return the span of a block entry from its dash to the end of its last line."""
        begin = self._line_start(entry.start)
        dash = begin + node.column
        if self.text[dash : dash + 1] != "-" or self.text[begin:dash].strip(" "):
            raise self.refuse(entry, "this item shares its line with something else", "edit it by hand")
        leaf = self._last_leaf(entry)
        start, end = _extent(leaf)
        if isinstance(leaf, Scalar) and leaf.style in {"|", ">"}:
            end = start + len(self.text[start:end].rstrip())
        return dash, self._line_end(end)

    def _line_start(self, at: int) -> int:
        return max(self.text.rfind("\n", 0, at), self.text.rfind("\r", 0, at)) + 1

    def _whole_line(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of whole lines; the last line of a file gives up the line break before it."""
        found = LINE_END.match(self.text, end)
        begin = self._line_start(start)
        if found is not None and found[0]:
            return begin, found.end()
        back = 2 if self.text[max(begin - 2, 0) : begin] == "\r\n" else 1
        return max(begin - back, 0), end

    def _permuted(self, spans: list[tuple[int, int]], index: int, to: int) -> str:
        order = list(range(len(spans)))
        order.insert(to, order.pop(index))
        pieces: list[str] = []
        at = 0
        for (start, end), source in zip(spans, order, strict=True):
            pieces += (self.text[at:start], self.text[slice(*spans[source])])
            at = end
        return "".join(pieces) + self.text[at:]

    def _flow_of(self, node: Sequence, entries: list[Raw]) -> str:
        """Return the text with other entries in a flow list, its first and last blanks kept."""
        if not entries:
            return self.text[: node.start] + "[]" + self.text[node.end :]
        first, last = node.entries[0], node.entries[-1]
        inside = self.text[node.start : node.end]
        if "#" in _without(inside, [(e.start - node.start, _extent(e)[1] - node.start) for e in node.entries]):
            raise self.refuse(node, "comments stand between the items", "edit them by hand")
        gap = ", "
        if len(node.entries) > 1:
            gap = self.text[_extent(first)[1] : node.entries[1].start]
        written = gap.join(self.text[slice(*_extent(entry))] for entry in entries)
        return self.text[: first.start] + written + self.text[_extent(last)[1] :]

    def _key(self, name: str) -> str:
        return written_key(name, self.kind)

    def _scalar(self, text: str, style: str, *, flow: bool = False) -> str:
        return written_scalar(text, style, self.kind, flow=flow)

    # -- checking

    def _checked(self, new: str, intended: Callable[[Any], Any]) -> str:
        """Return the new text if it reads as intended and in nothing else differently.

        Raises:
            LunaError: ``edit-shape`` if it does not.
        """
        before = shape_of(self.root) if self.root is not None else None
        try:
            after = FileText(new, self.kind, self.file).root
        except LunaError as error:
            raise self.error("edit-shape", f"the edit would break the file: {error.message}") from error
        if (shape_of(after) if after is not None else None) != intended(before):
            raise self.error("edit-shape", "the edit would change more than was asked for", "edit it by hand")
        return new


def _extent(node: Raw) -> tuple[int, int]:
    """Return where a node's text begins and ends; block collections end with their last entry."""
    if isinstance(node, Scalar) or node.is_flow or not node.entries:
        return node.start, node.end
    last = node.entries[-1]
    return node.start, _extent(last[1] if isinstance(last, tuple) else last)[1]


def _is_flow(node: Raw) -> bool:
    return not isinstance(node, Scalar) and node.is_flow


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end in sorted(spans):
        pieces.append(text[at : max(start, at)])
        at = max(at, end)
    return "".join(pieces) + text[at:]
