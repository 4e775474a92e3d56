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
from luna_daemon.protocol import VaeEncode, WireTensor
from tests.bench.carried import CarriedPeer
from tests.bench.report import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
WIRE_DAEMON = ROOT / "tests" / "daemon" / "wire_daemon.py"
PINGS = 5000
SIZES = {"latent 128 KiB": 128 * 1024, "cond 1.2 MiB": 1_261_568, "image 12 MiB": 12 * 1024**2}
TENSOR_ROUNDS = 40
NEVER = 1 << 40  # bytes from which shared memory is used: nothing is that large

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


JSON_PEER = """
import base64, json, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
buffer = memoryview(bytearray(20 << 20))
while True:
    need = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    if not need:
        break
    have = 0
    while have < need:
        have += connection.recv_into(buffer[have:need])
    data = base64.b64decode(json.loads(bytes(buffer[:need]))["data"])
    connection.sendall(len(data).to_bytes(4, "big"))
"""


class JsonPeer:
    """A peer as tools usually talk: the tensor as base64 in JSON over TCP; it decodes and answers with the size."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", JSON_PEER], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._socket = socket.create_connection(("127.0.0.1", int(self._process.stdout.readline())))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: memoryview) -> None:
        text = json.dumps({"data": base64.b64encode(data).decode()}).encode()
        self._socket.sendall(len(text).to_bytes(4, "big"))
        self._socket.sendall(text)
        if int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big") != len(data):
            raise RuntimeError("the peer got another tensor")

    def close(self) -> None:
        self._socket.sendall(bytes(4))
        self._socket.close()
        self._process.wait(5)


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
    """Send a tensor one way: copied in on this side, out on the other, a small reply."""
    columns = (
        "two warm memcpys",
        "shared memory, transport alone",
        "shared memory, whole request",
        "inline, whole request",
        "JSON + base64, TCP",
        "there and back, whole request",
    )
    lines = [f"| one way, p50 ms | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    shared = DaemonClient.connect("127.0.0.1", port, shm_from_bytes=1)
    inline = DaemonClient.connect("127.0.0.1", port, shm_from_bytes=NEVER)
    peer = JsonPeer()
    carried = CarriedPeer(folder)
    for name, nbytes in SIZES.items():
        data = memoryview(os.urandom(nbytes))
        pixels = WireTensor("pixels", "f32", (1, 1, nbytes // 4, 1), data)
        latent = WireTensor("latent", "f32", (1, 1, 1, nbytes // 4), data)
        target = memoryview(bytearray(nbytes))

        def copies(target: memoryview = target, data: memoryview = data) -> None:
            target[:] = data
            target[:] = data

        actions: dict[str, Callable[[], object]] = {
            columns[0]: copies,
            columns[1]: lambda latent=latent: carried.send(latent),
            columns[2]: lambda pixels=pixels: shared.vae_encode(set="s", pixels=pixels),
            columns[3]: lambda pixels=pixels: inline.vae_encode(set="s", pixels=pixels),
            columns[4]: lambda data=data: peer.send(data),
            columns[5]: lambda latent=latent: shared.vae_decode(set="s", latent=latent),
        }
        rows = {column: Series() for column in columns}
        for index in range(TENSOR_ROUNDS + 3):
            for column, action in actions.items():
                (rows[column] if index >= 3 else Series()).time(action)
        lines.append(f"| {name} | {cells(rows, columns)} |")
    require_ways({"shm": shared, "inline": inline})
    for one in (shared, inline, peer, carried):
        one.close()
    return lines


def cells(rows: dict[str, Series], columns: tuple[str, ...]) -> str:
    """Return the times, each with its ratio: to the memcpys, and of JSON to shared memory."""
    base, fast = rows[columns[0]].p50(), rows[columns[1]].p50()
    found = [f"{rows[columns[0]].p50() * 1000:.3f}"]
    found += [f"{rows[column].p50() * 1000:.3f} ({rows[column].p50() / base:.1f} x)" for column in columns[1:]]
    found[4] += f", {rows[columns[4]].p50() / fast:.0f} x shared memory"
    return " | ".join(found)


def require_ways(clients: dict[str, DaemonClient]) -> None:
    """Refuse to publish a comparison of a transport with itself."""
    pixels = WireTensor("pixels", "f32", (1, 1, 1 << 18, 1), memoryview(bytes(1 << 20)))
    for way, client in clients.items():
        did = client.call("vae_encode", VaeEncode("s"), [pixels]).did
        if did is None or did.transport["in"] != way:
            raise RuntimeError(f"tensors did not cross {way}: {did}, {client.transport_reason}")


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
        "into a dataclass. The raw echo is two sockets and no parsing. A tensor that goes one way is copied in here, "
        "out there, and a few bytes answer it. The transport alone is the daemon's own frames and memory in a peer "
        "without queue and engine; a whole request adds admission, queue, a second thread, events and counters. There "
        "and back is twice that, and a result of the client's own. Bars: ping at most 40 µs; transport alone at most "
        "10 memcpys' time for a latent, 2.0 for an image; JSON at least 40 times shared memory. Tensors below "
        "256 KiB go inline unless a client asks otherwise. "
        f"Load average of the machine during this run: {os.getloadavg()[0]:.1f}."
    )
    publish("transport", "The wire: ping, shared memory and inline tensors", table, write=write, note=note)


if __name__ == "__main__":
    main()
