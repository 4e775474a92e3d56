"""The wildcards port: a live library, files opened for editing and saved safely, samples within a time bound."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luna_engine.errors import LunaError
from luna_engine.wildcards import Change, Diagnostic, Expansion, WildcardLibrary, default_roots
from luna_engine.wildcards.seeds import batch_seed
from luna_tui.backend.drafts import Draft, Drafts
from luna_tui.backend.references import Destination, definition_at, destination_of
from luna_tui.backend.wildcard_files import OpenFile, open_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_engine.settings import Settings
    from luna_engine.wildcards import Completion, SiteOdds, Step, TreeNode, Use

MOST_PREVIEW_S = 0.25


@dataclass(frozen=True, slots=True)
class LibraryView:
    """The library for the tree and the list of problems. ``notices`` say what is not as configured."""

    nodes: tuple[TreeNode, ...]
    problems: tuple[Diagnostic, ...]
    roots: tuple[Path, ...]
    notices: tuple[str, ...]
    items: int
    loaded_at: float


@dataclass(frozen=True, slots=True)
class PreviewView:
    """Samples of one template; ``is_stale`` if a file behind them is broken and shows its last good version."""

    template: str
    seed: int
    wanted: int
    samples: tuple[Expansion, ...]
    problems: tuple[Diagnostic, ...]
    combinations: int | None
    is_stale: bool
    elapsed_s: float

    @property
    def is_partial(self) -> bool:
        """Tell whether fewer samples came than were asked for."""
        return len(self.samples) < self.wanted


class Wildcards(Protocol):
    """Wildcard files, their problems and samples."""

    def snapshot(self) -> LibraryView:
        """Return tree and load problems."""

    def problems(self) -> tuple[Diagnostic, ...]:
        """Return the load problems alone, which costs nothing."""

    def lint(self) -> tuple[Diagnostic, ...]:
        """Return every problem of the library."""

    def root_of(self, name: str) -> int | None:
        """Return the number of the root that holds a file, None if it is gone. Must not block."""

    def open(self, root: int, name: str, line: int = 1) -> OpenFile:
        """Read a file for editing; of a large one the section round a line."""

    def save(self, file: OpenFile, text: str, *, overwrite: bool = False) -> OpenFile:
        """Write a file if nobody changed it meanwhile."""

    def overlay(self, path: Path, text: str | None) -> None:
        """Lay unsaved text over a file."""

    def preview(
        self,
        template: str,
        count: int,
        seed: int,
        *,
        profile: str = "native",
        pins: Mapping[str, str] | None = None,
        reroll: Mapping[str, int] | None = None,
    ) -> PreviewView:
        """Return samples."""

    def odds(self, template: str, top: int, *, profile: str = "native") -> tuple[SiteOdds, ...]:
        """Return what each site of a template can print, and how likely."""

    def steps(
        self,
        template: str,
        seed: int,
        index: int,
        *,
        profile: str = "native",
        pins: Mapping[str, str] | None = None,
        reroll: Mapping[str, int] | None = None,
    ) -> tuple[Step, ...]:
        """Return one sample draw by draw."""

    def complete(self, text: str, cursor: int, path: Path | None) -> tuple[Completion, ...]:
        """Return what can stand at the cursor."""

    def uses(self, address: str) -> tuple[Use, ...]:
        """Return every reference that can draw from an address."""

    def definition(self, text: str, offset: int, path: Path | None) -> Destination | None:
        """Return where the reference at an offset leads."""

    def destination(self, address: str) -> Destination | None:
        """Return where an address stands."""

    def keep_draft(self, file: OpenFile, text: str) -> None:
        """Keep unsaved text in case of a crash."""

    def drop_draft(self, path: Path) -> None:
        """Forget it: saved, or given up."""

    def drafts(self) -> tuple[Draft, ...]:
        """Return the unsaved texts of processes that are gone."""

    def forget_draft(self, draft: Draft) -> None:
        """Remove an offered draft."""

    def whereabouts(self, path: Path) -> tuple[int, str] | None:
        """Return root and name of a file of the library."""

    def watch(self, on_change: Callable[[Change], None]) -> None:
        """Tell changes on disk from a background thread."""

    def close(self) -> None:
        """Stop watching."""


class LocalWildcards:
    """The port over `luna_engine.wildcards`.

    Args:
        settings: names the roots; a root that is no folder is left out with a notice.
        readonly: saving is refused.
    """

    def __init__(self, settings: Settings, *, readonly: bool = False) -> None:
        self._roots = [Path(root) for root in default_roots(settings)]
        self._readonly = readonly
        self._library: WildcardLibrary | None = None
        self._lock = threading.Lock()

    @property
    def library(self) -> WildcardLibrary:
        """The library, loaded at first use."""
        with self._lock:
            if self._library is None:
                # What the application consists of lives to its end. Without it a full collection, which every
                # reload of a large file brings about, takes a few milliseconds instead of tens.
                gc.collect()
                gc.freeze()
                self._library = WildcardLibrary.load([root for root in self._roots if root.is_dir()])
            return self._library

    def snapshot(self) -> LibraryView:
        """Return tree and load problems."""
        library = self.library
        nodes = library.tree()
        return LibraryView(
            nodes,
            library.diagnostics,
            tuple(root.path for root in library.roots),
            tuple(f"the wildcard folder {root} does not exist" for root in self._roots if not root.is_dir()),
            sum(node.items for node in nodes),
            time.time(),
        )

    def problems(self) -> tuple[Diagnostic, ...]:
        """Return the load problems alone, which costs nothing."""
        return self.library.diagnostics

    def lint(self) -> tuple[Diagnostic, ...]:
        """Return every problem of the library."""
        return tuple(self.library.lint())

    def root_of(self, name: str) -> int | None:
        """Return the number of the root that holds a file, None if it is gone."""
        return min((root for root, path in self.library.snapshot.entries if path == name), default=None)

    def open(self, root: int, name: str, line: int = 1) -> OpenFile:
        """Read a file for editing; of a large one the section round a line.

        Raises:
            InputFileError: it is gone (``file-missing``), unreadable, or too large for the editor (``limit``).
        """
        return open_file(self.library.roots[root].path / name, name, root, line)

    def save(self, file: OpenFile, text: str, *, overwrite: bool = False) -> OpenFile:
        """Write a file, load it, and forget its draft.

        Raises:
            LunaError: ``conflict`` if the file changed since it was read, ``read-only``, ``unwritable``.
        """
        self._may_write()
        saved = save_file(file, text, overwrite=overwrite)
        self.library.overlay(file.path, None)
        self.library.refresh()
        self._drafts.drop(file.path)
        return saved

    def _may_write(self) -> None:
        if self._readonly:
            raise LunaError("read-only", "Luna is read-only")

    def overlay(self, path: Path, text: str | None) -> None:
        """Lay unsaved text over a file."""
        self.library.overlay(path, text)

    def preview(
        self,
        template: str,
        count: int,
        seed: int,
        *,
        profile: str = "native",
        pins: Mapping[str, str] | None = None,
        reroll: Mapping[str, int] | None = None,
    ) -> PreviewView:
        """Return samples: as many as the time allows, at least one."""
        started = time.perf_counter()
        library = self.library
        snapshot = library.snapshot
        samples: list[Expansion] = []
        for index in range(count):
            samples.append(
                library.expand_parts(
                    {"": template},
                    batch_seed(seed, index),
                    index=index,
                    snapshot=snapshot,
                    profile=profile,
                    pins=pins,
                    reroll=reroll,
                )
            )
            if time.perf_counter() - started > MOST_PREVIEW_S:
                break
        problems = tuple(dict.fromkeys(problem for sample in samples for problem in sample.diagnostics))
        return PreviewView(
            template,
            seed,
            count,
            tuple(samples),
            problems,
            library.count_quickly(template, profile=profile),
            any(problem.code == "yaml-syntax" for problem in problems),
            time.perf_counter() - started,
        )

    def odds(self, template: str, top: int, *, profile: str = "native") -> tuple[SiteOdds, ...]:
        """Return what each site of a template can print, and how likely."""
        return self.library.probabilities(template, top, profile=profile)

    def steps(
        self,
        template: str,
        seed: int,
        index: int,
        *,
        profile: str = "native",
        pins: Mapping[str, str] | None = None,
        reroll: Mapping[str, int] | None = None,
    ) -> tuple[Step, ...]:
        """Return one sample draw by draw."""
        return tuple(self.library.steps(template, seed, index=index, profile=profile, pins=pins, reroll=reroll))

    def complete(self, text: str, cursor: int, path: Path | None) -> tuple[Completion, ...]:
        """Return what can stand at the cursor."""
        return self.library.complete(text, cursor, file=path)

    def uses(self, address: str) -> tuple[Use, ...]:
        """Return every reference that can draw from an address."""
        return self.library.where_used(address)

    def definition(self, text: str, offset: int, path: Path | None) -> Destination | None:
        """Return where the reference at an offset leads."""
        return definition_at(self.library.snapshot, text, offset, path)

    def destination(self, address: str) -> Destination | None:
        """Return where an address stands."""
        return destination_of(self.library.snapshot, address)

    @property
    def _drafts(self) -> Drafts:
        return Drafts()

    def keep_draft(self, file: OpenFile, text: str) -> None:
        """Keep unsaved text in case of a crash."""
        self._drafts.keep(file, text)

    def drop_draft(self, path: Path) -> None:
        """Forget it: saved, or given up."""
        self._drafts.drop(path)

    def drafts(self) -> tuple[Draft, ...]:
        """Return the unsaved texts of processes that are gone."""
        return () if self._readonly else self._drafts.left_behind()

    def forget_draft(self, draft: Draft) -> None:
        """Remove an offered draft."""
        self._drafts.forget(draft)

    def whereabouts(self, path: Path) -> tuple[int, str] | None:
        """Return root and name of a file of the library."""
        return next((key for key, entry in self.library.snapshot.entries.items() if entry.path == path), None)

    def watch(self, on_change: Callable[[Change], None]) -> None:
        """Tell changes on disk from a background thread."""
        self.library.watch(on_change)

    def close(self) -> None:
        """Stop watching."""
        if self._library is not None:
            self._library.close()
