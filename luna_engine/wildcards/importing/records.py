"""What an import would do, as facts: for a screen, a shell, and the step that does it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.wildcards.diagnostics import Diagnostic

MANIFEST = ".luna-import.json"
ABOUT = "_!about"  # a folder that the library never reads: licences and readmes of packs go there


class FileState(enum.Enum):
    """What becomes of one file of a pack."""

    NEW = "new"
    RENAMED = "renamed"
    NOTICE = "notice"
    EXISTS = "exists"
    KNOWN = "known"
    BROKEN = "broken"

    @property
    def is_written(self) -> bool:
        """Tell whether a file in this state is written."""
        return self in {FileState.NEW, FileState.RENAMED, FileState.NOTICE}


@dataclass(frozen=True, slots=True)
class Repeat:
    """An item that its list has already, at ``first_line``. ``is_dropped``: the imported list goes without it."""

    text: str
    line: int
    first_line: int
    is_dropped: bool


@dataclass(frozen=True, slots=True)
class SameList:
    """A list that says what another one says: ``other`` is its address, in the library or in the pack."""

    address: str
    other: str


@dataclass(frozen=True, slots=True)
class Differing:
    """An item that reads differently in the native profile than in those named."""

    text: str
    line: int
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NearItem:
    """Two items that are nearly one, for review: nothing is dropped for it."""

    text: str
    place: str
    other: str
    other_place: str
    similarity: float


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a pack and what becomes of it.

    ``source`` is its path in the pack, ``target`` where it is written below the root. ``also_called`` are addresses of
    the library whose last part is this file's name. ``notes`` say what had to be done to its bytes.
    """

    source: str
    target: str
    state: FileState
    data: bytes = b""
    lists: int = 0
    items: int = 0
    repeats: tuple[Repeat, ...] = ()
    same_lists: tuple[SameList, ...] = ()
    differing: tuple[Differing, ...] = ()
    also_called: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the file as JSON-safe data, without its bytes."""
        return {
            "source": self.source,
            "target": self.target,
            "state": self.state.value,
            "bytes": len(self.data),
            "lists": self.lists,
            "items": self.items,
            "duplicates": [_fields(one) for one in self.repeats],
            "same_lists": [_fields(one) for one in self.same_lists],
            "differing": [_fields(one) for one in self.differing],
            "also_called": list(self.also_called),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """A whole import into the folder ``into`` below ``root``.

    ``diagnostics`` are what was left out of the pack, and what lint finds once it stands in the library that it did
    not find before.
    """

    source: str
    name: str
    digest: str
    root: Path
    into: str
    files: tuple[PlannedFile, ...]
    near: tuple[NearItem, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()

    def written(self) -> tuple[PlannedFile, ...]:
        """Return the files that are written."""
        return tuple(file for file in self.files if file.state.is_written)

    @property
    def is_complete(self) -> bool:
        """Tell whether every list of the pack could be read."""
        unread = {"unreadable", "limit", "path-escape"}
        left_out = any(found.code in unread and found.line is None for found in self.diagnostics)
        return not left_out and not any(file.state is FileState.BROKEN for file in self.files)

    def counts(self) -> dict[str, int]:
        """Return the numbers of the plan."""
        lists = [file for file in self.files if file.state in {FileState.NEW, FileState.RENAMED}]
        repeats = [one for file in lists for one in file.repeats]
        return {
            "files": len(lists),
            "lists": sum(file.lists for file in lists),
            "items": sum(file.items for file in lists),
            "duplicates_dropped": sum(one.is_dropped for one in repeats),
            "duplicates_kept": sum(not one.is_dropped for one in repeats),
            "near": len(self.near),
            "same_lists": sum(len(file.same_lists) for file in lists),
            "differing": sum(len(file.differing) for file in lists),
            "collisions": sum(file.state in {FileState.EXISTS, FileState.RENAMED} for file in self.files),
            "known": sum(file.state is FileState.KNOWN for file in self.files),
            "broken": sum(file.state is FileState.BROKEN for file in self.files),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-safe data."""
        return {
            "source": self.source,
            "name": self.name,
            "sha256": self.digest,
            "root": str(self.root),
            "into": self.into,
            "counts": self.counts(),
            "files": [file.as_dict() for file in self.files],
            "near": [_fields(one) for one in self.near],
            "diagnostics": [found.as_dict() for found in self.diagnostics],
            "notes": list(self.notes),
        }


def _fields(record: Repeat | SameList | Differing | NearItem) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}
