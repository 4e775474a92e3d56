"""Casts between the plain types, bit for bit as torch does them: to nearest, ties to even.

Where both types have 16 bits or fewer, a cast is one look-up per value in a table made once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
GREATEST_HALF = 65504.0


def widen(dtype: str, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
    """Write the floats of ``data`` to ``out`` as single precision, exactly (F64: rounded)."""
    if dtype == "F16":
        _widen_half(data.view(np.uint16), out)
    elif dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, data.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
    elif dtype == "F32":
        np.copyto(out, data.view(np.float32))
    elif dtype == "F64":
        with np.errstate(over="ignore"):
            np.copyto(out, data.view(np.float64), casting="same_kind")
    else:
        np.take(_fp8_values(dtype), data, out=out, mode="clip")


def _widen_half(data: npt.NDArray[np.uint16], out: npt.NDArray[np.float32]) -> None:
    """Move a half's bits to a float's places; multiplying by 2^112 mends the exponent, subnormals included."""
    bits = out.view(np.int32)
    np.copyto(bits, data.view(np.int16))  # the sign spreads over the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # sign, and the half's 15 other bits
    np.multiply(out, np.float32(2.0**112), out=out)
    special = (data & 0x7C00) == 0x7C00
    if special.any():  # infinities and NaN, which the trick turns into large numbers
        out[special] = data[special].view(np.float16).astype(np.float32)


def narrow(dtype: str, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> None:
    """Round ``values`` to ``dtype`` (F16, BF16 or F32). Overflow to half becomes infinity: check before or after."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            np.copyto(out.view(np.float16), values, casting="same_kind")
    elif dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        nan = np.isnan(values)
        rounded[nan] = 0x7FC0  # rounding could carry a NaN into the sign
        np.copyto(out.view(np.uint16), rounded, casting="same_kind")
    elif dtype == "F32":
        np.copyto(out.view(np.float32), values)
    else:
        raise ValueError(f"nothing is written as {dtype}")


def cast(source: str, data: npt.NDArray[np.uint8], target: str, out: npt.NDArray[np.uint8]) -> None:
    """Cast between plain types through the table, where both fit one, or else through single precision."""
    if _BITS[source] <= 16 and _BITS[target] <= 16:
        index = data.view(_UNSIGNED[_BITS[source]])
        np.take(_table(source, target), index, out=out.view(_UNSIGNED[_BITS[target]]), mode="clip")
        return
    single = np.empty(data.size * 8 // _BITS[source], np.float32)
    widen(source, data, single)
    narrow(target, single, out)


def greatest(dtype: str, data: npt.NDArray[np.uint8]) -> float:
    """Return the greatest magnitude of plain floats; infinite or NaN if a value is.

    Without their sign, the bit patterns of IEEE numbers are ordered as the numbers are.
    """
    if not data.size:
        return 0.0
    bits = _BITS[dtype]
    patterns = data.view(_UNSIGNED[bits])
    top = np.max(patterns & patterns.dtype.type((1 << (bits - 1)) - 1))
    one = np.empty(1, np.float32)
    widen(dtype, np.atleast_1d(top).view(np.uint8), one)
    return float(one[0])


@functools.cache
def _table(source: str, target: str) -> npt.NDArray[np.unsignedinteger]:
    kind = _UNSIGNED[_BITS[source]]
    every = np.arange(1 << _BITS[source], dtype=kind).view(np.uint8)
    values = np.empty(1 << _BITS[source], np.float32)
    widen(source, every, values)
    out = np.empty(len(values) * _BITS[target] // 8, np.uint8)
    narrow(target, values, out)
    return out.view(_UNSIGNED[_BITS[target]])


@functools.cache
def _fp8_values(dtype: str) -> npt.NDArray[np.float32]:
    """Return the value of each 8-bit float: E4M3 (bias 7, no infinity, 0x7F NaN) or E5M2 (the upper byte of a half)."""
    codes = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":
        return (codes << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = ((codes >> 3) & 15).astype(np.int32), (codes & 7).astype(np.float32)
    values = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6)).astype(
        np.float32
    )
    values[(codes & 0x7F) == 0x7F] = np.nan
    signed: npt.NDArray[np.float32] = np.where(codes & 0x80, -values, values)
    return signed
