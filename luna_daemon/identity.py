"""Where one named daemon leaves its traces, and the records in them: identity while it lives, exit after it.

The daemon writes both; supervisors, clients and the command line read them. Nothing here talks to a daemon.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from luna_daemon import platform
from luna_engine import paths
from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_SAME_TIME_S = 0.02
# What is handed to the operating system must be of the right kind, whoever wrote the file.
_CHECKED: dict[str, Any] = {
    "pid": int,
    "create_time": (int, float),
    "port": (int, type(None)),
    "socket": (str, type(None)),
    "at": (int, float),
}
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Identity:
    """A live daemon as it describes itself in ``run/<name>.json``.

    Attributes:
        socket: path of its Unix socket, None if it has none.
        port: TCP port, None if it has none.
        digest: of its arguments, to see whether it runs as configured.
    """

    name: str
    pid: int
    create_time: float
    boot_id: str
    generation: str
    service_type: str
    device: str | None
    host: str
    port: int | None
    socket: str | None
    log: str
    protocol: int
    digest: str
    started_at: float

    def is_alive(self) -> bool:
        """Tell whether the very process that wrote this still runs (not whether it answers)."""
        if self.boot_id != platform.boot_id():
            return False
        began = platform.create_time(self.pid)
        return began is not None and abs(began - self.create_time) <= _SAME_TIME_S


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a daemon ended, written by itself, or by whoever is about to kill it (``asked``)."""

    pid: int
    generation: str | None
    at: float
    code: int | None
    reason: str
    asked: bool = False
    peak_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DaemonPlaces:
    """The files of one daemon."""

    name: str

    @property
    def identity(self) -> Path:
        """``run/<name>.json``."""
        return paths.state_dir() / "run" / f"{self.name}.json"

    @property
    def exit(self) -> Path:
        """``run/<name>.exit.json``."""
        return paths.state_dir() / "run" / f"{self.name}.exit.json"

    @property
    def memory(self) -> Path:
        """``run/<name>.restarts.json``: what supervisors remember of it."""
        return paths.state_dir() / "run" / f"{self.name}.restarts.json"

    @property
    def lock(self) -> Path:
        """``run/<name>.lock``, held by the daemon for life."""
        return paths.state_dir() / "run" / f"{self.name}.lock"

    @property
    def socket(self) -> Path:
        """The Unix socket."""
        return platform.socket_folder() / f"{self.name}.sock"

    @property
    def logs(self) -> Path:
        """``logs/<name>/``."""
        return paths.state_dir() / "logs" / self.name

    @property
    def log(self) -> Path:
        """The log of the current run."""
        return self.logs / "current.log"

    @property
    def previous_log(self) -> Path:
        """The log of the run before."""
        return self.logs / "previous.log"


def check_name(name: str) -> str:
    """Return a daemon's name if it can be one.

    Raises:
        LunaError: ``name-invalid``.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise LunaError(
            "name-invalid",
            f"{name!r} is no name for a daemon",
            "use 1 to 32 letters, digits, - and _, beginning with a letter or digit",
        )
    return name


def digest_of(arguments: Sequence[str]) -> str:
    """Return a short hash of an argument list."""
    return hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:16]


def write_record(path: Path, record: Identity | ExitRecord | dict[str, Any]) -> None:
    """Write a record by rename, mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = record if isinstance(record, dict) else dataclasses.asdict(record)
    with paths.atomic_write(path, mode=0o600) as temporary:
        temporary.write_text(json.dumps(data), "utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if it is missing or damaged."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _read(path: Path, kind: type[R]) -> R | None:
    data = read_json(path)
    if data is None:
        return None
    names = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]  # only dataclasses come here
    if not all(isinstance(data.get(name), kinds) for name, kinds in _CHECKED.items() if name in names):
        return None
    try:
        return kind(**{name: value for name, value in data.items() if name in names})
    except TypeError:
        return None


def read_identity(name: str) -> Identity | None:
    """Read the identity of a daemon; None if there is none or it is damaged."""
    return _read(DaemonPlaces(name).identity, Identity)


def read_exit(name: str) -> ExitRecord | None:
    """Read how a daemon ended last; None if unknown."""
    return _read(DaemonPlaces(name).exit, ExitRecord)


def live_identities() -> Iterator[Identity]:
    """Yield the identities of all daemons whose process runs."""
    folder = paths.state_dir() / "run"
    for path in sorted(folder.glob("*.json")):
        if "." in path.stem:
            continue  # <name>.exit.json and the like
        identity = _read(path, Identity)
        if identity is not None and identity.name == path.stem and identity.is_alive():
            yield identity
