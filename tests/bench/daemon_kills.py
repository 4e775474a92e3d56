"""Daemons die in the middle of a client's work, and are started again by whoever asks first."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from luna_daemon import control, identity, platform, restart_memory
from luna_daemon.client import DaemonClient
from luna_daemon.identity import DaemonPlaces
from luna_engine import settings
from luna_engine.errors import DaemonError
from luna_engine.settings import DaemonInstance
from tests.bench.moments import MOMENTS, Busy, encode
from tests.bench.survival import SURVIVOR_S, WAIT_S, WrongError

if TYPE_CHECKING:
    import random

    from luna_daemon.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
WIRE = (sys.executable, str(ROOT / "tests" / "daemon" / "wire_daemon.py"))
NAME = "wire"


class DaemonKills:
    """Daemons die in the middle of a client's work and are started again by whoever asks first."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.instance = DaemonInstance(device="cpu", port=self._port)
        settings.save_daemon(NAME, self.instance)
        self._expected = self._answer(self.ensure())

    def ensure(self) -> Identity:
        """Return a ready daemon's identity, starting it if need be."""
        found = control.ensure(NAME, instance=self.instance, command=WIRE, timeout_s=WAIT_S)
        if found is None:
            raise WrongError("ensure returned nothing")
        return found

    def evidence(self) -> str:
        """Say what stands on disk about the daemon, for whoever has to understand what did not hold."""
        memory = dataclasses.replace(restart_memory.read(NAME), last_exit=None)
        return f"identity {identity.read_identity(NAME)}, memory {memory}, time {time.time():.1f}"

    def _answer(self, found: Identity) -> bytes:
        with DaemonClient.connect(found.host, found.port, name="canary") as client:
            return encode(client, "s")

    def check(self, found: Identity) -> None:
        """Check that a daemon answers rightly and that its records are its own."""
        if self._answer(found) != self._expected:
            raise WrongError("another result from a new daemon")
        written = identity.read_identity(NAME)
        if written != found or not found.is_alive():
            raise WrongError("the identity on disk is not the living daemon's")
        lock = platform.FileLock(DaemonPlaces(NAME).lock)
        if lock.acquire():
            lock.release()
            raise WrongError("a living daemon does not hold its lock")

    def kill_one(self, moment: str, chance: random.Random) -> float:
        """Kill the daemon at that moment of a client; return the seconds until the client knew."""
        found = self.ensure()
        outcome: list[str] = []
        began_work = threading.Event()

        def work() -> None:
            busy = Busy(self._port, "s")
            try:
                while True:
                    MOMENTS[moment](busy)
                    began_work.set()
            except (DaemonError, OSError) as error:
                outcome.append(getattr(error, "code", type(error).__name__))
            finally:
                began_work.set()
                busy.close()

        client = threading.Thread(target=work, daemon=True)
        client.start()
        began_work.wait(WAIT_S)
        time.sleep(chance.uniform(0.0, 0.02))
        os.kill(found.pid, signal.SIGKILL)
        began = time.monotonic()
        client.join(WAIT_S)
        noticed = time.monotonic() - began
        if client.is_alive():
            raise WrongError(f"a client hangs since its daemon died at {moment}")
        if noticed > SURVIVOR_S:
            raise WrongError(f"a client took {noticed:.1f} s to notice the end of its daemon at {moment}")
        again = self.ensure()
        if again.generation == found.generation:
            raise WrongError("a dead generation is alive")
        self.check(again)
        return noticed
