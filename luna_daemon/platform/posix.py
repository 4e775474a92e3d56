"""Linux and macOS: locks, socket folders, peer credentials, detached processes, exits of foreign processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import signal
import socket
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luna_engine import paths
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET_PATH_MAX = 100  # sun_path is 104 to 108 bytes
_INHERITED = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "COMFYUI_PATH",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "SSL_CERT_FILE",
})  # fmt: skip
_INHERITED_PREFIXES = (
    "LC_", "LUNA_", "XDG_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCH_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "HIP_",
    "ROCR_", "HSA_",
)  # fmt: skip


class FileLock:
    """An exclusive lock that the kernel drops when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Tell whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the lock if it is free; tell whether it is held now."""
        if self._descriptor is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two holders lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> int | None:
        """Return the pid that the last holder wrote; it means something only after `acquire` has failed."""
        with contextlib.suppress(OSError, ValueError):
            return int(self.path.read_text("ascii"))
        return None


def boot_id() -> str:
    """Return what is the same for all processes since the machine started, and different after the next start."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return str(int(psutil.boot_time()))


def create_time(pid: int) -> float | None:
    """Return when a process began, None if it is gone or a zombie."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def socket_folder() -> Path:
    """Return the folder for Unix sockets (not created): short, private, and apart for each ``LUNA_HOME``."""
    if os.environ.get("LUNA_HOME", "").strip():
        folder = paths.state_dir() / "run"
        if len(os.fsencode(folder)) <= SOCKET_PATH_MAX - 40:
            return folder
        tag = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        return Path(f"/tmp/luna-{os.getuid()}") / tag  # noqa: S108 - owner and mode are checked
    runtime = os.environ.get("XDG_RUNTIME_DIR", "").strip()
    if runtime and len(os.fsencode(runtime)) <= SOCKET_PATH_MAX - 45:
        return Path(runtime) / "luna"
    return Path(f"/tmp/luna-{os.getuid()}")  # noqa: S108 - owner and mode are checked


def prepare_private_folder(folder: Path) -> None:
    """Create a folder and check it, without following links: the user's own, mode 0700.

    Raises:
        DaemonError: ``path-unsafe``.
    """
    if folder.parent.name == f"luna-{os.getuid()}":
        prepare_private_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True, mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise DaemonError(
            "path-unsafe",
            f"{folder} must be a folder of yours with mode 0700",
            f"look at it with: ls -ld {folder}",
        )


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    if hasattr(socket, "SO_PEERCRED"):
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", raw)[1])
    raw = connection.getsockopt(0, 0x001, 76)  # SOL_LOCAL, LOCAL_PEERCRED -> struct xucred {version, uid, ...}
    return int(struct.unpack_from("2I", raw)[1])


def peer_pid(connection: socket.socket) -> int | None:
    """Return the process at the other end of a Unix socket, 0 for one in a namespace that cannot be seen from here."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[0])


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a daemon inherits: a known list, nothing that happens to be set around ComfyUI."""
    kept = {
        name: value for name, value in environment.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONUTF8": "1"}


def spawn_detached(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one: own session, no stdin, output to a regular file.

    A pipe would kill it with its reader, and a parent-death signal fires when the starting thread ends.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=child_environment(os.environ),
            cwd=paths.state_dir(),
            start_new_session=True,
            close_fds=True,
        )
    finally:
        os.close(descriptor)


def send_signal(pid: int, began: float, number: int) -> bool:
    """Send a signal to the process that began at that time, and to its group if it leads one.

    Returns:
        False if that process is gone; another one with its pid is never signalled.
    """
    now = create_time(pid)
    if now is None or abs(now - began) > 0.02:
        return False
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


class ProcessWatch:
    """Tells when a process that is no child of ours has ended, by pidfd where there is one."""

    def __init__(self, pid: int, began: float) -> None:
        self._pid = pid
        self._began = began
        self._descriptor: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        """Look once, without waiting."""
        if self._descriptor is not None:
            poller = select.poll()
            poller.register(self._descriptor, select.POLLIN)
            return bool(poller.poll(0))
        now = create_time(self._pid)
        return now is None or abs(now - self._began) > 0.02

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


KILL = signal.SIGKILL
TERMINATE = signal.SIGTERM
