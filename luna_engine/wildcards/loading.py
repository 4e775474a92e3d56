"""From what lies on disk, and the unsaved texts over it, to snapshots. The library holds the lock and the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards import files
from luna_engine.wildcards.snapshot import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.wildcards.cache import ParsedCache
    from luna_engine.wildcards.files import Root
    from luna_engine.wildcards.model import Content, Document


class Loader:
    """Knows how the roots looked last, what lies over them, and the last good content of each file."""

    def __init__(
        self, roots: tuple[Root, ...], *, follow_outside: bool = False, cache: ParsedCache | None = None
    ) -> None:
        self._roots = roots
        self._cache = cache
        self._follow_outside = follow_outside
        self.overlays: dict[Path, str] = {}
        self._last_good: dict[tuple[int, str], Content] = {}
        self._dirty: set[tuple[int, str]] = set()
        self._walk = files.walk_roots(roots, follow_outside=follow_outside)

    def build(self, before: Snapshot | None) -> Snapshot:
        """Read what changed and put a new snapshot together, sharing unchanged files."""
        walk = self._walk
        # A file being edited changes again and again; what it holds is kept when a library begins with it.
        cache = self._cache if before is None else None
        loaded: list[tuple[files.Entry, Document]] = []
        for entry in walk.entries:
            key = (entry.root, entry.relative)
            known = before.document(*key) if before is not None else None
            overlay = self.overlays.get(entry.path)
            is_clean = overlay is None and key not in self._dirty
            if known is not None and before is not None and before.entries[key] == entry and is_clean:
                loaded.append((entry, known))
                continue
            document = files.open_document(
                entry, self._last_good.get(key), overlay, cache, self._roots[entry.root].profile
            )
            if document.is_read and not document.content.is_stale and document.content.top is not None:
                self._last_good[key] = document.content
            loaded.append((entry, document))
        self._dirty = {(entry.root, entry.relative) for entry in walk.entries if entry.path in self.overlays}
        present = {(entry.root, entry.relative) for entry in walk.entries}
        self._last_good = {key: content for key, content in self._last_good.items() if key in present}
        return Snapshot(self._roots, walk, loaded)

    def look(self, before: Snapshot) -> tuple[str, ...]:
        """Look at the disk; return the paths that differ from ``before``, ``("",)`` if only folders do."""
        walk = files.walk_roots(self._roots, follow_outside=self._follow_outside)
        now = {(entry.root, entry.relative): entry for entry in walk.entries}
        changed = {key[1] for key, entry in now.items() if before.entries.get(key) != entry}
        changed |= {key[1] for key in before.entries if key not in now}
        if not changed and [name for _, name in walk.folders] == before.folders:
            return ()
        self._walk = walk
        return tuple(sorted(changed)) or ("",)

    def overlay(self, path: Path, text: str | None) -> bool:
        """Lay unsaved text over a file, or take it away (None); tell whether a new snapshot is due."""
        if text is None:
            return self.overlays.pop(path, None) is not None
        self.overlays[path] = text
        return True
