"""Looks at contents where names and times do not decide: is a source still the same, is a converted file still ours.

Hashes take as long as the disk needs to give the file; each is remembered under the file's stamp and computed once.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights import content
from luna_engine.weights.memory import DATA, SOURCE, WHOLE
from luna_engine.weights.shards import shard_set
from luna_engine.weights.variants import VariantState
from luna_engine.weights.walking import stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from luna_engine.weights.assembly import SourceRow
    from luna_engine.weights.catalog import Catalog
    from luna_engine.weights.memory import Memory


def source_content(path: Path, memory: Memory, tell: Callable[[int], None] | None = None) -> str:
    """Return the hash of a source's diffusion tensors, from memory if the file is as it was.

    Raises:
        InputFileError: the file cannot be read.
    """
    return _content(path, SOURCE, content.source_hash, memory, tell)


def data_content(path: Path, memory: Memory, tell: Callable[[int], None] | None = None) -> str:
    """Return the hash of a converted file's tensors, from memory if the file is as it was.

    Raises:
        InputFileError: the file cannot be read.
    """
    return _content(path, DATA, content.data_hash, memory, tell)


def _content(
    path: Path,
    what: str,
    compute: Callable[[Path, Callable[[int], None] | None], str],
    memory: Memory,
    tell: Callable[[int], None] | None,
) -> str:
    before = stamp_of(path)
    known = memory.hash_of(path, what, before)
    if known is not None:
        return known
    digest = compute(path, tell)
    if stamp_of(path) == before:  # else it was written to while it was read: the hash is of no state
        memory.keep_hash(path, what, before, digest)
    return digest


def doubtful(sources: Iterable[SourceRow]) -> list[SourceRow]:
    """Return the sources whose content decides whether a variant is stale."""
    return [row for row in sources if any(variant.state is VariantState.UNSURE for variant in row.variants)]


def settle(catalog: Catalog, sources: Iterable[SourceRow], tell: Callable[[int], None] | None = None) -> None:
    """Compute the hashes that decide whether variants in state ``unsure`` are stale.

    A source that cannot be read leaves its variants as they are.
    """
    for row in doubtful(sources):
        with contextlib.suppress(InputFileError):  # its row says so already, or will
            source_content(row.path, catalog.memory, tell)


def alike(sources: Iterable[SourceRow]) -> list[list[SourceRow]]:
    """Return groups of sources of one size and header: what may be duplicates."""
    groups: dict[tuple[int, str], list[SourceRow]] = {}
    for row in sources:
        if row.inspection is not None and row.inspection.header_sha256:
            groups.setdefault((row.size_bytes, row.inspection.header_sha256), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _file_hash(path: Path, tell: Callable[[int], None] | None) -> str:
    found = shard_set(path)
    return content.file_hash((path,) if found is None else found.files, tell)


def duplicates(
    sources: Iterable[SourceRow], memory: Memory, tell: Callable[[int], None] | None = None
) -> list[tuple[SourceRow, ...]]:
    """Return groups of sources with the same content, the largest files first.

    Only files of the same size and header are read; several names of one file are no duplicates.

    Raises:
        InputFileError: a file cannot be read.
    """
    found: list[tuple[SourceRow, ...]] = []
    for group in alike(sources):
        same: dict[str, dict[tuple[int, int], SourceRow]] = {}
        for row in group:
            status = row.path.stat()
            digest = _content(row.path, WHOLE, _file_hash, memory, tell)
            same.setdefault(digest, {}).setdefault((status.st_dev, status.st_ino), row)
        found += [tuple(rows.values()) for rows in same.values() if len(rows) > 1]
    return sorted(found, key=lambda rows: -rows[0].size_bytes)
