"""Events as JSON lines in the state folder: appended by any process of Luna, read from where reading stopped.

Each event is one ``write`` to a file opened for appending, so lines of several processes do not mix.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from luna_engine import paths
from luna_tui.views import EventRow, EventsView

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEPT = 2_000
FOLD_S = 10.0
ROTATE_BYTES = 4 * 1024 * 1024
_FIRST_BYTES = 512 * 1024


class EventLog:
    """The events port: thread-safe; several processes may use the same folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._events: deque[EventRow] = deque(maxlen=KEPT)
        self._offset: int | None = None
        self._inode = 0
        self._seen_at = self._read_seen()

    @property
    def folder(self) -> Path:
        """The folder of ``events.jsonl``."""
        return self._folder or paths.state_dir() / "events"

    @property
    def file(self) -> Path:
        """The file that is appended to."""
        return self.folder / "events.jsonl"

    def record(self, event: EventRow) -> None:
        """Append an event; it gets an id and, if it has none, the time."""
        entry = dataclasses.replace(event, id=event.id or secrets.token_hex(6), at=event.at or time.time())
        line = json.dumps(dataclasses.asdict(entry)) + "\n"  # ASCII: foreign names may be no UTF-8
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._rotate()
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)

    def snapshot(self) -> EventsView:
        """Return the newest events first, repeats within ten seconds folded, and the logs there are."""
        with self._lock:
            self._read_new()
            events = tuple(reversed(fold(self._events)))
        return EventsView(time.time(), events, self._logs())

    def unread(self) -> int:
        """Return how many errors came since `mark_read`."""
        with self._lock:
            self._read_new()
            return sum(event.level == "error" and event.at > self._seen_at for event in self._events)

    def mark_read(self) -> None:
        """Take all events as seen, in later sessions too."""
        with self._lock:
            newest = max((event.at for event in self._events), default=self._seen_at)
            if newest <= self._seen_at:
                return
            self._seen_at = newest
        with paths.atomic_write(self.folder / "seen", mode=0o600) as temporary:
            temporary.write_text(repr(newest), "ascii")

    def _read_seen(self) -> float:
        try:
            return float((self.folder / "seen").read_text("ascii"))
        except (OSError, ValueError):
            return 0.0

    def _rotate(self) -> None:
        try:
            is_full = self.file.stat().st_size > ROTATE_BYTES
        except FileNotFoundError:
            return
        if is_full:
            self.file.replace(self.folder / "events.1.jsonl")

    def _read_new(self) -> None:
        try:
            with self.file.open("rb") as handle:
                state = os.fstat(handle.fileno())
                if self._offset is None or state.st_ino != self._inode or state.st_size < self._offset:
                    self._inode = state.st_ino
                    self._offset = max(0, state.st_size - _FIRST_BYTES)
                handle.seek(self._offset)
                data = handle.read()
        except FileNotFoundError:
            return
        complete = data.rpartition(b"\n")[0]
        if not complete:
            return
        self._offset += len(complete) + 1
        self._events.extend(event for line in complete.split(b"\n") if (event := parse(line)) is not None)

    @staticmethod
    def _logs() -> tuple[tuple[str, str], ...]:
        folder = paths.state_dir() / "logs"
        found = [(file.parent.name, str(file)) for file in sorted(folder.glob("*/current.log"))]
        own = folder / "luna-tui.log"
        if own.exists() and own.stat().st_size:
            found.append(("luna-tui", str(own)))
        return tuple(found)


def parse(line: bytes) -> EventRow | None:
    """Read one line; None if it is damaged or of a newer kind (a reader must not stop at one bad line)."""
    try:
        record = json.loads(line)
        names = {field.name for field in dataclasses.fields(EventRow)}
        event = EventRow(**{name: value for name, value in record.items() if name in names})
    except (ValueError, TypeError, AttributeError):
        return None
    texts = (event.id, event.level, event.source, event.code, event.message)
    # The record came from a file: its fields may hold anything.
    return event if _are((event.at,), (int, float)) and _are(texts, (str,)) else None


def _are(values: Iterable[object], kinds: tuple[type, ...]) -> bool:
    return all(isinstance(value, kinds) for value in values)


def fold(events: deque[EventRow]) -> list[EventRow]:
    """Fold repeats of the same thing within ten seconds into one row that counts them; oldest first."""
    folded: list[EventRow] = []
    for event in events:
        last = folded[-1] if folded else None
        same = last is not None and (last.source, last.code, last.message, last.command) == (
            event.source, event.code, event.message, event.command,
        )  # fmt: skip
        if last is not None and same and event.at - last.at <= FOLD_S:
            folded[-1] = dataclasses.replace(last, at=event.at, count=last.count + event.count)
        else:
            folded.append(event)
    return folded
