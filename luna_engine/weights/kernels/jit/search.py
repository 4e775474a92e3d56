"""The searches for block scales, sixteen sub-blocks side by side. Each lane does what ggml's C code does, step by step.

Values stand transposed in ``x``: element e of sub-block l at ``x[e * 16 + l]``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from luna_engine.weights.kernels.jit.options import OPTIONS
from luna_engine.weights.kernels.jit.vectors import LANES, load, magnitude, splat, square_root, store, where_less

SUB_BLOCK = 32
SMALL_SUB_BLOCK = 16
_ROUND = np.float32(12582912)  # 1.5 * 2^23: adding and taking it away rounds to a whole number, ties to even
_TINY = np.float32(1e-15)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_MINUS_ONE = np.float32(-1)
_TENTH = np.float32(0.1)
_COUNT = np.float32(SUB_BLOCK)
_SIX_BIT = np.float32(32)
_INFINITY = np.float32(np.inf)


@njit(**OPTIONS)
def search_scale_and_minimum(x, weights, levels, most, first, trials, scales, minima):
    """Find scale and minimum of sixteen sub-blocks of 32 values for levels 0..most (Q4_K: 15, Q5_K: 31).

    The levels of a trial fix a weighted least-squares fit; the fit with the least error wins. A winner's minimum
    replaces the lower end for the trials that follow.

    Args:
        x: float32[512], transposed.
        weights, levels: float32[512], scratch.
        most: the greatest level.
        first: offset of the first trial; each adds a tenth.
        trials: how many.
        scales, minima: float32[16], written; a value is scale * level - minimum.
    """
    zero, one, top, magic = splat(_ZERO), splat(_ONE), splat(most), splat(_ROUND)
    total = zero
    for e in range(SUB_BLOCK):
        value = load(x, e * LANES)
        total = total + value * value
    base = square_root(total / splat(_COUNT))
    low = load(x, 0)
    high = low
    weight = base + magnitude(low)
    store(weights, 0, weight)
    sum_w = weight
    sum_x = weight * low
    for e in range(1, SUB_BLOCK):
        value = load(x, e * LANES)
        weight = base + magnitude(value)
        store(weights, e * LANES, weight)
        low = where_less(value, low, value, low)
        high = where_less(high, value, value, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    low = where_less(zero, low, zero, low)
    start = low

    inverse = top / (high - low)
    scale = one / inverse
    best = zero
    for e in range(SUB_BLOCK):
        value = load(x, e * LANES)
        level = inverse * (value - low) + magic - magic
        level = where_less(top, level, top, level)
        level = where_less(level, zero, zero, level)
        difference = scale * level + low - value
        best = best + load(weights, e * LANES) * (difference * difference)

    for trial in range(trials):
        step = splat(first + _TENTH * np.float32(trial) + most)
        inverse = step / (high - low)
        a, b, c = zero, zero, zero
        for e in range(SUB_BLOCK):
            value = load(x, e * LANES)
            level = inverse * (value - low) + magic - magic
            level = where_less(top, level, top, level)
            level = where_less(level, zero, zero, level)
            store(levels, e * LANES, level)
            weighted = load(weights, e * LANES) * level
            a = a + weighted
            b = b + weighted * level
            c = c + weighted * value
        d = sum_w * b - a * a
        fitted = (sum_w * c - sum_x * a) / d
        fitted_low = (b * sum_x - a * c) / d
        fitted = where_less(zero, fitted_low, c / b, fitted)
        fitted_low = where_less(zero, fitted_low, zero, fitted_low)
        error = zero
        for e in range(SUB_BLOCK):
            difference = fitted * load(levels, e * LANES) + fitted_low - load(x, e * LANES)
            error = error + load(weights, e * LANES) * (difference * difference)
        error = where_less(zero, d, error, splat(_INFINITY))
        scale = where_less(error, best, fitted, scale)
        low = where_less(error, best, fitted_low, low)
        best = where_less(error, best, error, best)

    # A constant sub-block that is not above zero: no scale, and the value itself as minimum.
    flat = where_less(start, high, zero, one)
    store(scales, 0, where_less(zero, flat, zero, scale))
    store(minima, 0, where_less(zero, flat, start, low) * splat(_MINUS_ONE))


@njit(**OPTIONS)
def search_scale(x, scales):
    """Find the scales of sixteen sub-blocks of 16 values for levels -32..31 (Q6_K), errors weighted by x squared.

    Args:
        x: float32[256], transposed.
        scales: float32[16], written.
    """
    zero, magic = splat(_ZERO), splat(_ROUND)
    top, bottom = splat(np.float32(31)), splat(np.float32(-32))
    most = zero
    signed = zero
    for e in range(SMALL_SUB_BLOCK):
        value = load(x, e * LANES)
        size = magnitude(value)
        signed = where_less(most, size, value, signed)
        most = where_less(most, size, size, most)

    scale, best = zero, zero
    for trial in range(19):
        # 0 first, then -9..-1 and 1..9
        tenths = 0 if trial == 0 else trial - 10 if trial < 10 else trial - 9
        inverse = splat(-(_SIX_BIT + _TENTH * np.float32(tenths))) / signed
        p, r = zero, zero
        for e in range(SMALL_SUB_BLOCK):
            value = load(x, e * LANES)
            level = inverse * value + magic - magic
            level = where_less(top, level, top, level)
            level = where_less(level, bottom, bottom, level)
            weight = value * value
            p = p + weight * value * level
            r = r + weight * level * level
        fitted = p / r
        if trial == 0:
            scale = where_less(zero, r, fitted, zero)
            best = scale * p
        else:
            improved = where_less(best * r, p * p, r, zero)
            scale = where_less(zero, improved, fitted, scale)
            best = where_less(zero, improved, scale * p, best)
    store(scales, 0, where_less(most, splat(_TINY), zero, scale))
