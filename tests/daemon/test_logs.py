"""The log file: rotation by its only writer, and output that bypasses logging goes along."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from luna_daemon.logs import JsonLines, LogFile
from luna_engine import paths

if TYPE_CHECKING:
    from pathlib import Path


def records(count: int) -> list[logging.LogRecord]:
    return [logging.LogRecord("x", logging.INFO, "", 0, f"line {index} é", (), None) for index in range(count)]


def test_a_full_log_is_renamed_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "current.log"
    handler = LogFile(path, rotate_bytes=1000)
    handler.setFormatter(JsonLines("g"))
    for record in records(100):
        handler.emit(record)
    handler.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["current.log", *(f"current.log.{n}" for n in range(1, 6))]
    lines = [json.loads(line)["message"] for file in files for line in file.read_text("utf-8").splitlines()]
    assert "line 99 é" in lines
    assert all(file.stat().st_size < 1300 for file in files)


def test_a_crash_after_rotation_is_written_to_the_new_log(tmp_path: Path) -> None:
    path = tmp_path / "current.log"
    script = (
        "import logging, os, sys\n"
        "from luna_daemon.logs import JsonLines, LogFile\n"
        f"handler = LogFile(__import__('pathlib').Path({str(path)!r}), rotate_bytes=500)\n"
        "handler.setFormatter(JsonLines('g'))\n"
        "for n in range(20):\n"
        "    handler.emit(logging.LogRecord('x', 20, '', 0, f'line {n}', (), None))\n"
        "os.write(2, b'Fatal Python error: at the very end\\n')\n"
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    subprocess.run(
        [sys.executable, "-c", script], stdout=descriptor, stderr=descriptor, cwd=paths.checkout_root(), check=True
    )
    os.close(descriptor)
    assert (tmp_path / "current.log.1").exists()
    assert "at the very end" in path.read_text("utf-8")


def test_a_line_carries_code_trace_and_traceback() -> None:
    try:
        raise ValueError("inside")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed %d", (3,), sys.exc_info())
    record.code, record.trace = "internal", "ab"
    line = json.loads(JsonLines("g").format(record))
    assert (line["message"], line["code"], line["trace"], line["level"]) == ("failed 3", "internal", "ab", "error")
    assert "ValueError: inside" in line["exception"]
