"""T5-XXL's encoder (Raffel et al. 2020, version 1.1), with the names that files carry.

Written out in torch: transformers' class rounds activations to the type of its weights, and rule N13 of DAEMON.md asks
for fp32. No mask: padding is part of what the families were trained on. Tests hold it to transformers in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from luna_daemon.runtime.attention import attend
from luna_daemon.runtime.stored import RootMeanSquareNorm, StoredLinear, build
from luna_daemon.runtime.stored_encoder import StoredEncoder
from luna_daemon.runtime.text_encoder import HiddenStates, look_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_BUCKETS = 32
_FARTHEST = 128
ROW_MAX = 4096
"""Attention's bias grows with the square of a row: 4 GB in fp32 at this length."""
DECIDING = "encoder.final_layer_norm.weight"


@dataclass(frozen=True, slots=True)
class T5Shape:
    """Sizes of a T5 encoder and its special tokens."""

    layers: int
    width: int
    heads: int
    head_width: int
    hidden: int
    vocabulary: int
    start: int | None = None
    end: int | None = 1
    pad: int = 0


T5_XXL = T5Shape(layers=24, width=4096, heads=64, head_width=64, hidden=10240, vocabulary=32128)


class _Attention(nn.Module):
    def __init__(self, shape: T5Shape, *, has_bias: bool) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.q = StoredLinear(shape.width, inner)
        self.k = StoredLinear(shape.width, inner)
        self.v = StoredLinear(shape.width, inner)
        self.o = StoredLinear(inner, shape.width)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(_BUCKETS, shape.heads)
        self._heads = shape.heads

    def bias(self, length: int) -> torch.Tensor:
        """Return what positions add to the scores, [1, heads, n, n]."""
        weight = self.relative_attention_bias.weight
        buckets = relative_buckets(length).to(weight.device)
        return look_up(weight, buckets, None).permute(2, 0, 1)[None].contiguous()

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Attend without scaling, since T5's query weights carry the factor: the keys are scaled up beforehand."""
        q, k, v = (
            layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)  # [rows, heads, n, head width]
            for layer in (self.q, self.k, self.v)
        )
        mixed = attend(q, k * k.shape[-1] ** 0.5, v, bias)
        out: torch.Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


class _GatedFeedForward(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.wi_0 = StoredLinear(shape.width, shape.hidden)
        self.wi_1 = StoredLinear(shape.width, shape.hidden)
        self.wo = StoredLinear(shape.hidden, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        out: torch.Tensor = self.wo(functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return out


class _AttentionLayer(nn.Module):
    def __init__(self, shape: T5Shape, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = _Attention(shape, has_bias=has_bias)
        self.layer_norm = RootMeanSquareNorm(shape.width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        out: torch.Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return out


class _FeedForwardLayer(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.DenseReluDense = _GatedFeedForward(shape)
        self.layer_norm = RootMeanSquareNorm(shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        out: torch.Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class _Block(nn.Module):
    def __init__(self, shape: T5Shape, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AttentionLayer(shape, has_bias=has_bias), _FeedForwardLayer(shape)])

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        attention, feed_forward = self.layer
        out: torch.Tensor = feed_forward(attention(x, bias))
        return out


class _Stack(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(shape, has_bias=index == 0) for index in range(shape.layers))
        self.final_layer_norm = RootMeanSquareNorm(shape.width)


class _T5(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shared = nn.Embedding(shape.vocabulary, shape.width)
        self.encoder = _Stack(shape)


def relative_buckets(length: int) -> torch.Tensor:
    """Return the bucket of each pair of positions, [n, n] (query, key): half for keys behind, half for keys before.

    Near distances have a bucket each, farther ones share buckets that widen logarithmically up to `_FARTHEST`.
    """
    place = torch.arange(length)
    distance = place[None, :] - place[:, None]
    side = _BUCKETS // 2
    near = side // 2
    away = distance.abs()
    widening = torch.log(away.clamp(min=1).float() / near) / math.log(_FARTHEST / near) * (side - near)
    far = (near + widening.long()).clamp(max=side - 1)
    return torch.where(away < near, away, far) + (distance > 0) * side


class T5Encoder(StoredEncoder):
    """T5's encoder with its weights.

    Args:
        shape: sizes.
        tensors: standalone names (``shared.weight``, ``encoder.block.…``) → tensors of any float type. The final norm's
            type is the encoder's, 16 bits at most.
        device: where it runs.
    """

    row_max = ROW_MAX
    is_masked = False

    def __init__(self, shape: T5Shape, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        super().__init__(shape, lambda: _T5(shape), tensors, DECIDING, device)
        self.shape = shape

    @property
    def _model(self) -> _T5:
        return cast("_T5", self._module)

    def run(
        self,
        ids: torch.Tensor,
        vectors: torch.Tensor | None,
        blocks: Iterable[int],
        mask: torch.Tensor | None = None,  # noqa: ARG002 - never masked
    ) -> HiddenStates:
        """Encode rows of equal length; see `luna_daemon.runtime.text_encoder.TextEncoder`."""
        wanted = frozenset(blocks)
        caught: dict[int, torch.Tensor] = {}
        given = None if vectors is None else vectors.to(self.device, torch.float32)
        x = look_up(self._model.shared.weight, ids.to(self.device), given)
        stack = self._model.encoder
        first: Any = stack.block[0]
        bias = first.layer[0].SelfAttention.bias(ids.shape[1])  # all blocks share the first one's
        for index, block in enumerate(stack.block):
            x = block(x, bias)
            if index in wanted:
                caught[index] = x
        return HiddenStates(stack.final_layer_norm(x), caught)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the norm behind the last block."""
        out: torch.Tensor = self._model.encoder.final_layer_norm(hidden)
        return out


def expected_shapes(shape: T5Shape) -> dict[str, tuple[int, ...]]:
    """Return standalone name → shape of every tensor that a file of this encoder must hold."""
    return {name: tuple(tensor.shape) for name, tensor in build(lambda: _T5(shape)).state_dict().items()}
