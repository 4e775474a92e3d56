"""The wildcards port: a live library, files opened for editing and saved safely, samples within a time bound."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luna_engine import paths
from luna_engine.errors import InputFileError, LunaError
from luna_engine.wildcards import Change, Diagnostic, Expansion, WildcardLibrary, default_roots
from luna_engine.wildcards.decode import decode
from luna_engine.wildcards.files import Stamp
from luna_engine.wildcards.seeds import batch_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_engine.settings import Settings
    from luna_engine.wildcards import TreeNode

MOST_PREVIEW_S = 0.25
# Above this TextArea needs seconds to open a file and a quarter of one for a key (measured, TUI.md 2.4).
MOST_EDIT_BYTES = 256 * 1024
MOST_EDIT_LINES = 4_000


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
class OpenFile:
    """A file as it was read: its text with line feeds only, and what is needed to write it back unchanged."""

    path: Path
    name: str
    root: int
    text: str
    stamp: Stamp
    newline: str
    has_bom: bool


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

    def open(self, root: int, name: str) -> OpenFile:
        """Read a file for editing."""

    def save(self, file: OpenFile, text: str, *, overwrite: bool = False) -> OpenFile:
        """Write a file if nobody changed it meanwhile."""

    def overlay(self, path: Path, text: str | None) -> None:
        """Lay unsaved text over a file."""

    def preview(self, template: str, count: int, seed: int) -> PreviewView:
        """Return samples."""

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

    def open(self, root: int, name: str) -> OpenFile:
        """Read a file for editing.

        Raises:
            InputFileError: it is gone (``file-missing``), unreadable, or too large for the editor (``limit``).
        """
        path = self.library.roots[root].path / name
        try:
            status = path.stat()
            data = path.read_bytes() if status.st_size <= MOST_EDIT_BYTES else b""
        except OSError as error:
            raise InputFileError(
                "file-missing", f"{name} cannot be read: {error.strerror or error}", file=str(path)
            ) from error
        text = decode(data, name).text
        if status.st_size > MOST_EDIT_BYTES or text.count("\n") > MOST_EDIT_LINES:
            raise InputFileError(
                "limit",
                f"{name} is too large for the editor ({status.st_size} bytes)",
                f"edit it elsewhere, at most {MOST_EDIT_BYTES} bytes and {MOST_EDIT_LINES} lines here; "
                "the samples follow each save",
                file=str(path),
            )
        newline = "\r\n" if "\r\n" in text else "\n"
        plain = text.replace("\r\n", "\n")
        return OpenFile(path, name, root, plain, Stamp.of(status), newline, data.startswith(b"\xef\xbb\xbf"))

    def save(self, file: OpenFile, text: str, *, overwrite: bool = False) -> OpenFile:
        """Write a file: temporary name, sync, rename; mode, line ends and BOM kept; then load it.

        Raises:
            LunaError: ``conflict`` if the file changed since it was read, ``read-only``, ``unwritable``.
        """
        if self._readonly:
            raise LunaError("read-only", "Luna is read-only")
        target = file.path.resolve()
        if not overwrite:
            self._check_stamp(file)
        data = text.replace("\n", file.newline).encode("utf-8", "surrogatepass")
        try:
            with paths.atomic_write(target) as temporary:
                temporary.write_bytes((b"\xef\xbb\xbf" if file.has_bom else b"") + data)
            stamp = Stamp.of(file.path.stat())
        except OSError as error:
            raise LunaError(
                "unwritable", f"{file.name} was not saved: {error.strerror or error}", "the text stays in the editor"
            ) from error
        self.library.overlay(file.path, None)
        self.library.refresh()
        return OpenFile(file.path, file.name, file.root, text, stamp, file.newline, file.has_bom)

    @staticmethod
    def _check_stamp(file: OpenFile) -> None:
        try:
            now = Stamp.of(file.path.stat())
        except FileNotFoundError:
            raise LunaError("conflict", f"{file.name} was deleted meanwhile", "save it again, or close it") from None
        if now != file.stamp and file.path.read_bytes() != _bytes_of(file):
            raise LunaError("conflict", f"{file.name} was changed by another program", "keep yours or take theirs")

    def overlay(self, path: Path, text: str | None) -> None:
        """Lay unsaved text over a file."""
        self.library.overlay(path, text)

    def preview(self, template: str, count: int, seed: int) -> PreviewView:
        """Return samples: as many as the time allows, at least one."""
        started = time.perf_counter()
        library = self.library
        snapshot = library.snapshot
        samples: list[Expansion] = []
        for index in range(count):
            samples.append(
                library.expand_parts({"": template}, batch_seed(seed, index), index=index, snapshot=snapshot)
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
            library.count_quickly(template),
            any(problem.code == "yaml-syntax" for problem in problems),
            time.perf_counter() - started,
        )

    def watch(self, on_change: Callable[[Change], None]) -> None:
        """Tell changes on disk from a background thread."""
        self.library.watch(on_change)

    def close(self) -> None:
        """Stop watching."""
        if self._library is not None:
            self._library.close()


def _bytes_of(file: OpenFile) -> bytes:
    data = file.text.replace("\n", file.newline).encode("utf-8", "surrogatepass")
    return (b"\xef\xbb\xbf" if file.has_bom else b"") + data
