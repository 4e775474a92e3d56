"""From roots to documents: walks the roots, stamps files, reads those that changed. The only I/O of the engine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.wildcards.build import build
from luna_engine.wildcards.decode import decode
from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.model import Content, Document, ItemList, Kind, walk_places
from luna_engine.wildcards.read_json import read_json
from luna_engine.wildcards.read_txt import read_txt
from luna_engine.wildcards.rows import read_rows
from luna_engine.wildcards.scan import item_without_comments
from luna_engine.wildcards.syntax import Profile
from luna_engine.wildcards.tree_events import RefusedFile, read_yaml

if TYPE_CHECKING:
    from luna_engine.wildcards.cache import ParsedCache

_KINDS = {kind.value: kind for kind in Kind}
_MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Root:
    """A library folder. ``kinds`` limits the suffixes read; ``profile`` is how its items are parsed."""

    path: Path
    kinds: tuple[str, ...] = (".yaml", ".yml", ".json", ".txt")
    profile: Profile = Profile.NATIVE


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a changed file from an unchanged one; size and second alone can hide an edit."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp of a stat result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the library: where it is and how it looked."""

    path: Path
    relative: str
    root: int
    kind: Kind
    stamp: Stamp


@dataclass(slots=True)
class Walk:
    """The files and folders found, and what was left out."""

    entries: list[Entry] = field(default_factory=list)
    folders: list[tuple[int, str]] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)


def check_roots(roots: tuple[Root, ...]) -> None:
    """Refuse roots that are no folder.

    Raises:
        InputFileError: ``file-missing``.
    """
    for root in roots:
        if not root.path.is_dir():
            raise InputFileError(
                "file-missing",
                f"the wildcard folder {root.path} does not exist",
                "give a folder of .yaml, .txt or .json files",
                file=str(root.path),
            )


def walk_roots(roots: tuple[Root, ...], *, follow_outside: bool = False) -> Walk:
    """List the files of all roots in code point order; each real folder once, nothing outside the roots."""
    found = Walk()
    real = [os.path.realpath(root.path) for root in roots]
    for number, root in enumerate(roots):
        seen: set[str] = set()
        _walk_folder(found, number, root, root.path, "", real, seen, follow_outside=follow_outside)
    return found


def _walk_folder(
    found: Walk,
    number: int,
    root: Root,
    folder: Path,
    relative: str,
    real_roots: list[str],
    seen: set[str],
    *,
    follow_outside: bool,
) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in _sorted_entries(folder, relative, found):
        shown = os.fsencode(entry.name).decode("utf-8", "replace")  # names need not be UTF-8; output must be
        name = f"{relative}/{shown}" if relative else shown
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not follow_outside and not _is_inside(entry.path, real_roots):
            found.diagnostics.append(
                Diagnostic(
                    "path-escape",
                    Severity.ERROR,
                    f"the link {name} leaves the library and was left out",
                    "copy what it points to, or make that folder a root of its own",
                    file=name,
                )
            )
            continue
        try:
            if entry.is_dir():
                if not entry.name.startswith("_!"):
                    found.folders.append((number, name))
                    _walk_folder(
                        found, number, root, Path(entry.path), name, real_roots, seen, follow_outside=follow_outside
                    )
                continue
            kind = _KINDS.get(os.path.splitext(entry.name)[1].lower())  # noqa: PTH122 - of a name, not a path
            if kind is None or kind.value not in root.kinds or not entry.is_file():
                continue
            stamp = Stamp.of(entry.stat())
        except OSError as error:
            found.diagnostics.append(_unreadable(name, error))
            continue
        found.entries.append(Entry(Path(entry.path), name, number, kind, stamp))


def _sorted_entries(folder: Path, relative: str, found: Walk) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.diagnostics.append(_unreadable(relative or ".", error))
        return []


def _is_inside(path: str, real_roots: list[str]) -> bool:
    target = os.path.realpath(path)
    return any(target == root or target.startswith(root + os.sep) for root in real_roots)


def _unreadable(file: str, error: OSError) -> Diagnostic:
    return Diagnostic(
        "unreadable", Severity.ERROR, f"{file} cannot be read: {error.strerror or error}", None, file=file
    )


def open_document(
    entry: Entry,
    last_good: Content | None,
    overlay: str | None,
    cache: ParsedCache | None = None,
    profile: Profile = Profile.NATIVE,
) -> Document:
    """Return the document of a file: YAML and JSON read now, txt at first use.

    Args:
        entry: the file.
        last_good: what the file held when it last parsed; it stays, with the new problem, if the file is broken.
        overlay: an editor's unsaved text that lies over the file.
        cache: where parsed files are kept, None to read the file in any case.
        profile: that of the file's root.
    """

    def read(document: Document) -> Content:
        try:
            data = overlay.encode("utf-8", "surrogatepass") if overlay is not None else _read_bytes(entry)
        except OSError as error:
            return Content(last_good.top if last_good else None, (_unreadable(entry.relative, error),))
        if document.kind is Kind.TXT:
            return read_txt(document, data, can_weigh=profile is not Profile.DYNAMICPROMPTS)
        kept = None if overlay is not None else cache
        known = kept.read(document, data) if kept is not None else None
        if known is None:
            known = read_content(document, data, last_good)
            if kept is not None:
                kept.write(document, data, known)
        if profile is Profile.DYNAMICPROMPTS:
            _drop_comments(known)
        return known

    # Characters of the suffix may be upper case on disk; the address is cut by length.
    document = Document(entry.relative, entry.root, entry.kind, read)
    if entry.kind is not Kind.TXT:
        _ = document.content
    return document


def _drop_comments(content: Content) -> None:
    """Take dynamicprompts' comments out of the items of a file that was just read."""
    for place in walk_places(content.top):
        if isinstance(place, ItemList):
            for item in place.items:
                text = item_without_comments(item.text)
                if not item.text.startswith(text):
                    item.text_column = None  # something before the end went: places inside are not exact any more
                item.text = text


def _read_bytes(entry: Entry) -> bytes:
    if entry.stamp.size_bytes > _MOST_BYTES:
        raise OSError(27, f"the file has {entry.stamp.size_bytes} bytes, the limit is {_MOST_BYTES}")
    return entry.path.read_bytes()


def read_content(document: Document, data: bytes, last_good: Content | None) -> Content:
    """Read the bytes of a YAML or JSON file; one whose parser stops gives its last good version, or nothing."""
    digest = hashlib.blake2b(data, digest_size=16).digest
    top = read_rows(document, data) if document.kind is not Kind.JSON else None
    if top is not None:
        return Content(top, digest_of=digest)
    decoded = decode(data, document.path)
    read = read_json if document.kind is Kind.JSON else read_yaml
    try:
        raw = read(decoded.text, document.path)
        raw.diagnostics = [*decoded.diagnostics, *raw.diagnostics]
        return dataclasses.replace(build(document, raw, decoded.text), digest_of=digest)
    except RefusedFile as refused:
        problems = (*decoded.diagnostics, refused.diagnostic)
        if last_good is None:
            return Content(None, problems, digest_of=digest)
        return Content(last_good.top, problems, last_good.rules, digest, is_stale=True)
