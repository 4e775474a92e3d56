"""Drafts: unsaved text kept in the state folder, offered again after a crash. They are Luna's and may be deleted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine import paths

if TYPE_CHECKING:
    from luna_tui.backend.wildcard_files import OpenFile

_log = logging.getLogger(__name__)
_SCHEMA = "luna.draft/1"


@dataclass(frozen=True, slots=True)
class Draft:
    """Text that was never saved: ``text`` stood in the editor in place of ``base``, from line ``first_line`` on."""

    file: Path
    path: Path
    text: str
    base: str
    first_line: int
    at: float


class Drafts:
    """One JSON file per edited file, written by rename; those of a process that still runs are not offered."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or paths.private_dir("drafts")

    def _file(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}-{os.getpid()}.json"

    def keep(self, file: OpenFile, text: str) -> None:
        """Write the unsaved text of a file."""
        record = {
            "schema": _SCHEMA,
            "path": str(file.path),
            "text": text,
            "base": file.text,
            "first_line": file.first_line,
            "at": time.time(),
            "process": _identity(os.getpid()),
        }
        with paths.atomic_write(self._file(file.path), mode=0o600) as temporary:
            temporary.write_text(json.dumps(record), "utf-8", "surrogatepass")

    def drop(self, path: Path) -> None:
        """Forget this process's draft of a file."""
        self._file(path).unlink(missing_ok=True)

    def forget(self, draft: Draft) -> None:
        """Remove a draft that was offered."""
        draft.file.unlink(missing_ok=True)

    def left_behind(self) -> tuple[Draft, ...]:
        """Return the drafts of processes that are gone, oldest first; unreadable ones are logged and left."""
        found = []
        for file in self._folder.glob("*.json"):
            try:
                record = json.loads(file.read_text("utf-8", "surrogatepass"))
                draft = _draft(file, record)
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("the draft %s cannot be read: %s", file, error)
                continue
            if not _is_running(record.get("process")):
                found.append(draft)
        return tuple(sorted(found, key=lambda draft: draft.at))


def _draft(file: Path, record: dict[str, Any]) -> Draft:
    if record["schema"] != _SCHEMA:
        raise ValueError(f"schema {record['schema']!r}")
    return Draft(
        file, Path(record["path"]), str(record["text"]), str(record["base"]), int(record["first_line"]),
        float(record["at"]),
    )  # fmt: skip


def _identity(pid: int) -> list[float]:
    import psutil  # only writers and the first start of the screen need it

    return [pid, psutil.Process(pid).create_time()]


def _is_running(identity: object) -> bool:
    import psutil

    if not isinstance(identity, list) or len(identity) != 2:
        return False
    pid, created = identity
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 1.0 and int(pid) != os.getpid()
    except psutil.Error:
        return False
