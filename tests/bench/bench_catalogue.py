"""The catalogue in new processes: a list of 358 sources cold and warm, an inspection; memory beside the model's size.

Sources are real SDXL headers over holes, so that the disk is not what is measured. Memory is the greatest resident
size that a converting process ever had, for a source of 0.5 GB and one of 16 GB, both holes as well.
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

from tests.bench.report import load, publish
from tests.synthetic_models import TINY_SDXL, demo_shapes, write_holes

_SOURCES = 358
_RUNS = 9
_LABELS = ("fp8_e4m3fn", "gguf_Q8_0")
_WIDTH = 4096  # a square weight of halves: 34 MB
_CONVERT = """
import json, sys
from luna_engine.weights.conversion import convert
report = convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(json.dumps({"rss": report.peak_rss_bytes, "s": report.duration_s}))
"""


def main() -> None:
    """Measure and print, or write with --write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--runs", type=int, default=_RUNS)
    parser.add_argument("--large-gb", type=float, default=16.0, help="size of the large source; half goes to the disk")
    options = parser.parse_args()
    before = load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = f"{_times(folder / 'shelf', options.runs)}\n\n{_memory(folder, options.large_gb)}"
    note = (
        f"{_SOURCES} sources with {len(demo_shapes('sdxl')):,} tensors each; medians of {options.runs} new processes. "
        "Targets: list, warm, at most 0.6 s; inspect at most 0.3 s; peak at most 220 MiB, growth at most 16 MiB. "
        f"Load average {before} when it began."
    )
    publish("catalogue", "The catalogue, and memory beside the model's size", table, write=options.write, note=note)


def _times(folder: Path, runs: int) -> str:
    shapes = demo_shapes("sdxl")
    for number in range(_SOURCES):
        write_holes(folder / "models" / "checkpoints" / f"{number % 9}" / f"model-{number:03}.safetensors", shapes)
    source = folder / "models" / "checkpoints" / "0" / "model-000.safetensors"
    environment = {
        **os.environ, "LUNA_HOME": str(folder / "home"), "LUNA_MODELS": str(folder / "models"), "COMFYUI_PATH": "",
    }  # fmt: skip
    bare = statistics.median(_run([sys.executable, "-c", "pass"], environment) for _ in range(runs))
    luna = [sys.executable, "-m", "luna_tui.cli", "weights"]
    cold = _run([*luna, "list", "--json"], environment)
    warm = statistics.median(_run([*luna, "list", "--json"], environment) for _ in range(runs))
    look = statistics.median(_run([*luna, "inspect", str(source), "--json"], environment) for _ in range(runs))
    rows = [
        ("bare interpreter", bare),
        (f"`luna weights list`, {_SOURCES} sources, no database yet", cold),
        (f"`luna weights list`, {_SOURCES} sources, warm database", warm),
        ("`luna weights inspect FILE`", look),
    ]
    lines = [f"| {name} | {seconds:.2f} | {seconds / bare:.1f} |" for name, seconds in rows]
    return "\n".join(["| | wall s | of a bare interpreter |", "|---|---|---|", *lines])


def _run(command: list[str], environment: dict[str, str]) -> float:
    root = Path(__file__).resolve().parents[2]
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, cwd=root, env=environment)
    return time.perf_counter() - start


def _memory(folder: Path, large_gb: float) -> str:
    room = shutil.disk_usage(folder).free
    large_gb = min(large_gb, room / 1e9)  # the output is half as large
    lines = ["| | source GB | peak RSS MiB | growth MiB |", "|---|---|---|---|"]
    for label in _LABELS:
        peaks: list[float] = []
        for size in (0.5, large_gb):
            source = write_holes(folder / "large" / f"{size}.safetensors", _shapes(size))
            target = folder / "out" / f"{size}"
            peaks.append(_converted(source, target, label) / 1024**2)
            target.unlink()
            source.unlink()
            growth = "" if len(peaks) == 1 else f"{round(peaks[1] - peaks[0])}"
            lines.append(f"| {label} | {size:.1f} | {peaks[-1]:.0f} | {growth} |")
    return "\n".join(lines)


def _shapes(size_gb: float) -> dict[str, tuple[int, ...]]:
    count = max(1, round(size_gb * 1e9 / (2 * _WIDTH * _WIDTH)))
    name = "output_blocks.0.1.transformer_blocks.{}.attn1.to_q.weight"
    return {**TINY_SDXL, **{name.format(number): (_WIDTH, _WIDTH) for number in range(count)}}


def _converted(source: Path, target: Path, label: str) -> int:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, str(source), str(target), label], capture_output=True, text=True, check=True,
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    peak: int = json.loads(done.stdout)["rss"]
    return peak


if __name__ == "__main__":
    main()
