"""Real daemon processes over real sockets; their engine is the small one of `wire_daemon.py`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import auth, frames, identity
from luna_daemon.client import DaemonClient
from luna_daemon.stream import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luna_daemon.identity import Identity
    from tests.bench.tiny_daemon import TinyDaemon

WIRE_DAEMON = Path(__file__).with_name("wire_daemon.py")
COMMAND = (sys.executable, str(WIRE_DAEMON))


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "it") -> Any:
    """Poll until the condition is true; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.01)
    return value


@dataclass
class WireDaemon:
    """A daemon process with the small engine."""

    home: Path
    name: str
    process: subprocess.Popen[bytes]
    clients: list[DaemonClient] = field(default_factory=list)

    @property
    def identity(self) -> Identity:
        found = identity.read_identity(self.name)
        assert found is not None
        return found

    @property
    def port(self) -> int:
        assert self.identity.port is not None
        return self.identity.port

    def client(self, **options: Any) -> DaemonClient:
        made = DaemonClient.connect("127.0.0.1", self.port, **options)
        self.clients.append(made)
        return made

    def raw(self) -> socket.socket:
        """Connect to the TCP port and say nothing."""
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def raw_unix(self) -> socket.socket:
        """Connect to the Unix socket and say nothing."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        connection.connect(str(self.identity.socket))
        return connection

    def greeted(self) -> tuple[socket.socket, FrameReader]:
        """Connect to the Unix socket and shake hands."""
        connection = self.raw_unix()
        reader = FrameReader(connection, frames.Limits())
        say(connection, {"id": 1, "cmd": "hello", "body": hello()})
        assert reader.announced().header["ok"] is True
        return connection, reader

    def end(self) -> None:
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def wait_exit(self, seconds: float = 15.0) -> int:
        return self.process.wait(seconds)


def hello(**changes: Any) -> dict[str, Any]:
    """Return a body of hello."""
    body = {
        "magic": "luna-daemon",
        "protocol": [1, 1],
        "nonce": auth.new_nonce(),
        "client": {"name": "raw", "version": "0", "pid": os.getpid()},
    }
    return {**body, **changes}


def say(connection: socket.socket, header: dict[str, Any], tensors: Any = ()) -> None:
    """Send one frame."""
    for buffer in frames.encode_frame(header, tensors):
        connection.sendall(buffer)


def spawn(home: Path, *arguments: str, name: str = "wire", **environment: str) -> WireDaemon:
    """Start a daemon and return at once."""
    process = subprocess.Popen(
        [*COMMAND, "--name", name, "--device", "cpu", *arguments],
        env={**os.environ, "LUNA_HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return WireDaemon(home, name, process)


def listening(daemon: WireDaemon) -> WireDaemon:
    """Wait until a daemon has its identity."""

    def has_identity() -> bool:
        if daemon.process.poll() is not None:
            stderr = b"" if daemon.process.stderr is None else daemon.process.stderr.read()
            pytest.fail(f"the daemon ended with {daemon.process.returncode}: {stderr.decode()}")
        found = identity.read_identity(daemon.name)
        return found is not None and found.pid == daemon.process.pid

    wait_for(has_identity, what="the daemon's identity")
    return daemon


@pytest.fixture
def start_daemon(luna_home: Path) -> Iterator[Callable[..., WireDaemon]]:
    """Start daemons of this test; they are ended after it."""
    with ExitStack() as stack:

        def start(*arguments: str, name: str = "wire", **environment: str) -> WireDaemon:
            daemon = spawn(luna_home, "--port", "0", *arguments, name=name, **environment)
            stack.callback(daemon.end)
            return listening(daemon)

        yield start


@pytest.fixture
def run_daemon(luna_home: Path) -> Callable[..., tuple[int, str]]:
    """Run a daemon that is expected to end by itself; return its exit code and what it wrote on stderr."""

    def run(*arguments: str, name: str = "wire", **environment: str) -> tuple[int, str]:
        daemon = spawn(luna_home, *arguments, name=name, **environment)
        try:
            _, stderr = daemon.process.communicate(timeout=20)
        finally:
            daemon.end()
        return daemon.process.returncode, stderr.decode()

    return run


@pytest.fixture(scope="module")
def module_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireDaemon]:
    home = tmp_path_factory.mktemp("wire-home")
    before = os.environ.get("LUNA_HOME")
    os.environ["LUNA_HOME"] = str(home)
    daemon = spawn(home, "--port", "0")
    try:
        listening(daemon)
        with DaemonClient.connect("127.0.0.1", daemon.port) as client:
            wait_for(lambda: client.ping().state == "ready", what="a ready daemon")
        if before is None:
            del os.environ["LUNA_HOME"]
        else:
            os.environ["LUNA_HOME"] = before
        yield daemon
    finally:
        daemon.end()


@pytest.fixture
def wire(module_daemon: WireDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireDaemon]:
    """A daemon shared by a module's tests; after each of them it must still answer somebody else."""
    monkeypatch.setenv("LUNA_HOME", str(module_daemon.home))
    yield module_daemon
    for client in module_daemon.clients:
        client.close()
    module_daemon.clients.clear()
    with DaemonClient.connect("127.0.0.1", module_daemon.port, name="canary") as canary:
        assert canary.ping("alive?").nonce == "alive?"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDaemon]:
    """The product's daemon on small models, shared by all tests that need real arithmetic over the wire."""
    from tests.bench.tiny_daemon import TinyDaemon

    before = os.environ.get("LUNA_HOME")
    try:
        daemon = TinyDaemon(tmp_path_factory.mktemp("tiny"))
    finally:
        if before is None:
            os.environ.pop("LUNA_HOME", None)
        else:
            os.environ["LUNA_HOME"] = before
    yield daemon
    daemon.close()


@pytest.fixture
def end_process() -> Iterator[Callable[[int], None]]:
    """Kill a process that a test's supervisor started, by its id."""
    pids: list[int] = []
    yield pids.append
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
