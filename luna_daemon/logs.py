"""The daemon's log: JSON lines in ``logs/<name>/current.log``, rotated by its only writer, never truncated."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import sys
from typing import TYPE_CHECKING

from luna_daemon.frames import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from luna_daemon.identity import DaemonPlaces

ROTATE_BYTES = 10 * MIB
KEPT_FILES = 5
_STREAMS = (1, 2)


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, message, generation, and code, trace, exception where there are any."""

    def __init__(self, generation: str) -> None:
        super().__init__()
        self._generation = generation

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line = {
            "at": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "generation": self._generation,
        }
        for name in ("code", "trace"):
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class LogFile(logging.Handler):
    """Appends lines to the current log; at 10 MiB it is renamed and a new one begun.

    Output that bypasses logging (a crash, a C library) goes the same way: standard output and error are led into the
    file too if they were.
    """

    def __init__(self, path: Path, rotate_bytes: int = ROTATE_BYTES) -> None:
        super().__init__()
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._descriptor = _open(path)
        self._led = tuple(stream for stream in _STREAMS if _is_same_file(stream, self._descriptor))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = self.format(record) + "\n"
            os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))
            if os.fstat(self._descriptor).st_size >= self._rotate_bytes:
                self._rotate()
        except OSError:
            self.handleError(record)

    def _rotate(self) -> None:
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        old, self._descriptor = self._descriptor, _open(self._path)
        for stream in self._led:
            os.dup2(self._descriptor, stream)
        os.close(old)

    def close(self) -> None:
        """Close the file."""
        super().close()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _is_same_file(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False


def begin(places: DaemonPlaces, generation: str, start_log: Path | None) -> None:
    """Begin the log of this run; the caller holds the daemon's lock.

    Args:
        places: of the daemon. Its current log becomes the previous one.
        generation: written into each line.
        start_log: the file to which whoever started this process leads its output; it becomes the current log.
    """
    places.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    if places.log.exists():
        places.log.replace(places.previous_log)
    if start_log is not None and start_log.parent == places.logs and start_log.exists():
        start_log.replace(places.log)
    handler = LogFile(places.log)
    handler.setFormatter(JsonLines(generation))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    if start_log is None:
        on_screen = logging.StreamHandler(sys.stderr)
        # A pipe that nobody reads would block the daemon once it is full: only what ends it goes there.
        on_screen.setLevel(logging.INFO if sys.stderr.isatty() else logging.ERROR)
        on_screen.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(on_screen)
