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
GREATEST_E4M3 = 448.0
LEAST_E4M3 = 2.0**-6  # the least normal number
_E4M3_NAN = 0x7F


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
    """Round ``values`` to ``dtype`` (F16, BF16, F32 or F8_E4M3).

    Overflow to half becomes infinity: check before or after. F8_E4M3 has none: values beyond 448 become 448.
    """
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
    elif dtype == "F8_E4M3":
        _narrow_e4m3(values, out)
    else:
        raise ValueError(f"nothing is written as {dtype}")


def _narrow_e4m3(values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> None:
    """Round to 4 bits of exponent (bias 7) and 3 of mantissa, ties to even.

    From 2^-6 on, 20 bits of the float's mantissa are rounded away and the exponent's bias moved. Below, the step is
    2^-9, which is that of floats near 2^14: adding and taking away 2^14 rounds to it.
    """
    magnitude = np.abs(values)
    np.minimum(magnitude, np.float32(GREATEST_E4M3), out=magnitude)
    bits = magnitude.view(np.uint32)
    codes = (bits + np.uint32(0x7FFFF) + ((bits >> 20) & 1) - np.uint32(120 << 23)) >> 20
    with np.errstate(invalid="ignore"):  # a NaN that signals
        shifted = magnitude + np.float32(2.0**14)
    steps = shifted.view(np.uint32) - np.float32(2.0**14).view(np.uint32)
    np.copyto(codes, steps, where=magnitude < np.float32(LEAST_E4M3))
    codes[np.isnan(magnitude)] = _E4M3_NAN
    codes |= (values.view(np.uint32) >> 24) & 0x80
    np.copyto(out, codes, casting="unsafe")


def scaled_table(source: str, factor: np.float32) -> npt.NDArray[np.uint8]:
    """Return for every 8- or 16-bit value its product with ``factor`` as F8_E4M3."""
    every = np.arange(1 << _BITS[source], dtype=_UNSIGNED[_BITS[source]]).view(np.uint8)
    values = np.empty(1 << _BITS[source], np.float32)
    out = np.empty(values.size, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        widen(source, every, values)
        np.multiply(values, factor, out=values)
    narrow("F8_E4M3", values, out)
    return out


def look_up(table: npt.NDArray[np.uint8], data: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Write the table's entry of each 8- or 16-bit value of ``data``."""
    np.take(table, data.view(np.uint8 if table.size == 256 else np.uint16), out=out, mode="clip")


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
