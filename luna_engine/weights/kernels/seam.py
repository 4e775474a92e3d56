"""What a set of block kernels offers, and which one is taken. One contract suite runs against every implementation."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Protocol

from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import numpy.typing as npt


class Kernels(Protocol):
    """Quantises rows of whole blocks and reads them back.

    Results decode to the same values as ggml's C code, bit for bit.
    """

    name: str

    def quantize(self, dtype: str, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> float:
        """Pack ``values`` (a multiple of the block) into ``out`` and return the greatest magnitude seen.

        The magnitude is NaN or infinite if a value is; ``out`` then holds nothing of use.
        """
        ...

    def decode(self, dtype: str, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Unpack ``data`` into ``out``."""
        ...


# What the gguf package packs: all that is left where neither numba nor torch is installed.
_WITHOUT_SEARCH = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"})


@functools.cache
def kernel_name() -> str:
    """Return the name and version of the kernels that this environment has, importing none of them."""
    package = {"lanes": "numba", "package": "gguf"}
    word = "lanes" if importlib.util.find_spec("numba") is not None else "package"
    return f"{word} {importlib.metadata.version(package[word])}"


def require_kernels(dtypes: Iterable[str]) -> None:
    """Raise if this environment has no kernel for one of these block types.

    Raises:
        LunaError: ``precision-unsupported`` with what to install.
    """
    lacking = sorted(set(dtypes) - _WITHOUT_SEARCH)
    if lacking and not kernel_name().startswith("lanes"):
        raise LunaError(
            "precision-unsupported",
            f"{', '.join(lacking)} need numba, which this Python does not have",
            "pip install numba, or convert to gguf_Q8_0",
        )


@functools.cache
def _maker() -> Callable[[], Kernels]:
    if kernel_name().startswith("lanes"):
        from luna_engine.weights.kernels.lanes import LaneBlocks

        return LaneBlocks
    from luna_engine.weights.kernels.package import PackageBlocks

    return PackageBlocks


def make_kernels() -> Kernels:
    """Return the fastest kernels that this environment has. One object per thread: some own work arrays."""
    return _maker()()


def prepare(dtypes: Iterable[str]) -> None:
    """Compile what these block types need, where kernels are compiled."""
    if kernel_name().startswith("lanes"):
        from luna_engine.weights.kernels.lanes import compile_for

        compile_for(dtypes)
