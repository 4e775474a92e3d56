"""CLIP-G as SDXL checkpoints carry it: OpenCLIP's layout, seen under the standalone (transformers) names.

OpenCLIP keeps query, key and value of a layer in one tensor of three times the rows, and its text_projection the other
way round. Reference: mlfoundations/open_clip, ``model.py`` and ``transformer.py``.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

MARKER = "transformer.resblocks.0.attn.in_proj_weight"
_FIXED: Mapping[str, str] = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_IN_LAYER: Mapping[str, str] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_JOINED = re.compile(r"attn\.in_proj_(weight|bias)")
_CACHED = 4  # in name order, the joined weight and bias of a layer are asked for again after its output projection


@dataclass(frozen=True, slots=True)
class View:
    """How a standalone tensor lies in a stored one: one third of its rows, turned over, or as it is."""

    stored: str
    third: int | None = None
    is_turned: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the view."""
        if self.third is not None:
            return (stored[0] // 3, *stored[1:])
        return stored[::-1] if self.is_turned else stored

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the view of the stored tensor."""
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        return tensor.T if self.is_turned else tensor


def standalone_views(stored: Mapping[str, str]) -> dict[str, View]:
    """Return standalone name → view.

    Args:
        stored: OpenCLIP's name (without the checkpoint's prefix) → name in the file. Other names are left out.
    """
    views: dict[str, View] = {}
    for bare, name in stored.items():
        if bare in _FIXED:
            views[_FIXED[bare]] = View(name)
        elif bare == "text_projection":
            views["text_projection.weight"] = View(name, is_turned=True)
        elif match := _LAYER.fullmatch(bare):
            views |= _layer_views(f"text_model.encoder.layers.{match[1]}.", match[2], name)
    return views


def _layer_views(layer: str, inner: str, name: str) -> dict[str, View]:
    if match := _JOINED.fullmatch(inner):
        return {f"{layer}self_attn.{which}_proj.{match[1]}": View(name, third) for third, which in enumerate("qkv")}
    module, _, kind = inner.rpartition(".")
    return {f"{layer}{_IN_LAYER[module]}.{kind}": View(name)} if module in _IN_LAYER else {}


def reader(views: Mapping[str, View], read: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
    """Return a function that reads by standalone name; joined tensors are not read three times."""
    read_once = functools.lru_cache(maxsize=_CACHED)(read)
    return lambda name: views[name].take(read_once(views[name].stored))
