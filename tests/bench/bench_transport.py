"""What the wire costs: ping and tensor round trips of a real daemon, over raw sockets and warm memcpys in the same run.

The daemon is the wire's test daemon (real process, real sockets, arithmetic instead of models). Each figure is the
median of interleaved rounds; process CPU time stands beside the wall clock because machines are shared.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from luna_daemon import identity
from luna_daemon.client import DaemonClient
from luna_daemon.protocol import WireTensor
from tests.bench.report import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
WIRE_DAEMON = ROOT / "tests" / "daemon" / "wire_daemon.py"
PINGS = 5000
SIZES = {"latent 128 KiB": 128 * 1024, "cond 1.2 MiB": 1_261_568, "image 12 MiB": 12 * 1024**2}
TENSOR_ROUNDS = 40

ECHO = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
print("up", flush=True)
connection, _ = listener.accept()
buffer = memoryview(bytearray(16 << 20))
while True:
    need = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    if not need:
        break
    have = 0
    while have < need:
        have += connection.recv_into(buffer[have:need])
    connection.sendall(buffer[:need])
"""


@dataclass
class Series:
    """Times of one thing in seconds: wall and this process's CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, action: Callable[[], object]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        action()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def p50(self) -> float:
        return median(self.wall)

    def p99(self) -> float:
        return sorted(self.wall)[int(len(self.wall) * 0.99)]


class Echo:
    """A peer that sends back what it gets: nothing but two sockets and a loop."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "echo.sock")
        self._process = subprocess.Popen([sys.executable, "-c", ECHO, path], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._buffer = memoryview(bytearray(16 << 20))

    def exchange(self, data: memoryview) -> None:
        prefix = len(data).to_bytes(4, "big")
        if len(data) > 65_536:  # read while writing, or both sides fill their buffers and wait
            sender = threading.Thread(target=self._socket.sendmsg, args=([prefix],))
            sender.start()
            sender.join()
            sender = threading.Thread(target=self._socket.sendall, args=(data,))
            sender.start()
        else:
            sender = None
            self._socket.sendmsg([prefix, data])
        have = 0
        while have < len(data):
            have += self._socket.recv_into(self._buffer[have : len(data)])
        if sender is not None:
            sender.join()

    def close(self) -> None:
        self._socket.sendall(bytes(4))
        self._socket.close()
        self._process.wait(5)


def daemon(home: Path) -> Iterator[int]:
    environment = {**os.environ, "LUNA_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, str(WIRE_DAEMON), "--name", "bench", "--port", "0"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while (found := identity.read_identity("bench")) is None or found.port is None:
            time.sleep(0.02)
        yield found.port
    finally:
        process.terminate()
        process.wait(20)


def pings(port: int, folder: Path) -> list[str]:
    echo = Echo(folder)
    message = memoryview(bytes(110))  # as large as a ping
    unix = DaemonClient.connect("127.0.0.1", port)
    tcp = DaemonClient.connect("127.0.0.1", port, transport="tcp")
    rows = {"raw echo, unix": Series(), "ping, unix": Series(), "ping, TCP": Series()}
    actions = {
        "raw echo, unix": lambda: echo.exchange(message),
        "ping, unix": unix.ping,
        "ping, TCP": tcp.ping,
    }
    for _ in range(PINGS + 200):
        for name, action in actions.items():
            rows[name].time(action)
    echo.close()
    unix.close()
    tcp.close()
    base = rows["raw echo, unix"]
    lines = ["| kept connection | p50 µs | p99 µs | CPU µs here | p50 / raw echo |", "|---|---|---|---|---|"]
    for series in rows.values():
        series.wall, series.cpu = series.wall[200:], series.cpu[200:]
    for name, series in rows.items():
        cpu = sum(series.cpu) / len(series.cpu)
        lines.append(
            f"| {name} | {series.p50() * 1e6:.1f} | {series.p99() * 1e6:.0f} | {cpu * 1e6:.1f} "
            f"| {series.p50() / base.p50():.1f} |"
        )
    return lines


def tensors(port: int, folder: Path) -> list[str]:
    lines = [
        "| round trip, p50 ms | two warm memcpys | raw echo, unix | inline, unix | JSON + base64 through the echo |",
        "|---|---|---|---|---|",
    ]
    client = DaemonClient.connect("127.0.0.1", port)
    echo = Echo(folder)
    for name, nbytes in SIZES.items():
        data = memoryview(os.urandom(nbytes))
        latent = WireTensor("latent", "f32", (1, 1, 1, nbytes // 4), data)
        target = memoryview(bytearray(nbytes))
        rows = [Series() for _ in range(4)]

        def copies(target: memoryview = target, data: memoryview = data) -> None:
            target[:] = data
            target[:] = data

        def as_json(data: memoryview = data) -> None:
            text = json.dumps({"data": base64.b64encode(data).decode()}).encode()
            echo.exchange(memoryview(text)[: 16 << 20])
            base64.b64decode(json.loads(text)["data"])

        for _ in range(TENSOR_ROUNDS):
            rows[0].time(copies)
            rows[1].time(lambda data=data: echo.exchange(data))
            rows[2].time(lambda latent=latent: client.vae_decode(set="s", latent=latent))
            if nbytes * 4 // 3 + 100 < 16 << 20:
                rows[3].time(as_json)
        base = rows[0].p50()
        cells = [
            f"{series.p50() * 1000:.3f} ({series.p50() / base:.0f} x)" if series.wall else "does not fit"
            for series in rows
        ]
        lines.append(f"| {name} | {cells[0].split(' ')[0]} | {' | '.join(cells[1:])} |")
    echo.close()
    client.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LUNA_HOME"] = folder
        for port in daemon(Path(folder)):
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                table = "\n".join([*pings(port, Path(one)), "", *tensors(port, Path(other))])
    note = (
        "A ping here is a full request: header checked field by field on both sides, queue-free lane, reply decoded "
        "into a dataclass. The raw echo is two sockets and no parsing. Tensors go there and back whole. "
        f"Load average of the machine during this run: {os.getloadavg()[0]:.1f}."
    )
    publish("transport", "The wire: ping and inline tensors", table, write=write, note=note)


if __name__ == "__main__":
    main()
