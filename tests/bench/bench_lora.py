"""What LoRAs on a shared encoder cost: CLIP-L in its real shapes, random weights, fp32 on the CPU.

`python -m tests.bench.bench_lora [--write] [--rounds N]`. Every row of the table is measured in turn with its peer, in
rounds, on one thread by CPU time: machines are shared.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING

import torch

from luna_daemon.encode_messages import LoraUse
from luna_daemon.patches import Patch
from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.runtime.backend_native import NativeSet
from luna_daemon.runtime.clip_text import CLIP_L, END, POSITIONS, START, ClipTextEncoder, expected_shapes
from luna_daemon.runtime.lora import LoraEntry, LoraRegistry
from luna_daemon.runtime.merged import HotRecipes, MergedWeights
from luna_daemon.runtime.set_loras import LoraShelf
from tests.bench.report import load, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CPU = torch.device("cpu")
BATCH = 4
WARM_UP = 2
LAYERS = "text_model.encoder.layers."
PREFIX = "clip_l.transformer."


def encoder() -> ClipTextEncoder:
    """Return CLIP-L with random weights."""
    generator = torch.Generator().manual_seed(1)
    shapes = expected_shapes(CLIP_L)
    return ClipTextEncoder(
        CLIP_L,
        {
            name: (torch.randn(shape, generator=generator) * 0.02 + ("norm" in name and name.endswith("weight"))).half()
            for name, shape in shapes.items()
        },
        CPU,
    )


def lora(rank: int, seed: int) -> LoraEntry:
    """Return a LoRA on all linear layers, as the registry keeps it."""
    generator = torch.Generator().manual_seed(seed)
    patches = []
    for name, shape in expected_shapes(CLIP_L).items():
        if name.startswith(LAYERS) and len(shape) == 2:
            up, down = (torch.randn(size, generator=generator) * 0.01 for size in ((shape[0], rank), (rank, shape[1])))
            patches.append(Patch(PREFIX + name, "lora", {"up": up, "down": down}, float(rank)))
    return LoraEntry(f"{rank}-{seed}", tuple(patches))


def prompt(seed: int, *entries: LoraEntry) -> EncodeItem:
    """Return a prompt of one row with LoRAs."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, START, (20,), generator=generator).tolist()
    ids = (START, *words, *[END] * (POSITIONS - 1 - len(words)))
    rows = EncoderInput((Row(ids, (1.0,) * POSITIONS),))
    return EncodeItem({"l": rows}, loras=tuple(LoraUse(entry.hash, 1.0) for entry in entries))


class Bench:
    """A set on which nothing becomes hot, one on which everything is, one that patches anew for every prompt.

    Args:
        rank_64, rank_16: LoRAs; four of the first.
    """

    def __init__(self, rank_64: Sequence[LoraEntry], rank_16: LoraEntry) -> None:
        self.rank_64 = rank_64
        self.rank_16 = rank_16
        self.registry = LoraRegistry()
        for entry in (*rank_64, rank_16):
            self.registry.put(entry)
        self.cold = self._set(None)
        self.hot = self._set(1)
        self.patching = self._set(None, merged_bytes=0)

    def _set(self, hot_uses: int | None, merged_bytes: int = 4 * 1024**3) -> NativeSet:
        shelf = LoraShelf(self.registry, MergedWeights(CPU, merged_bytes), lambda: HotRecipes(uses=hot_uses))
        return NativeSet("sd15", {"l": encoder()}, None, CPU, shelf)

    def calls(self) -> Mapping[str, Callable[[], object]]:
        """Return what is measured, by name."""
        plain = [prompt(seed) for seed in range(BATCH)]
        mixed = [prompt(seed, entry) for seed, entry in enumerate(self.rank_64)]
        exact = [dataclasses.replace(item, is_exact=True) for item in mixed]
        alone = {
            "one": plain[:1],
            "one r16": [prompt(0, self.rank_16)],
            "one r64": [prompt(0, self.rank_64[0])],
            "one 4 x r64": [prompt(0, *self.rank_64)],
        }
        return {
            "batch": lambda: self.cold.encode(plain, check),
            "batch, 4 LoRAs": lambda: self.cold.encode(mixed, check),
            "merged, 4 LoRAs": lambda: self.hot.encode(mixed, check),
            "patched in turn": lambda: [self.patching.encode([item], check) for item in exact],
            **{name: lambda items=items: self.cold.encode(items, check) for name, items in alone.items()},  # type: ignore[misc]  # a default, so that each call has its own
        }


def check() -> None:
    """Nobody cancels."""


def measure(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU milliseconds of each call, all of them in turn, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if number >= WARM_UP:
                times[name].append((time.process_time() - begin) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_lora", description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        bench = Bench([lora(64, seed) for seed in range(BATCH)], lora(16, 9))
        ms = measure(bench.calls(), given.rounds)
    rows = [
        ("4 rows, 4 different r64", "batch, 4 LoRAs", "batch", "4 rows without", "1.35", "1.20"),
        (
            "4 rows, 4 different r64",
            "batch, 4 LoRAs",
            "patched in turn",
            "each patched, encoded",
            "0.70",
            "0.50",
        ),
        ("4 rows, 4 different r64, hot", "merged, 4 LoRAs", "batch", "4 rows without", "", ""),
        ("1 row, r16", "one r16", "one", "1 row without", "1.25", "1.15"),
        ("1 row, r64", "one r64", "one", "1 row without", "", ""),
        ("1 row, 4 x r64", "one 4 x r64", "one", "1 row without", "", ""),
    ]
    table = "| | CPU ms | beside | CPU ms | ratio | bar | stretch |\n|---|---|---|---|---|---|---|\n" + "\n".join(
        f"| {what} | {ms[own]:.0f} | {beside} | {ms[peer]:.0f} | {ms[own] / ms[peer]:.2f} | {bar} | {stretch} |"
        for what, own, peer, beside, bar, stretch in rows
    )
    note = (
        f"CLIP-L, fp32, one thread, medians of {given.rounds} interleaved rounds. Patched: a copy of every weight with "
        "the LoRA in it, made for each prompt as a local CLIP does. Hot: such copies, kept and swapped in by pointer. "
        f"Load average of the machine during the run: {load()}."
    )
    publish("lora", "LoRAs on a shared text encoder", table, write=given.write, note=note)


if __name__ == "__main__":
    main()
