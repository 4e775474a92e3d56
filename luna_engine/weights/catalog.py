"""Which sources there are and which converted files belong to them, from headers and provenance. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.weights import provenance
from luna_engine.weights.headers import MODEL_SUFFIXES
from luna_engine.weights.inspection import Inspection, inspect
from luna_engine.weights.naming import root_id, root_of
from luna_engine.weights.shards import is_follower

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from luna_engine.weights.provenance import Provenance


@dataclass(frozen=True, slots=True)
class Variant:
    """A file that Luna made.

    ``state`` is current, stale (the source's size, time or header differ) or outdated (made by older rules).
    """

    path: Path
    precision: str
    size_bytes: int
    state: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source. ``error`` is set, and ``inspection`` None, where the header cannot be read."""

    path: Path
    root: Path
    size_bytes: int
    modified_s: float
    inspection: Inspection | None
    error: dict[str, Any] | None
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    inspection: Inspection | None
    error: dict[str, Any] | None
    provenance: Provenance | None


class HeaderReader:
    """Reads headers, each once as long as the file's size and time stay. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], _Seen]] = {}

    def look(self, path: Path, status: os.stat_result) -> _Seen:
        """Return what a file's header says, or the error it met."""
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = (stamp, self._read(path))
        return known[1]

    @staticmethod
    def _read(path: Path) -> _Seen:
        try:
            found = inspect(path)
        except LunaError as error:
            return _Seen(None, error.as_dict(), None)
        return _Seen(found, None, provenance.read(found.metadata))


def scan(
    roots: Iterable[Path], variant_folders: Iterable[Path] = (), reader: HeaderReader | None = None
) -> Iterator[SourceRow]:
    """Yield the sources below ``roots``, each with its variants from there and from ``variant_folders``.

    A file that cannot be read is a row with its error, never the end.

    Args:
        roots: folders of sources, or single files.
        variant_folders: folders that hold converted files only.
        reader: keep one over several scans and unchanged headers are not read again.
    """
    roots = tuple(roots)
    reader = reader or HeaderReader()
    index: dict[tuple[str, str], list[tuple[Path, int, Provenance]]] = {}
    plain: list[tuple[Path, Path, os.stat_result, _Seen]] = []
    for root, path in _files((*roots, *variant_folders)):
        try:
            status = path.stat()
        except OSError:  # gone since it was listed, or a dangling link
            continue
        seen = reader.look(path, status)
        if seen.provenance is not None:
            stamp = seen.provenance.stamp
            index.setdefault((stamp.root_id, stamp.path), []).append((path, status.st_size, seen.provenance))
        elif root in roots:
            plain.append((root, path, status, seen))
    for root, path, status, seen in plain:
        base = root if root.is_dir() else root_of(root, ())
        known = index.get((root_id(base), path.relative_to(base).as_posix()), [])
        variants = tuple(Variant(where, made.precision, size, _state(seen, made), made) for where, size, made in known)
        size = seen.inspection.size_bytes if seen.inspection is not None else status.st_size
        yield SourceRow(path, root, size, status.st_mtime, seen.inspection, seen.error, variants)


def _files(folders: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield (folder, file) of every model file, each file once; a folder may be a file itself."""
    told: set[Path] = set()
    for folder in folders:
        for path in _walk(folder):
            if path not in told:
                told.add(path)
                yield folder, path


def _walk(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for at, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(at) / name
            if path.suffix.lower() in MODEL_SUFFIXES and not is_follower(path):
                yield path


def _state(seen: _Seen, made: Provenance) -> str:
    header = seen.inspection.header if seen.inspection is not None else None
    if header is None or not all(file.exists() for file in header.files):
        return "stale"
    same = (made.stamp.size_bytes, made.stamp.mtime_ns) == provenance.state_of(
        header.files
    ) and made.stamp.header_sha256 == header.sha256
    if not same:
        return "stale"
    return "current" if made.rules == provenance.RULES else "outdated"
