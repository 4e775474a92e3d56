"""Events on disk: written by several, read by several, folded, counted, rotated, never lost to one bad line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from luna_tui.backend.events import ROTATE_BYTES, EventLog
from luna_tui.views import EventRow

if TYPE_CHECKING:
    from pathlib import Path


def event(at: float, message: str = "it broke", level: str = "error") -> EventRow:
    return EventRow("", at, level, "clip", "daemon-ended", message)


def test_what_one_process_records_another_sees(tmp_path: Path) -> None:
    writer, reader = EventLog(tmp_path), EventLog(tmp_path)
    assert reader.snapshot().events == ()
    writer.record(event(1.0))
    reader.record(event(20.0, "again"))
    assert [entry.message for entry in reader.snapshot().events] == ["again", "it broke"]
    assert [entry.message for entry in writer.snapshot().events] == ["again", "it broke"]


def test_repeats_within_ten_seconds_are_counted_in_one_row(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for at in (1.0, 5.0, 14.0, 30.0):
        log.record(event(at))
    assert [(entry.at, entry.count) for entry in log.snapshot().events] == [(30.0, 1), (14.0, 3)]


def test_errors_are_unread_until_seen_also_in_later_sessions(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.record(event(1.0))
    log.record(event(2.0, level="info"))
    assert log.unread() == 1
    log.mark_read()
    assert log.unread() == 0
    assert EventLog(tmp_path).unread() == 0
    log.record(event(3.0))
    assert EventLog(tmp_path).unread() == 1


def test_damaged_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.record(event(1.0))
    with log.file.open("ab") as handle:
        handle.write(b'{"half\n[]\n\xff\n{"id": 5, "at": "x"}\n')
        handle.write(json.dumps({"id": "n", "at": 2, "level": "info", "source": "s", "code": "c", "message": "m",
                                 "from_the_future": 1}).encode() + b"\n")  # fmt: skip
    assert [entry.message for entry in log.snapshot().events] == ["m", "it broke"]


def test_a_full_file_is_turned_over_and_reading_goes_on(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.record(event(1.0))
    log.snapshot()
    with log.file.open("ab") as handle:
        handle.write(b"\n" * (ROTATE_BYTES + 1))
    log.record(event(60.0, "after"))
    assert log.snapshot().events[0].message == "after"
    assert (tmp_path / "events.1.jsonl").exists()


def test_foreign_text_survives_the_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    name = b"bad\xff".decode("utf-8", "surrogateescape") + "\nnext\x1b[31m"
    log.record(event(1.0, name))
    assert log.snapshot().events[0].message == name
