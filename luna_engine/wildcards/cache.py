"""The parsed cache: what reading a YAML or JSON file gave, kept as JSON under the digest of the file's bytes.

The content is the key, so an entry can never be stale and several processes may write the same one: each writes a
temporary name and renames. An entry that is damaged, or of another engine, is ignored and written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import luna_engine
from luna_engine import paths
from luna_engine.wildcards.diagnostics import Diagnostic, Severity, TextFix
from luna_engine.wildcards.model import Branch, Content, Document, Item, ItemList, Place
from luna_engine.wildcards.rows import Rows
from luna_engine.wildcards.syntax import Weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMAT = 1  # raised whenever an entry, or what reading a file gives, changes
MOST_ENTRIES = 4_000
_LEAST_BYTES = 2_000  # smaller files are read as quickly as an entry
_DIGEST_BYTES = 16
_ONE = Weight()
_log = logging.getLogger(__name__)


class ParsedCache:
    """Entries in a folder; every method works without one that can be written."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or paths.cache_dir() / "wildcards"
        self._stamp = f"{luna_engine.__version__}/{FORMAT}"
        self._is_broken = False
        self._has_written = False

    def read(self, document: Document, data: bytes) -> Content | None:
        """Return what reading these bytes gave before, None if that is not known."""
        if len(data) < _LEAST_BYTES:
            return None
        path = self._path(document, data)
        try:
            written = path.read_bytes()
            digest, _, body = written.partition(b"\n")
            if digest != _digest(body):
                return None
            entry = json.loads(body)
            if entry["stamp"] != self._stamp:
                return None
            return _Thawer(document, data).content(entry)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None  # absent or damaged: the file is read as if there were no cache

    def write(self, document: Document, data: bytes, content: Content) -> None:
        """Keep what reading these bytes gave; rules are not kept, nor a file that could not be read.

        For such a file the reader has to be asked each time: its last good version may stand in for it.
        """
        if len(data) < _LEAST_BYTES or content.rules is not None or content.is_stale or self._is_broken:
            return
        if content.top is None:
            return
        entry = {
            "stamp": self._stamp,
            "top": _frozen(content.top),
            "diagnostics": [{**found.as_dict(), "file": None} for found in content.diagnostics],
        }
        body = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        path = self._path(document, data)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with paths.atomic_write(path, is_synced=False) as temporary:
                temporary.write_bytes(_digest(body) + b"\n" + body)
            self._has_written = True
        except OSError as error:
            self._is_broken = True
            _log.info("the parsed cache cannot be written (%s); files are read each time", error)

    def prune(self) -> None:
        """Remove the oldest half of the entries if there are too many; only who wrote one has to look."""
        if not self._has_written:
            return
        try:
            found = list(self._folder.glob("*.json"))
            if len(found) > MOST_ENTRIES:
                found.sort(key=lambda path: path.stat().st_mtime_ns)
                for path in found[: len(found) // 2]:
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.info("the parsed cache was not pruned: %s", error)

    def _path(self, document: Document, data: bytes) -> Path:
        return self._folder / f"{_digest(data).decode('ascii')}{document.kind.value}.json"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest().encode("ascii")


def _frozen(place: Place) -> Any:
    """Return a place as JSON-safe data: a branch, a list of items, or rows cut out of the file."""
    if isinstance(place, Branch):
        own = _frozen(place.own) if place.own is not None else None
        return ["b", place.line, place.column, own, {key: _frozen(entry) for key, entry in place.entries.items()}]
    if isinstance(place.items, Rows):
        return ["r", place.line, place.column, *place.items.extent()]
    return ["l", place.line, place.column, [_frozen_item(item) for item in place.items]]


def _frozen_item(item: Item) -> list[Any]:
    written: list[Any] = [item.text, item.line, item.column, item.text_column]
    weight = None if item.weight is _ONE or item.weight == _ONE else [item.weight.micro, item.weight.problem]
    rest = [weight, item.item_id, item.tags, item.blacklist, item.whitelist, item.payload, item.extra]
    return [*written, *rest] if any(field is not None and field != () for field in rest) else written


class _Thawer:
    def __init__(self, document: Document, data: bytes) -> None:
        self.document = document
        self.data = data if data.endswith(b"\n") else data + b"\n"
        self.digest: Callable[[], bytes] = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest

    def content(self, entry: dict[str, Any]) -> Content:
        top = self.place(entry["top"], ())
        return Content(top, tuple(self.diagnostic(found) for found in entry["diagnostics"]), digest_of=self.digest)

    def diagnostic(self, found: dict[str, Any]) -> Diagnostic:
        fix = TextFix(**found.pop("fix")) if found["fix"] is not None else found.pop("fix")
        return Diagnostic(**{**found, "severity": Severity(found["severity"]), "file": self.document.path, "fix": fix})

    def place(self, data: list[Any], keys: tuple[str, ...]) -> Place:
        kind, line, column, *rest = data
        if kind == "b":
            branch = Branch(self.document, keys, line, column)
            entries = branch.entries
            for key, entry in rest[1].items():
                entries[key] = self.place(entry, (*keys, key))
            branch.own = self.items(rest[0], keys) if rest[0] is not None else None
            return branch
        if kind == "r":
            made = ItemList(self.document, keys, line, column, ())
            made.items = Rows(made, self.data, *rest)
            return made
        return self.items(data, keys)

    def items(self, data: list[Any], keys: tuple[str, ...]) -> ItemList:
        _, line, column, items = data
        made = ItemList(self.document, keys, line, column)
        for text, item_line, item_column, text_column, *rest in items:
            if not rest:
                made.add(Item(text, item_line, item_column, _ONE, text_column))
                continue
            weight, item_id, tags, blacklist, whitelist, payload, extra = rest
            made.add(
                Item(
                    text,
                    item_line,
                    item_column,
                    Weight(*weight) if weight is not None else _ONE,
                    text_column,
                    item_id,
                    tuple(tags),
                    tuple(blacklist),
                    tuple(whitelist),
                    payload,
                    extra,
                )
            )
        return made
