"""Following a log file as it grows, turns over, shrinks and misbehaves."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from luna_tui.backend.fake import FakeBackend
from luna_tui.logtail import FIRST_BYTES, LogLine, LogTail, parse_line
from luna_tui.widgets.log_pane import LogPane
from luna_tui.widgets.log_view import CAPACITY, LogView

if TYPE_CHECKING:
    from pathlib import Path


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_appended_lines_come_once_and_half_lines_wait(tmp_path: Path) -> None:
    file = tmp_path / "current.log"
    file.write_bytes(b"one\ntw")
    tail = LogTail(file)
    assert texts(tail.read()) == ["one"]
    assert tail.read() == []
    with file.open("ab") as handle:
        handle.write(b"o\nthree\n")
    assert texts(tail.read()) == ["two", "three"]
    tail.close()


def test_a_file_that_comes_later_is_found(tmp_path: Path) -> None:
    tail = LogTail(tmp_path / "later.log")
    assert tail.read() == []
    assert tail.missing
    (tmp_path / "later.log").write_bytes(b"here\n")
    assert texts(tail.read()) == ["here"]
    tail.close()


def test_rotation_loses_no_line(tmp_path: Path) -> None:
    file = tmp_path / "current.log"
    file.write_bytes(b"old 1\n")
    tail = LogTail(file)
    tail.read()
    with file.open("ab") as handle:
        handle.write(b"old 2\n")
    file.rename(tmp_path / "current.1.log")
    file.write_bytes(b"new 1\n")
    assert texts(tail.read()) == ["old 2", "new 1"]
    tail.close()


def test_truncation_begins_again(tmp_path: Path) -> None:
    file = tmp_path / "current.log"
    file.write_bytes(b"long line number one\n")
    tail = LogTail(file)
    tail.read()
    file.write_bytes(b"short\n")
    assert texts(tail.read()) == ["short"]
    tail.close()


def test_a_large_file_begins_with_its_end_at_a_line(tmp_path: Path) -> None:
    file = tmp_path / "current.log"
    file.write_bytes(b"".join(b"line %06d\n" % number for number in range(100_000)))
    tail = LogTail(file)
    lines = texts(tail.read())
    assert lines[-1] == "line 099999"
    assert lines[0].startswith("line ")
    assert len(lines) <= FIRST_BYTES // 12
    tail.close()


def test_json_records_become_time_level_and_text() -> None:
    record = {"at": "2025-11-24T06:36:40.500Z", "level": "WARN", "message": "halving", "code": "vram-short"}
    assert parse_line(json.dumps(record).encode()) == LogLine("halving [vram-short]", 1_763_966_200.5, "warning")


def test_damaged_lines_stay_as_they_are_but_safe() -> None:
    assert parse_line(b'{"half": ').text == '{"half": '
    assert parse_line(b"caf\xe9").text == "caf\\xe9"
    assert parse_line(b'{"message": 5}').text == '{"message": 5}'


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line(raw: bytes) -> None:
    line = parse_line(raw.replace(b"\n", b""))
    assert all(ord(sign) >= 0x20 for sign in line.text)


@given(st.lists(st.integers(1, 40), max_size=12))
def test_lines_do_not_depend_on_how_reading_is_cut(tmp_path_factory: Any, cuts: list[int]) -> None:
    data = b"".join(b"row %d\n" % number for number in range(40))
    file = tmp_path_factory.mktemp("cuts") / "log"
    file.touch()
    tail = LogTail(file)
    seen: list[str] = []
    position = 0
    for size in [*cuts, len(data)]:
        with file.open("ab") as handle:
            handle.write(data[position : position + size])
        position += size
        seen += texts(tail.read())
    tail.close()
    assert seen == [f"row {number}" for number in range(40)]


async def test_the_pane_follows_pauses_and_resumes(tui: Any, tmp_path: Path) -> None:
    async with tui.running(backend=FakeBackend("normal", logs=tmp_path)) as pilot:
        view = pilot.app.screen.query_one(LogView)
        await wait_for(pilot, lambda: bool(view.lines))
        await pilot.press("l", "k", "k")
        assert not view.following
        with (tmp_path / "clip.log").open("a", encoding="utf-8") as handle:
            handle.write("one more\n")
        await wait_for(pilot, lambda: view.unseen == 1)
        assert "paused, 1 new" in tui.text(pilot.app)
        await pilot.press("F")
        assert view.following
        assert view.current_text == "one more"


async def test_the_pane_of_another_daemon_shows_its_own_log(tui: Any, tmp_path: Path) -> None:
    async with tui.running(backend=FakeBackend("normal", logs=tmp_path)) as pilot:
        pane = pilot.app.screen.query_one(LogPane)
        await wait_for(pilot, lambda: len(pane.view.lines) == 10)
        await pilot.press("j")
        await wait_for(pilot, lambda: len(pane.view.lines) == 5)
        assert "warming up sdxl-vae" in tui.text(pilot.app)


async def test_filter_and_level_choose_lines(tui: Any, tmp_path: Path) -> None:
    async with tui.running(backend=FakeBackend("normal", logs=tmp_path)) as pilot:
        view = pilot.app.screen.query_one(LogView)
        await wait_for(pilot, lambda: bool(view.lines))
        await pilot.press("l", "slash", *"phase: !sdxl", "enter")
        assert [line.text.split()[0] for line in view.shown] == ["phase:"] * 3
        await pilot.press("escape")
        assert len(view.shown) == len(view.lines)
        await pilot.press("v", "v")
        assert {line.level for line in view.shown} == {"warning"}


async def test_enter_shows_the_whole_line(tui: Any, tmp_path: Path) -> None:
    async with tui.running(backend=FakeBackend("normal", logs=tmp_path)) as pilot:
        view = pilot.app.screen.query_one(LogView)
        await wait_for(pilot, lambda: bool(view.lines))
        assert "clip.sock, 127.0.0.1" not in tui.text(pilot.app)
        await pilot.press("l", "g", "enter")
        await tui.settled(pilot)
        assert "clip.sock, 127.0.0.1" in tui.text(pilot.app)


async def test_the_ring_keeps_the_newest_lines(tui: Any) -> None:
    async with tui.running() as pilot:
        view = pilot.app.screen.query_one(LogView)
        for start in range(0, 25_000, 5_000):
            view.append([LogLine(f"line {number}") for number in range(start, start + 5_000)])
        await pilot.pause()
        assert len(view.shown) == CAPACITY
        assert view.shown[-1].text == "line 24999"


async def wait_for(pilot: Any, condition: Any) -> None:
    """Poll for a condition that a worker thread brings about."""
    deadline = time.monotonic() + 15.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await pilot.pause(0.02)
    await pilot.pause()
