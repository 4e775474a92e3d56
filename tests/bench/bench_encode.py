"""What a daemon costs: round trip of one CLIP-L prompt minus the model's own time, beside the same call in-process.

`python -m tests.bench.bench_encode [--write] [--rounds N]`. The model's time is taken inside the daemon, request by
request, so that the difference does not drown in the model's own scatter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from luna_daemon.client import DaemonClient
from luna_daemon.encode_messages import EncodeText, TextItem, TokenItem, TokenRows
from luna_daemon.tensors import from_torch
from tests.bench.report import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from luna_daemon.frames import WireTensor

PROMPT = "a photograph of a (red:1.2) cat on a chair"
START_S = 180.0


def write_model(folder: Path) -> Path:
    """Write a CLIP-L file with random weights in the real shapes."""
    from luna_engine.weights.demo import text_encoders
    from luna_engine.weights.demo.writing import write

    path = folder / "clip/clip_l.safetensors"
    write(path, "bench", list(chain(text_encoders.clip_l())), {}, lambda done, total: None)
    return path


@contextlib.contextmanager
def daemon(folder: Path, model: Path) -> Iterator[tuple[str, int]]:
    """Run the timed daemon; give its TCP address once it is ready."""
    environ = {**os.environ, "LUNA_BENCH_TIMES": str(folder / "times"), "CUDA_VISIBLE_DEVICES": ""}
    script = Path(__file__).with_name("timed_daemon.py")
    command = [sys.executable, str(script), "--name", "bench", "--service-type", "clip", "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--preload", str(model)], stdout=log, stderr=log, env=environ
        )
    try:
        yield wait_ready(process, folder)
    finally:
        process.terminate()
        process.wait(30)


def wait_ready(process: subprocess.Popen[bytes], folder: Path) -> tuple[str, int]:
    """Wait until the daemon is ready."""
    record = Path(os.environ["LUNA_HOME"]) / "state/run/bench.json"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if record.exists():
            place = json.loads(record.read_text("utf-8"))
            with DaemonClient.connect(place["host"], place["port"]) as client:
                if client.ping().state == "ready":
                    return place["host"], place["port"]
        time.sleep(0.1)
    raise RuntimeError((folder / "log").read_text("utf-8"))


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def overheads(rounds: int, times: Path, call: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Return, round by round, the seconds beyond the model's own and the model's own."""
    for _ in range(3):
        call()
    times.write_text("", "ascii")
    whole = [seconds(call) for _ in range(rounds)]
    model = [float(line) for line in times.read_text("ascii").split()]
    if len(model) != rounds:
        raise RuntimeError(f"{len(model)} times for {rounds} rounds")
    return [all_of - own for all_of, own in zip(whole, model, strict=True)], model


def request() -> tuple[TokenItem, list[WireTensor]]:
    """Return one prompt as token rows."""
    import torch

    from luna_daemon.runtime.clip_text import CLIP_L
    from luna_daemon.runtime.tokens import tokenize
    from luna_daemon.runtime.vocabulary import open_vocabulary

    (row,) = tokenize(PROMPT, CLIP_L, open_vocabulary(None), lambda name: None).input.rows
    ids = from_torch("ids", torch.tensor(row.ids, dtype=torch.int32))
    weights = from_torch("weights", torch.tensor(row.weights, dtype=torch.float64))
    return TokenItem({"l": TokenRows(rows=(len(row.ids),), ids="ids", weights="weights")}), [ids, weights]


def in_process(rounds: int, model: Path, folder: Path) -> tuple[list[float], list[float]]:
    """Time the engine's call without any wire: what tokens and tensors cost by themselves."""
    from luna_daemon.engine_seam import EngineOptions
    from tests.bench.timed_daemon import TimedEngine

    times = folder / "times"
    os.environ["LUNA_BENCH_TIMES"] = str(times)
    engine = TimedEngine(EngineOptions(service_type="clip", device="cpu", preload=(str(model),), roots={}))
    engine.start(lambda phase, done: None)
    body = EncodeText("sd15", (TextItem(PROMPT),), cache="bypass")
    return overheads(rounds, times, lambda: engine.encode_text(body, {}, lambda: None))


def through_daemon(client: DaemonClient, word: str, rounds: int, times: Path) -> list[str]:
    """Return the lines of one transport: the prompt as text, and as tokens."""
    item, tensors = request()
    text = overheads(rounds, times, lambda: client.encode_text(set="sd15", items=(TextItem(PROMPT),), cache="bypass"))
    rows = overheads(
        rounds,
        times,
        lambda: client.encode_tokens(set="sd15", items=(item,), tensors=tensors, cache="bypass"),
    )
    return [row(f"daemon, {word}, encode_text", text), row(f"daemon, {word}, encode_tokens", rows)]


def repeated(client: DaemonClient, word: str, rounds: int) -> list[str]:
    """Return the lines of one transport for prompts that the daemon has in memory; all of it is overhead."""
    item, tensors = request()

    def text() -> None:
        reply, _ = client.encode_text(set="sd15", items=(TextItem(PROMPT),))
        require_cached(is_cached=reply.items[0].cached)

    def tokens() -> None:
        reply, _ = client.encode_tokens(set="sd15", items=(item,), tensors=tensors)
        require_cached(is_cached=reply.items[0].cached)

    client.encode_text(set="sd15", items=(TextItem(PROMPT),))  # now it is in memory
    lines = []
    for name, call in (("encode_text", text), ("encode_tokens", tokens)):
        spent = [seconds(call) for _ in range(rounds * 25)]
        median, high = statistics.median(spent), statistics.quantiles(spent, n=20)[-1]
        lines.append(f"| repeated, {word}, {name} | 0 | {median * 1e3:.2f} | {high * 1e3:.2f} | |")
    return lines


def require_cached(*, is_cached: bool) -> None:
    """Refuse to time a computed prompt as a repeated one."""
    if not is_cached:
        raise RuntimeError("the prompt was computed again")


def row(name: str, found: tuple[Sequence[float], Sequence[float]]) -> str:
    """Return a line of the table."""
    extra, model = found
    median, high = statistics.median(extra), statistics.quantiles(extra, n=20)[-1]
    own = statistics.median(model)
    return f"| {name} | {own * 1e3:.1f} | {median * 1e3:.2f} | {high * 1e3:.2f} | {median / own:.2%} |"


def main() -> None:
    """Measure and print, or publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["LUNA_HOME"] = str(folder / "home")
        model = write_model(folder)
        lines = []
        with daemon(folder, model) as address:
            for transport, word in (("auto", "Unix socket"), ("tcp", "TCP")):
                with DaemonClient.connect(*address, transport=transport) as client:
                    lines += through_daemon(client, word, given.rounds, folder / "times")
                    lines += repeated(client, word, given.rounds)
        lines.append(row("the engine in this process, no daemon", in_process(given.rounds, model, folder)))
    titles = ("one CLIP-L prompt, fp32, CPU", "model, ms", "beyond it p50, ms", "p95, ms", "p50 / model")
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    note = (
        "Bar: at most 1.5 ms and 1 % at p50; a repeated prompt at most 1 ms. "
        "The prompt is weighted: two rows of 77 in one batch. "
        f"Load average of the machine during the run: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    )
    publish("encode", "One prompt through the daemon", "\n".join([head, *lines]), write=given.write, note=note)


if __name__ == "__main__":
    main()
