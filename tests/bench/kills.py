"""SIGKILL of clients, daemons, supervisors and the application: nothing hangs, lies or is left behind.

`python -m tests.bench.kills [--kills N] [--seed N] [--write]`. Clients die beside the product's daemon with small
models, whose weights must give the same result ever after; daemons and supervisors are those of the wire's tests,
which start in a moment.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luna_daemon import control
from luna_daemon.client import DaemonClient
from luna_daemon.protocol import Part
from luna_engine.errors import DaemonError
from tests.bench.daemon_kills import NAME, DaemonKills
from tests.bench.moments import MOMENTS, encode
from tests.bench.report import RELIABILITY, load, publish
from tests.bench.supervisor_kills import SupervisorKills
from tests.bench.survival import SURVIVOR_S, Tally, WrongError, wait_for
from tests.bench.tiny_daemon import PART_ID, TinyDaemon

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR_WEIGHTS = (40, 25, 15, 20)
RESTARTED = frozenset({"back-off", "with its daemon"})  # what they take is the back-off's time, or a start


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


def run(tiny: TinyDaemon, kills: int, seed: int, tell: Callable[[str], None] = print) -> Tally:
    """Kill and check; stops at the tenth thing that is wrong."""
    chance, tally, began = random.Random(seed), Tally(), time.monotonic()
    before = shared_files()
    clients = ClientKills(tiny)
    daemons = DaemonKills()
    supervisors = SupervisorKills(daemons, tally)
    moments = [name for name in MOMENTS if name != "idle"]
    ways: list[tuple[str, Callable[[random.Random], float]]] = [
        ("watching", supervisors.kill_one),
        ("back-off", supervisors.kill_in_back_off),
        ("with its daemon", supervisors.kill_with_daemon),
        ("luna-tui", supervisors.kill_application),
    ]
    try:
        for index in range(kills):
            victim = chance.choices(("client", "daemon", "supervisor"), (50, 35, 15))[0]
            moment = chance.choice(moments)
            try:
                if victim == "client":
                    seconds = clients.kill_one(moment, chance)
                elif victim == "daemon":
                    seconds = daemons.kill_one(moment, chance)
                else:
                    moment, kill = chance.choices(ways, SUPERVISOR_WEIGHTS)[0]
                    seconds = kill(chance)
            except (WrongError, DaemonError, OSError) as error:
                tally.wrong.append(f"{victim} at {moment}: {type(error).__name__}: {error}; {daemons.evidence()}")
                tell(f"wrong: {tally.wrong[-1]}")
                if len(tally.wrong) >= 10:
                    break
                continue
            tally.kills[f"{victim} {moment.replace('_', ' ')}"] += 1
            if moment not in RESTARTED:
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
