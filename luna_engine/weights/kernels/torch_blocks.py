"""Reads GGUF's blocks in torch, on any device, in single precision: what a loader does each time a layer is used.

Values equal ggml's C code bit for bit (on a processor): products and sums are made in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch

from luna_engine.weights.containers.ggml_types import BY_NAME

_Decoder = Callable[[torch.Tensor], torch.Tensor]


def decode(dtype: str, data: torch.Tensor) -> torch.Tensor:
    """Return the values of packed blocks.

    Args:
        dtype: a type of `DECODERS`.
        data: uint8, any shape, whole blocks in order.

    Returns:
        float32 [blocks, values per block] on the device of ``data``.
    """
    return DECODERS[dtype](data.reshape(-1, BY_NAME[dtype].block_bytes))


def _half(data: torch.Tensor, at: int) -> torch.Tensor:
    """Return a half of each block as float32 [blocks, 1]."""
    return data[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """Return the low nibbles of each block's bytes, then the high ones."""
    return torch.cat((data & 15, data >> 4), dim=1)


def _fifth_bits(data: torch.Tensor) -> torch.Tensor:
    """Return bit i of each block's 4 bytes as value i, shifted to where a fifth bit stands."""
    places = torch.arange(8, dtype=torch.uint8, device=data.device)
    return (((data[:, :, None] >> places) & 1) << 4).reshape(len(data), 32)


def _q8_0(data: torch.Tensor) -> torch.Tensor:
    return _half(data, 0) * data[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(data: torch.Tensor) -> torch.Tensor:
    return (_nibbles(data[:, 2:]).float() - 8) * _half(data, 0)


def _q4_1(data: torch.Tensor) -> torch.Tensor:
    return _nibbles(data[:, 4:]).float() * _half(data, 0) + _half(data, 2)


def _q5_0(data: torch.Tensor) -> torch.Tensor:
    levels = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return (levels.float() - 16) * _half(data, 0)


def _q5_1(data: torch.Tensor) -> torch.Tensor:
    levels = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    return levels.float() * _half(data, 0) + _half(data, 2)


def _scales_and_minima(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eight 6-bit scales and minima of Q4_K and Q5_K, times d and dmin: float32 [blocks, 8, 1] each."""
    low, middle, high = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scales = torch.cat((low & 63, (high & 15) | (low >> 6 << 4)), dim=1)
    minima = torch.cat((middle & 63, (high >> 4) | (middle >> 6 << 4)), dim=1)
    return (_half(data, 0) * scales.float())[:, :, None], (_half(data, 2) * minima.float())[:, :, None]


def _sub_blocks(data: torch.Tensor) -> torch.Tensor:
    """Return 128 bytes of nibbles as [blocks, 8, 32]: of each 32 bytes the low nibbles, then the high ones."""
    groups = data.reshape(-1, 4, 1, 32)
    return torch.cat((groups & 15, groups >> 4), dim=2).reshape(-1, 8, 32)


def _q4_k(data: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(data)
    return (scales * _sub_blocks(data[:, 16:]).float() - minima).reshape(-1, 256)


def _q5_k(data: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(data)
    places = torch.arange(8, dtype=torch.uint8, device=data.device).reshape(1, 8, 1)
    fifth = ((data[:, None, 16:48] >> places) & 1) << 4
    return (scales * (_sub_blocks(data[:, 48:]) | fifth).float() - minima).reshape(-1, 256)


def _q6_k(data: torch.Tensor) -> torch.Tensor:
    low = data[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), dim=2).reshape(-1, 2, 4, 32)
    places = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=data.device).reshape(1, 1, 4, 1)
    high = (data[:, 128:192].reshape(-1, 2, 1, 32) >> places) & 3
    levels = (low | (high << 4)).reshape(-1, 16, 16).float() - 32
    scales = data[:, 192:208].contiguous().view(torch.int8).float()
    return ((_half(data, 208) * scales)[:, :, None] * levels).reshape(-1, 256)


DECODERS = MappingProxyType[str, _Decoder](
    {
        "Q8_0": _q8_0,
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }
)
