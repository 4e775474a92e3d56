"""Shared memory where there is none, and after kills: nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from luna_daemon.frames import MIB
from luna_daemon.platform import sealed_memory
from luna_engine.errors import DaemonError

from .conftest import wait_for
from .memory_requests import decode, latent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import WireDaemon

pytestmark = pytest.mark.skipif(sealed_memory.missing() is not None, reason=str(sealed_memory.missing()))


@contextlib.contextmanager
def limited(daemon: WireDaemon, what: int, value: int) -> Iterator[None]:
    """Take a resource away from a running daemon for a while."""
    before = resource.prlimit(daemon.process.pid, what)
    resource.prlimit(daemon.process.pid, what, (value, before[1]))
    yield
    resource.prlimit(daemon.process.pid, what, before)


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[0]) * resource.getpagesize()


# DAEMON S20
@pytest.mark.parametrize("what", ["no memory", "no mapping", "no descriptors"])
def test_without_shared_memory_tensors_go_inline_and_the_reply_says_why(
    start_daemon: Callable[..., WireDaemon], what: str
) -> None:
    daemon = start_daemon()
    client = daemon.client()
    wait_for(lambda: client.ping().state == "ready", what="a ready daemon")
    pid = daemon.process.pid
    taken = {
        "no memory": (resource.RLIMIT_FSIZE, 32 * MIB),
        "no mapping": (resource.RLIMIT_AS, address_space(pid) + 112 * MIB),
        "no descriptors": (resource.RLIMIT_NOFILE, len(list(Path(f"/proc/{pid}/fd").iterdir()))),
    }
    with limited(daemon, *taken[what]):
        reply = decode(client, latent(MIB))
    assert bytes(reply.tensors["image"].data) == bytes(latent(MIB).data)
    assert reply.did.transport["out"] == "inline"
    assert "shared memory" in reply.did.transport["reason"]
    assert "shared memory" in str(client.transport_reason)
    assert client.status().caches["shm"].bytes == 0


HOLD = """
import sys, time
from luna_daemon.client import DaemonClient
from luna_daemon.frames import WireTensor
client = DaemonClient.connect("127.0.0.1", int(sys.argv[1]), name="victim")
latent = WireTensor("latent", "f32", (1, 1, 1, 1 << 18), memoryview(bytes(1 << 20)))
client.vae_decode(set="s", latent=latent)
print(client.transport, flush=True)
time.sleep(600)
"""


def memories(pid: int) -> int:
    """Count a process's mappings of the daemon's shared memory."""
    return Path(f"/proc/{pid}/maps").read_text("ascii").count("memfd:luna-")


def named() -> set[Path]:
    """Return the shared memory of all processes that has a name."""
    return set(Path("/dev/shm").iterdir())  # noqa: S108 - looked at, not used


def test_a_killed_client_leaves_nothing_behind(wire: WireDaemon) -> None:
    before = named()
    watcher = wire.client(name="watcher")
    begin = (memories(wire.process.pid), watcher.status().caches["shm"].bytes)
    victim = subprocess.Popen([sys.executable, "-c", HOLD, str(wire.port)], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    with victim.stdout:
        assert victim.stdout.readline() == b"shm\n"
        assert memories(wire.process.pid) == begin[0] + 2
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
    wait_for(lambda: watcher.status().caches["shm"].bytes == begin[1], what="the return of the memory")
    wait_for(lambda: memories(wire.process.pid) == begin[0], what="the end of the mappings")
    assert not named() - before


def test_a_killed_daemon_leaves_nothing_behind(start_daemon: Callable[..., WireDaemon]) -> None:
    gc.collect()  # connections that earlier tests dropped
    before, others = named(), memories(os.getpid())
    daemon = start_daemon()
    client = daemon.client()
    decode(client, latent(MIB))
    assert memories(os.getpid()) == others + 2
    daemon.process.kill()
    daemon.process.wait(10)
    began = time.monotonic()
    with pytest.raises(DaemonError) as caught:
        decode(client, latent(MIB))
    assert caught.value.code == "daemon-unreachable"
    assert time.monotonic() - began < 30
    assert memories(os.getpid()) == others
    assert not named() - before
