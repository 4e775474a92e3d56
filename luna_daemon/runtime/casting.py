"""Weights kept in 16 bits, arithmetic in fp32: ComfyUI's text encoders compute so, and an fp16 forward does not match.

On a CPU the weights are held upcast instead; the values are the same.
"""

from __future__ import annotations

import torch
from torch import nn


class CastingLinear(nn.Linear):
    """A linear layer whose weights are cast to the input's type at each use."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in the type of ``x``."""
        bias: torch.Tensor | None = self.bias  # torch declares it as always there
        if bias is not None:
            bias = bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)


class CastingLayerNorm(nn.LayerNorm):
    """A layer norm whose weights are cast to the input's type at each use."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in the type of ``x``."""
        return nn.functional.layer_norm(
            x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )


class CastingEmbedding(nn.Embedding):
    """An embedding that answers in fp32."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look the rows up, then upcast them."""
        return nn.functional.embedding(ids, self.weight).float()


_CASTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CastingLinear,
    nn.LayerNorm: CastingLayerNorm,
    nn.Embedding: CastingEmbedding,
}


def store_fp16(model: nn.Module) -> None:
    """Keep the weights in fp16 and let every layer cast them to fp32 when it computes."""
    model.half()
    for module in model.modules():
        casting = _CASTING.get(type(module))
        if casting is not None:
            module.__class__ = casting


def hold_fp32(model: nn.Module) -> None:
    """Hold the weights upcast to fp32."""
    model.float()
