"""Four clients of one daemon: batched over one after the other, and through the daemon over four copies of their own.

`python -m tests.bench.bench_clients [--write] [--rounds N] [--seconds S]`. Real CLIP-L shapes with random
weights, prompts of one row, nothing from memory. The arms alternate within one run. "One after the other" is the same
daemon asked for exact results, which it computes request by request.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.bench.bench_encode import wait_ready, write_model
from tests.bench.report import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 4
SERVER = Path(__file__).resolve().parents[2] / "luna_daemon/server.py"


class Worker:
    """One client process."""

    def __init__(self, kind: str, place: str, number: int) -> None:
        command = [sys.executable, "-m", "tests.bench.clients_worker", kind, place, str(number)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> None:
        """Send an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for the answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a client ended")
        return line.strip()

    def do(self, line: str) -> str:
        """Send an order and wait for the answer."""
        self.ask(line)
        return self.answer()

    def end(self) -> None:
        """Let it go."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.wait(30)


@contextlib.contextmanager
def workers(kind: str, place: str) -> Iterator[list[Worker]]:
    """Start the clients and wait until all are ready."""
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(CLIENTS):
            started.append(Worker(kind, place, number))
            stack.callback(started[-1].end)
        for one in started:
            if one.answer() != "ready":
                raise RuntimeError("a client did not start")
        yield started


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the product's daemon with the model folder; give its address and its process."""
    command = [sys.executable, str(SERVER), "--name", "bench", "--service-type", "clip", "--device", "cpu"]
    more = ["--backend", "native", "--port", "0"]
    environ = {**os.environ, "LUNA_MODELS": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *more], stdout=log, stderr=log, env=environ)
    try:
        host, port = wait_ready(process, folder)
        yield f"{host}:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Arm:
    """What one way of serving the clients gave, round by round."""

    prompts_a_s: list[float]
    cpu_ms: list[float]

    @property
    def speed(self) -> float:
        """Prompts a second of all clients."""
        return statistics.median(self.prompts_a_s)

    @property
    def cpu(self) -> float:
        """CPU milliseconds a prompt, of whoever computes."""
        return statistics.median(self.cpu_ms)


def measure(clients: list[Worker], seconds: float, mode: str, threads: int, server: psutil.Process | None) -> Arm:
    """Let all clients work for a while at once; without a server the CPU time is their own."""
    before = 0.0 if server is None else sum(server.cpu_times()[:2])
    began = time.perf_counter()
    for one in clients:
        one.ask(f"run {seconds} {mode} {threads}")
    told = [one.answer().split() for one in clients]
    elapsed = time.perf_counter() - began
    prompts = sum(int(count) for count, _, _ in told)
    own = sum(float(cpu) for _, _, cpu in told)
    spent = own if server is None else sum(server.cpu_times()[:2]) - before
    return Arm([prompts / elapsed], [spent / max(1, prompts) * 1000])


def compare(folder: Path, rounds: int, seconds: float) -> dict[str, Arm]:
    """Alternate the arms."""
    cores = psutil.cpu_count(logical=False) or 1
    choices = sorted({1, cores})
    arms: dict[str, Arm] = {}
    with (
        daemon(folder) as (place, server),
        workers("daemon", place) as shared,
        workers("own", str(folder)) as alone,
    ):
        for one in (*shared, *alone):
            one.do("load")
        for _ in range(rounds):
            found = {
                "batched": measure(shared, seconds, "shared", cores, server),
                "mutex": measure(shared, seconds, "exact", cores, server),
                **{f"own {threads}": measure(alone, seconds, "shared", threads, None) for threads in choices},
            }
            for name, arm in found.items():
                known = arms.setdefault(name, Arm([], []))
                known.prompts_a_s += arm.prompts_a_s
                known.cpu_ms += arm.cpu_ms
    return arms


def table(arms: dict[str, Arm]) -> str:
    """Return the table."""
    best = max((name for name in arms if name.startswith("own")), key=lambda name: arms[name].speed)
    names = {
        "batched": "one daemon, batched",
        "mutex": "one daemon, one after the other",
        **{name: f"four copies, {name.split()[1]} thread(s) each" for name in arms if name.startswith("own")},
    }
    lines = [f"| {names[name]} | {arm.speed:.2f} | {arm.cpu:.0f} |" for name, arm in arms.items()]
    batched = arms["batched"]
    cpu, speed = batched.cpu / arms["mutex"].cpu, batched.speed / arms[best].speed
    lines += [
        f"| batched / one after the other, CPU (bar ≤ 0.85, stretch 0.70) | | **{cpu:.2f}** |",
        f"| batched / best of the copies, throughput (bar ≥ 1.3, stretch 1.8) | **{speed:.2f}** | |",
    ]
    return "\n".join(["| 4 clients, CLIP-L, fp32, CPU | prompts/s | CPU ms a prompt |", "|---|---|---|", *lines])


def main() -> None:
    """Measure and print, or publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LUNA_HOME"] = str(folder / "home")
        write_model(folder)
        arms = compare(folder, given.rounds, given.seconds)
    note = (
        f"Medians of {given.rounds} rounds of {given.seconds:g} s. CPU time is the daemon's, or that of the four "
        f"processes. Load average during the run: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    )
    publish("clients", "Four clients at once", table(arms), write=given.write, note=note)


if __name__ == "__main__":
    main()
