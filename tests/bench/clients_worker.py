"""One client of `bench_clients` and `bench_memory`: a process that encodes prompts, through the daemon or on its own.

It says ``ready`` on stdout, then obeys lines on stdin: ``load`` loads the model; ``run SECONDS MODE THREADS`` encodes
one prompt after the other for that long and answers with the number of prompts, the seconds they took and the CPU
seconds of this process; ``memory`` answers with its PSS in bytes. Run as
``python -m tests.bench.clients_worker daemon HOST:PORT NUMBER`` or ``… own FOLDER NUMBER``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from luna_daemon.client import DaemonClient
from luna_daemon.encode_messages import EncodeText, TextItem
from luna_daemon.model_messages import LoadModel, Part

MODEL = (Part("l", id="clip/clip_l.safetensors"),)


class SharingClient:
    """Has a daemon load and encode; never imports torch."""

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        self._client = DaemonClient.connect(host, int(port), name="bench")

    def load(self) -> None:
        """Load the model, or find it loaded."""
        self._client.load_model(MODEL)

    def use(self, threads: int) -> None:
        """Leave the threads to the daemon."""

    def encode(self, body: EncodeText) -> None:
        """Encode a prompt."""
        self._client.call("encode_text", body)


class OwnModel:
    """Loads and encodes in this process."""

    def __init__(self, place: str) -> None:
        from luna_daemon.engine_seam import EngineOptions
        from luna_daemon.runtime.engine import Engine

        roots = {"clip": Path(place) / "clip"}
        self._engine = Engine(EngineOptions(service_type="clip", device="cpu", roots=roots, backend="native"))
        self._engine.start(lambda phase, done: None)

    def load(self) -> None:
        """Load the model."""
        self._engine.load_model(LoadModel(MODEL), {}, lambda: None)

    def use(self, threads: int) -> None:
        """Compute with that many threads from now on."""
        import torch

        torch.set_num_threads(threads)

    def encode(self, body: EncodeText) -> None:
        """Encode a prompt."""
        self._engine.encode_text(body, {}, lambda: None)


def pss_bytes(pid: str | int = "self") -> int:
    """Return a process's share of the memory that it has mapped."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel tells no PSS")


def run(model: SharingClient | OwnModel, seconds: float, *, is_exact: bool, number: int) -> str:
    """Encode for a while; return what `main` answers."""
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        prompt = TextItem(f"a photograph of a red cat on a chair, number {number} {count}")
        model.encode(EncodeText("sd15", (prompt,), exact=is_exact, cache="bypass"))
        count += 1
    return f"{count} {time.perf_counter() - began:.6f} {time.process_time() - cpu:.6f}"


def main() -> None:
    """Obey."""
    kind, place, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model: SharingClient | OwnModel = SharingClient(place) if kind == "daemon" else OwnModel(place)
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "load":
            model.load()
            print("loaded", flush=True)
        elif word == "memory":
            print(pss_bytes(), flush=True)
        else:
            model.use(int(rest[2]))
            print(run(model, float(rest[0]), is_exact=rest[1] == "exact", number=number), flush=True)


if __name__ == "__main__":
    main()
