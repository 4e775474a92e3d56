"""Plain nodes of a YAML or JSON file to branches, lists and items (WILDCARDS 3.1)."""

from __future__ import annotations

import re
from typing import Any

from luna_engine.wildcards.diagnostics import Diagnostic, Severity, TextFix
from luna_engine.wildcards.model import Branch, Content, Document, Item, ItemList, Kind, Place
from luna_engine.wildcards.parser import MOST_CHARACTERS
from luna_engine.wildcards.rules.reading import kind_of, read_rules
from luna_engine.wildcards.syntax import Weight
from luna_engine.wildcards.tree_events import MOST_DEPTH, Mapping, Raw, RawFile, RefusedFile, Scalar, Sequence
from luna_engine.wildcards.weights import make_weight, read_weight

MOST_NODES = 1_000_000
_TEXT_FIELDS = ("value", "text", "prompt")
_ITEM_FIELDS = frozenset({*_TEXT_FIELDS, "weight", "tags", "id", "blacklist", "whitelist", "payload"})
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")


def build(document: Document, raw: RawFile, text: str) -> Content:
    """Return a file's content; of a rule file its rules too.

    Raises:
        RefusedFile: aliases or nesting beyond the limits.
    """
    builder = _Builder(document, text, raw.diagnostics)
    top: Place | None = None
    for node in raw.documents:
        place = builder.place(node, (), 0)
        top = place if top is None else builder.join(top, place)
    kind = kind_of(document.stem, raw.documents)
    if kind is None:
        return Content(top, tuple(builder.diagnostics))
    # Read as lists, the maps of a rule file would be reported for joining; as rules they do not join.
    rules, problems = read_rules(kind, raw.documents, document.path)
    return Content(top, (*raw.diagnostics, *problems), rules)


class _Builder:
    def __init__(self, document: Document, text: str, diagnostics: list[Diagnostic]) -> None:
        self.document = document
        self.text = text
        self.diagnostics = list(diagnostics)
        self.count = 0

    def report(
        self,
        code: str,
        message: str,
        hint: str | None,
        node: Raw,
        severity: Severity = Severity.ERROR,
        fix: TextFix | None = None,
    ) -> None:
        if len(self.diagnostics) < 1000:
            line, column = node.line + 1, node.column + 1
            self.diagnostics.append(
                Diagnostic(code, severity, message, hint, self.document.path, line, column, fix=fix)
            )

    def enter(self, node: Raw, depth: int) -> None:
        """Count a node reached, through aliases too, before memory is spent on it."""
        self.count += 1
        if self.count > MOST_NODES or depth > MOST_DEPTH:
            what = f"more than {MOST_NODES} nodes are reached" if depth <= MOST_DEPTH else "nested too deep"
            raise RefusedFile(
                Diagnostic(
                    "limit",
                    Severity.ERROR,
                    f"{what} through aliases; the file was left out",
                    "write the lists out, or refer to them with {file:path}",
                    self.document.path,
                    node.line + 1,
                    node.column + 1,
                )
            )

    def place(self, node: Raw, keys: tuple[str, ...], depth: int) -> Place:
        self.enter(node, depth)
        if isinstance(node, Mapping):
            written = self.valueless(node)
            if written is None:
                return self.branch(node, keys, depth)
            return self.single(written, keys)
        if isinstance(node, Scalar):
            return self.single(node, keys)
        return self.sequence(node, keys, depth)

    def single(self, node: Scalar, keys: tuple[str, ...]) -> ItemList:
        made = ItemList(self.document, keys, node.line + 1, node.column + 1)
        if not node.is_absent:
            self.add_scalar(made, node)
        return made

    def sequence(self, node: Sequence, keys: tuple[str, ...], depth: int) -> Place:
        made = ItemList(self.document, keys, node.line + 1, node.column + 1)
        branch: Branch | None = None
        for entry in node.entries:
            found = self.entry(made, entry, depth + 1)
            if found is not None:
                if branch is None:
                    branch = Branch(self.document, keys, node.line + 1, node.column + 1)
                self.fill(branch, found, depth + 1)
        if branch is None:
            return made
        if made.items:
            branch.own = made
        return branch

    def entry(self, made: ItemList, node: Raw, depth: int) -> Mapping | None:
        """Add one entry of a sequence to its list; a map that is no item is given back as a branch."""
        self.enter(node, depth)
        if isinstance(node, Scalar):
            if node.is_absent:
                self.report("empty-item", "a bare - is no item", 'write "" for an empty text', node, Severity.HINT)
            else:
                self.add_scalar(made, node)
            return None
        if isinstance(node, Sequence):
            for inner in node.entries:
                found = self.entry(made, inner, depth + 1)
                if found is not None:
                    self.report("yaml-syntax", "a map in a list in a list has no address", None, found)
            return None
        written = self.valueless(node) or self.one_pair(node)
        if written is not None:
            self.add_scalar(made, written)
            return None
        fields = {key.value: value for key, value in node.entries}
        name = next((name for name in _TEXT_FIELDS if isinstance(fields.get(name), Scalar)), None)
        if name is None:
            return node
        made.add(self.item_map(node, fields, name))
        return None

    def valueless(self, node: Mapping) -> Scalar | None:
        """Return the text of ``{red|blue}`` written without quotes, which YAML reads as a map without values."""
        if not node.is_flow or not node.entries or self.document.kind is Kind.JSON:
            return None
        if not all(isinstance(value, Scalar) and value.is_absent for _, value in node.entries):
            return None
        written = self.text[node.start : node.end]
        self.report(
            "unquoted-braces",
            f"{written[:40]} without quotes is a map to YAML; it was read as text",
            "put the item in quotes",
            node,
            Severity.HINT,
            _quoting(node, written),
        )
        return Scalar(written, node.line, node.column, node.line, node.start, node.end)

    def one_pair(self, node: Mapping) -> Scalar | None:
        """Return the text of ``- foggy: very``."""
        if len(node.entries) != 1 or self.document.kind is Kind.JSON:
            return None
        key, value = node.entries[0]
        if key.value in _TEXT_FIELDS or not isinstance(value, Scalar) or value.is_absent:
            return None
        start, end = (node.start, node.end) if node.is_flow else (key.start, value.end)
        written = self.text[start:end].rstrip()
        self.report(
            "unquoted-colon",
            f"{written[:40]!r} is a map to YAML; it was read as text",
            "put the item in quotes",
            node,
            Severity.HINT,
            _quoting(node, written),
        )
        return Scalar(written, node.line, node.column, value.end_line, start, end)

    def branch(self, node: Mapping, keys: tuple[str, ...], depth: int) -> Branch:
        made = Branch(self.document, keys, node.line + 1, node.column + 1)
        self.fill(made, node, depth)
        return made

    def fill(self, made: Branch, node: Mapping, depth: int) -> None:
        lines: dict[str, int] = {}
        merged: list[Mapping] = []
        for key, value in node.entries:
            if key.value == "<<" and not key.style and self.document.kind is not Kind.JSON:
                merged += self.merge_sources(value)
                continue
            place = self.place(value, (*made.keys, key.value), depth + 1)
            place.line, place.column = key.line + 1, key.column + 1
            if key.value in made.entries:
                first = lines.get(key.value, made.entries[key.value].line)
                self.report(
                    "duplicate-key",
                    f"{key.value}: is already the key of line {first}",
                    "rename one of the two",
                    key,
                    Severity.WARNING,
                )
                place = self.join_equal(made.entries[key.value], place)
            lines.setdefault(key.value, key.line + 1)
            made.entries[key.value] = place
        for source in merged:
            self.enter(source, depth + 1)
            known = set(made.entries)
            kept = [(key, value) for key, value in source.entries if key.value not in known]
            part = Mapping(source.line, source.column, source.start, source.is_flow, kept, source.end)
            self.fill(made, part, depth + 1)

    def merge_sources(self, value: Raw) -> list[Mapping]:
        sources = value.entries if isinstance(value, Sequence) else [value]
        found = [source for source in sources if isinstance(source, Mapping)]
        if len(found) != len(sources):
            self.report("yaml-syntax", "<< needs a map or a list of maps", None, value)
        return found

    def join_equal(self, first: Place, second: Place) -> Place:
        """Join the values of two equal keys: lists join, branches merge, otherwise the later one stands."""
        if isinstance(first, ItemList) and isinstance(second, ItemList):
            for item in second.items:
                first.add(item)
            return first
        if isinstance(first, Branch) and isinstance(second, Branch):
            for key, entry in second.entries.items():
                known = first.entries.get(key)
                first.entries[key] = entry if known is None else self.join_equal(known, entry)
            return first
        return second

    def join(self, first: Place, second: Place) -> Place:
        """Join the documents of one file."""
        if isinstance(first, Branch) != isinstance(second, Branch):
            branch, items = (first, second) if isinstance(first, Branch) else (second, first)
            if isinstance(branch, Branch) and isinstance(items, ItemList):
                branch.own = items if branch.own is None else branch.own
            return branch
        return self.join_equal(first, second)

    def add_scalar(self, made: ItemList, node: Scalar) -> None:
        text = node.value
        if len(text) > MOST_CHARACTERS:
            self.report("limit", f"an item of {len(text)} characters was left out", None, node)
            return
        weight, start = read_weight(text) if "::" in text else (None, 0)
        if weight is not None and weight.problem:
            self.report("bad-weight", weight.problem, "write a positive number", node, Severity.WARNING)
        exact = self.exact_column(node)
        made.add(
            Item(
                text[start:] if start else text,
                node.line + 1,
                node.column + 1,
                weight or _ONE,
                None if exact is None else exact + start,
            )
        )

    def exact_column(self, node: Scalar) -> int | None:
        """Return the 1-based column of the text's first character, if each character stands in the file as it is."""
        if node.line != node.end_line or node.style in {"|", ">"}:
            return None
        if not node.style:
            return node.column + 1
        inside = self.text[node.start + 1 : node.end - 1]
        return node.column + 2 if inside == node.value else None

    def item_map(self, node: Mapping, fields: dict[str, Raw], name: str) -> Item:
        scalar = fields[name]
        text = scalar.value if isinstance(scalar, Scalar) else ""
        column = self.exact_column(scalar) if isinstance(scalar, Scalar) and scalar.line == node.line else None
        extra = {key: plain(value) for key, value in fields.items() if key not in _ITEM_FIELDS}
        item_id = fields.get("id")
        return Item(
            text,
            node.line + 1,
            node.column + 1,
            self.weight_field(fields.get("weight")),
            column,
            item_id.value if isinstance(item_id, Scalar) else None,
            _texts(fields.get("tags")),
            _texts(fields.get("blacklist")),
            _texts(fields.get("whitelist")),
            plain(fields["payload"]) if "payload" in fields else None,
            extra or None,
        )

    def weight_field(self, node: Raw | None) -> Weight:
        if node is None:
            return _ONE
        if not isinstance(node, Scalar) or not _NUMBER.fullmatch(node.value):
            self.report("bad-weight", "this weight is no number and counts 1", None, node, Severity.WARNING)
            return _ONE
        weight = make_weight(node.value)
        if weight.problem:
            self.report("bad-weight", weight.problem, "write a positive number", node, Severity.WARNING)
        return weight


_ONE = Weight()


def _quoting(node: Raw, written: str) -> TextFix | None:
    """Return the fix that puts an item of one line in quotes."""
    if "\n" in written or "\r" in written:
        return None
    column = node.column + 1
    return TextFix(node.line + 1, column, column + len(written), "'" + written.replace("'", "''") + "'")


def _texts(node: Raw | None) -> tuple[str, ...]:
    if isinstance(node, Scalar):
        return tuple(part.strip() for part in node.value.split(",") if part.strip())
    if isinstance(node, Sequence):
        return tuple(entry.value for entry in node.entries if isinstance(entry, Scalar))
    return ()


def plain(node: Raw) -> Any:
    """Return a node as texts, lists and dicts."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(entry) for entry in node.entries]
    return {key.value: plain(value) for key, value in node.entries}
