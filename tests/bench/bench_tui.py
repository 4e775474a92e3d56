"""First paint and memory of luna-tui beside a bare Textual app: ``python -m tests.bench.bench_tui [--write]``.

First paint is the time from starting the process until a word of the screen's content stands on the pty; memory is the
resident set two seconds later. Runs alternate, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.report import publish

ROOT = Path(__file__).resolve().parents[2]
BARE = """
from textual.app import App
from textual.widgets import Footer, Header, Static

class Bare(App):
    def compose(self):
        yield Header()
        yield Static("hello")
        yield Footer()

Bare().run()
"""
_UNSET = {"COLUMNS", "LINES", "NO_COLOR", "PYTHONDONTWRITEBYTECODE"}
SETTLE_S = 2.0
LIMIT_S = 30.0


@dataclass(frozen=True)
class Start:
    paint_s: float
    paint_cpu_s: float
    rss_bytes: int
    visited_rss_bytes: int | None = None


def start(command: list[str], word: bytes, home: str, keys: str = "") -> Start:
    """Start a program on a fresh pty of 120x36, wait for a word, and measure."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    # As installed: compiled files are kept from the first start on, in a folder of this run.
    environment |= {
        "LUNA_HOME": home,
        "PYTHONPYCACHEPREFIX": f"{home}/pycache",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        paint_s = _wait_for(master, word, began)
        used = psutil.Process(process.pid).cpu_times()
        _drain(master, SETTLE_S)
        rss = psutil.Process(process.pid).memory_info().rss
        visited = None
        if keys:
            for key in keys:
                os.write(master, key.encode())
                _drain(master, 1.5)
            visited = psutil.Process(process.pid).memory_info().rss
        return Start(paint_s, used.user + used.system, rss, visited)
    finally:
        process.send_signal(signal.SIGTERM)
        _drain(master, 0.5)
        process.kill()
        process.wait()
        os.close(master)


def _wait_for(master: int, word: bytes, began: float) -> float:
    seen = b""
    while time.perf_counter() - began < LIMIT_S:
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
            if word in seen:
                return time.perf_counter() - began
    raise SystemExit(f"{word!r} never came: {seen[-400:]!r}")


def _drain(master: int, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        if select.select([master], [], [], left)[0]:
            try:
                os.read(master, 65536)
            except OSError:  # the program is gone, and the pty with it
                return


def measure(runs: int) -> tuple[list[Start], list[Start]]:
    bare, luna = [], []
    with tempfile.TemporaryDirectory() as home:
        for number in range(runs + 1):
            pair = (
                start([sys.executable, "-c", BARE], b"hello", home),
                start([sys.executable, "-m", "luna_tui"], b"No daemon yet", home, "234561" if number == runs else ""),
            )
            if number:  # the first pair warms the disk's cache and Python's
                bare.append(pair[0])
                luna.append(pair[1])
    return bare, luna


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    bare, luna = measure(options.runs)
    paints = [statistics.median(entry.paint_s for entry in runs) for runs in (bare, luna)]
    cpu = [statistics.median(entry.paint_cpu_s for entry in runs) for runs in (bare, luna)]
    worst = [max(entry.paint_s for entry in runs) for runs in (bare, luna)]
    memory = [statistics.median(entry.rss_bytes for entry in runs) / 1024**2 for runs in (bare, luna)]
    visited = (luna[-1].visited_rss_bytes or 0) / 1024**2
    table = (
        "| | bare Textual app | luna-tui | ratio |\n|---|---|---|---|\n"
        f"| first paint, median of {options.runs} "
        f"| {paints[0]:.2f} s | {paints[1]:.2f} s | {paints[1] / paints[0]:.2f} |\n"
        f"| first paint, worst | {worst[0]:.2f} s | {worst[1]:.2f} s | {worst[1] / worst[0]:.2f} |\n"
        f"| processor time until then, median | {cpu[0]:.2f} s | {cpu[1]:.2f} s | {cpu[1] / cpu[0]:.2f} |\n"
        f"| RSS on the first screen | {memory[0]:.0f} MiB | {memory[1]:.0f} MiB | {memory[1] / memory[0]:.2f} |\n"
        f"| RSS after visiting all six | | {visited:.0f} MiB | {visited / memory[0]:.2f} |\n"
    )
    note = "The bare app is Header, Static and Footer. Both are started as processes on a pty of 120x36, in turn."
    publish("tui", "First paint and memory of luna-tui", table, write=options.write, note=note)


if __name__ == "__main__":
    main()
