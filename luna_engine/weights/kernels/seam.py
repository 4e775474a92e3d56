"""What a set of block kernels offers. One contract suite in tests/unit/weights runs against every implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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
