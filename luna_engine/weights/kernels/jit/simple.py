"""Blocks of 32 values: Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1, sixteen values of a block side by side (rules: ggml's)."""

from __future__ import annotations

import numpy as np
from numba import njit

from luna_engine.weights.kernels.jit.halves import get_half, put_half
from luna_engine.weights.kernels.jit.options import OPTIONS
from luna_engine.weights.kernels.jit.vectors import (
    LANES,
    fifth_bits,
    greatest,
    greatest_size,
    larger_size,
    load,
    magnitude,
    splat,
    store,
    store_bytes,
    store_nibbles,
    where_less,
    with_sign,
)

BLOCK = 32
Q8_0_BYTES = 34
_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_INFINITY = np.float32(np.inf)
# The greatest float below one half: truncating x + this rounds halves away from zero and nothing else up.
_ALMOST_HALF = np.float32(0.49999997)


@njit(**OPTIONS)
def greatest_magnitude(values):
    """Return the greatest magnitude of float32[16 n]; NaN counts as the greatest."""
    most = splat(_ZERO)
    for i in range(0, values.size, LANES):
        most = larger_size(most, magnitude(load(values, i)))
    return greatest_size(most)


@njit(**OPTIONS)
def _invert(steps, inverses):
    """Write 1 / step of sixteen blocks, 0 where that is no finite number: such a step is zero as a half anyway."""
    zero, one = splat(_ZERO), splat(_ONE)
    inverse = one / load(steps, 0)
    store(inverses, 0, where_less(magnitude(inverse), splat(_INFINITY), inverse, zero))


@njit(**OPTIONS)
def pack_q8_0(values, out):
    """Pack float32[32 n] as Q8_0: d = greatest magnitude / 127 as a half, then 32 signed bytes."""
    almost, most = splat(_ALMOST_HALF), splat(np.float32(127))
    steps = np.ones(LANES, np.float32)
    inverses = np.empty(LANES, np.float32)
    blocks = values.size // BLOCK
    for group in range(0, blocks, LANES):
        present = min(LANES, blocks - group)
        for lane in range(present):
            start = (group + lane) * BLOCK
            low, high = magnitude(load(values, start)), magnitude(load(values, start + LANES))
            steps[lane] = greatest_size(larger_size(low, high))
        store(steps, 0, load(steps, 0) / most)
        _invert(steps, inverses)
        for lane in range(present):
            start, at = (group + lane) * BLOCK, (group + lane) * Q8_0_BYTES
            inverse = splat(inverses[lane])
            put_half(out, at, steps[lane])
            low, high = load(values, start) * inverse, load(values, start + LANES) * inverse
            store_bytes(out, at + 2, low + with_sign(almost, low))
            store_bytes(out, at + 2 + LANES, high + with_sign(almost, high))


@njit(**OPTIONS)
def pack_symmetric(values, out, most, size):
    """Pack float32[32 n] as Q4_0 (``most`` 15, ``size`` 18) or Q5_0 (31, 22): d * (q - (most + 1) / 2).

    d takes the value of greatest magnitude, the first of equals, to q = 0.
    """
    middle = (most + _ONE) * _HALF
    zero, top, offset = splat(_ZERO), splat(most), splat(middle + _HALF)
    steps = np.ones(LANES, np.float32)
    inverses = np.empty(LANES, np.float32)
    blocks = values.size // BLOCK
    for group in range(0, blocks, LANES):
        present = min(LANES, blocks - group)
        for lane in range(present):
            start = (group + lane) * BLOCK
            low, high = load(values, start), load(values, start + LANES)
            up = greatest(where_less(low, high, high, low))
            down = greatest(where_less(low, high, zero - low, zero - high))
            steps[lane] = up if up > down else -down
            if up == down:
                steps[lane] = _first_of_size(values, start, up)
        store(steps, 0, load(steps, 0) / splat(-middle))
        _invert(steps, inverses)
        for lane in range(present):
            start, at = (group + lane) * BLOCK, (group + lane) * size
            inverse = splat(inverses[lane])
            put_half(out, at, steps[lane])
            low, high = load(values, start) * inverse + offset, load(values, start + LANES) * inverse + offset
            _put_codes(where_less(top, low, top, low), where_less(top, high, top, high), out, at + 2, most)


@njit(**OPTIONS)
def _first_of_size(values, start, size):
    """Return the first value of a block that has this magnitude."""
    for i in range(start, start + BLOCK):
        if abs(values[i]) == size:
            return values[i]
    return size


@njit(**OPTIONS)
def pack_from_minimum(values, out, most, size):
    """Pack float32[32 n] as Q4_1 (``most`` 15, ``size`` 20) or Q5_1 (31, 24): d * q + m, both halves."""
    zero, half, top = splat(_ZERO), splat(_HALF), splat(most)
    steps = np.ones(LANES, np.float32)
    inverses = np.empty(LANES, np.float32)
    minima = np.zeros(LANES, np.float32)
    blocks = values.size // BLOCK
    for group in range(0, blocks, LANES):
        present = min(LANES, blocks - group)
        for lane in range(present):
            start = (group + lane) * BLOCK
            low, high = load(values, start), load(values, start + LANES)
            steps[lane] = greatest(where_less(low, high, high, low))
            minima[lane] = -greatest(where_less(low, high, zero - low, zero - high))
        store(steps, 0, (load(steps, 0) - load(minima, 0)) / top)
        _invert(steps, inverses)
        for lane in range(present):
            start, at = (group + lane) * BLOCK, (group + lane) * size
            inverse, base = splat(inverses[lane]), splat(minima[lane])
            put_half(out, at, steps[lane])
            put_half(out, at + 2, minima[lane])
            low = (load(values, start) - base) * inverse + half
            high = (load(values, start + LANES) - base) * inverse + half
            _put_codes(where_less(top, low, top, low), where_less(top, high, top, high), out, at + 4, most)


@njit(**OPTIONS)
def _put_codes(low, high, out, at, most):
    """Write fifth bits (4 bytes, value i in bit i) if there are any, then nibbles: value i low, value i + 16 high."""
    if most > 15:
        first, second = fifth_bits(low), fifth_bits(high)
        out[at] = first & 255
        out[at + 1] = first >> 8
        out[at + 2] = second & 255
        out[at + 3] = second >> 8
        at += 4
    store_nibbles(out, at, low, high)


@njit(**OPTIONS)
def read_q8_0(data, out):
    """Read Q8_0 into float32: d * q."""
    for block in range(data.size // Q8_0_BYTES):
        at, start = block * Q8_0_BYTES, block * BLOCK
        step = get_half(data, at)
        for i in range(BLOCK):
            out[start + i] = step * np.float32(np.int8(data[at + 2 + i]))


@njit(**OPTIONS)
def read_nibbles(data, out, most, size, has_minimum):
    """Read Q4_0, Q4_1, Q5_0 or Q5_1 into float32."""
    middle = np.int64(most + 1) // 2
    for block in range(data.size // size):
        at, start = block * size, block * BLOCK
        step = get_half(data, at)
        at += 2
        base = _ZERO
        if has_minimum:
            base = get_half(data, at)
            at += 2
        fifth = at
        if most > 15:
            at += 4
        for i in range(BLOCK):
            byte = np.int64(data[at + i % LANES])
            level = byte >> 4 if i >= LANES else byte & 15
            if most > 15:
                level |= (np.int64(data[fifth + i // 8]) >> i % 8 & 1) << 4
            if has_minimum:
                out[start + i] = np.float32(level) * step + base
            else:
                out[start + i] = np.float32(level - middle) * step
