"""Conversion of one file against `cp` and fsync of the same file.

Runs are interleaved; medians are shown. The converting process is timed from outside (start-up, fsync, hashes and
verification of the header included); "work" is what it says itself, start-up excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import publish

_RUNS = 7
_LABELS = ("bf16", "fp8_e4m3fn_scaled", "gguf_Q8_0", "gguf_Q4_K_M")
_WIDTH = 2304  # 18 heads of 128: Flux's shapes, 1+1 blocks, 0.6 GB of halves

_CONVERT = """
import json, sys
from luna_engine.weights.conversion import convert
from luna_engine.weights.kernels.seam import prepare
from luna_engine.weights.mixes import MIXES
if sys.argv[3].startswith("gguf"):
    prepare({*MIXES.get(sys.argv[3], {}).values(), "Q8_0"})  # start-up: imports, and kernels compiled before
report = convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(json.dumps({"work_s": report.duration_s, "rss": report.peak_rss_bytes, "size": report.size_bytes}))
"""
_MAKE = """
import sys
from pathlib import Path
from luna_engine.weights.demo.transformers import flux
from luna_engine.weights.demo.writing import write
write(Path(sys.argv[1]), "bench", list(flux(int(sys.argv[2]), 128)), {}, lambda *_: None)
"""


def main() -> None:
    """Measure and print, or write with --write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--runs", type=int, default=_RUNS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table, note = _measure(Path(name), options.runs)
    publish("convert", "Conversion of one file", table, write=options.write, note=note)


def _measure(folder: Path, runs: int) -> tuple[str, str]:
    source = folder / "source.safetensors"
    _python(_MAKE, str(source), str(_WIDTH))
    size = source.stat().st_size
    copies: list[tuple[float, float]] = []
    results: dict[str, list[dict[str, float]]] = {label: [] for label in _LABELS}
    for _ in range(runs):
        copies.append(_copy(source, folder / "copy"))
        for label, found in results.items():
            found.append(_convert(source, folder / f"out-{label}", label))
    base, base_cpu = (statistics.median(column) for column in zip(*copies, strict=True))
    rows = [f"| `cp` + fsync | {base:.2f} | 1.00 | | {base_cpu:.2f} | |"]
    for label, found in results.items():
        wall, work, cpu = (statistics.median(entry[key] for entry in found) for key in ("wall", "work_s", "cpu"))
        peak = max(entry["rss"] for entry in found) / 1024**2
        rows.append(f"| {label} | {wall:.2f} | {wall / base:.2f} | {work / base:.2f} | {cpu:.2f} | {peak:.0f} |")
    if (peer := _peer(source, folder / "peer.gguf")) is not None:
        ours = statistics.median(entry["cpu"] for entry in results["gguf_Q4_K_M"])
        rows.append(f"| libgguf 0.2.2, Q4_K_M, one run | {peer[0]:.2f} | {peer[0] / base:.2f} | | {peer[1]:.2f} | |")
        rows.append(f"| **CPU of gguf_Q4_K_M / libgguf's** | | | | **{ours / peer[1]:.3f}** | |")
    head = (
        "| | wall s | wall / cp | work / cp (start-up excluded) | CPU s | peak RSS MiB |\n|---|---|---|---|---|---|\n"
    )
    note = (
        f"Source: {size / 1e6:.0f} MB of halves in Flux's shapes, in the page cache; {runs} interleaved runs, medians. "
        "Conversion reads, checks every value, hashes input and output (SHA-256), writes, fsyncs and reads the header "
        "back. Target: work / cp at most 2.0 for casts, fp8 and Q8_0, peak RSS at most 220 MiB, "
        "CPU of Q4_K_M over libgguf's (`pip install libgguf==0.2.2`), start-up included, at most 0.15. "
        f"Load average while measuring: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        f"{' (not idle: wall ratios are too high)' if os.getloadavg()[0] > 3 else ''}."
    )
    return head + "\n".join(rows), note


def _copy(source: Path, target: Path) -> tuple[float, float]:
    """Copy and sync; return wall and CPU seconds."""
    target.unlink(missing_ok=True)
    os.sync()
    before, start = _cpu(), time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start, _cpu() - before


def _peer(source: Path, target: Path) -> tuple[float, float] | None:
    """Convert with libgguf's native command, if it is installed here; return wall and CPU seconds."""
    command = Path(sys.executable).with_name("libgguf_quantize_gguf")
    if not command.exists():
        return None
    before, start = _cpu(), time.perf_counter()
    arguments = [command, "--src", source, "--qtype", "Q4_K_M", "--dst", target, "--backend", "cpu"]
    subprocess.run([*arguments, "--overwrite"], check=True, capture_output=True)
    return time.perf_counter() - start, _cpu() - before


def _cpu() -> float:
    """Return the CPU seconds of this process and its ended children."""
    return sum(os.times()[:4])


def _convert(source: Path, target: Path, label: str) -> dict[str, float]:
    target.unlink(missing_ok=True)
    os.sync()
    before, start = _cpu(), time.perf_counter()
    answer: dict[str, float] = json.loads(_python(_CONVERT, str(source), str(target), label))
    return {**answer, "wall": time.perf_counter() - start, "cpu": _cpu() - before}


def _python(code: str, *arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment, cwd=root
    )
    return done.stdout


if __name__ == "__main__":
    if shutil.which("cp") is None:
        sys.exit("cp is not installed: there is nothing to compare with")
    main()
