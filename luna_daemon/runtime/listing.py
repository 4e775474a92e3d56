"""The files under the roots as `list_models` shows them: kind, family, components. Headers only, no torch."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from luna_daemon.model_messages import FileRow
from luna_daemon.runtime.files import Stamp
from luna_engine.errors import InputFileError
from luna_engine.weights.inspection import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luna_daemon.runtime.files import ModelFiles

_log = logging.getLogger("luna.daemon.models")


class FileList:
    """Lists files; what a header said is kept as long as the file stays as it is. Any thread may ask."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._known: dict[Stamp, FileRow | None] = {}
        self._lock = threading.Lock()

    def rows(self, kind: str | None) -> tuple[FileRow, ...]:
        """Return the files, all or of one kind; files that cannot be read are left out and logged once."""
        with self._lock:
            return tuple(row for row in self._scan() if kind is None or row.kind == kind)

    def _scan(self) -> Iterator[FileRow]:
        known: dict[Stamp, FileRow | None] = {}
        for file_id, path in self._files.scan():
            try:
                stamp = Stamp.of(path)
            except OSError:  # gone since it was listed
                continue
            row = self._known[stamp] if stamp in self._known else _look(file_id, path)
            known[stamp] = row
            if row is not None:
                yield row
        self._known = known


def _look(file_id: str, path: Path) -> FileRow | None:
    try:
        found = inspect(path)
    except InputFileError as error:
        _log.warning("%s is left out: %s", file_id, error.message)
        return None
    names = tuple(component.name for component in found.components if component.name not in {"other", "dropped"})
    return FileRow(file_id, found.kind.value, found.family, names, found.size_bytes)
