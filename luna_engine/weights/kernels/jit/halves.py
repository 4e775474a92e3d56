"""Half-precision numbers inside the bytes of a block."""

from __future__ import annotations

import numpy as np
from numba import njit

from luna_engine.weights.kernels.jit.options import OPTIONS
from luna_engine.weights.kernels.jit.vectors import half_bits, half_value


@njit(**OPTIONS)
def put_half(out, at, value):
    """Write float32 ``value`` as a half (nearest, ties to even) to the bytes ``out[at : at + 2]``."""
    bits = half_bits(value)
    out[at] = bits & 255
    out[at + 1] = bits >> 8


@njit(**OPTIONS)
def get_half(data, at):
    """Return the half in the bytes ``data[at : at + 2]`` as float32."""
    return half_value(np.uint16(data[at] | np.uint16(data[at + 1]) << 8))
