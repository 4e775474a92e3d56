"""Qwen3-4B as a text encoder (Qwen team 2025, grouped-query attention with normed queries and keys), as files name it.

Weights are kept in 16 bits at most and upcast layer by layer; activations are fp32 (DAEMON.md N10, N14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from luna_daemon.runtime.attention import attend
from luna_daemon.runtime.stored import RootMeanSquareNorm, StoredLinear, build
from luna_daemon.runtime.stored_encoder import StoredEncoder
from luna_daemon.runtime.text_encoder import HiddenStates, look_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Rotation = tuple[torch.Tensor, torch.Tensor]

ROW_MAX = 8192
"""The mask grows with the square of a row: 256 MiB in fp32 at this length."""
DECIDING = "model.norm.weight"
_ROPE_BASE = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Qwen3Shape:
    """Sizes of a Qwen3 model and its special tokens."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    hidden: int
    vocabulary: int
    start: int | None = None
    end: int | None = None
    pad: int = 151643


QWEN3_4B = Qwen3Shape(layers=36, width=2560, heads=32, key_heads=8, head_width=128, hidden=9728, vocabulary=151936)


class _Attention(nn.Module):
    def __init__(self, shape: Qwen3Shape) -> None:
        super().__init__()
        self.q_proj = StoredLinear(shape.width, shape.heads * shape.head_width)
        self.k_proj = StoredLinear(shape.width, shape.key_heads * shape.head_width)
        self.v_proj = StoredLinear(shape.width, shape.key_heads * shape.head_width)
        self.o_proj = StoredLinear(shape.heads * shape.head_width, shape.width)
        self.q_norm = RootMeanSquareNorm(shape.head_width)
        self.k_norm = RootMeanSquareNorm(shape.head_width)
        self._head_width = shape.head_width
        self._shared_by = shape.heads // shape.key_heads

    def forward(self, x: torch.Tensor, rotation: Rotation, mask: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        q, k, v = (layer(x).unflatten(-1, (-1, self._head_width)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q = _rotate(self.q_norm(q).transpose(1, 2), rotation)
        k = _rotate(self.k_norm(k).transpose(1, 2), rotation).repeat_interleave(self._shared_by, dim=1)
        v = v.transpose(1, 2).repeat_interleave(self._shared_by, dim=1)
        mixed = attend(q, k, v, mask)
        out: torch.Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, shape: Qwen3Shape) -> None:
        super().__init__()
        self.gate_proj = StoredLinear(shape.width, shape.hidden)
        self.up_proj = StoredLinear(shape.width, shape.hidden)
        self.down_proj = StoredLinear(shape.hidden, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        out: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Block(nn.Module):
    def __init__(self, shape: Qwen3Shape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _FeedForward(shape)
        self.input_layernorm = RootMeanSquareNorm(shape.width)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.width)

    def forward(self, x: torch.Tensor, rotation: Rotation, mask: torch.Tensor) -> torch.Tensor:
        """Map [rows, n, width] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Stack(nn.Module):
    def __init__(self, shape: Qwen3Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = RootMeanSquareNorm(shape.width)


class _Qwen3(nn.Module):
    def __init__(self, shape: Qwen3Shape) -> None:
        super().__init__()
        self.model = _Stack(shape)


def _rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn pairs (i, i + half) of each head by the position's angles; x is [rows, heads, n, head width]."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _rotation(length: int, head_width: int, device: torch.device) -> Rotation:
    """Return cosines and sines, [n, head width] each (Su et al. 2021)."""
    speed = 1.0 / _ROPE_BASE ** (torch.arange(0, head_width, 2, device=device).float() / head_width)
    angles = torch.outer(torch.arange(length, device=device).float(), speed)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def _scores_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return what is added to attention scores, [rows, 1, n, n]: nothing ahead is seen, and no padding."""
    lowest = torch.finfo(torch.float32).min
    length = mask.shape[-1]
    causal = torch.full((length, length), lowest, device=mask.device).triu_(1)
    padding = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, lowest)
    # The sum may be minus infinity, never for all keys of a query: its own is `lowest` at least.
    return causal + padding[:, None, None, :]


class Qwen3Encoder(StoredEncoder):
    """Qwen3 with its weights.

    Args:
        shape: sizes.
        tensors: standalone names (``model.embed_tokens.weight``, ``model.layers.…``) → tensors of any float type. The
            final norm's type is the encoder's, 16 bits at most.
        device: where it runs.
    """

    row_max = ROW_MAX
    is_masked = True

    def __init__(self, shape: Qwen3Shape, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        super().__init__(shape, lambda: _Qwen3(shape), tensors, DECIDING, device)
        self.shape = shape

    @property
    def _model(self) -> _Qwen3:
        return cast("_Qwen3", self._module)

    def run(
        self,
        ids: torch.Tensor,
        vectors: torch.Tensor | None,
        blocks: Iterable[int],
        mask: torch.Tensor | None = None,
    ) -> HiddenStates:
        """Encode rows of equal length; see `luna_daemon.runtime.text_encoder.TextEncoder`."""
        wanted = frozenset(blocks)
        caught: dict[int, torch.Tensor] = {}
        given = None if vectors is None else vectors.to(self.device, torch.float32)
        stack = self._model.model
        x = look_up(stack.embed_tokens.weight, ids.to(self.device), given)
        rotation = _rotation(ids.shape[1], self.shape.head_width, self.device)
        seen = _scores_mask((torch.ones_like(ids) if mask is None else mask).to(self.device))
        for index, block in enumerate(stack.layers):
            x = block(x, rotation, seen)
            if index in wanted:
                caught[index] = x
        return HiddenStates(stack.norm(x), caught)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the norm behind the last block."""
        out: torch.Tensor = self._model.model.norm(hidden)
        return out


def expected_shapes(shape: Qwen3Shape) -> dict[str, tuple[int, ...]]:
    """Return standalone name → shape of every tensor that a file of this encoder must hold."""
    return {name: tuple(tensor.shape) for name, tensor in build(lambda: _Qwen3(shape)).state_dict().items()}
