"""Hostile frames against a live daemon: no crash, no hang, no internal error, nothing left behind, others served.

`python -m tests.bench.fuzz [--cases N] [--seed N] [--write]`. The daemon is the product's with small models. A case
is one frame. Whatever it is, the daemon answers it with a typed error or a result, or closes the connection; an
answer `internal` means that a handler met something that it had not thought of, and counts as a failure.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from luna_daemon import auth, frames
from luna_daemon.client import DaemonClient
from luna_daemon.frames import MIB
from luna_daemon.protocol import Part, TokenItem, TokenRows, WireTensor
from luna_daemon.stream import ConnectionLostError, FrameReader
from luna_engine.errors import DaemonError
from tests.bench import footprint
from tests.bench.mutations import Case, Mutator
from tests.bench.report import RELIABILITY, load, publish
from tests.bench.tiny_daemon import PART_ID, TinyDaemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.footprint import Footprint

T = TypeVar("T")
ANSWER_S = 20.0
PATIENCE_S = 120.0
CANARY_EVERY = 1000
WARM_SHARE = 0.1
LEAST_BETWEEN = 5_000  # frames between two readings
BARRIER = 2**40
IDS = WireTensor("ids", "i32", (77,), memoryview(array("i", [49406, *range(1, 76), 49407])).cast("B"))


@dataclass(slots=True)
class Outcome:
    """What a run found."""

    cases: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    canaries: int = 0
    slowest_canary_s: float = 0.0
    waits_for_memory: int = 0
    warm: Footprint | None = None
    end: Footprint | None = None
    seconds: float = 0.0


class HangError(Exception):
    """The daemon neither answered nor closed."""


class Attacker:
    """One connection to the daemon's Unix socket, made anew whenever the daemon closes it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._reader: FrameReader | None = None

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _connected(self) -> tuple[socket.socket, FrameReader]:
        if self._socket is not None and self._reader is not None:
            return self._socket, self._reader
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        reader = FrameReader(connection, frames.Limits())
        reader.vias = frozenset({"inline", "shm"})  # an attack may have opened shared memory; nothing there is read
        body = {
            "magic": "luna-daemon",
            "protocol": [1, 1],
            "nonce": auth.new_nonce(),
            "client": {"name": "fuzz", "version": "0", "pid": os.getpid()},
        }
        connection.sendall(_frame({"id": 1, "cmd": "hello", "body": body}))
        self._socket, self._reader = connection, reader
        if reader.announced().header.get("ok") is not True:
            raise HangError("the daemon refused a good hello")
        return connection, reader

    def send(self, case: Case, request: int) -> list[str]:
        """Send one case; return the codes that came back, ``closed`` among them if the daemon hung up.

        Raises:
            HangError: nothing came in time.
        """
        connection, reader = self._connected()
        barrier = BARRIER + request
        try:
            connection.sendall(case.raw)
            if case.is_whole:
                connection.sendall(_frame({"id": barrier, "cmd": "ping", "body": {}}))
            else:
                connection.shutdown(socket.SHUT_WR)  # what is cut short must not be waited for
        except OSError:
            pass  # closed in the middle of it; the answer may still be there
        connection.settimeout(ANSWER_S)
        try:
            return self._answers(reader, barrier)
        finally:
            if not case.is_whole:
                self.close()

    def _answers(self, reader: FrameReader, barrier: int) -> list[str]:
        codes = []
        while True:
            try:
                announced = reader.announced(payload_limit=64 * MIB, frame_s=ANSWER_S)
                reader.skip(announced.payload_bytes)
            except ConnectionLostError:
                self.close()
                return [*codes, "closed"]
            except (TimeoutError, BlockingIOError) as error:
                raise HangError("no answer and no end") from error
            header = announced.header
            if "event" in header:
                continue
            if header.get("id") == barrier:
                return codes
            codes.append("ok" if header.get("ok") is True else header["error"]["code"])


def _frame(header: dict[str, Any]) -> bytes:
    return b"".join(bytes(part) for part in frames.encode_frame(header))


class Canary:
    """A well-behaved client that must always get the same answer in time."""

    def __init__(self, port: int) -> None:
        self._client = DaemonClient.connect("127.0.0.1", port, name="canary")
        self.waits_for_memory = 0
        self._set = self._patiently(self._load)
        self._expected = self._patiently(self._encode)

    @property
    def set_id(self) -> str:
        """The set that it uses, and that the attack is aimed at."""
        return self._set

    def _load(self) -> str:
        return self._client.load_model([Part("l", id=PART_ID), Part("vae", id=PART_ID)]).set

    def _encode(self) -> bytes:
        items = [TokenItem({"l": TokenRows((77,), "ids")})]
        body, tensors = self._client.encode_tokens(set=self._set, items=items, tensors=[IDS], cache="bypass")
        return bytes(tensors[body.items[0].cond].data)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask; on a shared machine others may have all the memory for a while, and then the daemon says so."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except DaemonError as error:
                if error.code != "out-of-memory" or time.monotonic() > deadline:
                    raise
                self.waits_for_memory += 1
                time.sleep(1.0)

    def sing(self) -> float:
        """Ask; return the seconds. A set that the attack unloaded is loaded again.

        Raises:
            HangError: the answer is another one.
        """
        began = time.monotonic()
        self._client.ping()
        answer = self._patiently(self._encode_here)
        if answer != self._expected:
            raise HangError("the canary got another result")
        return time.monotonic() - began

    def _encode_here(self) -> bytes:
        try:
            return self._encode()
        except DaemonError as error:
            if error.code != "model-missing":
                raise
            self._set = self._load()
            return self._encode()

    def settle(self) -> None:
        """Bring the daemon to a state that can be compared: the attack has loaded, sent and left what it liked.

        Raises:
            HangError: a cache is not empty after that.
        """
        self._client.unload_model(all=True, force=True)
        self._client.lora_drop(all=True)
        self._client.free("results")
        self.sing()
        caches = self._client.status().caches
        left = {name: cache.bytes for name, cache in caches.items() if cache.bytes and name != "shm"}
        if left:
            raise HangError(f"caches that were emptied hold {left}")

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def run(daemon: TinyDaemon, cases: int, seed: int, tell: Callable[[str], None] = print) -> Outcome:
    """Attack a daemon and watch it."""
    outcome, began = Outcome(), time.monotonic()
    canary = Canary(daemon.port)
    attacker = Attacker(daemon.socket)
    mutator = Mutator(random.Random(seed), canary.set_id)
    try:
        for index in range(cases):
            if index % CANARY_EVERY == 0:
                outcome.slowest_canary_s = max(outcome.slowest_canary_s, canary.sing())
                outcome.canaries += 1
            if index == int(cases * WARM_SHARE):
                canary.settle()
                outcome.warm = daemon.footprint()
            if index and index % max(LEAST_BETWEEN, cases // 20) == 0:
                canary.settle()
                tell(f"{index:,} cases, {time.monotonic() - began:.0f} s, {daemon.footprint()}")
            case = mutator.case(2 + index % 1_000_000)
            _judge(case, attacker.send(case, 2 + index % 1_000_000), outcome)
        attacker.close()
        canary.settle()
        outcome.end = daemon.footprint()
    except (HangError, DaemonError, OSError, RuntimeError) as error:
        outcome.failures.append(f"after {outcome.cases} cases: {type(error).__name__}: {error}")
    finally:
        outcome.waits_for_memory = canary.waits_for_memory
        attacker.close()
        canary.close()
        if daemon.process.poll() is not None:
            outcome.failures.append(f"the daemon ended with {daemon.process.returncode}")
    outcome.seconds = time.monotonic() - began
    return outcome


def _judge(case: Case, codes: list[str], outcome: Outcome) -> None:
    outcome.cases += 1
    outcome.kinds[case.kind] += 1
    outcome.answers.update(codes or ["nothing"])
    if "internal" in codes and len(outcome.failures) < 20:
        outcome.failures.append(f"internal: {case.kind}: {case.raw[:600]!r}")


def verdict(outcome: Outcome) -> list[str]:
    """Return what is wrong with an outcome; nothing if all is well."""
    wrong = list(outcome.failures)
    warm, end = outcome.warm, outcome.end
    if warm is None or end is None:
        return [*wrong, "the run did not reach its end"]
    if end.rss_bytes > 1.05 * warm.rss_bytes + 8 * MIB:
        wrong.append(f"resident memory grew from {warm.rss_bytes:,} to {end.rss_bytes:,} bytes")
    if end.descriptors > warm.descriptors + 8:
        wrong.append(f"descriptors grew from {warm.descriptors} to {end.descriptors}")
    if end.threads > warm.threads + 8:
        wrong.append(f"threads grew from {warm.threads} to {end.threads}")
    return wrong


def table(outcome: Outcome, wrong: list[str]) -> str:
    """Return the Markdown table."""
    kinds = ", ".join(f"{name} {count:,}" for name, count in outcome.kinds.most_common())
    answers = ", ".join(f"`{name}` {count:,}" for name, count in outcome.answers.most_common(12))
    rows = [
        ("hostile frames", f"{outcome.cases:,}"),
        ("of kinds", kinds),
        ("answers (the commonest)", answers),
        ("`internal`, crashes, hangs", str(len(outcome.failures))),
        ("canary asked", f"{outcome.canaries:,} times, slowest {outcome.slowest_canary_s * 1000:.0f} ms"),
        ("waits because others had the machine's memory", f"{outcome.waits_for_memory}"),
        ("readings", "after a tenth of the frames → at the end"),
        *footprint.rows(outcome.warm, outcome.end),
        ("time", f"{outcome.seconds:.0f} s, load {load()}"),
        ("verdict", "held" if not wrong else "; ".join(wrong)),
    ]
    return "\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        daemon = TinyDaemon(Path(folder))
        try:
            outcome = run(daemon, given.cases, given.seed, lambda line: print(line, flush=True))
        finally:
            daemon.close()
    wrong = verdict(outcome)
    made_by = f"python -m tests.bench.fuzz --cases {given.cases} --seed {given.seed}"
    publish("fuzz", "Hostile frames", table(outcome, wrong), write=given.write, page=RELIABILITY, command=made_by)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
