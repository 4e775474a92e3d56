"""`luna daemon`, run as a process: what it prints, its exit codes, and that it needs no torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import identity
from luna_daemon.identity import DaemonPlaces
from luna_engine import paths, settings
from luna_engine.settings import DaemonInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .conftest import WireDaemon


def luna(*arguments: str, timeout: float = 60.0) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "luna_tui.cli", *arguments],
        cwd=paths.checkout_root(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def luna_json(*arguments: str) -> tuple[int, dict[str, Any]]:
    code, stdout, _ = luna(*arguments, "--json")
    return code, json.loads(stdout)


@pytest.fixture(autouse=True)
def nothing_left(luna_home: Path) -> Iterator[None]:
    yield
    for found in list(identity.live_identities()):
        os.kill(found.pid, signal.SIGKILL)


@pytest.fixture
def small_engine(tmp_path: Path) -> None:
    """Let `luna daemon start` run the wire's small engine: its interpreter is a script that swaps the entry."""
    from .conftest import WIRE_DAEMON

    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" "{WIRE_DAEMON}" "$@"\n', "utf-8")
    python.chmod(0o755)
    paths.config_dir().mkdir(parents=True)
    paths.settings_file().write_text(f'# mine\n[daemon]\npython = "{python}"\n', "utf-8")


def test_nothing_configured_says_what_to_do() -> None:
    code, stdout, _ = luna("daemon", "status")
    assert code == 0
    assert "luna daemon start clip" in stdout
    code, status = luna_json("daemon", "status")
    assert (code, status["schema"]) == (0, "luna.daemon.status/1")
    assert (status["daemons"], status["supervisor"]) == ([], None)


def test_start_status_restart_stop(small_engine: None) -> None:
    code, started = luna_json("daemon", "start", "clip", "--port", "21001", "--device", "cpu")
    assert code == 0
    assert (started["schema"], started["daemons"][0]["ok"]) == ("luna.daemon.start/1", True)
    pid = started["daemons"][0]["pid"]
    assert identity.read_identity("clip") is not None
    assert luna_json("daemon", "start", "clip")[1]["daemons"][0]["pid"] == pid, "a second start finds the first"

    code, status = luna_json("daemon", "status", "clip")
    (row,) = status["daemons"]
    assert (code, row["state"], row["pid"], row["port"], row["device"]) == (0, "ready", pid, 21001, "cpu")
    assert row["status"]["sets"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["since"])
    assert "ready" in luna("daemon", "status")[1]

    assert luna("daemon", "restart", "clip")[0] == 0
    assert luna_json("daemon", "status", "clip")[1]["daemons"][0]["pid"] != pid

    assert luna_json("daemon", "stop", "--all")[1]["daemons"] == [{"name": "clip", "ok": True, "outcome": "stopped"}]
    code, status = luna_json("daemon", "status", "clip")
    assert (code, status["daemons"][0]["state"]) == (3, "stopped")
    assert luna("daemon", "stop", "clip")[1].strip() == "clip: did not run"


def test_a_daemon_that_was_killed_unwatched_is_shown_as_crashed(small_engine: None) -> None:
    assert luna("daemon", "start", "clip", "--port", "21008")[0] == 0
    found = identity.read_identity("clip")
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    wait_until(lambda: not found.is_alive())
    code, status = luna_json("daemon", "status", "clip")
    assert (code, status["daemons"][0]["state"]) == (1, "crashed")
    assert status["daemons"][0]["reason"] == "ended without a word"


def test_force_ends_a_daemon_that_does_not_hear(small_engine: None) -> None:
    assert luna("daemon", "start", "clip", "--port", "21007")[0] == 0
    found = identity.read_identity("clip")
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert luna("daemon", "stop", "clip", "--force")[0] == 0
    assert time.monotonic() - began < 8.0
    assert not found.is_alive()


def test_options_of_start_are_kept_in_the_settings_with_the_user_s_comments(small_engine: None) -> None:
    assert luna("daemon", "start", "mine", "-t", "vae", "--port", "21002", "--wait", "started")[0] == 0
    assert settings.load().daemons["mine"] == DaemonInstance(service_type="vae", port=21002)
    assert paths.settings_file().read_text("utf-8").startswith("# mine")


def test_one_failure_of_several_is_exit_1_and_names_each(small_engine: None) -> None:
    settings.save_daemon("good", DaemonInstance(port=21003))
    code, result = luna_json("daemon", "start", "good", "bad")
    assert code == 1
    assert [(row["name"], row["ok"]) for row in result["daemons"]] == [("good", True), ("bad", False)]
    assert result["daemons"][1]["error"]["code"] == "daemon-unknown"


def test_a_start_that_fails_says_why(small_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_TEST_START", "device-unusable")
    code, _, stderr = luna("daemon", "start", "clip", "--port", "21004")
    assert code == 1
    assert "start-failed" in stderr
    assert "device" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("start",),
        ("stop",),
        ("stop", "x", "--all"),
        ("start", "a", "b", "--port", "21000"),
        ("start", "a", "--wait", "forever"),
        ("configure", "a", "--remove", "--set", "port=21000"),
        ("logs", "clip", "--grep", "("),
    ],
)
def test_wrong_usage_is_exit_2(start_daemon: Callable[..., WireDaemon], arguments: tuple[str, ...]) -> None:
    if arguments[0] == "logs":
        start_daemon(name="clip")
    assert luna("daemon", *arguments)[0] == 2


def test_readonly_refuses_changes() -> None:
    code, _, stderr = luna("--readonly", "daemon", "start", "clip")
    assert code == 1
    assert "read-only" in stderr
    assert list(identity.live_identities()) == []


def test_configure_writes_shows_and_removes() -> None:
    code, result = luna_json("daemon", "configure", "x", "--set", "port=21005", "--set", "preload=a,b", "--dry-run")
    assert code == 0
    assert 'preload = ["a", "b"]' in result["toml"]
    assert settings.load().daemons == {}
    assert luna("daemon", "configure", "x", "--set", "port=21005", "--set", "autostart=true")[0] == 0
    assert settings.load().daemons["x"] == DaemonInstance(port=21005, autostart=True)
    assert luna("daemon", "configure", "x", "--set", "threads=2")[0] == 0
    assert settings.load().daemons["x"] == DaemonInstance(port=21005, autostart=True, threads=2)
    assert luna("daemon", "configure", "x", "--remove")[0] == 0
    assert settings.load().daemons == {}
    assert luna("daemon", "configure", "x", "--remove")[0] == 1


@pytest.mark.parametrize("change", ["port=80", "port=x", "colour=red", "device", "backend=rust", "autostart=maybe"])
def test_configure_names_the_wrong_value_and_writes_nothing(change: str) -> None:
    code, _, stderr = luna("daemon", "configure", "x", "--set", change)
    assert code == 1
    assert "setting-invalid" in stderr
    assert not paths.settings_file().exists()


def test_logs_filter_by_text_level_and_context(luna_home: Path) -> None:
    logs = DaemonPlaces("clip").logs
    logs.mkdir(parents=True)
    rows = [
        {"at": f"2026-01-01T00:00:0{n}.000Z", "level": level, "message": f"line {n}"}
        for n, level in enumerate(["info", "warning", "info", "error", "info"])
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "plain \xff words\n"
    DaemonPlaces("clip").log.write_bytes(text.encode("latin-1"))
    shown = luna("daemon", "logs", "clip")[1].splitlines()
    assert len(shown) == 6
    assert shown[1] == "00:00:01.000 WARNING  line 1"
    assert [line[-6:] for line in luna("daemon", "logs", "clip", "--level", "warning")[1].splitlines()[:2]] == [
        "line 1",
        "line 3",
    ]
    assert len(luna("daemon", "logs", "clip", "--grep", "line 3", "--context", "1")[1].splitlines()) == 3
    assert len(luna("daemon", "logs", "clip", "--lines", "2")[1].splitlines()) == 2
    since = luna("daemon", "logs", "clip", "--since", "2026-01-01T00:00:03.000Z", "--grep", "line")[1]
    assert len(since.splitlines()) == 2
    first = json.loads(luna("daemon", "logs", "clip", "--json")[1].splitlines()[0])
    assert (first["text"], first["level"]) == ("line 0", "info")
    code, _, stderr = luna("daemon", "logs", "nobody")
    assert code == 1
    assert "log-missing" in stderr


def test_logs_follow_through_rotation(luna_home: Path) -> None:
    places = DaemonPlaces("clip")
    places.logs.mkdir(parents=True)
    places.log.write_text("old\n", "utf-8")
    follower = subprocess.Popen(
        [sys.executable, "-u", "-m", "luna_tui.cli", "daemon", "logs", "clip", "--follow"],
        cwd=paths.checkout_root(),
        stdout=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    assert follower.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(line.strip() for line in follower.stdout or ()))
    reader.start()
    try:
        wait_until(lambda: lines == ["old"])
        append(places.log, "half")
        append(places.log, " a line\n")
        wait_until(lambda: lines[-1] == "half a line")
        places.log.replace(places.previous_log)
        places.log.write_text("new run\n", "utf-8")
        wait_until(lambda: lines[-1] == "new run")
    finally:
        follower.kill()
        follower.wait(10)
        reader.join(10)
        follower.stdout.close()


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def wait_until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_supervise_restarts_a_killed_daemon_and_a_second_one_is_told_who_does(small_engine: None) -> None:
    settings.save_daemon("one", DaemonInstance(port=21006, autostart=True))
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "luna_tui.cli", "daemon", "supervise", "--json"],
        cwd=paths.checkout_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_until(lambda: identity.read_identity("one") is not None)
        found = identity.read_identity("one")
        assert found is not None
        code, _, stderr = luna("daemon", "supervise")
        assert code == 1
        assert f"pid {supervisor.pid}" in stderr
        wait_until(lambda: luna_json("daemon", "status", "one")[1]["daemons"][0]["state"] == "ready")
        os.kill(found.pid, signal.SIGKILL)
        wait_until(lambda: (now := identity.read_identity("one")) is not None and now.pid != found.pid)
        wait_until(lambda: luna_json("daemon", "status", "one")[1]["daemons"][0]["restarts_total"] == 1)
        status = luna_json("daemon", "status")[1]
        assert status["supervisor"]["pid"] == supervisor.pid
        assert status["daemons"][0]["last_exit"]["signal"] == 9
        supervisor.send_signal(signal.SIGTERM)
        stdout, _ = supervisor.communicate(timeout=10)
        assert supervisor.returncode == 0
        assert "restarting" in {json.loads(line)["code"] for line in stdout.splitlines()}
        assert luna_json("daemon", "status", "one")[1]["daemons"][0]["state"] == "ready", "the daemon lives on"
    finally:
        supervisor.kill()
        supervisor.wait(10)
        if supervisor.stdout is not None:
            supervisor.stdout.close()


@pytest.mark.parametrize("module", ["torch", "numpy", "textual", "transformers", "safetensors"])
def test_the_command_and_the_wire_load_no_heavy_library(module: str) -> None:
    script = (
        "import sys\n"
        "import luna_tui.commands.daemon, luna_daemon.client, luna_daemon.supervisor, luna_daemon.process\n"
        "import luna_daemon.connection, luna_daemon.listener, luna_daemon.tensors\n"
        f"raise SystemExit({module!r} in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=paths.checkout_root(), check=False).returncode == 0
