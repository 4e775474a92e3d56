"""Block kernels in NumPy.

Q8_0 stores 32 values in 34 bytes: a half d, then 32 signed bytes q; a value is d*q. With m the greatest magnitude of
the block, d = m/127 and q = round-half-away(x / d); the division uses the d that is not yet rounded to half.

Work arrays are reused and sized to stay in the second-level cache: fresh pages cost more than the arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_BLOCK = 32
_SLICE = 1 << 15  # values worked on at a time: 128 KiB of floats
_SIGN = np.uint32(0x80000000)
# The greatest float below one half: truncating x + this rounds halves away from zero and nothing else up.
_ALMOST_HALF = np.uint32(0x3EFFFFFF)


class NumpyBlocks:
    """Kernels for Q8_0. One object per thread: it owns its work arrays."""

    name = f"numpy {np.__version__}"

    def __init__(self) -> None:
        self._work = np.empty(_SLICE, np.float32)
        self._lanes = np.empty(_SLICE, np.float32)

    def quantize(self, dtype: str, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> float:
        """Pack ``values`` into ``out`` and return the greatest magnitude seen (NaN or infinite if a value is)."""
        if dtype != "Q8_0":
            raise ValueError(f"no NumPy kernel packs {dtype}")
        blocks = out.reshape(-1, _BLOCK + 2)
        greatest = np.float32(0)
        for start in range(0, values.size, _SLICE):
            part = values[start : start + _SLICE]
            rows = blocks[start // _BLOCK : (start + part.size) // _BLOCK]
            # maximum, and not max(): it hands NaN on whichever side it stands
            greatest = np.maximum(greatest, self._q8_0(part, rows))
        return float(greatest)

    def _q8_0(self, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> np.float32:
        count = values.size // _BLOCK
        work = self._work[: values.size]
        np.abs(values, out=work)
        # With one block per column, the greatest of each is a sweep over long rows, many columns at a time.
        lanes = self._lanes[: values.size].reshape(_BLOCK, count)
        np.copyto(lanes, work.reshape(count, _BLOCK).T)
        magnitude: npt.NDArray[np.float32] = np.maximum.reduce(lanes, axis=0)
        greatest: np.float32 = np.maximum.reduce(magnitude)
        if not np.isfinite(greatest):
            return greatest
        scale = magnitude / np.float32(127)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(1) / scale
            out[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(count, 2)
        # Zero blocks, and magnitudes too small to invert, whose half scale is zero anyway.
        inverse[~np.isfinite(inverse)] = 0
        np.multiply(values.reshape(count, _BLOCK), inverse[:, None], out=work.reshape(count, _BLOCK))
        bits = self._lanes[: values.size].view(np.uint32)
        np.bitwise_and(work.view(np.uint32), _SIGN, out=bits)
        np.bitwise_or(bits, _ALMOST_HALF, out=bits)
        np.add(work, bits.view(np.float32), out=work)
        np.copyto(out[:, 2:].view(np.int8), work.reshape(count, _BLOCK), casting="unsafe")
        return greatest

    def decode(self, dtype: str, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Unpack ``data`` into ``out``."""
        if dtype != "Q8_0":
            raise ValueError(f"no NumPy kernel unpacks {dtype}")
        blocks = data.reshape(-1, _BLOCK + 2)
        scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
        np.multiply(blocks[:, 2:].view(np.int8), scale, out=out.reshape(-1, _BLOCK))
