"""The real thing: luna-tui in tmux, real daemons, a real kill."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from luna_engine import settings
from luna_engine.settings import DaemonInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.terminal


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, folder: Path) -> None:
        self._socket = str(folder / "tmux")
        self._config = folder / "tmux.conf"

    def tmux(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-S", self._socket, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def open(self, *, size: tuple[int, int] = (120, 36)) -> None:
        """Start a shell that says how the screen was left."""
        self._config.write_text("set -g status off\n")
        self.tmux(
            "-f",
            str(self._config),
            "new-session",
            "-d",
            "-x",
            str(size[0]),
            "-y",
            str(size[1]),
            "env -u COLUMNS -u LINES PS1='$ ' sh",
        )
        self.wait_for("$")

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def luna(self, *options: str) -> None:
        words = [sys.executable, "-m", "luna_tui", *options]
        self.type("clear; cd " + shlex.quote(str(ROOT)) + "; " + shlex.join(words) + "; echo left with $?", "Enter")

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait_for(self, *words: str, seconds: float = 60.0) -> str:
        """Poll the screen until all words stand on it."""
        return self.wait_until(lambda text: all(word in text for word in words), seconds, f"{words}")

    def wait_until(self, condition: Callable[[str], bool], seconds: float = 60.0, what: str = "it") -> str:
        deadline = time.monotonic() + seconds
        text = ""
        while time.monotonic() < deadline:
            text = self.screen()
            if condition(text):
                return text
            time.sleep(0.1)
        raise AssertionError(f"never saw {what} on\n{text}")

    def resize(self, width: int, height: int) -> None:
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    found = Terminal(tmp_path_factory.mktemp("t"))
    found.open()
    yield found
    found.close()


def identity(home: Path, name: str) -> dict[str, object]:
    return dict(json.loads((home / "state" / "run" / f"{name}.json").read_text()))


def codes(home: Path, source: str) -> list[str]:
    """Return the codes of a daemon's events, oldest first."""
    lines = (home / "state" / "events" / "events.jsonl").read_text().splitlines()
    return [event["code"] for event in map(json.loads, lines) if event["source"] == source]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def row(text: str, name: str) -> str:
    return next((line for line in text.splitlines() if line[1:].lstrip("▸ ").startswith(name + " ")), "")


def test_a_daemon_lives_through_a_kill_and_a_closed_luna(terminal: Terminal, luna_home: Path) -> None:
    """Set up, start, kill -9, see it back and counted, quit, come back, see it adopted, stop it."""
    terminal.luna()
    terminal.wait_for("No daemon yet", "supervising")
    terminal.type("c")
    terminal.wait_for("new daemon", "none: sets come later", "Name        luna")
    terminal.type("-l", "clip")  # it takes the place of the suggestion, which is selected
    terminal.wait_for("Name        clip")
    terminal.type("C-s")
    terminal.wait_for("clip", "stopped")
    terminal.type("s")
    terminal.wait_until(lambda text: "● ready" in row(text, "clip"), what="a ready daemon")
    first = identity(luna_home, "clip")
    try:
        os.kill(int(str(first["pid"])), signal.SIGKILL)
        terminal.wait_until(lambda text: "● ready" not in row(text, "clip"), what="the crash")
        text = terminal.wait_until(lambda text: "● ready" in row(text, "clip"), what="the restart")
        second = identity(luna_home, "clip")
        assert second["pid"] != first["pid"]
        assert "restarts  1" in text
        terminal.type("q")
        terminal.wait_for("1 daemon keeps running", "left with 0")
        assert "Overview" not in terminal.screen(), "the alternate screen is left"
        os.kill(int(str(second["pid"])), 0)
        terminal.luna()
        text = terminal.wait_until(lambda text: "● ready" in row(text, "clip") and "adopted" in text, what="adoption")
        assert identity(luna_home, "clip")["pid"] == second["pid"]
        terminal.type("x")
        terminal.wait_for("stop clip?")
        terminal.type("y")
        terminal.wait_until(lambda text: "stopped" in row(text, "clip"), what="the end")
        terminal.type("6")
        terminal.wait_for("clip is stopping", "clip has stopped: stopped by you")
        told = codes(luna_home, "clip")
        started = ["daemon-ready", "daemon-ended", "restarting", "daemon-ready"]
        assert told == [*started, "daemon-adopted", "daemon-stopped"], "the whole story and nothing twice"
        terminal.type("q")
        terminal.wait_for("left with 0")
    finally:
        for pid in (first["pid"], identity(luna_home, "clip")["pid"] if _has_identity(luna_home) else first["pid"]):
            try:
                os.kill(int(str(pid)), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _has_identity(home: Path) -> bool:
    return (home / "state" / "run" / "clip.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(terminal: Terminal, tmp_path: Path, number: signal.Signals) -> None:
    settings.save_daemon("quiet", DaemonInstance(port=free_port()))
    terminal.type("stty -a > " + shlex.quote(str(tmp_path / "before")), "Enter")
    terminal.luna()
    terminal.wait_for("quiet", "stopped")
    os.kill(_luna_pid(), number)
    terminal.wait_for("left with")
    terminal.type("stty -a > " + shlex.quote(str(tmp_path / "after")) + "; echo do''ne", "Enter")
    terminal.wait_for("done")
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()


def test_a_terminal_that_goes_away_takes_luna_with_it(terminal: Terminal) -> None:
    """What tmux or an SSH connection sends when it ends: a hang-up and a continue, and the device is gone."""
    terminal.luna()
    terminal.wait_for("No daemon yet")
    process = psutil.Process(_luna_pid())
    terminal.close()
    process.wait(timeout=30)


def _luna_pid() -> int:
    pids = subprocess.run(["pgrep", "-f", f"{sys.executable} -m luna_tui$"], capture_output=True, text=True, check=True)
    return int([pid for pid in pids.stdout.split() if _home_of(int(pid)) == os.environ["LUNA_HOME"]][-1])


def _home_of(pid: int) -> str:
    raw = Path(f"/proc/{pid}/environ").read_bytes()
    return next((part[10:].decode() for part in raw.split(b"\0") if part.startswith(b"LUNA_HOME=")), "")


def test_every_size_and_back(terminal: Terminal) -> None:
    terminal.luna()
    terminal.wait_for("No daemon yet")
    for size, mark in (((40, 12), "1/6 Overview"), ((80, 24), " 1 Overview  2 GPU"), ((120, 36), " luna  1 Overview")):
        terminal.resize(*size)
        terminal.wait_for(mark)
    terminal.type("q")
    terminal.wait_for("left with 0")


def test_a_second_luna_is_a_viewer(terminal: Terminal, tmp_path_factory: pytest.TempPathFactory) -> None:
    terminal.luna()
    terminal.wait_for("supervising")
    other = Terminal(tmp_path_factory.mktemp("u"))
    other.open()
    try:
        other.luna()
        other.wait_for("viewer, pid")
        terminal.type("q")
        terminal.wait_for("left with 0")
        other.wait_for("supervising")
        other.type("q")
        other.wait_for("left with 0")
    finally:
        other.close()
