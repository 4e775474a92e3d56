"""Which sources there are and which converted files belong to them, from headers and provenance. Torch-free.

Headers are read once and remembered in `luna.db`; a list of known files opens none of them.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.weights.assembly import SourceRow, assemble
from luna_engine.weights.header_pool import read_headers
from luna_engine.weights.memory import Memory
from luna_engine.weights.walking import ModelFile, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from luna_engine.errors import LunaError
    from luna_engine.weights.memory import Header
    from luna_engine.weights.variants import Variant
    from luna_engine.weights.walking import Stamp

__all__ = ["Catalog", "Listing", "SourceRow", "scan"]

_KEEP_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Listing:
    """What a catalogue knows at one moment.

    Attributes:
        roots: the folders that were looked at.
        sources: each with its variants; one whose header nobody has read yet has neither inspection nor error.
        strays: converted files without a source here: orphaned, damaged and foreign ones.
        notices: what is wrong with folders or with `luna.db`.
        unread: how many headers are still to be read.
    """

    roots: tuple[Path, ...] = ()
    sources: tuple[SourceRow, ...] = ()
    strays: tuple[Variant, ...] = ()
    notices: tuple[LunaError, ...] = ()
    unread: int = 0

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Return all converted files."""
        return (*(variant for row in self.sources for variant in row.variants), *self.strays)


@dataclass(slots=True)
class _Seen:
    """The newest walk and what is known of its files."""

    files: tuple[ModelFile, ...] = ()
    notices: tuple[LunaError, ...] = ()
    headers: dict[str, Header] = field(default_factory=dict)


class Catalog:
    """Sources and variants below some folders. Thread-safe; to be closed.

    Args:
        roots: folders of sources, or single files.
        homes: folders that hold converted files only.
        memory: the tables of `luna.db`; closed with the catalogue.
    """

    def __init__(self, roots: Iterable[Path], homes: Iterable[Path], memory: Memory) -> None:
        self.roots = tuple(root.absolute() for root in roots)
        self.homes = tuple(dict.fromkeys(home.absolute() for home in homes))
        self.memory = memory
        self._seen = _Seen()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, roots: Iterable[Path], homes: Iterable[Path] = (), *, memory: Memory | None = None) -> Catalog:
        """Open the catalogue of folders; nothing is read before `refresh`.

        Args:
            roots: folders of sources, or single files.
            homes: folders that hold converted files only, the optimised root among them.
            memory: None opens the user's `luna.db`.
        """
        return cls(roots, homes, memory or Memory.open())

    def look_at(self, roots: Iterable[Path], homes: Iterable[Path]) -> None:
        """Take other folders from the next `refresh` on."""
        with self._lock:
            self.roots = tuple(root.absolute() for root in roots)
            self.homes = tuple(home.absolute() for home in homes)

    def close(self) -> None:
        """Let go of the database."""
        self.memory.close()

    def refresh(self) -> Iterator[int]:
        """Walk the folders, then read what is new, yielding how many headers are still unread.

        What was known before is there at the first yield, and again whenever `listing` is asked meanwhile.
        """
        files, notices = walk(self.roots, self.homes)
        known = self.memory.headers()
        fresh = {str(file.path): known[str(file.path)][1] for file in files if _is_known(file, known)}
        with self._lock:
            self._seen = seen = _Seen(tuple(files), tuple(notices), fresh)
        missing = {file.path: file.stamp for file in files if str(file.path) not in fresh}
        gone = [path for path in known if self._is_below(path) and path not in {str(file.path) for file in files}]
        yield len(missing)
        yield from self._read(seen, missing, gone)

    def _read(self, seen: _Seen, missing: dict[Path, Stamp], gone: list[str]) -> Iterator[int]:
        read: dict[str, tuple[Stamp, Header]] = {}
        kept_at = time.monotonic()
        left = len(missing)
        try:
            for path, header in read_headers(list(missing)):
                left -= 1
                with self._lock:
                    seen.headers[str(path)] = header
                if header.error is None or header.error["code"] != "file-unreadable":  # that may pass
                    read[str(path)] = (missing[path], header)
                if time.monotonic() - kept_at > _KEEP_EVERY_S:  # so that a scan that is cut short is not lost
                    self.memory.keep_headers(read)
                    read, kept_at = {}, time.monotonic()
                yield left
        finally:
            self.memory.keep_headers(read, gone)

    def _is_below(self, path: str) -> bool:
        return any(Path(path).is_relative_to(top) and top.exists() for top in (*self.roots, *self.homes))

    def listing(self) -> Listing:
        """Return what is known now."""
        with self._lock:
            files, notices, headers = self._seen.files, self._seen.notices, dict(self._seen.headers)
        sources, strays = assemble(files, headers, self.roots, self.memory)
        unread = sum(str(file.path) not in headers for file in files)
        return Listing(self.roots, sources, strays, (*notices, *self.memory.store.notices), unread)

    def whole(self) -> Listing:
        """Read everything anew and return it."""
        for _ in self.refresh():
            pass
        return self.listing()

    def sources(self) -> tuple[SourceRow, ...]:
        """Read everything anew and return the sources."""
        return self.whole().sources

    def variants(self, source: Path) -> tuple[Variant, ...]:
        """Return the converted files of a source, reading everything anew."""
        source = source.absolute()
        return next((row.variants for row in self.sources() if row.path == source), ())

    def find(self, source: Path, precision: str) -> Variant | None:
        """Return the newest usable file of a source in a precision, or None."""
        found = [
            variant
            for variant in self.variants(source)
            if variant.precision == precision and variant.state.is_usable and variant.provenance is not None
        ]
        return max(found, key=lambda variant: variant.created_at, default=None)

    def stats(self) -> dict[str, Any]:
        """Return sums over all converted files, reading everything anew: see `luna_engine.weights.stats`."""
        from luna_engine.weights.stats import stats

        return stats(self.whole(), self.homes, self.memory)


def _is_known(file: ModelFile, known: Mapping[str, tuple[Stamp, Header]]) -> bool:
    found = known.get(str(file.path))
    return found is not None and found[0] == file.stamp


def scan(roots: Iterable[Path], homes: Iterable[Path] = ()) -> Iterator[SourceRow]:
    """Yield the sources below ``roots``, each with its variants from there and from ``homes``.

    A file that cannot be read is a row with its error, never the end.
    """
    catalog = Catalog.open(roots, homes)
    try:
        yield from catalog.sources()
    finally:
        catalog.close()
