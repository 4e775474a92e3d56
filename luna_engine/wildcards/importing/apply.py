"""Writing a planned import, all of it or nothing, with a record from which it can be undone."""

from __future__ import annotations

import contextlib
import datetime
import enum
import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine import paths
from luna_engine.errors import LunaError
from luna_engine.wildcards.importing.records import ABOUT, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luna_engine.wildcards.importing.records import ImportPlan

_SCHEMA = "luna.wildcards.import-record/1"


def apply_import(plan: ImportPlan) -> None:
    """Write the files of a plan and the record of the import. Refresh the library afterwards.

    Everything is written to a hidden folder first. A target folder that does not exist yet then appears by one rename;
    into one that does files are moved one by one, and moved out again if one of them cannot be.

    Raises:
        LunaError: ``conflict`` if a file appeared meanwhile; ``unwritable``.
    """
    if not plan.written():
        return
    target = plan.root / plan.into
    staged = plan.root / f".luna-import-{secrets.token_hex(4)}"
    try:
        try:
            _stage(plan, staged)
            if plan.into and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.rename(target)
                paths.sync_dir(target.parent)
            else:
                _move_in(plan, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise LunaError(
            "unwritable", f"the pack was not imported: {error.strerror or error}", None, file=str(target)
        ) from error


def _stage(plan: ImportPlan, staged: Path) -> None:
    """Write every file, and the record, below a folder that stands for the target folder."""
    staged.mkdir()
    for file in plan.written():
        path = staged / _inside(plan, file.target)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, file.data)
    records = [*read_records(plan.root / plan.into), _record_of(plan)]
    _write(staged / MANIFEST, _manifest(records))


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _inside(plan: ImportPlan, target: str) -> str:
    return target.removeprefix(f"{plan.into}/") if plan.into else target


def _move_in(plan: ImportPlan, staged: Path) -> None:
    """Move staged files into a folder that exists; nothing there is replaced but the record."""
    target = plan.root / plan.into
    moved: list[Path] = []
    made: list[Path] = []
    try:
        for file in plan.written():
            inside = _inside(plan, file.target)
            path = target / inside
            made += _make_folders(path.parent)
            if not path.parent.resolve().is_relative_to(plan.root.resolve()):
                raise LunaError("path-escape", f"{file.target} would leave the library", None, file=file.target)
            _move_new(staged / inside, path)
            moved.append(path)
        (staged / MANIFEST).replace(target / MANIFEST)
    except (OSError, LunaError):
        for path in moved:
            path.unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else put a file there meanwhile: it stays
                folder.rmdir()
        raise
    paths.sync_dir(target)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing; return the ones made, outermost first."""
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir()
    return missing[::-1]


def _move_new(source: Path, path: Path) -> None:
    """Move a file to a name that nothing has."""
    if os.path.lexists(path):
        raise LunaError("conflict", f"{path.name} appeared meanwhile", "plan the import again", file=str(path))
    source.rename(path)


# -- records


def _record_of(plan: ImportPlan) -> dict[str, Any]:
    return {
        "source": plan.source,
        "name": plan.name,
        "sha256": plan.digest,
        "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "files": [
            {
                "path": _inside(plan, file.target),
                "source": file.source,
                "sha256": hashlib.sha256(file.data).hexdigest(),
            }
            for file in plan.written()
        ],
    }


def _manifest(records: list[dict[str, Any]]) -> bytes:
    return (json.dumps({"schema": _SCHEMA, "imports": records}, ensure_ascii=False, indent=1) + "\n").encode()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the imports into a folder, the oldest first.

    Raises:
        LunaError: ``file-damaged`` if the record cannot be read.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        held = json.loads(data)
        records = [record for record in held["imports"] if isinstance(record["files"], list)]
        if held["schema"] != _SCHEMA or not all(_is_plain(file) for record in records for file in record["files"]):
            raise ValueError("it holds something else")
    except (ValueError, TypeError, KeyError) as error:
        raise LunaError(
            "file-damaged", f"the record of imports cannot be read: {error}", "remove it by hand", file=str(path)
        ) from error
    return records


def _is_plain(file: dict[str, Any]) -> bool:
    """Tell whether a recorded file is a path below the folder and a digest."""
    parts = str(file["path"]).split("/")
    return not any(part in {"", ".", ".."} for part in parts) and "\\" not in file["path"] and bool(file["sha256"])


# -- undoing


@dataclass(frozen=True, slots=True)
class UndoPlan:
    """What undoing the last import into a folder takes away. ``kept`` were edited since and stay."""

    root: Path
    into: str
    name: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder that was imported into."""
        return self.root / self.into

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-safe data."""
        return {
            "folder": str(self.folder),
            "name": self.name,
            "removed": list(self.removed),
            "kept": list(self.kept),
            "gone": list(self.gone),
        }


def plan_undo(root: Path, into: str) -> UndoPlan:
    """Plan taking the last import into a folder of a root back: files that are still what was written.

    Raises:
        LunaError: ``unknown-ref`` if nothing was imported into it; ``file-damaged``.
    """
    folder = root / into
    records = read_records(folder) if folder.resolve().is_relative_to(root.resolve()) else []
    if not records:
        raise LunaError("unknown-ref", f"nothing was imported into {folder}", "name the folder that holds the pack")
    found: dict[_Fate, list[str]] = {fate: [] for fate in _Fate}
    for file in records[-1]["files"]:
        found[_fate_of(root, folder / file["path"], file["sha256"])].append(file["path"])
    name = str(records[-1].get("name", ""))
    return UndoPlan(root, into, name, *(tuple(found[fate]) for fate in _Fate))


class _Fate(enum.Enum):
    REMOVED = "removed"
    KEPT = "kept"
    GONE = "gone"


def _fate_of(root: Path, path: Path, digest: str) -> _Fate:
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        return _Fate.GONE
    is_same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
    return _Fate.REMOVED if is_same else _Fate.KEPT


def apply_undo(plan: UndoPlan) -> None:
    """Remove the files of a planned undoing, the folders that are empty then, and the record of the import.

    Raises:
        LunaError: ``conflict`` if a file was edited since the plan; ``unwritable``.
    """
    if plan_undo(plan.root, plan.into) != plan:
        raise LunaError("conflict", f"{plan.folder} changed meanwhile", "plan the undoing again", file=str(plan.folder))
    try:
        for name in plan.removed:
            (plan.folder / name).unlink(missing_ok=True)
        records = read_records(plan.folder)[:-1]
        manifest = plan.folder / MANIFEST
        if records:
            with paths.atomic_write(manifest) as temporary:
                temporary.write_bytes(_manifest(records))
        else:
            manifest.unlink(missing_ok=True)
        for folder in _emptied(plan):
            with contextlib.suppress(OSError):  # it holds something else
                folder.rmdir()
    except OSError as error:
        message = f"the import was not undone: {error.strerror or error}"
        raise LunaError("unwritable", message, None, file=str(plan.folder)) from error


def _emptied(plan: UndoPlan) -> Iterator[Path]:
    """Yield the folders that may be empty now, the deepest first."""
    inside = {ABOUT}
    for name in (*plan.removed, *plan.gone):
        parts = name.split("/")[:-1]
        inside |= {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
    for name in sorted(inside, key=lambda one: -one.count("/")):
        yield plan.folder / name
    if plan.into:
        yield plan.folder
