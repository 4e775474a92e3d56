"""SIGKILL of clients, daemons and supervisors in the middle of everything: nothing hangs, lies or is left behind.

`python -m tests.bench.kills [--kills N] [--seed N] [--write]`. Clients die beside the product's daemon with small
models, whose weights must give the same result ever after; daemons and supervisors are those of the wire's tests,
which start in a moment.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luna_daemon import control, identity, platform, restart_memory
from luna_daemon.client import DaemonClient
from luna_daemon.identity import DaemonPlaces
from luna_daemon.protocol import Part
from luna_daemon.supervisor import holder
from luna_engine import settings
from luna_engine.errors import DaemonError
from luna_engine.settings import DaemonInstance
from tests.bench.moments import MOMENTS, Busy, encode
from tests.bench.report import RELIABILITY, load, publish
from tests.bench.tiny_daemon import PART_ID, TinyDaemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
WIRE = (sys.executable, str(ROOT / "tests" / "daemon" / "wire_daemon.py"))
NAME = "wire"
SURVIVOR_S = 5.0
WAIT_S = 30.0
SUPERVISOR = """
import json, sys, threading
from luna_daemon.supervisor import Supervisor
one = Supervisor(command=json.loads(sys.argv[1]), kind="kills")
assert one.try_lock()
print("go", flush=True)
one.run(threading.Event())
"""


class WrongError(Exception):
    """Something did not hold."""


@dataclass(slots=True)
class Tally:
    """What was killed and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: dict[str, float] = field(default_factory=dict)
    restarts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, victim: str, seconds: float) -> None:
        """Remember how long the survivors took."""
        self.slowest_s[victim] = max(self.slowest_s.get(victim, 0.0), seconds)


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Poll until it is so.

    Raises:
        WrongError: it was not within the time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise WrongError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def shared_files() -> set[str]:
    """Return what lies in the machine's shared memory folder."""
    folder = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


class ClientKills:
    """Clients die, the daemon with real arithmetic goes on."""

    def __init__(self, daemon: TinyDaemon) -> None:
        self._daemon = daemon
        self._watch = DaemonClient.connect("127.0.0.1", self._daemon.port, name="watch")
        self._set = self._watch.load_model([Part("l", id=PART_ID), Part("vae", id=PART_ID)]).set
        self._expected = encode(self._watch, self._set)
        self._process = psutil.Process(self._daemon.process.pid)
        self._descriptors = self._process.num_fds()

    def kill_one(self, moment: str, chance: random.Random) -> float:
        """Kill a client at that moment; return the seconds until all was as before."""
        port = str(self._daemon.port)
        command = [sys.executable, "-m", "tests.bench.moments", port, moment, self._set]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as victim:
            if victim.stdout is None or victim.stdout.readline() != b"go\n":
                raise WrongError(f"the client died by itself at {moment}")
            time.sleep(chance.uniform(0.0, 0.03))
            victim.kill()
        began = time.monotonic()
        self._watch.ping(timeout_s=SURVIVOR_S)
        if self._watch.ping().phase == "draining":
            self._watch.drain(reopen=True)  # who closed the admission died before opening it
        if encode(self._watch, self._set) != self._expected:
            raise WrongError(f"another result after a client died at {moment}")
        answered = time.monotonic() - began
        wait_for(self._is_alone, f"leftovers of a client that died at {moment}")
        return answered

    def _is_alone(self) -> bool:
        status = self._watch.status()
        lanes = status.queue.values()
        return (
            [one.name for one in status.clients] == ["watch"]
            and not any(lane.depth or lane.running for lane in lanes)
            and status.caches["shm"].entries <= 1
            and self._process.num_fds() <= self._descriptors + 2
        )

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()


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


class SupervisorKills:
    """Supervisors die; daemons live on, the next supervisor takes over at once and goes on with the back-off."""

    def __init__(self, daemons: DaemonKills, tally: Tally) -> None:
        self._daemons = daemons
        self._tally = tally

    def _start(self) -> subprocess.Popen[bytes]:
        import json

        command = [sys.executable, "-c", SUPERVISOR, json.dumps(WIRE)]
        made = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if made.stdout is None or made.stdout.readline() != b"go\n":
            made.kill()
            made.wait(10)
            raise WrongError("no supervisor could take the lock that a dead one held")
        return made

    @staticmethod
    def _end(supervisor: subprocess.Popen[bytes]) -> None:
        supervisor.kill()
        supervisor.wait(10)
        if supervisor.stdout is not None:
            supervisor.stdout.close()

    def kill_one(self, chance: random.Random) -> float:
        """Kill a supervisor that watches; return the seconds until its daemon was known to be well."""
        found = self._daemons.ensure()
        supervisor = self._start()
        time.sleep(chance.uniform(0.0, 0.3))
        self._end(supervisor)
        began = time.monotonic()
        if holder() is not None:
            raise WrongError("a dead supervisor is named as the holder")
        self._daemons.check(found)
        return time.monotonic() - began

    def kill_in_back_off(self, chance: random.Random) -> float:
        """Kill daemon and supervisor; the next supervisor must start the daemon again after the back-off."""
        DaemonPlaces(NAME).memory.unlink(missing_ok=True)
        found = self._daemons.ensure()
        first = self._start()
        try:
            wait_for(lambda: holder() is not None, "the supervisor's record")
            time.sleep(0.3)  # it must have seen the daemon ready, or the end counts as that of a start
            os.kill(found.pid, signal.SIGKILL)
            killed = time.monotonic()
            # A daemon whose end no supervisor saw is shown as crashed and waits for a person; that is another case.
            wait_for(lambda: restart_memory.read(NAME).state == "backoff", "the first supervisor's back-off")
            time.sleep(chance.uniform(0.0, 0.5))
        finally:
            self._end(first)
        second = self._start()
        try:
            wait_for(lambda: self._is_new(found), "the restart after the back-off")
        finally:
            self._end(second)
        took = time.monotonic() - killed
        self._tally.restarts.append(took)
        self._daemons.check(self._daemons.ensure())
        return took

    @staticmethod
    def _is_new(old: Identity) -> bool:
        now = identity.read_identity(NAME)
        return now is not None and now.generation != old.generation and now.is_alive()


def run(tiny: TinyDaemon, kills: int, seed: int, tell: Callable[[str], None] = print) -> Tally:
    """Kill and check; stops at the tenth thing that is wrong."""
    chance, tally, began = random.Random(seed), Tally(), time.monotonic()
    before = shared_files()
    clients = ClientKills(tiny)
    daemons = DaemonKills()
    supervisors = SupervisorKills(daemons, tally)
    moments = [name for name in MOMENTS if name != "idle"]
    try:
        for index in range(kills):
            victim = chance.choices(("client", "daemon", "supervisor"), (50, 35, 15))[0]
            moment = chance.choice(moments)
            try:
                if victim == "client":
                    seconds = clients.kill_one(moment, chance)
                elif victim == "daemon":
                    seconds = daemons.kill_one(moment, chance)
                elif chance.random() < 0.3:
                    moment = "back-off"
                    seconds = supervisors.kill_in_back_off(chance)
                else:
                    moment = "watching"
                    seconds = supervisors.kill_one(chance)
            except (WrongError, DaemonError, OSError) as error:
                tally.wrong.append(f"{victim} at {moment}: {type(error).__name__}: {error}")
                tell(f"wrong: {tally.wrong[-1]}")
                if len(tally.wrong) >= 10:
                    break
                continue
            tally.kills[f"{victim} {moment.replace('_', ' ')}"] += 1
            if moment != "back-off":
                tally.note(victim, seconds)
            if index and index % 50 == 0:
                tell(f"{index} kills, {time.monotonic() - began:.0f} s, wrong: {len(tally.wrong)}")
    finally:
        clients.close()
        control.stop(NAME, kill=True)
    if left := shared_files() - before:
        tally.wrong.append(f"left in shared memory: {', '.join(sorted(left))}")
    tally.seconds = time.monotonic() - began
    return tally


def table(tally: Tally) -> str:
    """Return the Markdown table."""
    slowest = ", ".join(f"{victim} {seconds:.2f} s" for victim, seconds in sorted(tally.slowest_s.items()))
    restarts = (
        f"{len(tally.restarts)}, {min(tally.restarts):.1f} to {max(tally.restarts):.1f} s after the kill"
        if tally.restarts
        else "none in this run"
    )
    rows = [
        ("SIGKILLs", f"{sum(tally.kills.values())}"),
        ("of whom and when", ", ".join(f"{name} {count}" for name, count in sorted(tally.kills.items()))),
        ("slowest survivor (bar 5 s)", slowest),
        ("restarts by a second supervisor after the first died in the back-off", restarts),
        ("time", f"{tally.seconds:.0f} s, load {load()}"),
        ("verdict", "held" if not tally.wrong else "; ".join(tally.wrong)),
    ]
    return "\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny = TinyDaemon(Path(folder))
        try:
            tally = run(tiny, given.kills, given.seed, lambda line: print(line, flush=True))
        finally:
            tiny.close()
    made_by = f"python -m tests.bench.kills --kills {given.kills} --seed {given.seed}"
    publish("kills", "Sudden deaths", table(tally), write=given.write, page=RELIABILITY, command=made_by)
    for line in tally.wrong:
        print(line, file=sys.stderr)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
