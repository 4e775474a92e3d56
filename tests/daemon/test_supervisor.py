"""The supervisor with real processes: kill -9, adoption, election, viewers, and its own death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luna_daemon import identity
from luna_daemon.control import ensure, stop
from luna_daemon.identity import DaemonPlaces
from luna_daemon.supervisor import Supervisor, SupervisorEvent, holder
from luna_daemon.world import RealWorld
from luna_engine import paths, settings
from luna_engine.errors import DaemonError, LunaError
from luna_engine.settings import DaemonInstance, Settings

from .conftest import COMMAND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self

    from luna_daemon.views import DaemonView

    from .conftest import WireDaemon

INSTANCE = DaemonInstance(port=0)


class Hosted:
    """A supervisor in a thread, as luna-tui hosts it."""

    def __init__(self, names: tuple[str, ...] = ("one",), **instance: Any) -> None:
        self.events: list[SupervisorEvent] = []
        one = DaemonInstance(**{"port": 0, **instance})
        self.supervisor = Supervisor(
            Settings(daemons=dict.fromkeys(names, one)), command=COMMAND, on_event=self.events.append
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.supervisor.run, args=(self._stop,))

    def __enter__(self) -> Self:
        self.supervisor.try_lock()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def view(self, name: str = "one") -> DaemonView:
        return next(view for view in self.supervisor.snapshot() if view.name == name)

    def until(self, state: str, name: str = "one", seconds: float = 15.0) -> DaemonView:
        deadline = time.monotonic() + seconds
        while True:
            views = {view.name: view for view in self.supervisor.snapshot()}
            if name in views and views[name].state.value == state:
                return views[name]
            assert time.monotonic() < deadline, f"{name} is {views.get(name)}, not {state}"
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_left(luna_home: Path) -> Iterator[None]:
    """End every daemon that a test leaves, by the identity in its own home."""
    yield
    for found in list(identity.live_identities()):
        os.kill(found.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_daemon_is_restarted_with_back_off_and_counted() -> None:
    with Hosted() as host:
        host.supervisor.start("one")
        first = host.until("ready")
        assert first.status is not None
        assert first.rss_bytes is not None
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        waiting = host.until("backoff")
        assert waiting.backoff_s is not None
        assert waiting.last_exit is not None
        assert (waiting.last_exit.signal, waiting.last_exit.code) == (9, None)
        assert any("ready after" in line for line in waiting.last_exit.log_tail)
        second = host.until("ready")
        assert second.pid != first.pid
        assert second.generation != first.generation
        assert second.restarts_total == 1
    assert {"daemon-ended", "restarting"} <= {event.code for event in host.events}


def test_daemons_outlive_their_supervisor_and_the_next_one_adopts_them() -> None:
    with Hosted(("one", "two")) as host:
        host.supervisor.start("one")
        host.supervisor.start("two")
        pids = {host.until("ready", name).pid for name in ("one", "two")}
    assert holder() is None
    with Hosted(("one", "two")) as host:
        assert {host.until("ready", name).pid for name in ("one", "two")} == pids
        assert host.view("one").adopted
        pid = host.view("one").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        host.until("backoff")
        assert host.until("ready").restarts_total == 1
        host.supervisor.stop("two")
        assert host.until("stopped", "two").reason == "stopped by you"


def test_a_killed_supervisor_leaves_its_daemons_alive(luna_home: Path) -> None:
    script = (
        "import threading\n"
        "from luna_daemon.supervisor import Supervisor\n"
        "from luna_engine.settings import DaemonInstance, Settings\n"
        f"one = Supervisor(Settings(daemons={{'one': DaemonInstance(port=0)}}), command={COMMAND!r})\n"
        "assert one.try_lock()\n"
        "one.start('one')\n"
        "one.run(threading.Event())\n"
    )
    watcher = subprocess.Popen([sys.executable, "-c", script], cwd=paths.checkout_root())
    try:
        wait_until(lambda: (seen := holder()) is not None and seen.pid == watcher.pid)
        with Hosted() as viewer:
            assert not viewer.supervisor.is_supervising
            view = viewer.until("ready")
            watcher.kill()
            watcher.wait(10)
            wait_until(lambda: viewer.supervisor.is_supervising)
            assert viewer.until("ready").pid == view.pid
            assert view.pid is not None
            assert psutil.pid_exists(view.pid)
    finally:
        watcher.kill()
        watcher.wait(10)


def test_eight_at_once_start_exactly_one_daemon() -> None:
    pids: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            found = ensure("one", instance=INSTANCE, command=COMMAND, timeout_s=30)
            assert found is not None
            pids.append(found.pid)
        except BaseException as error:  # noqa: BLE001 - a thread's border; the test reports it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(pids) == 8
    assert len(set(pids)) == 1
    mine = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert [child.pid for child in mine if child.pid == pids[0]] == [pids[0]]
    wait_until(lambda: not list(DaemonPlaces("one").logs.glob("start-*.log")))


def test_one_supervises_and_the_other_views_and_both_may_act() -> None:
    with Hosted() as first, Hosted() as second:
        assert first.supervisor.is_supervising
        assert not second.supervisor.is_supervising
        assert second.supervisor.holder_pid == os.getpid()
        second.supervisor.start("one")
        pid = first.until("ready").pid
        assert second.until("ready").pid == pid
        second.supervisor.stop("one")
        first.until("stopped")
        assert second.until("stopped").restarts_total == 0


def test_the_lock_is_handed_over_when_asked() -> None:
    with Hosted() as first:
        script = (
            "import time\n"
            "from luna_daemon.supervisor import Supervisor\n"
            "from luna_engine.settings import Settings\n"
            "one = Supervisor(Settings())\n"
            "assert not one.try_lock()\n"
            "one.request_takeover()\n"
            "end = time.monotonic() + 5\n"
            "while not one.try_lock():\n"
            "    assert time.monotonic() < end\n"
            "    time.sleep(0.02)\n"
            "time.sleep(0.5)\n"
        )
        subprocess.run([sys.executable, "-c", script], cwd=paths.checkout_root(), check=True, timeout=20)
        assert "supervisor-yielded" in {event.code for event in first.events}


def test_a_start_that_fails_says_why_and_keeps_the_output() -> None:
    os.environ["LUNA_TEST_START"] = "model-missing"
    try:
        with pytest.raises(DaemonError) as caught:
            ensure("one", instance=INSTANCE, command=COMMAND, timeout_s=20)
    finally:
        del os.environ["LUNA_TEST_START"]
    assert caught.value.code == "start-failed"
    assert "preload" in caught.value.message
    assert caught.value.details is not None
    assert caught.value.details["code"] == 66


def test_a_program_that_cannot_even_begin_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no engine here')\n", "utf-8")
    with pytest.raises(DaemonError) as caught:
        ensure("one", instance=INSTANCE, command=(sys.executable, str(broken)), timeout_s=20)
    assert "no engine here" in caught.value.message
    with pytest.raises(DaemonError) as caught:
        ensure("one", instance=INSTANCE, command=(str(tmp_path / "no-python"), "x"), timeout_s=20)
    assert caught.value.code == "start-failed"


def test_stop_of_a_stopped_process_escalates_to_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luna_daemon.supervised.LADDER_S", 0.3)
    found = ensure("one", instance=INSTANCE, command=COMMAND)
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)
    assert stop("one", timeout_s=15)
    gone(found.pid)
    record = identity.read_exit("one")
    assert record is not None
    assert record.asked


def test_stop_of_what_does_not_run_says_so() -> None:
    assert stop("one") is False


# DAEMON S22
def test_a_reused_pid_is_never_signalled() -> None:
    """An identity that names a live stranger is stale, and the stranger stays untouched."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = ensure("one", instance=INSTANCE, command=COMMAND)
        assert found is not None
        assert stop("one")
        record = {**{name: getattr(found, name) for name in found.__slots__}, "pid": stranger.pid}
        record["create_time"] = psutil.Process(stranger.pid).create_time() - 1.0
        identity.write_record(DaemonPlaces("one").identity, record)
        assert stop("one") is False
        with Hosted() as host:
            assert host.until("crashed").pid is None
            host.supervisor.kill("one")
        assert stranger.poll() is None
        assert not DaemonPlaces("one").identity.exists()
    finally:
        stranger.kill()
        stranger.wait(10)


def test_a_daemon_nobody_configured_is_found_and_shown_but_not_restarted(
    start_daemon: Callable[..., Any],
) -> None:
    daemon = start_daemon(name="stray")
    with Hosted(()) as host:
        view = host.until("ready", "stray")
        assert (view.configured, view.adopted, view.pid) == (False, True, daemon.process.pid)
        daemon.process.kill()
        daemon.process.wait(10)
        wait_until(lambda: not host.supervisor.snapshot())


# DAEMON S22
@pytest.mark.parametrize("text", ["{", "[]", '{"name": 5}', '{"name": "one", "pid": "x"}', ""])
def test_a_damaged_identity_harms_nobody(text: str) -> None:
    path = DaemonPlaces("one").identity
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(text, "utf-8")
    assert list(identity.live_identities()) == []
    with Hosted() as host:
        host.supervisor.start("one")
        host.until("ready")


def test_changed_settings_are_read_and_bad_ones_leave_the_old() -> None:
    with Hosted(()) as host:
        settings.save_daemon("late", INSTANCE)
        host.until("stopped", "late")
        paths.settings_file().write_text("not toml", "utf-8")
        wait_until(lambda: "settings-invalid" in {event.code for event in host.events})
        assert host.view("late").configured


def test_autostart_starts_with_the_supervisor() -> None:
    with Hosted(autostart=True) as host:
        host.until("ready")


def test_forget_removes_a_stopped_daemon_and_refuses_a_running_one() -> None:
    settings.save_daemon("one", INSTANCE)
    with Hosted() as host:
        host.supervisor.start("one")
        host.until("ready")
        with pytest.raises(LunaError) as caught:
            host.supervisor.forget("one")
        assert caught.value.code == "daemon-running"
        host.supervisor.stop("one")
        host.until("stopped")
        host.supervisor.forget("one")
        assert host.supervisor.snapshot() == ()
        assert settings.load().daemons == {}
        with pytest.raises(LunaError) as caught:
            host.supervisor.start("one")
        assert caught.value.code == "daemon-unknown"


def test_a_silent_daemon_is_shown_as_unresponsive_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luna_daemon.supervised.PING_EVERY_S", 0.1)
    with Hosted() as host:
        host.supervisor.start("one")
        pid = host.until("ready").pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        view = host.until("unresponsive")
        assert "without an answer" in str(view.reason)
        os.kill(pid, signal.SIGCONT)
        assert host.until("ready").pid == pid


def test_a_daemon_that_lost_its_identity_is_found_by_its_lock_and_left_alone(
    start_daemon: Callable[..., WireDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon()
    kept = DaemonPlaces("wire").identity.read_bytes()
    world = RealWorld(COMMAND)
    assert world.orphan("nobody") is None
    DaemonPlaces("wire").identity.unlink()
    monkeypatch.setattr("luna_daemon.world.ORPHAN_AFTER_S", 3600.0)
    assert world.orphan("wire") is None, "one that starts has the lock a moment before its identity"
    monkeypatch.setattr("luna_daemon.world.ORPHAN_AFTER_S", 0.0)
    found = world.orphan("wire")
    assert found is not None
    assert found.pid == daemon.process.pid
    found.close()
    with pytest.raises(DaemonError) as caught:
        stop("wire")
    assert caught.value.code == "daemon-orphan"
    assert daemon.process.poll() is None
    DaemonPlaces("wire").identity.write_bytes(kept)
    assert daemon.client().ping(), "it kept its lock and serves"
    daemon.process.kill()
    daemon.process.wait(10)
    assert world.orphan("wire") is None
    world.close()
