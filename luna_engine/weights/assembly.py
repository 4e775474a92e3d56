"""Puts files, headers and memory together: sources with their variants, and converted files that have no source."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.weights import earlier
from luna_engine.weights.locking import is_alive
from luna_engine.weights.memory import SOURCE
from luna_engine.weights.naming import root_id, root_of
from luna_engine.weights.variants import Variant, VariantState, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from luna_engine.weights.memory import Check, Header, Memory, Use
    from luna_engine.weights.provenance import Provenance
    from luna_engine.weights.summary import Summary
    from luna_engine.weights.walking import ModelFile, Stamp

_UNREADABLE = frozenset({"file-unreadable", "file-missing"})


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source. ``error`` is set, and ``inspection`` None, where the header cannot be read."""

    path: Path
    root: Path
    size_bytes: int
    modified_s: float
    inspection: Summary | None
    error: Mapping[str, Any] | None
    variants: tuple[Variant, ...] = ()

    @property
    def is_read(self) -> bool:
        """Tell whether anybody has looked into the file yet."""
        return self.inspection is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class _Known:
    """What memory says about all files, read once for one assembly."""

    hashes: Mapping[str, tuple[Stamp, str]]
    checks: Mapping[str, tuple[Stamp, Check]]
    uses: Mapping[str, Sequence[Use]]
    pins: frozenset[str]


def assemble(
    files: Sequence[ModelFile], headers: Mapping[str, Header], roots: Sequence[Path], memory: Memory
) -> tuple[tuple[SourceRow, ...], tuple[Variant, ...]]:
    """Return (sources with their variants, converted files without a source among them).

    Args:
        files: all that were found.
        headers: what is known of them, by path; files that are missing here have not been read yet.
        roots: the folders of sources.
        memory: hashes, verdicts, uses and pins.
    """
    known = _Known(memory.hashes(SOURCE), memory.checks(), memory.uses(), memory.pins())
    made, foreign, sources = _sorted(files, headers)
    stems = {(file.path.parent.name.casefold(), file.path.stem.casefold()): file.path for file in sources}
    stems |= {("", file.path.stem.casefold()): file.path for file in reversed(sources)}
    index: dict[tuple[str, str], list[tuple[ModelFile, Provenance]]] = defaultdict(list)
    for file, found in made:
        index[found.stamp.root_id, found.stamp.path].append((file, found))
    names = _Names(roots)
    rows, strays = [], []
    for file in sources:
        header = headers.get(str(file.path))
        mine = [entry for name in names.of(file) for entry in index.pop(name, [])]
        digest = known.hashes.get(str(file.path))
        sha256 = digest[1] if digest is not None and digest[0] == file.stamp else None
        state = (file.stamp, header.summary if header is not None else None)
        variants = tuple(
            _variant(variant, headers, known, found, state_of(found, state, sha256)) for variant, found in mine
        )
        rows.append(_row(file, header, variants))
    reachable = set(names.ids)
    for group in index.values():
        for file, found in group:
            reason = _orphan_reason(found, reachable)
            strays.append(_variant(file, headers, known, found, (VariantState.ORPHANED, reason)))
    strays += [_stray(file, headers, known, stems) for file in foreign]
    return tuple(rows), tuple(sorted(strays, key=lambda variant: variant.path))


def _sorted(
    files: Sequence[ModelFile], headers: Mapping[str, Header]
) -> tuple[list[tuple[ModelFile, Provenance]], list[ModelFile], list[ModelFile]]:
    """Return (files that Luna made, files in their folders that it did not make or that are damaged, sources)."""
    made: list[tuple[ModelFile, Provenance]] = []
    others: list[ModelFile] = []
    for file in files:
        header = headers.get(str(file.path))
        found = header.summary.provenance if header is not None and header.summary is not None else None
        if found is not None:
            made.append((file, found))
        else:
            others.append(file)
    stems = {file.path.stem.casefold() for file in others if file.home is None and not file.is_earlier}
    foreign = [file for file in others if file.home is not None or _is_earlier_variant(file, stems)]
    left = {file.path for file in foreign}
    return made, foreign, [file for file in others if file.path not in left]


def _is_earlier_variant(file: ModelFile, stems: set[str]) -> bool:
    claim = earlier.parse_name(file.path.name)
    return file.is_earlier and claim is not None and claim[0].casefold() in stems


class _Names:
    """How provenance may name a source: a root's id and the path below it, for each root it stands under."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._ids = {root: root_id(root) for root in roots if root.is_dir()}

    @property
    def ids(self) -> list[str]:
        """Return the ids of all folders that are there."""
        return list(self._ids.values())

    def of(self, file: ModelFile) -> list[tuple[str, str]]:
        """Return the names of a file, each once."""
        bases = [root for root in self._ids if file.path.is_relative_to(root)]
        found = root_of(file.path, ())  # where it stood when it was converted without being configured
        if found not in self._ids:
            self._ids[found] = root_id(found)
        return [(self._ids[base], file.path.relative_to(base).as_posix()) for base in dict.fromkeys((*bases, found))]


def _orphan_reason(found: Provenance, reachable: set[str]) -> str:
    if found.stamp.root_id in reachable:
        return f"its source {found.stamp.path} is gone"
    return f"the folder of its source {found.stamp.path} is not among the known ones"


def _row(file: ModelFile, header: Header | None, variants: tuple[Variant, ...]) -> SourceRow:
    return SourceRow(
        file.path,
        file.root,
        file.stamp.size_bytes,
        file.stamp.mtime_ns / 1e9,
        header.summary if header is not None else None,
        header.error if header is not None else None,
        tuple(sorted(variants, key=lambda variant: variant.path)),
    )


def _variant(
    file: ModelFile,
    headers: Mapping[str, Header],
    known: _Known,
    found: Provenance | None,
    state: tuple[VariantState, str],
    suggestion: Path | None = None,
) -> Variant:
    header = headers.get(str(file.path))
    found_summary = header.summary if header is not None else None
    check = known.checks.get(str(file.path))
    verdict = check[1] if check is not None and check[0] == file.stamp else None
    if verdict is not None and verdict.error is not None and found is not None:
        state = VariantState.DAMAGED, f"{verdict.error['code']}: {verdict.error['message']}"
    uses = known.uses.get(os.path.realpath(file.path), ())
    claim = earlier.parse_name(file.path.name)
    return Variant(
        file.path,
        file.stamp.size_bytes,
        file.stamp,
        file.home,
        found.precision if found is not None else claim[1] if claim is not None else "",
        *state,
        found,
        found_summary.dtypes if found_summary is not None else {},
        file.is_link,
        str(file.path) in known.pins,
        tuple(dict.fromkeys(use.holder for use in uses if is_held(use))),
        max((use.at for use in uses), default=None),
        file.stamp.mtime_ns / 1e9,
        verdict,
        suggestion,
    )


def is_held(use: Use) -> bool:
    """Tell whether the process that loaded a file still runs; one of another machine may."""
    return use.host != socket.gethostname() or is_alive(use.pid, use.create_time)


def _stray(
    file: ModelFile, headers: Mapping[str, Header], known: _Known, stems: Mapping[tuple[str, str], Path]
) -> Variant:
    """Return a file in a folder of converted files that says nothing of itself, or cannot be read."""
    header = headers.get(str(file.path))
    claim = earlier.parse_name(file.path.name)
    stem = claim[0].casefold() if claim is not None else ""
    suggestion = stems.get((file.path.parent.name.casefold(), stem)) or stems.get(("", stem))
    if header is not None and header.error is not None:
        words = f"{header.error['code']}: {header.error['message']}"
        kind = VariantState.FOREIGN if header.error["code"] in _UNREADABLE else VariantState.DAMAGED
        return _variant(file, headers, known, None, (kind, words), suggestion)
    reason = "Luna did not make it"
    if header is not None and header.summary is not None:
        reason = earlier.contradiction(file.path.name, header.summary) or reason
    return _variant(file, headers, known, None, (VariantState.FOREIGN, reason), suggestion)
