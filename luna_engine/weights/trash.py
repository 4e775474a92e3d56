"""The trash of converted files: `<folder>/.luna-trash/<batch>/`, with a manifest written before anything moves.

A batch is a folder on the files' own disk, so that moving is renaming. Each name ends in `.trash`, which no loader
lists. Whatever moment a process dies at, each file is under its own name or in the batch, and the manifest says where.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.paths import atomic_write, sync_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from luna_engine.weights.memory import Memory

FOLDER = ".luna-trash"
KEPT_S = 14 * 86400.0
_YOUNG_S = 3600.0
_MANIFEST = "manifest.json"
_VERSION = 1
_SUFFIX = ".trash"


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a batch: ``name`` in the batch's folder, ``original`` where it came from."""

    name: str
    original: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one pruning moved below one folder: ``at`` in Unix seconds, ``folder`` the batch's own.

    Batches of one pruning share their id.
    """

    id: str
    folder: Path
    at: float
    items: tuple[Item, ...]

    @property
    def held(self) -> tuple[Item, ...]:
        """Return the items that are in the trash now."""
        return tuple(item for item in self.items if os.path.lexists(self.folder / item.name))

    @property
    def size_bytes(self) -> int:
        """Return the bytes that are in the trash now."""
        return sum(item.size_bytes for item in self.held)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of one file: ``error`` is None if it was moved."""

    path: Path
    size_bytes: int
    batch: str
    error: LunaError | None = None


def new_batch(batch_id: str, home: Path, files: Sequence[tuple[Path, int, str]], memory: Memory) -> Batch:
    """Make a batch for files below one folder and write down what it will hold; nothing is moved yet.

    Args:
        batch_id: of the pruning, see `jobs.new_id`.
        home: the folder of converted files, or the one the files lie in.
        files: (path, bytes, reason) of each.
        memory: remembers the batch, so that it is found wherever it lies.

    Raises:
        OSError: the folder cannot be written to.
    """
    items = tuple(
        Item(f"{number:04}-{_short(path.name)}{_SUFFIX}", path, size, reason)
        for number, (path, size, reason) in enumerate(files)
    )
    batch = Batch(batch_id, home / FOLDER / batch_id, time.time(), items)
    batch.folder.mkdir(parents=True)
    record = {
        "version": _VERSION,
        "id": batch.id,
        "at": batch.at,
        "items": [
            {"name": item.name, "original": os.path.relpath(item.original, home), "bytes": item.size_bytes,
             "reason": item.reason}
            for item in batch.items
        ],
    }  # fmt: skip
    with atomic_write(batch.folder / _MANIFEST) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8", "surrogateescape")
    sync_dir(home / FOLDER)
    sync_dir(home)
    memory.keep_batch(batch.folder)
    return batch


def _short(name: str) -> str:
    """Leave room for number and suffix in what file systems take for a name."""
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


def move_in(batch: Batch, item: Item) -> Moved:
    """Move one file into its batch. A link is moved as a link; what it leads to stays."""
    try:
        item.original.rename(batch.folder / item.name)
        sync_dir(item.original.parent)
        sync_dir(batch.folder)
    except OSError as error:
        problem = LunaError("trash-failed", f"{item.original} cannot be moved: {error.strerror or error}",
                            "check who may write to its folder")  # fmt: skip
        return Moved(item.original, item.size_bytes, batch.id, problem)
    return Moved(item.original, item.size_bytes, batch.id)


def batches(homes: Iterable[Path], memory: Memory) -> tuple[Batch, ...]:
    """Return all batches, newest first: those below ``homes`` and those that memory knows of elsewhere."""
    folders = {folder for home in homes for folder in _folders_in(home / FOLDER)}
    folders |= {folder for folder in memory.batches() if folder.is_dir()}
    found = [batch for folder in folders if (batch := read_batch(folder)) is not None]
    return tuple(sorted(found, key=lambda batch: batch.id, reverse=True))


def _folders_in(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # no trash there, or none that can be read
        yield from (entry for entry in folder.iterdir() if entry.is_dir())


def read_batch(folder: Path) -> Batch | None:
    """Return the batch of a folder, None where there is no manifest of ours."""
    try:
        record = json.loads((folder / _MANIFEST).read_text("utf-8", "surrogateescape"))
        home = folder.parent.parent
        items = tuple(_item(entry, home) for entry in record["items"])
        return Batch(str(record["id"]), folder, float(record["at"]), items) if record["version"] == _VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _item(entry: dict[str, Any], home: Path) -> Item:
    """Read one entry; names that lead out of the batch's folder or its home are no manifest of ours."""
    name, original = str(entry["name"]), Path(os.path.normpath(home / str(entry["original"])))
    if Path(name).name != name or not name.endswith(_SUFFIX) or not original.is_relative_to(home):
        raise ValueError(name)
    return Item(name, original, int(entry["bytes"]), str(entry["reason"]))


def find_batches(batch_id: str | None, homes: Iterable[Path], memory: Memory) -> tuple[Batch, ...]:
    """Return the batches of one pruning: by its id, or of the newest that still holds something.

    Raises:
        LunaError: ``batch-missing``.
    """
    known = [batch for batch in batches(homes, memory) if batch.held]
    wanted = batch_id or (known[0].id if known else "")
    found = tuple(batch for batch in known if batch.id == wanted)
    if not found:
        what = "nothing to bring back" if batch_id is None else f"no batch {batch_id}"
        raise LunaError("batch-missing", f"there is {what} in the trash", "`luna weights prune --trash` lists it")
    return found


def undo(batch: Batch, memory: Memory) -> tuple[Moved, ...]:
    """Move a batch's files back under their names; one whose name is taken stays in the trash and is told."""
    moved = tuple(_move_back(batch, item) for item in batch.items if os.path.lexists(batch.folder / item.name))
    drop_if_empty(batch, memory)
    return moved


def _move_back(batch: Batch, item: Item) -> Moved:
    held = batch.folder / item.name
    try:
        item.original.parent.mkdir(parents=True, exist_ok=True)
        _rename_exclusively(held, item.original)
        sync_dir(item.original.parent)
        sync_dir(batch.folder)
    except FileExistsError:
        problem = LunaError(
            "target-exists", f"{item.original} is there again: the older file stays in the trash",
            "move it away, then undo again",
        )  # fmt: skip
        return Moved(item.original, item.size_bytes, batch.id, problem)
    except OSError as error:
        problem = LunaError("trash-failed", f"{item.original} cannot be brought back: {error.strerror or error}",
                            "check who may write to its folder")  # fmt: skip
        return Moved(item.original, item.size_bytes, batch.id, problem)
    return Moved(item.original, item.size_bytes, batch.id)


def _rename_exclusively(held: Path, original: Path) -> None:
    """Rename without ever replacing a file; repeating it after a crash half-way ends it."""
    if os.path.lexists(original):
        if held.is_symlink() or original.is_symlink() or not held.samefile(original):
            raise FileExistsError(original)
        held.unlink()  # a crash between link and unlink left both names of the one file
        return
    if held.is_symlink():
        original.symlink_to(held.readlink())
        held.unlink()
        return
    try:
        os.link(held, original)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: looked at above
        held.rename(original)
        return
    held.unlink()


def empty(batch: Batch, memory: Memory) -> int:
    """Delete a batch for good; return the bytes that this freed.

    Raises:
        OSError: a file cannot be deleted.
    """
    freed = 0
    for item in batch.held:
        (batch.folder / item.name).unlink()
        freed += item.size_bytes
    drop_if_empty(batch, memory)
    return freed


def empty_old(homes: Iterable[Path], memory: Memory, now: float | None = None) -> int:
    """Delete batches that have waited for 14 days, and what a death left of empty ones; return the bytes it freed."""
    now = time.time() if now is None else now
    freed = 0
    for batch in batches(homes, memory):
        # A young batch that holds nothing may be one that another process is about to fill.
        if now - batch.at >= (KEPT_S if batch.held else _YOUNG_S):
            freed += empty(batch, memory)
    return freed


def trash_bytes(homes: Iterable[Path], memory: Memory) -> int:
    """Return the bytes that wait in the trash."""
    return sum(batch.size_bytes for batch in batches(homes, memory))


def drop_if_empty(batch: Batch, memory: Memory) -> None:
    """Remove a batch that holds nothing: its folder, the trash around it if that is empty too, and the memory of it."""
    if batch.held:
        return
    (batch.folder / _MANIFEST).unlink(missing_ok=True)
    for folder in (batch.folder, batch.folder.parent):
        with contextlib.suppress(OSError):  # something else lies there: it is not ours to delete
            folder.rmdir()
    memory.drop_batch(batch.folder)
