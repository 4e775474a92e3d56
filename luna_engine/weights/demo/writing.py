"""Draws random tensors and streams them into a safetensors file.

A weight is one gather: 16 random bits look up the normal distribution's quantile in a table already scaled, shifted
and rounded to the stored type. The bits come from a generator whose stream NumPy keeps fixed, seeded by the names of
model and tensor, so the same name gives the same bytes on every machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from luna_engine import paths
from luna_engine.weights.containers.safetensors_writer import lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from luna_engine.weights.demo.parts import RandomTensor

_LEVELS = 1 << 16
_CHUNK = 1 << 21  # elements drawn at a time: 4 MiB of halves


def write(
    path: Path,
    model: str,
    tensors: Sequence[RandomTensor],
    metadata: dict[str, str],
    progress: Callable[[int, int], None],
) -> int:
    """Write a file atomically and return its size in bytes.

    Args:
        path: the final name; missing folders are made.
        model: seeds the numbers together with each tensor's name.
        tensors: what to draw, in file order.
        metadata: strings for the header.
        progress: called with bytes done and bytes in all.
    """
    layout = lay_out([(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors], metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with paths.atomic_write(path) as temporary, temporary.open("xb") as file:
        file.write(layout.header)
        for tensor, slot in zip(tensors, layout.slots, strict=True):
            if tensor.spread or tensor.mean:
                file.seek(slot.offset)
                for chunk in _draw(model, tensor):
                    file.write(chunk.data)
                    progress(file.tell(), layout.size_bytes)
        file.truncate(layout.size_bytes)  # a zero tensor at the end is a hole too
    progress(layout.size_bytes, layout.size_bytes)
    return layout.size_bytes


def _draw(model: str, tensor: RandomTensor) -> Sequence[np.ndarray] | map[np.ndarray]:
    table = _table(tensor.spread, tensor.mean, tensor.dtype)
    left = math.prod(tensor.shape)
    if not tensor.spread:
        return [np.full(left, table[0])]
    seed = int.from_bytes(hashlib.sha256(f"{model}/{tensor.name}".encode()).digest()[:16], "little")
    bits = np.random.SFC64(np.random.SeedSequence(seed))

    def chunk(count: int) -> np.ndarray:
        index = bits.random_raw(-(-count // 4)).view(np.uint16)[:count]
        return table.take(index, mode="clip")

    counts = [_CHUNK] * (left // _CHUNK) + ([left % _CHUNK] if left % _CHUNK else [])
    return map(chunk, counts)


@functools.lru_cache(maxsize=64)
def _table(spread: float, mean: float, dtype: str) -> np.ndarray:
    return _round(_quantiles() * np.float32(spread) + np.float32(mean), dtype)


@functools.cache
def _quantiles() -> np.ndarray:
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((level + 0.5) / _LEVELS) for level in range(_LEVELS)], np.float32)


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F16":
        return values.astype(np.float16)
    if dtype == "F32":
        return values
    if dtype == "BF16":
        pattern = values.view(np.uint32)
        return ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)
    if dtype == "F8_E4M3":
        return _e4m3(values)
    raise ValueError(f"no demo tensor is stored as {dtype}")


def _e4m3(values: np.ndarray) -> np.ndarray:
    """Round to 8-bit floats with 4 exponent and 3 mantissa bits, nearest even, clamped to ±448 (no infinity)."""
    size = np.minimum(np.abs(values), np.float32(448))
    pattern = size.view(np.uint32)
    normal = (pattern + 0x7FFFF + ((pattern >> 20) & 1) - (120 << 23)) >> 20
    # Below 2^-6 the steps are even: adding 2^14 makes the float unit itself round to multiples of 2^-9.
    magic = np.float32(2.0**14)
    small = (size + magic).view(np.uint32) - magic.view(np.uint32)
    code = np.where(size >= np.float32(2.0**-6), normal, small).astype(np.uint8)
    signed: np.ndarray = code | (np.signbit(values).astype(np.uint8) << 7)
    return signed
