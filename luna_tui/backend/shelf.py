"""Keeps the catalogue of the weights screen fresh in a thread of its own: a slow disk never holds up a snapshot."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from luna_engine.weights import trash
from luna_engine.weights.catalog import Catalog, Listing
from luna_engine.weights.disks import disks
from luna_engine.weights.naming import extra_roots, missing_roots, source_roots, variant_folders
from luna_engine.weights.pruning import apply_prune, plan_prune, require_pinnable
from luna_engine.weights.settling import settle
from luna_tui.backend.weights_views import DiskView

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.settings import Settings
    from luna_engine.weights.assembly import SourceRow
    from luna_engine.weights.pruning import PrunePlan, PruneRules

_SCAN_EVERY_S = 3.0
_PATIENCE_S = 0.5  # a scan of known files is done by then, so that the first picture is whole
_log = logging.getLogger(__name__)


class Shelf:
    """The sources and variants of the configured folders and of those that were added. Thread-safe; to be closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._added: list[Path] = []
        self.catalog = Catalog.open(*self._folders())
        self._last = Listing()
        self._scan: threading.Thread | None = None
        self._stop = threading.Event()
        self._scanned_at = -_SCAN_EVERY_S
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the scan and let go of the database."""
        self._stop.set()
        with self._lock:
            if self._scan is not None:
                self._scan.join()
            self.catalog.close()

    def add(self, path: Path) -> None:
        """Look at another file or folder as well."""
        with self._lock:
            if path not in self._added:
                self._added.append(path)
        self.expire()

    def expire(self) -> None:
        """Look at the folders again at the next listing."""
        self._scanned_at = -_SCAN_EVERY_S

    def listing(self) -> Listing:
        """Return what is known by now, and have the folders looked at if that was some seconds ago.

        After `close` it is what was known last: a screen's worker may still ask while the application ends.
        """
        with self._lock:
            is_due = time.monotonic() - self._scanned_at >= _SCAN_EVERY_S
            if is_due and not self._stop.is_set() and (self._scan is None or not self._scan.is_alive()):
                self._scanned_at = time.monotonic()
                self.catalog.look_at(*self._folders())
                self._scan = threading.Thread(target=self._run, name="luna-scan", daemon=True)
                self._scan.start()
            scan = self._scan
        if scan is not None:
            scan.join(_PATIENCE_S)
        with self._lock:
            if not self._stop.is_set():
                self._last = self.catalog.listing()
            return self._last

    def disks(self, found: Listing) -> tuple[DiskView, ...]:
        """Return the disks of a listing; after `close` none."""
        with self._lock:
            if self._stop.is_set():
                return ()
            return tuple(
                DiskView(str(disk.path), disk.total_bytes, disk.free_bytes, disk.variants, disk.variants_bytes,
                         disk.trash_bytes)
                for disk in disks(found, self.catalog.homes, self.catalog.memory)
            )  # fmt: skip

    def settle(self, row: SourceRow | None) -> None:
        """Look at a source's content where that decides, and at the folders again."""
        if row is not None:
            settle(self.catalog, [row])
        self.expire()

    def prune_plan(self, rules: PruneRules) -> PrunePlan:
        """Say what could go."""
        return plan_prune(self.catalog.listing(), rules, self.catalog.homes)

    def prune(self, plan: PrunePlan) -> PrunePlan:
        """Move files into the trash."""
        done = apply_prune(plan, self.catalog.memory)
        trash.empty_old(self.catalog.homes, self.catalog.memory)
        self.expire()
        return done

    def undo(self) -> list[trash.Moved]:
        """Bring back what was pruned last."""
        memory = self.catalog.memory
        found = trash.find_batches(None, self.catalog.homes, memory)
        self.expire()
        return [one for batch in found for one in trash.undo(batch, memory)]

    def empty_trash(self) -> int:
        """Delete what is in the trash; return the bytes it freed."""
        memory = self.catalog.memory
        return sum(trash.empty(batch, memory) for batch in trash.batches(self.catalog.homes, memory))

    def turn_pin(self, path: Path) -> bool:
        """Pin a file, or unpin it; tell whether it is pinned now."""
        memory = self.catalog.memory
        if str(path) in memory.pins():
            memory.unpin(path)
            return False
        require_pinnable(path, memory)
        memory.pin(path)
        return True

    def problems(self) -> tuple[str, ...]:
        """Return what is wrong with the configured folders."""
        gone = tuple(f"file-missing: there is no folder {root}" for root in missing_roots(self._settings))
        extra = extra_roots().problem
        return gone if extra is None else (*gone, f"{extra.code}: {extra.message}")

    def _folders(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        roots = (*source_roots(self._settings), *self._added)
        return roots, variant_folders(roots, self._settings)

    def _run(self) -> None:
        try:
            for _ in self.catalog.refresh():
                if self._stop.is_set():
                    return
        except Exception:  # noqa: BLE001 - a thread's border: the next scan tries again
            _log.exception("the folders of models could not be looked at")
