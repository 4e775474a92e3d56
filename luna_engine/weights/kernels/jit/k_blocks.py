"""Q4_K, Q5_K and Q6_K: packing and reading super-blocks of 256 values (layouts and rules: ggml's block formats)."""

from __future__ import annotations

import numpy as np
from numba import njit

from luna_engine.weights.kernels.jit.halves import get_half, put_half
from luna_engine.weights.kernels.jit.options import OPTIONS
from luna_engine.weights.kernels.jit.search import (
    SMALL_SUB_BLOCK,
    SUB_BLOCK,
    search_scale,
    search_scale_and_minimum,
)
from luna_engine.weights.kernels.jit.vectors import (
    LANES,
    load,
    nearest,
    splat,
    store_bytes,
    where_less,
)

SUPER_BLOCK = 256
Q4_K_BYTES = 144
Q5_K_BYTES = 176
Q6_K_BYTES = 210
_ZERO = np.float32(0)
_TINY = np.float32(1e-15)
_SIX_BITS = np.float32(63)


@njit(**OPTIONS)
def pack_with_minima(values, out, most, first, trials):
    """Pack ``values`` (float32, whole super-blocks, finite) as Q4_K (``most`` 15) or Q5_K (``most`` 31).

    Args:
        values: float32[256 n].
        out: uint8[144 n] or uint8[176 n].
        most, first, trials: see `search_scale_and_minimum`.
    """
    pair = 2 * SUPER_BLOCK
    x = np.zeros(pair, np.float32)
    weights = np.empty(pair, np.float32)
    levels = np.empty(pair, np.float32)
    scales = np.empty(LANES, np.float32)
    minima = np.empty(LANES, np.float32)
    codes = np.empty(SUPER_BLOCK, np.uint8)
    size = Q4_K_BYTES if most < 16 else Q5_K_BYTES
    blocks = values.size // SUPER_BLOCK
    for block in range(0, blocks, 2):
        present = min(2, blocks - block)
        base = block * SUPER_BLOCK
        for lane in range(present * 8):
            for e in range(SUB_BLOCK):
                x[e * LANES + lane] = values[base + lane * SUB_BLOCK + e]
        search_scale_and_minimum(x, weights, levels, most, first, trials, scales, minima)
        for half in range(present):
            start = base + half * SUPER_BLOCK
            at = (block + half) * size
            _scales_to_bytes(scales[half * 8 : half * 8 + 8], minima[half * 8 : half * 8 + 8], out[at : at + 16])
            _levels(values[start : start + SUPER_BLOCK], out[at : at + 16], most, codes)
            _levels_to_bytes(codes, out[at + 16 : at + size], most)


@njit(**OPTIONS)
def _scales_to_bytes(scales, minima, out):
    """Write d, dmin and the eight 6-bit scales and minima of a super-block (16 bytes)."""
    most_scale, most_minimum = _ZERO, _ZERO
    for j in range(8):
        most_scale = max(most_scale, scales[j])
        most_minimum = max(most_minimum, minima[j])
    by_scale = _SIX_BITS / most_scale if most_scale > 0 else _ZERO
    by_minimum = _SIX_BITS / most_minimum if most_minimum > 0 else _ZERO
    put_half(out, 0, most_scale / _SIX_BITS)
    put_half(out, 2, most_minimum / _SIX_BITS)
    for i in range(4, 16):
        out[i] = 0
    for j in range(8):
        # A negative scale wraps round to a large byte, as in C.
        scale = min(63, int(np.rint(by_scale * scales[j])) & 255)
        minimum = min(63, int(np.rint(by_minimum * minima[j])) & 255)
        if j < 4:
            out[4 + j] = scale
            out[8 + j] = minimum
        else:
            out[8 + j] = (scale & 15) | (minimum & 15) << 4
            out[j] |= scale >> 4 << 6
            out[4 + j] |= minimum >> 4 << 6


@njit(**OPTIONS)
def _scale_of(head, j):
    """Return the 6-bit scale of sub-block j; its minimum stands likewise four bytes on, see `_minimum_of`."""
    return head[4 + j] & 63 if j < 4 else (head[8 + j] & 15) | head[j] >> 6 << 4


@njit(**OPTIONS)
def _minimum_of(head, j):
    return head[8 + j] & 63 if j < 4 else head[8 + j] >> 4 | head[4 + j] >> 6 << 4


@njit(**OPTIONS)
def _levels(values, head, most, codes):
    """Write the levels that fit the rounded scales best; under a zero scale any level reads the same, so 0."""
    zero, top = splat(_ZERO), splat(most)
    d, dmin = get_half(head, 0), get_half(head, 2)
    for j in range(8):
        step = d * np.float32(_scale_of(head, j))
        offset = splat(dmin * np.float32(_minimum_of(head, j)))
        for i in range(j * SUB_BLOCK, (j + 1) * SUB_BLOCK, LANES):
            if step == 0:
                store_bytes(codes, i, zero)
                continue
            level = nearest((load(values, i) + offset) / splat(step))
            level = where_less(top, level, top, level)
            store_bytes(codes, i, where_less(level, zero, zero, level))


@njit(**OPTIONS)
def _levels_to_bytes(codes, out, most):
    """Write 128 bytes of nibbles, low ones from even sub-blocks; for Q5_K the 32 bytes of fifth bits go before."""
    at = 0
    if most > 15:
        at = 32
        for i in range(32):
            bits = 0
            for j in range(8):
                bits |= (codes[j * SUB_BLOCK + i] >> 4) << j
            out[i] = bits
    for group in range(4):
        for i in range(32):
            out[at + group * 32 + i] = (codes[group * 64 + i] & 15) | (codes[group * 64 + 32 + i] & 15) << 4


@njit(**OPTIONS)
def read_with_minima(data, out, size):
    """Read Q4_K (``size`` 144) or Q5_K (176) into float32: d * scale * level - dmin * minimum."""
    for block in range(data.size // size):
        raw = data[block * size : (block + 1) * size]
        d, dmin = get_half(raw, 0), get_half(raw, 2)
        nibbles = 16 if size == Q4_K_BYTES else 48
        for j in range(8):
            step = d * np.float32(_scale_of(raw, j))
            offset = dmin * np.float32(_minimum_of(raw, j))
            start = block * SUPER_BLOCK + j * SUB_BLOCK
            group = nibbles + j // 2 * 32
            for i in range(SUB_BLOCK):
                level = np.int64(raw[group + i]) >> 4 if j % 2 else np.int64(raw[group + i]) & 15
                if size == Q5_K_BYTES:
                    level |= (np.int64(raw[16 + i]) >> j & 1) << 4
                out[start + i] = step * np.float32(level) - offset


@njit(**OPTIONS)
def pack_q6_k(values, out):
    """Pack ``values`` (float32[256 n], finite) as Q6_K into uint8[210 n]."""
    x = np.empty(SUPER_BLOCK, np.float32)
    scales = np.empty(LANES, np.float32)
    codes = np.empty(SUPER_BLOCK, np.uint8)
    for block in range(values.size // SUPER_BLOCK):
        part = values[block * SUPER_BLOCK : (block + 1) * SUPER_BLOCK]
        raw = out[block * Q6_K_BYTES : (block + 1) * Q6_K_BYTES]
        for lane in range(LANES):
            for e in range(SMALL_SUB_BLOCK):
                x[e * LANES + lane] = part[lane * SMALL_SUB_BLOCK + e]
        search_scale(x, scales)
        most, signed = _ZERO, _ZERO
        for lane in range(LANES):
            if abs(scales[lane]) > most:
                most, signed = abs(scales[lane]), scales[lane]
        if most < _TINY:
            raw[:] = 0
            continue
        inverse = np.float32(-128) / signed
        put_half(raw, 208, np.float32(1) / inverse)
        for lane in range(LANES):
            raw[192 + lane] = min(127, int(np.rint(inverse * scales[lane]))) & 255
        _q6_levels(part, raw, codes)
        _q6_to_bytes(codes, raw)


@njit(**OPTIONS)
def _signed(byte):
    return np.float32(np.int64(byte) - 256 if byte > 127 else np.int64(byte))


@njit(**OPTIONS)
def _q6_levels(values, raw, codes):
    top, bottom, offset = splat(np.float32(31)), splat(np.float32(-32)), splat(np.float32(32))
    d = get_half(raw, 208)
    for j in range(LANES):
        step = d * _signed(raw[192 + j])
        if step == 0:
            store_bytes(codes, j * LANES, offset)
            continue
        level = nearest(load(values, j * LANES) / splat(step))
        level = where_less(top, level, top, level)
        store_bytes(codes, j * LANES, where_less(level, bottom, bottom, level) + offset)


@njit(**OPTIONS)
def _q6_to_bytes(codes, raw):
    """Write per half of 128 values 64 bytes of low nibbles; the upper two bits of four values share a byte."""
    for half in range(2):
        q, low, high = half * 128, half * 64, 128 + half * 32
        for i in range(32):
            a, b, c, d = codes[q + i], codes[q + 32 + i], codes[q + 64 + i], codes[q + 96 + i]
            raw[low + i] = (a & 15) | (c & 15) << 4
            raw[low + 32 + i] = (b & 15) | (d & 15) << 4
            raw[high + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6


@njit(**OPTIONS)
def read_q6_k(data, out):
    """Read Q6_K into float32: d * scale * (level - 32)."""
    for block in range(data.size // Q6_K_BYTES):
        raw = data[block * Q6_K_BYTES : (block + 1) * Q6_K_BYTES]
        d = get_half(raw, 208)
        for j in range(LANES):
            step = d * _signed(raw[192 + j])
            half, quarter = j // 8, j % 8 // 2  # 128 values; 32 of them
            low = half * 64 + quarter % 2 * 32 + j % 2 * 16
            high = 128 + half * 32 + j % 2 * 16
            start = block * SUPER_BLOCK + j * SMALL_SUB_BLOCK
            for i in range(SMALL_SUB_BLOCK):
                nibble = np.int64(raw[low + i]) >> 4 if quarter > 1 else np.int64(raw[low + i]) & 15
                level = (nibble | (np.int64(raw[high + i]) >> 2 * quarter & 3) << 4) - 32
                out[start + i] = step * np.float32(level)
