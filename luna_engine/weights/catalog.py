"""Which sources there are and which converted files belong to them, from headers and provenance. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.weights import provenance
from luna_engine.weights.headers import MODEL_SUFFIXES, read_header
from luna_engine.weights.inspection import Inspection, inspect
from luna_engine.weights.naming import root_id

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


def scan(roots: Iterable[Path], variant_folders: Iterable[Path] = ()) -> Iterator[SourceRow]:
    """Yield the sources below ``roots``, each with its variants from there and from ``variant_folders``.

    Results come as headers are read; a file that cannot be read is a row with its error, never the end.
    """
    roots = tuple(roots)
    index: dict[tuple[str, str], list[tuple[Path, int, Provenance]]] = {}
    plain: list[tuple[Path, Path]] = []
    seen: set[Path] = set()
    for root, path in _files((*roots, *variant_folders)):
        if path in seen:
            continue
        seen.add(path)
        if (known := _provenance(path)) is not None:
            key = (known.stamp.root_id, known.stamp.path)
            index.setdefault(key, []).append((path, path.stat().st_size, known))
        elif root in roots:
            plain.append((root, path))
    for root, path in plain:
        row = _row(root, path, index)
        if row is not None:
            yield row


def _files(folders: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    for folder in folders:
        for at, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(names):
                if Path(name).suffix.lower() in MODEL_SUFFIXES:
                    yield folder, Path(at) / name


def _provenance(path: Path) -> Provenance | None:
    try:
        return provenance.read(read_header(path).metadata)
    except LunaError:
        return None


def _row(root: Path, path: Path, index: dict[tuple[str, str], list[tuple[Path, int, Provenance]]]) -> SourceRow | None:
    try:
        status = path.stat()
    except OSError:  # gone since it was listed
        return None
    inspection, error = None, None
    try:
        inspection = inspect(path)
    except LunaError as problem:
        error = problem.as_dict()
    known = index.get((root_id(root), path.relative_to(root).as_posix()), [])
    variants = tuple(
        Variant(where, made.precision, size, _state(path, inspection, made), made) for where, size, made in known
    )
    return SourceRow(path, root, status.st_size, status.st_mtime, inspection, error, variants)


def _state(path: Path, inspection: Inspection | None, made: Provenance) -> str:
    status = path.stat()
    header = inspection.header if inspection is not None else None
    same = (
        made.stamp.size_bytes == status.st_size
        and made.stamp.mtime_ns == status.st_mtime_ns
        and header is not None
        and made.stamp.header_sha256 == header.sha256
    )
    if not same:
        return "stale"
    return "current" if made.rules == provenance.RULES else "outdated"
