"""Block kernels compiled by numba, sixteen lanes wide: every type that Luna writes, equal to ggml's C code.

numba keeps what it compiled in Luna's cache folder, one folder per state of these sources: it looks at the changes of
one file only, and the kernels call into several.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luna_engine import paths
from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.kernels.package import PackageBlocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt


def _cache_folder() -> Path:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.joinpath("jit").glob("*.py")):
        digest.update(source.read_bytes())
    return paths.cache_dir() / "numba" / digest.hexdigest()[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_folder()))  # read once, when numba is imported

from luna_engine.weights.kernels.jit import k_blocks, simple  # noqa: E402 - see above

# greatest level, offset of the first trial, number of trials
_SEARCHES = {
    "Q4_K": (np.float32(15), np.float32(-1), 21),
    "Q5_K": (np.float32(31), np.float32(-0.5), 16),
}
_MOST = {"Q4_0": np.float32(15), "Q4_1": np.float32(15), "Q5_0": np.float32(31), "Q5_1": np.float32(31)}
_WITH_MINIMUM = frozenset({"Q4_1", "Q5_1"})


class LaneBlocks:
    """Kernels for Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K; further types are read by the gguf package."""

    name = f"lanes {importlib.metadata.version('numba')}"

    def __init__(self) -> None:
        self._others = PackageBlocks()

    def quantize(self, dtype: str, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> float:
        """Pack ``values`` into ``out`` and return the greatest magnitude seen (NaN or infinite if a value is)."""
        greatest = float(simple.greatest_magnitude(values))
        if not np.isfinite(greatest):
            return greatest
        if dtype == "Q8_0":
            simple.pack_q8_0(values, out)
        elif dtype in _MOST:
            pack = simple.pack_from_minimum if dtype in _WITH_MINIMUM else simple.pack_symmetric
            pack(values, out, _MOST[dtype], BY_NAME[dtype].block_bytes)
        elif dtype in _SEARCHES:
            k_blocks.pack_with_minima(values, out, *_SEARCHES[dtype])
        elif dtype == "Q6_K":
            k_blocks.pack_q6_k(values, out)
        else:
            raise ValueError(f"no kernel packs {dtype}")
        return greatest

    def decode(self, dtype: str, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Unpack ``data`` into ``out``."""
        if not data.flags.writeable:
            data = data.copy()  # a second compilation, for arrays that may not be written to, costs more
        if dtype == "Q8_0":
            simple.read_q8_0(data, out)
        elif dtype in _MOST:
            simple.read_nibbles(data, out, _MOST[dtype], BY_NAME[dtype].block_bytes, dtype in _WITH_MINIMUM)
        elif dtype in _SEARCHES:
            k_blocks.read_with_minima(data, out, BY_NAME[dtype].block_bytes)
        elif dtype == "Q6_K":
            k_blocks.read_q6_k(data, out)
        else:
            self._others.decode(dtype, data, out)


def compile_for(dtypes: Iterable[str]) -> None:
    """Compile what these types need now, or load it: seconds at the first use of a Luna on a machine."""
    blocks = LaneBlocks()
    for dtype in dtypes:
        kind = BY_NAME[dtype]
        out = np.empty(kind.block_bytes, np.uint8)
        blocks.quantize(dtype, np.ones(kind.block, np.float32), out)
        blocks.decode(dtype, out, np.empty(kind.block, np.float32))
