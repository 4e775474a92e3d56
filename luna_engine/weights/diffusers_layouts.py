"""The same models under the names of the diffusers library, recognised; `diffusers_names` knows where each goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.verdicts import Verdict, certain

if TYPE_CHECKING:
    from luna_engine.weights.keys import Keys

LAYOUT = "diffusers layout"
Z_IMAGE_MARK = "all_x_embedder.2-1.weight"

_TRANSFORMERS = (
    ("flux", ("transformer_blocks.0.attn.norm_added_k.weight", "x_embedder.weight")),
    ("sd3", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight")),
    ("aura", ("joint_transformer_blocks.0.attn.add_k_proj.weight",)),
    ("z-image", (Z_IMAGE_MARK,)),
)
_UNET_POOLED = {0: "sd15", 2816: "sdxl", 2560: "sdxl-refiner"}


def detect_diffusers(keys: Keys) -> Verdict | None:
    """Return the family of a file in diffusers' names, or None."""
    for family, marks in _TRANSFORMERS:
        if all(mark in keys for mark in marks):
            return certain(LAYOUT).of(family, marks[0])
    if "conv_in.weight" in keys and keys.has_prefix("down_blocks.") and keys.has_prefix("up_blocks."):
        return _unet(keys)
    return None


def _unet(keys: Keys) -> Verdict | None:
    name = keys.first("attn2.to_k.weight")
    if name is None:
        return None
    context, pooled = keys.columns(name), keys.columns("add_embedding.linear_1.weight")
    family = "sd2" if context == 1024 and not pooled else _UNET_POOLED.get(pooled)
    if family is None:
        return None
    return certain(LAYOUT, f"context {context}, pooled {pooled or 'none'}").of(family, "conv_in.weight")
