"""SIGSTOP of daemons and clients in the middle of everything, as a debugger or a closed lid gives it, then SIGCONT.

`python -m tests.bench.stops [--seconds N] [--write]`. Whoever is not stopped is served meanwhile; whoever was goes on
afterwards, with the same results; a supervisor sees a stopped daemon as unresponsive and does not end it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luna_daemon.client import DaemonClient
from luna_daemon.protocol import Part
from luna_daemon.supervisor import Supervisor
from luna_daemon.views import DaemonState
from luna_engine.errors import DaemonError
from tests.bench.moments import MOMENTS, encode
from tests.bench.report import RELIABILITY, load, publish
from tests.bench.survival import SURVIVOR_S, WAIT_S, WrongError, wait_for
from tests.bench.tiny_daemon import NAME, PART_ID, TinyDaemon

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
ASKED_S = 1.0
COMPUTED_S = 0.2
UNRESPONSIVE_AFTER_S = 9.0  # three pings of two seconds, after one that was answered


@dataclass(slots=True)
class Found:
    """What the stops showed."""

    stops: dict[str, int] = field(default_factory=lambda: {"client": 0, "daemon": 0})
    wrong: list[str] = field(default_factory=list)
    slowest_beside_s: float = 0.0
    slowest_after_s: float = 0.0
    seconds: float = 0.0


class Stopping:
    """Stops one side at a time and looks at the other.

    Args:
        daemon: the product's, with small models.
        stop_s: for how long somebody is stopped.
    """

    def __init__(self, daemon: TinyDaemon, stop_s: float) -> None:
        self.found = Found()
        self._daemon = daemon
        self._stop_s = stop_s
        self._watch = DaemonClient.connect("127.0.0.1", daemon.port, name="watch")
        self._set = self._watch.load_model([Part("l", id=PART_ID), Part("vae", id=PART_ID)]).set
        self._expected = encode(self._watch, self._set)
        self._asked = 0

    def close(self) -> None:
        """Hang up."""
        self._watch.close()

    def _victim(self, moment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.bench.moments", str(self._daemon.port), moment, self._set]
        victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if victim.stdout is None or victim.stdout.readline() != b"go\n":
            victim.kill()
            victim.wait(10)
            raise WrongError(f"the client ended by itself at {moment}")
        return victim

    def _ask(self) -> float:
        """Encode; return the seconds. Who closed the admission and was stopped keeps it closed: open it."""
        began = time.monotonic()
        if self._watch.ping().phase == "draining":
            self._watch.drain(reopen=True)
        try:
            if encode(self._watch, self._set) != self._expected:
                raise WrongError("another result")
        except DaemonError as error:
            if error.code != "daemon-draining":
                raise
        return time.monotonic() - began

    def stop_client(self, moment: str) -> None:
        """Stop a client at that moment: all others are served, and it goes on where it was or connects anew."""
        victim = self._victim(moment)
        try:
            _stop(victim.pid)
            until = time.monotonic() + self._stop_s
            while time.monotonic() < until:
                self.found.slowest_beside_s = max(self.found.slowest_beside_s, self._ask())
                time.sleep(0.05)
            seen, self._asked = self._progress(victim), 0
            victim.send_signal(signal.SIGCONT)
            wait_for(lambda: self._is_working(victim, seen), f"work of the client that was stopped at {moment}")
        finally:
            victim.kill()
            victim.wait(10)
            if victim.stdout is not None:
                victim.stdout.close()

    def _progress(self, victim: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Return the requests that the daemon has had, and the seconds that the victim has computed."""
        used = psutil.Process(victim.pid).cpu_times()
        return self._watch.status().totals.requests, used.user + used.system

    def _is_working(self, victim: subprocess.Popen[bytes], before: tuple[int, float]) -> bool:
        """Tell whether more requests came than these questions are; who only says hello asks nothing and computes."""
        if victim.poll() is not None:
            raise WrongError(f"the client ended with {victim.returncode} after it was stopped")
        self._asked += 1
        requests, computed_s = self._progress(victim)
        return requests > before[0] + self._asked + 1 or computed_s > before[1] + COMPUTED_S

    def stop_daemon(self, moment: str) -> None:
        """Stop the daemon in the middle of a client's work: typed time-outs meanwhile, right answers afterwards."""
        victim = self._victim(moment)
        answers: list[bytes | DaemonError] = []
        patient = threading.Thread(target=lambda: answers.append(self._answer()), daemon=True)
        supervisor = Supervisor(command=(), kind="stops")
        try:
            wait_for(lambda: _is_well(supervisor), "the supervisor's sight of the daemon")
            _stop(self._daemon.process.pid)
            began = time.monotonic()
            patient.start()
            self._require_time_out()
            while time.monotonic() < began + self._stop_s:
                supervisor.step()
                time.sleep(0.1)
            seen = _state(supervisor)
            os.kill(self._daemon.process.pid, signal.SIGCONT)
            continued = time.monotonic()
            patient.join(WAIT_S)
            took = time.monotonic() - continued
            self.found.slowest_after_s = max(self.found.slowest_after_s, took)
            if answers != [self._expected] and not (moment == "draining" and _is_closed(answers)):
                said = [str(one) if isinstance(one, DaemonError) else "another result" for one in answers]
                raise WrongError(f"who waited through a stop at {moment} got {said or 'nothing'}")
            if self._stop_s >= UNRESPONSIVE_AFTER_S and seen is not DaemonState.UNRESPONSIVE:
                raise WrongError(f"the supervisor saw a stopped daemon as {seen}")
            wait_for(lambda: _is_well(supervisor), "the supervisor's sight of a daemon that is well again")
        finally:
            os.kill(self._daemon.process.pid, signal.SIGCONT)
            supervisor.close()
            victim.kill()
            victim.wait(10)
            if victim.stdout is not None:
                victim.stdout.close()
        self._ask()

    def _answer(self) -> bytes | DaemonError:
        try:
            return encode(self._watch, self._set)
        except DaemonError as error:
            return error

    def _require_time_out(self) -> None:
        """Ask a stopped daemon through the kept connection; a new one cannot be made, and that is said as well."""
        began = time.monotonic()
        try:
            self._watch.ping(timeout_s=ASKED_S)
        except DaemonError as error:
            if error.code != "daemon-timeout":
                raise
        else:
            raise WrongError("a stopped daemon answered")
        if time.monotonic() - began > SURVIVOR_S:
            raise WrongError(f"the time-out of {ASKED_S:g} s took {time.monotonic() - began:.1f} s")


def _is_closed(answers: list[bytes | DaemonError]) -> bool:
    """Tell whether who waited was refused because the victim had closed the admission."""
    return [getattr(one, "code", None) for one in answers] == ["daemon-draining"]


def _stop(pid: int) -> None:
    """Stop a process; the signal takes effect a moment later."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the stop itself")


def _is_well(supervisor: Supervisor) -> bool:
    supervisor.step()
    return _state(supervisor) in {DaemonState.READY, DaemonState.BUSY}


def _state(supervisor: Supervisor) -> DaemonState | None:
    """Return what a supervisor says of the daemon, None if it knows none."""
    return next((one.state for one in supervisor.snapshot() if one.name == NAME), None)


def run(daemon: TinyDaemon, stop_s: float, moments: list[str], tell: Callable[[str], None] = print) -> Found:
    """Stop a client and the daemon once at each of the moments."""
    began = time.monotonic()
    stopping = Stopping(daemon, stop_s)
    found = stopping.found
    try:
        for moment in moments:
            for victim, stop in (("client", stopping.stop_client), ("daemon", stopping.stop_daemon)):
                try:
                    stop(moment)
                except (WrongError, DaemonError, OSError) as error:
                    found.wrong.append(f"{victim} at {moment}: {type(error).__name__}: {error}")
                    tell(f"wrong: {found.wrong[-1]}")
                else:
                    found.stops[victim] += 1
            tell(f"{moment}: {time.monotonic() - began:.0f} s")
    finally:
        stopping.close()
    found.seconds = time.monotonic() - began
    return found


def table(found: Found, stop_s: float) -> str:
    """Return the Markdown table."""
    rows = [
        (f"stops of {stop_s:g} s", ", ".join(f"{victim} {count}" for victim, count in found.stops.items())),
        ("slowest answer to another client meanwhile", f"{found.slowest_beside_s:.2f} s"),
        ("slowest answer after a daemon went on, to who had waited", f"{found.slowest_after_s:.2f} s"),
        ("time", f"{found.seconds:.0f} s, load {load()}"),
        ("verdict", "held" if not found.wrong else "; ".join(found.wrong)),
    ]
    return "\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        daemon = TinyDaemon(Path(folder))
        try:
            found = run(daemon, given.seconds, list(MOMENTS), lambda line: print(line, flush=True))
        finally:
            daemon.close()
    made_by = f"python -m tests.bench.stops --seconds {given.seconds:g}"
    publish(
        "stops",
        "Stopped and continued",
        table(found, given.seconds),
        write=given.write,
        page=RELIABILITY,
        command=made_by,
    )
    for line in found.wrong:
        print(line, file=sys.stderr)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
