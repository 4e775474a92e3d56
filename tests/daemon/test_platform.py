"""What touches the operating system: locks, private folders, signals, inherited environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from luna_daemon import platform
from luna_daemon.platform import posix
from luna_engine import paths
from luna_engine.errors import DaemonError

TEMPORARY = Path(f"/tmp/luna-{os.getuid()}")  # noqa: S108 - what the product must choose


def test_a_lock_is_exclusive_and_free_when_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from luna_daemon.platform import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]))\n"
        "assert lock.acquire()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=paths.checkout_root(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        mine = platform.FileLock(path)
        assert not mine.acquire()
        assert mine.holder() == holder.pid
        holder.kill()
        holder.wait(10)
        assert mine.acquire()
        assert mine.acquire(), "taking it twice is holding it"
        mine.release()
        assert not mine.is_held
    finally:
        holder.kill()
        holder.wait(10)
        if holder.stdout is not None:
            holder.stdout.close()


def test_a_lock_is_not_inherited_by_children(tmp_path: Path) -> None:
    lock = platform.FileLock(tmp_path / "x.lock")
    assert lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False)
    try:
        lock.release()
        other = platform.FileLock(tmp_path / "x.lock")
        deadline = time.monotonic() + 5
        while not other.acquire():  # between fork and exec the child has it for a moment
            assert time.monotonic() < deadline
        assert child.poll() is None
        other.release()
    finally:
        child.kill()
        child.wait(10)


def test_sockets_lie_in_a_short_private_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUNA_HOME", "/h")
    assert platform.socket_folder() == Path("/h/state/run")
    monkeypatch.setenv("LUNA_HOME", f"/{'long' * 30}")
    tag = platform.socket_folder()
    assert tag.parent == TEMPORARY
    monkeypatch.setenv("LUNA_HOME", f"/{'long' * 31}")
    assert platform.socket_folder() != tag, "two homes never share a socket"
    monkeypatch.delenv("LUNA_HOME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    assert platform.socket_folder() == Path("/run/user/5/luna")
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"/{'x' * 90}")
    assert platform.socket_folder() == TEMPORARY
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert platform.socket_folder() == TEMPORARY


@pytest.mark.parametrize("spoil", ["mode", "link", "file"])
def test_a_folder_that_is_not_private_is_refused(tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "run"
    if spoil == "mode":
        folder.mkdir(mode=0o755)
    elif spoil == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to("real")
    else:
        folder.touch(mode=0o600)
    with pytest.raises(DaemonError) as caught:
        platform.prepare_private_folder(folder)
    assert caught.value.code == "path-unsafe"


def test_a_private_folder_is_made(tmp_path: Path) -> None:
    platform.prepare_private_folder(tmp_path / "run")
    platform.prepare_private_folder(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_signal_goes_only_to_the_process_that_was_meant() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        began = psutil.Process(child.pid).create_time()
        assert not platform.send_signal(child.pid, began - 5.0, signal.SIGKILL)
        assert child.poll() is None
        watch = platform.ProcessWatch(child.pid, began)
        assert not watch.has_ended()
        assert platform.send_signal(child.pid, began, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while not watch.has_ended():
            assert time.monotonic() < deadline
        watch.close()
        assert platform.create_time(child.pid) is None, "a zombie does not live"
        assert not platform.send_signal(child.pid, began, signal.SIGKILL)
    finally:
        child.kill()
        child.wait(10)


def test_a_daemon_inherits_a_known_list_only() -> None:
    given = {"PATH": "p", "LUNA_HOME": "h", "CUDA_VISIBLE_DEVICES": "0", "AWS_SECRET": "s", "PYTHONSTARTUP": "x"}
    kept = posix.child_environment(given)
    assert {"PATH", "LUNA_HOME", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"} <= kept.keys()
    assert not {"AWS_SECRET", "PYTHONSTARTUP"} & kept.keys()


def test_a_detached_process_outlives_a_killed_starter_and_keeps_writing(luna_home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    paths.private_dir()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from luna_daemon.platform import spawn_detached\n"
        'beat = "import time\\nfor n in range(300): print(n, flush=True); time.sleep(0.02)"\n'
        "child = spawn_detached([sys.executable, '-c', beat], Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(log)], cwd=paths.checkout_root(), stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    try:
        starter.kill()
        starter.wait(10)
        size = log.stat().st_size
        deadline = time.monotonic() + 5
        while log.stat().st_size <= size:
            assert time.monotonic() < deadline
        assert os.getsid(pid) == pid
    finally:
        starter.stdout.close()
        os.kill(pid, signal.SIGKILL)
