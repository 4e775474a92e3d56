"""Large text encoders: weights kept as narrow as the file has them, at most 16 bits, and upcast layer by layer.

All arithmetic is fp32 (DAEMON.md N10). At most one weight is upcast at a time, so an encoder of 4.8 billion weights
needs its stored bytes and the fp32 copy of its largest layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WIDEST_BYTES = 2
Module = TypeVar("Module", bound=nn.Module)


class StoredLinear(nn.Linear):
    """A linear layer without bias, upcast at each use."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in the type of ``x``."""
        return nn.functional.linear(x, self.weight.to(x.dtype))


class RootMeanSquareNorm(nn.Module):
    """x over its root mean square, times a weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return x * scale * self.weight.to(x.dtype)


def build(module: Callable[[], Module]) -> Module:
    """Build a module on the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return module()


def keep(tensor: torch.Tensor, asked: torch.dtype) -> torch.Tensor:
    """Return the values of a tensor rounded to a type of at most 16 bits.

    Args:
        tensor: as the file has it.
        asked: the type that the whole encoder counts as. A tensor of fewer bits stays as it is: 16 bits hold all values
            of 8-bit floats, and the numbers are the same.
    """
    target = asked if asked.itemsize <= WIDEST_BYTES else torch.float16
    return tensor if tensor.dtype.itemsize < target.itemsize else tensor.to(target)


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], deciding: str) -> torch.dtype:
    """Give a module built by `build` its weights and return the type that they count as.

    Args:
        module: its parameters are named as in ``tensors``.
        tensors: name → tensor.
        deciding: the tensor whose type is the encoder's, as ComfyUI decides.
    """
    asked = tensors[deciding].dtype
    weights = {name: keep(tensors[name], asked) for name in module.state_dict()}
    module.requires_grad_(requires_grad=False)
    module.load_state_dict(weights, strict=True, assign=True)
    module.eval()
    return asked if asked.itemsize <= WIDEST_BYTES else torch.float16
