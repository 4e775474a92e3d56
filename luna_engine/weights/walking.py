"""Finds the model files below folders: names, sizes and times only, no file is opened."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_engine.weights.headers import MODEL_SUFFIXES
from luna_engine.weights.shards import is_follower, shard_set

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

EARLIER_FOLDERS = frozenset({"unet-converted", "checkpoints_converted", "converted", "gguf"})
"""Folders that earlier releases of Luna wrote converted files into."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's state: while it stays, so do the file's contents.

    Of a model in several files: their sum, the latest time, all inodes (unsigned 64 bits, so no integers of SQLite's).
    """

    size_bytes: int
    mtime_ns: int
    inode: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file with a model's suffix.

    Attributes:
        path: as found, links not resolved.
        root: the folder it was looked for in, or the file itself where one was named.
        stamp: of what a link leads to.
        home: the folder of converted files that it lies in, if any.
        is_link: the name is a symbolic link.
        is_earlier: it lies in a folder that earlier releases wrote converted files into.
    """

    path: Path
    root: Path
    stamp: Stamp
    home: Path | None = None
    is_link: bool = False
    is_earlier: bool = False


def stamp_of(path: Path) -> Stamp:
    """Return a file's stamp; of a model in several files that of all of them.

    Raises:
        OSError: there is no such file.
    """
    found = shard_set(path)
    files = (path,) if found is None else [file for file in found.files if file.exists()]
    states = [file.stat() for file in files]
    return Stamp(
        sum(state.st_size for state in states),
        max((state.st_mtime_ns for state in states), default=0),
        " ".join(str(state.st_ino) for state in states),
    )


def walk(roots: Iterable[Path], homes: Iterable[Path] = ()) -> tuple[list[ModelFile], list[LunaError]]:
    """Return all model files below ``roots`` and ``homes``, each once, and what is to be told about the folders.

    Args:
        roots: folders of sources, or single files.
        homes: folders that hold converted files only; they may lie inside a root.
    """
    sources = tuple(root.absolute() for root in roots)
    # A folder that is both holds sources as well: it is no home.
    walker = _Walker(sources, tuple(home.absolute() for home in homes if home.absolute() not in sources))
    # The inner folder first: what lies in it belongs to it, and not to the one around.
    for top in sorted((*walker.homes, *walker.roots), key=lambda top: -len(top.parts)):
        walker.visit_top(top)
    walker.found.sort(key=lambda file: file.path)
    return walker.found, walker.notices()


class _Walker:
    """One walk: what was found, which folders were entered, and which links lead elsewhere."""

    def __init__(self, roots: tuple[Path, ...], homes: tuple[Path, ...]) -> None:
        self.roots, self.homes = roots, homes
        self.found: list[ModelFile] = []
        self._real_tops = [top.resolve() for top in (*roots, *homes)]
        self._entered: set[tuple[int, int]] = set()
        self._files: set[Path] = set()
        self._outside: list[Path] = []
        self._unreadable: list[Path] = []

    def visit_top(self, top: Path) -> None:
        home = top if top in self.homes else None
        if top.is_file():
            self._add(top, top, home, is_earlier=False)
        else:
            self._enter(top, top, home, is_earlier=False)

    def _enter(self, folder: Path, root: Path, home: Path | None, *, is_earlier: bool) -> None:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self._entered:
                return
            self._entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            self._unreadable.append(folder)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if _is_folder(entry):
                if entry.is_symlink() and not self._is_inside(path):
                    self._outside.append(path)
                    continue
                self._enter(path, root, home, is_earlier=is_earlier or entry.name in EARLIER_FOLDERS)
            elif path.suffix.lower() in MODEL_SUFFIXES:
                self._add(path, root, home, is_earlier=is_earlier)

    def _add(self, path: Path, root: Path, home: Path | None, *, is_earlier: bool) -> None:
        if path in self._files or is_follower(path):
            return
        self._files.add(path)
        with contextlib.suppress(OSError):  # gone since it was listed, or a link to nothing
            self.found.append(ModelFile(path, root, stamp_of(path), home, path.is_symlink(), is_earlier))

    def _is_inside(self, path: Path) -> bool:
        real = path.resolve()
        return any(real.is_relative_to(top) for top in self._real_tops)

    def notices(self) -> list[LunaError]:
        found = [
            LunaError("folder-unreadable", f"{path} cannot be read", "check that it is there and readable")
            for path in self._unreadable
        ]
        if self._outside:
            first = self._outside[0]
            found.append(
                LunaError(
                    "link-outside",
                    f"{first}, and {len(self._outside) - 1} more, lead outside the known folders and are not followed",
                    f"add {first.resolve()} to weights.paths",
                )
            )
        return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
