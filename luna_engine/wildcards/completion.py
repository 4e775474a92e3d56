"""Completions for an editor: names, paths and variables at the cursor. Pure; reads one snapshot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.path_index import path_index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.wildcards.model import Document
    from luna_engine.wildcards.snapshot import Snapshot

MOST_COMPLETIONS = 50
_MOST_BEFORE = 2_000  # how far back an opening mark is looked for
_OPENING = re.compile(r"__[~@!]?(?P<name>[^\s_{}|$(](?:(?!__)[^{}|$(\r\n])*)?\Z")
_BINDING = re.compile(r"\$\{([^\W\d]\w*)\??=")
_ARGUMENT = re.compile(r"[(,]\s*([^\W\d]\w*)\s*=!?")


@dataclass(frozen=True, slots=True)
class Completion:
    """One proposal: ``text`` replaces the characters [start, end) of the text. ``kind`` says what it names.

    ``kind`` is file, folder, path or variable; ``detail`` says what one gets (the file, the number of items).
    """

    text: str
    start: int
    end: int
    kind: str
    detail: str = ""


def complete(snapshot: Snapshot, text: str, cursor: int, document: Document | None = None) -> tuple[Completion, ...]:
    """Return what can stand at the cursor, best first, at most 50.

    Args:
        snapshot: the library.
        text: the text being edited: a template, or the item the cursor is in.
        cursor: an offset in ``text``.
        document: the file the text stands in, whose own paths ``[…]`` and ``{…}`` can name.
    """
    floor = max(0, cursor - _MOST_BEFORE)
    before = text[floor:cursor]
    opening = _open_mark(before)
    if opening is not None:
        sign, at = opening
        typed = before[at:]
        start = floor + at
        if sign == "${":
            return _ranked(((name, "variable", "") for name in _variables(text)), typed, start, cursor, "}", text)
        if sign == "[":
            return _bracket(snapshot, before[: at - 1], typed, start, cursor, text, document)
        if sign == "{":
            return _braces(snapshot, typed, start, cursor, text, document)
    name = _OPENING.search(before)
    if name is not None and before[: name.start()].count("__") % 2 == 0:
        typed = name["name"] or ""
        return _ranked(_addresses(snapshot), typed, cursor - len(typed), cursor, "__", text)
    return ()


def _open_mark(before: str) -> tuple[str, int] | None:
    """Return the nearest mark that is open at the end, and where what is typed behind it begins."""
    depth = {"}": 0, "]": 0}
    for at in range(len(before) - 1, -1, -1):
        sign = before[at]
        if at and before[at - 1] == "\\":
            continue
        if sign in "}]":
            depth[sign] += 1
        elif sign == "[":
            if not depth["]"]:
                return "[", at + 1
            depth["]"] -= 1
        elif sign == "{":
            if not depth["}"]:
                return ("${" if before[at - 1 : at] == "$" else "{"), at + 1
            depth["}"] -= 1
        elif sign in "\r\n":
            return None
    return None


def _braces(
    snapshot: Snapshot, typed: str, start: int, cursor: int, text: str, document: Document | None
) -> tuple[Completion, ...]:
    """Complete ``{file`` or ``{file:path``; behind a bar or an open ``__`` other things stand."""
    if "|" in typed or "$" in typed or "__" in typed:
        name = _OPENING.search(typed)
        if name is None:
            return ()
        part = name["name"] or ""
        return _ranked(_addresses(snapshot), part, cursor - len(part), cursor, "__", text)
    head, colon, path = typed.partition(":")
    if not colon:
        found = list(_files(snapshot))
        if document is not None and document.kind is not Kind.TXT:
            found += ((name, "path", document.path) for name in path_index(document).names())
        return _ranked(found, typed, start, cursor, "}", text)
    named = snapshot.index.resolve_file(head.strip(), document)
    if named is None or path.startswith(" "):
        return ()
    begin = start + len(head) + 1
    if named.target.document is None:
        prefix = f"{named.target.address}/"
        inside = (
            (address.removeprefix(prefix).replace(":", "/").replace(".", "/"), kind, detail)
            for address, kind, detail in _addresses(snapshot)
            if address.startswith(prefix)
        )
        return _ranked(inside, path, begin, cursor, "}", text)
    return _ranked(_paths(named.target.document), path, begin, cursor, "}", text)


def _bracket(
    snapshot: Snapshot, before: str, typed: str, start: int, cursor: int, text: str, document: Document | None
) -> tuple[Completion, ...]:
    """Complete ``[path`` in an inline template's file, else in the file the text stands in."""
    outer = _open_mark(before)
    if outer is not None and outer[0] == "{":
        head, colon, _ = before[outer[1] :].partition(":")
        named = snapshot.index.resolve_file(head.strip(), document) if colon else None
        document = named.target.document if named is not None else document
    if document is None or document.kind is Kind.TXT:
        return ()
    return _ranked(_paths(document), typed, start, cursor, "]", text)


def _variables(text: str) -> list[str]:
    return list(dict.fromkeys([*_BINDING.findall(text), *_ARGUMENT.findall(text)]))


def _paths(document: Document) -> Iterable[tuple[str, str, str]]:
    return ((name, "path", document.path) for name in path_index(document).names())


def _files(snapshot: Snapshot) -> Iterable[tuple[str, str, str]]:
    for document in snapshot.documents:
        yield document.address, "file", document.path
    for folder in dict.fromkeys(snapshot.folders):
        yield folder, "folder", ""


def _addresses(snapshot: Snapshot) -> Iterable[tuple[str, str, str]]:
    """Yield what ``__…__`` can name, written with slashes; a txt file is not read for it."""
    yield from _files(snapshot)
    for document in snapshot.documents:
        if document.kind is Kind.TXT or document.content.is_rules:
            continue
        for name in path_index(document).names():
            yield f"{document.address}/{name.replace('.', '/')}", "path", document.path


def _ranked(
    found: Iterable[tuple[str, str, str]], typed: str, start: int, cursor: int, closing: str, text: str
) -> tuple[Completion, ...]:
    """Return the names that fit what is typed: whole starts first, then starts of a part, then anywhere."""
    wanted = typed.strip().replace("\\", "/").casefold()
    ranks: list[tuple[int, int, str, str, str]] = []
    for name, kind, detail in dict.fromkeys(found):
        folded = name.casefold()
        at = folded.find(wanted)
        if at < 0:
            continue
        rank = 0 if at == 0 else 1 if folded[at - 1] in "/.:" or f"/{wanted}" in folded else 2
        ranks.append((rank, len(name), name, kind, detail))
    ranks.sort()
    close = "" if text.startswith(closing, cursor) else closing
    return tuple(
        Completion(name + close, start, cursor, kind, detail) for _, _, name, kind, detail in ranks[:MOST_COMPLETIONS]
    )
