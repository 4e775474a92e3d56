"""Following a log: the last 256 KiB, then what is appended; takes rotation, truncation, half lines, bad UTF-8."""

from __future__ import annotations

import datetime
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_tui.plain import clean_log

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

FIRST_BYTES = 256 * 1024
READ_BYTES = 1024 * 1024
_LEVELS = {"warn": "warning", "fatal": "critical", "err": "error"}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record. ``at`` is a Unix time; plain lines have neither time nor level."""

    text: str
    at: float | None = None
    level: str | None = None


class LogTail:
    """Reads what is new in a file each time `read` is called. Another thread may `close` it at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._identity: tuple[int, int] | None = None
        self._rest = b""
        self.missing = False
        self._guard = threading.Lock()
        self._is_closed = False

    def read(self) -> list[LogLine]:
        """Return complete new lines; an empty list if there are none, the file is not there, or it was closed."""
        with self._guard:
            raw = [] if self._is_closed else self._read_new()
        return [parse_line(line) for line in raw if line.strip()]

    def _read_new(self) -> list[bytes]:
        raw: list[bytes] = []
        if self._file is None and not self._open(first=True):
            return raw
        raw += self._drain()
        if self._rotated():
            raw += [self._rest] if self._rest else []
            self._let_go()
            if self._open(first=False):
                raw += self._drain()
        return raw

    def close(self) -> None:
        """Let go of the file for good."""
        with self._guard:
            self._is_closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""

    def _open(self, *, first: bool) -> bool:
        try:
            self._file = self.path.open("rb")
        except OSError:
            self.missing = True
            return False
        self.missing = False
        state = os.fstat(self._file.fileno())
        self._identity = (state.st_dev, state.st_ino)
        if first and state.st_size > FIRST_BYTES:
            self._file.seek(state.st_size - FIRST_BYTES)
            self._file.readline()  # the line that the cut went through
        return True

    def _drain(self) -> list[bytes]:
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # truncated in place
            self._file.seek(0)
            self._rest = b""
        data = self._rest + self._file.read(READ_BYTES)
        *lines, self._rest = data.split(b"\n")
        return lines

    def _rotated(self) -> bool:
        try:
            state = self.path.stat()
        except OSError:
            return False  # between rename and reopening; the old file still may grow
        return (state.st_dev, state.st_ino) != self._identity


def parse_line(raw: bytes) -> LogLine:
    """Read a JSON record or a plain line; damaged bytes become signs."""
    text = raw.decode("utf-8", "surrogateescape")
    if text.startswith("{"):
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if isinstance(record, dict) and (found := _from_record(record)) is not None:
            return found
    return LogLine(clean_log(text))


def _from_record(record: dict[str, object]) -> LogLine | None:
    message = record.get("message", record.get("msg", record.get("event")))
    if not isinstance(message, str):
        return None
    level = str(record.get("level", "info")).lower()
    lines = [message]
    if isinstance(code := record.get("code"), str):
        lines[0] = f"{message} [{code}]"
    if isinstance(trace := record.get("traceback", record.get("exception")), str):
        lines += trace.rstrip().splitlines()[-1:]
    return LogLine(clean_log(" · ".join(lines)), _time_of(record), _LEVELS.get(level, level))


def _time_of(record: dict[str, object]) -> float | None:
    value = record.get("at", record.get("time", record.get("ts")))
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        return datetime.datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
