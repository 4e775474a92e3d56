"""Block kernels of the gguf package (NumPy): packs the types of 32 values, reads every type that it knows."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import gguf
import numpy as np

from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.kernels.numpy_blocks import NumpyBlocks

if TYPE_CHECKING:
    import numpy.typing as npt

_PACKED = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1"})


class PackageBlocks:
    """Kernels for Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1; reads K types as well."""

    name = f"package {importlib.metadata.version('gguf')}"

    def __init__(self) -> None:
        self._q8_0 = NumpyBlocks()

    def quantize(self, dtype: str, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> float:
        """Pack ``values`` into ``out`` and return the greatest magnitude seen (NaN or infinite if a value is)."""
        if dtype == "Q8_0":
            return self._q8_0.quantize(dtype, values, out)
        if dtype not in _PACKED:
            raise ValueError(f"the gguf package does not pack {dtype}")
        greatest = float(np.maximum.reduce(np.abs(values), initial=0))
        if np.isfinite(greatest):
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # blocks of zeros
                rows = values.reshape(-1, BY_NAME[dtype].block)
                packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[dtype])
            np.copyto(out, packed.reshape(-1))
        return greatest

    def decode(self, dtype: str, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Unpack ``data`` into ``out``."""
        if dtype == "Q8_0":
            self._q8_0.decode(dtype, data, out)
            return
        rows = data.reshape(-1, BY_NAME[dtype].block_bytes)
        np.copyto(out, gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[dtype]).reshape(-1))
