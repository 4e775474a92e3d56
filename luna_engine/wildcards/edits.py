"""Edits of a library's files: planned as a diff, written only if the file is still what it was."""

from __future__ import annotations

import codecs
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine import paths
from luna_engine.errors import LunaError
from luna_engine.wildcards.model import Branch, Document, ItemList, lists_below
from luna_engine.wildcards.sameness import evened
from luna_engine.wildcards.splices import FileText

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from luna_engine.wildcards.library import WildcardLibrary
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.uses import Use

_MARKS = re.compile(r"[(\[{<]|[)\]}>]|[,;]|\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Edit:
    """A planned change of one file; nothing is written before `apply_edit`.

    ``before`` is None for a file to be made. ``skipped`` names items that are there already. ``uses`` are the
    references that name what was renamed and have to follow.
    """

    path: Path
    file: str
    before: bytes | None
    after: bytes
    skipped: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()

    @property
    def is_change(self) -> bool:
        """Tell whether there is anything to write."""
        return self.before != self.after

    def diff(self) -> str:
        """Return the change as a unified diff."""
        before = (self.before or b"").decode("utf-8", "replace").splitlines(keepends=True)
        after = self.after.decode("utf-8", "replace").splitlines(keepends=True)
        lines = difflib.unified_diff(before, after, self.file, self.file)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ no line end\n" for line in lines)


@dataclass(frozen=True, slots=True)
class _Opened:
    document: Document
    path: Path
    data: bytes
    bom: bytes
    text: FileText

    def edit(self, new: str, skipped: tuple[str, ...] = (), uses: tuple[Use, ...] = ()) -> Edit:
        after = self.bom + new.encode("utf-8", "surrogatepass")
        return Edit(self.path, self.document.path, self.data, after, skipped, uses)


def split_texts(text: str, *, underscores: bool = False) -> tuple[str, ...]:
    """Split pasted text into items at commas, semicolons and line breaks; outer quotes go.

    With ``underscores`` blanks become ``_``. What stands in brackets or braces of any kind is not cut:
    ``(a, b:1.2)`` and ``{a, b|c}`` are one item.
    """
    found: list[str] = []
    depth = 0
    begin = 0
    pieces: list[str] = []
    for mark in _MARKS.finditer(text):
        sign, at = mark[0], mark.start()
        if sign in "([{<":
            depth += 1
        elif sign in ")]}>":
            depth = max(depth - 1, 0)
        elif not depth or sign in {"\r\n", "\r", "\n"}:
            depth = 0
            pieces.append(text[begin:at])
            begin = mark.end()
    pieces.append(text[begin:])
    for piece in pieces:
        item = piece.strip()
        if len(item) > 1 and item[0] == item[-1] and item[0] in "\"'":
            item = item[1:-1].strip()
        if item:
            found.append(item.replace(" ", "_") if underscores else item)
    return tuple(found)


def add_items(
    library: WildcardLibrary, address: str, items: Iterable[str], *, key: str | None = None, flow: bool = False
) -> Edit:
    """Plan adding items to a list.

    Args:
        library: where the address is looked up.
        address: a list (``folder/file:key.key``), or a txt file.
        items: the texts, weights included; those already there are skipped and named.
        key: a new key below the address that takes them, dotted for several levels.
        flow: write a new list in brackets.

    Raises:
        LunaError: ``unknown-ref``, or ``edit-shape`` with the line of the list, branch or text in the way.
    """
    document, keys = _place(library, address, make=True)
    keys += tuple(part for part in (key or "").split(".") if part)
    opened = _open(library, document)
    known = {evened(item.text) for item in _items_at(document, keys)}
    new: list[str] = []
    skipped: list[str] = []
    for item in items:
        if evened(_unweighted(item)) in known:
            skipped.append(item)
        else:
            known.add(evened(_unweighted(item)))
            new.append(item)
    text = opened.text.add_items(keys, new, flow=flow) if new or key is not None else opened.text.text
    return opened.edit(text, tuple(skipped))


def replace_item(library: WildcardLibrary, address: str, index: int, text: str) -> Edit:
    """Plan writing another text, weight included, in place of item ``index`` of a list."""
    opened, keys = _list_at(library, address, {index})
    return opened.edit(opened.text.replace_item(keys, index, text))


def remove_items(library: WildcardLibrary, address: str, indices: Iterable[int]) -> Edit:
    """Plan removing items of a list by their indices."""
    wanted = set(indices)
    opened, keys = _list_at(library, address, wanted)
    return opened.edit(opened.text.remove_items(keys, wanted))


def move_item(library: WildcardLibrary, address: str, index: int, to: int) -> Edit:
    """Plan moving item ``index`` of a list so that it stands at ``to``."""
    opened, keys = _list_at(library, address, {index, to})
    return opened.edit(opened.text.move_item(keys, index, to))


def rename_key(library: WildcardLibrary, address: str, name: str) -> tuple[Edit, ...]:
    """Plan renaming the last key of an address.

    Returns:
        The renaming, whose ``uses`` name every reference to the old key; then one edit for each other file that
        holds such references, and, in the first edit, those of the same file. Uses that name the key by a spelling
        that cannot be followed (an item's own text, a tail that another place would take) stay listed in ``uses``.
    """
    document, keys = _place(library, address, make=False)
    if not keys:
        raise LunaError("edit-shape", f"{address} is a file; rename it on disk", None, file=document.path)
    uses = tuple(use for use in library.where_used(document.address_of(keys)) if use.is_direct)
    opened = _open(library, document)
    renamed = opened.text.rename_key(keys, name)
    per_file: dict[tuple[int, str], list[Use]] = {}
    for use in uses:
        if use.file is not None and use.root is not None:
            per_file.setdefault((use.root, use.file), []).append(use)
    own = per_file.pop((document.root, document.path), [])
    first = opened.edit(_follow(renamed, own, keys, name), uses=uses)
    edits = [first]
    for at, found in per_file.items():
        other = library.snapshot.document(*at)
        if other is None:
            continue
        source = _open(library, other)
        new = _follow(source.text.text, found, keys, name)
        if new != source.text.text:
            edits.append(source.edit(new))
    return tuple(edits)


def _follow(text: str, uses: Sequence[Use], keys: tuple[str, ...], name: str) -> str:
    """Replace the old key in each reference, line by line; what does not stand there as written is left alone."""
    lines = re.split(r"(\r\n|\r|\n)", text)
    for use in uses:
        at = 2 * (use.line - 1)
        new = _renamed(use, keys, name)
        if at < len(lines) and new is not None and lines[at].count(use.reference) == 1:
            lines[at] = lines[at].replace(use.reference, new)
    return "".join(lines)


def _renamed(use: Use, keys: tuple[str, ...], name: str) -> str | None:
    """Return a reference with the last of ``keys`` renamed in it, None if it spells its place otherwise."""
    path = ".".join(keys)
    inside = use.names.partition(":")[2]
    below = inside[len(path) :] if inside.startswith(path) else ""
    behind = re.escape(below).replace(re.escape("."), "[./]")
    pattern = rf"(?:(?<=[/.:\[{{~@!\s])|(?<=__)){re.escape(keys[-1])}(?={behind}[\W_]*\Z)"
    found = re.search(pattern, use.reference)
    return use.reference[: found.start()] + name + use.reference[found.end() :] if found else None


def apply_edit(edit: Edit) -> None:
    """Write a planned edit: temporary file, sync, rename. Refresh the library afterwards.

    Raises:
        LunaError: ``conflict`` if the file changed since the edit was planned; ``unwritable``.
    """
    target = edit.path.resolve()
    try:
        now = target.read_bytes() if target.exists() else None
        if now != edit.before:
            raise LunaError(
                "conflict", f"{edit.file} was changed by another program", "plan the edit again", file=edit.file
            )
        if edit.before is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        with paths.atomic_write(target) as temporary:
            temporary.write_bytes(edit.after)
    except OSError as error:
        raise LunaError(
            "unwritable", f"{edit.file} was not written: {error.strerror or error}", None, file=edit.file
        ) from error


def _unweighted(item: str) -> str:
    from luna_engine.wildcards.weights import read_weight

    return item[read_weight(item)[1] :]


def _place(library: WildcardLibrary, address: str, *, make: bool) -> tuple[Document, tuple[str, ...]]:
    """Return the file and keys of an address; with ``make`` keys that do not exist yet are allowed."""
    found = library.snapshot.index.resolve(address)
    if found is not None and found.target.document is not None and found.target.item is None:
        if found.others:
            raise LunaError(
                "ambiguous-ref", f"{address!r} fits {', '.join(found.others[:8])}", "write the whole address"
            )
        place = found.target.place
        return found.target.document, place.keys if place is not None else ()
    name, colon, path = address.partition(":")
    if make and colon:
        file = library.snapshot.index.resolve_file(name)
        if file is not None and file.target.document is not None:
            return file.target.document, tuple(part for part in path.split(".") if part)
    raise LunaError(
        "unknown-ref", f"nothing in the library has the address {address!r}", "luna wildcards tree lists all"
    )


def _items_at(document: Document, keys: tuple[str, ...]) -> list[Item]:
    place = document.top
    for key in keys:
        place = place.entries.get(key) if isinstance(place, Branch) else None
    return [item for found in lists_below(place, with_templates=True) for item in found.items] if place else []


def _list_at(library: WildcardLibrary, address: str, indices: set[int]) -> tuple[_Opened, tuple[str, ...]]:
    document, keys = _place(library, address, make=False)
    place = document.top
    for key in keys:
        place = place.entries.get(key) if isinstance(place, Branch) else None
    if not isinstance(place, ItemList):
        raise LunaError("edit-shape", f"{address} is a branch, not a list", "name one list", file=document.path)
    if any(not 0 <= at < len(place.items) for at in indices):
        raise LunaError("value-range", f"{address} has {len(place.items)} items", None, file=document.path)
    opened = _open(library, document)
    if opened.text.count_items(keys) != len(place.items):
        raise LunaError("edit-shape", f"{address} holds entries that are no items", "edit it by hand")
    return opened, keys


def _open(library: WildcardLibrary, document: Document) -> _Opened:
    """Read a file to be edited.

    Raises:
        LunaError: it is gone, lies under unsaved text, or is no UTF-8.
    """
    entry = library.snapshot.entries[document.root, document.path]
    if entry.path in library.overlays():
        raise LunaError("conflict", f"{document.path} has unsaved changes in an editor", "save them first")
    try:
        data = entry.path.read_bytes()
    except OSError as error:
        message = f"{document.path} cannot be read: {error.strerror or error}"
        raise LunaError("file-missing", message, None, file=document.path) from error
    bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    try:
        text = data[len(bom) :].decode("utf-8")
    except UnicodeDecodeError as error:
        raise LunaError(
            "encoding",
            f"{document.path} is not UTF-8 (byte {error.start})",
            "save it as UTF-8 first",
            file=document.path,
        ) from error
    return _Opened(document, entry.path, data, bom, FileText(text, document.kind, document.path))
