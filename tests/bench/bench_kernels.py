"""Block kernels against ggml's own C code (libggml-python) on one thread: MB of halves per CPU second.

Runs are interleaved, medians are shown; input is float32, as both take it, and lies in the cache's reach.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from pathlib import Path

import libggml
import numpy as np

from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.kernels.lanes import LaneBlocks
from luna_engine.weights.kernels.package import PackageBlocks
from tests.bench.report import publish

_RUNS = 9
_VALUES = 1 << 20
# type -> (bar, stretch) for the ratio over ggml
_BARS = {
    "Q8_0": (8, 14), "Q4_0": (1.3, 4), "Q4_1": None, "Q5_0": None, "Q5_1": None, "Q4_K": (6, 8), "Q5_K": (6, 8),
    "Q6_K": (4, 7),
}  # fmt: skip
_PACKAGE = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"})


def main() -> None:
    """Measure and print, or write with --write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    library = ctypes.CDLL(str(Path(libggml.__file__).parent / "lib64" / "libggml-base.so"))
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p,
    ]  # fmt: skip
    values = (np.random.default_rng(1).standard_normal(_VALUES) * 0.02).astype(np.float32)
    rows = [_row(dtype, values, library) for dtype in _BARS]
    table = (
        "| type | ggml C MB/s | Luna MB/s | Luna / ggml C | bar (stretch) | Luna reads MB/s | gguf package MB/s |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows)
    )
    note = (
        "One thread, median of interleaved runs, CPU seconds, MB of halves (2 bytes a value). Decoded values are equal "
        f"in every case (tests/unit/weights/test_kernels.py). numba for {_features()}. "
        f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    )
    publish("kernels", "Block kernels", table, write=options.write, note=note)


def _row(dtype: str, values: np.ndarray, library: ctypes.CDLL) -> str:
    kind = BY_NAME[dtype]
    out = np.empty(kind.size_bytes(values.size), np.uint8)
    decoded = np.empty_like(values)
    lanes, package = LaneBlocks(), PackageBlocks()
    calls = {
        "ggml": lambda: library.ggml_quantize_chunk(
            kind.number, values.ctypes.data, out.ctypes.data, 0, values.size // 4096, 4096, None
        ),
        "lanes": lambda: lanes.quantize(dtype, values, out),
        "read": lambda: lanes.decode(dtype, out, decoded),
    }
    if dtype in _PACKAGE:
        calls["package"] = lambda: package.quantize(dtype, values, out)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(_RUNS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    speed = {name: values.size * 2 / 1e6 / statistics.median(found) for name, found in times.items()}
    bar = _BARS[dtype]
    return (
        f"| {dtype} | {speed['ggml']:.0f} | {speed['lanes']:.0f} | {speed['lanes'] / speed['ggml']:.1f} | "
        f"{f'{bar[0]} ({bar[1]})' if bar else ''} | {speed['read']:.0f} | "
        f"{format(speed['package'], '.0f') if 'package' in speed else ''} |"
    )


def _features() -> str:
    import llvmlite.binding

    found = llvmlite.binding.get_host_cpu_features()
    return "AVX-512" if found.get("avx512f") else "AVX2" if found.get("avx2") else llvmlite.binding.get_host_cpu_name()


if __name__ == "__main__":
    main()
