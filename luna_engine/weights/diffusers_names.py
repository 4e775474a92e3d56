"""Reference names of tensors in the diffusers library's names: flux, sd3, aura, z-image and the UNets.

A name is `<block><layer>.<weight|bias>`; the tables map layers. Some layers of the reference are several of
diffusers', their rows joined in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_engine.weights.keys import Keys


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor goes: part ``part`` of the ``parts`` whose rows make ``name``.

    ``exchanges_halves``: the library has the shift and scale rows of the last modulation the other way round.
    """

    name: str
    part: int = 0
    parts: int = 1
    exchanges_halves: bool = False


_Layers = dict[str, str | tuple[str, int, int]]


def _joined(names: tuple[str, ...], target: str) -> _Layers:
    return {name: (target, index, len(names)) for index, name in enumerate(names)}


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

_FLUX_TOP: _Layers = {
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
}
_FLUX_DOUBLE: _Layers = {
    **_joined(_QKV, "img_attn.qkv"),
    **_joined(_ADDED_QKV, "txt_attn.qkv"),
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    # The reference calls the factors of these norms scale.
    "attn.norm_q": "img_attn.norm.query_norm.scale",
    "attn.norm_k": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
}
_FLUX_SINGLE: _Layers = {
    **_joined((*_QKV, "proj_mlp"), "linear1"),
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm.scale",
    "attn.norm_k": "norm.key_norm.scale",
}

_SD3_TOP: _Layers = {
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "pos_embed.proj": "x_embedder.proj",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_SD3_BLOCK: _Layers = {
    **_joined(_QKV, "x_block.attn.qkv"),
    **_joined(_ADDED_QKV, "context_block.attn.qkv"),
    **_joined(("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
}

_Z_IMAGE_TOP: _Layers = {
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    "all_x_embedder.2-1": "x_embedder",
    **{name: name for name in ("cap_embedder.0", "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")},
}
_Z_IMAGE_BLOCK: _Layers = {
    **_joined(("attention.to_q", "attention.to_k", "attention.to_v"), "attention.qkv"),
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "attention.to_out.0": "attention.out",
    **{
        name: name
        for name in (
            "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "adaLN_modulation.0",
            "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
        )
    },
}  # fmt: skip

_AURA_TOP: _Layers = {
    "time_step_proj.linear_1": "t_embedder.mlp.0",
    "time_step_proj.linear_2": "t_embedder.mlp.2",
    "context_embedder": "cond_seq_linear",
    "pos_embed.proj": "init_x_linear",
    "norm_out.linear": "modF.1",
    "proj_out": "final_linear",
}
_AURA_MLP = (("linear_1", "c_fc1"), ("linear_2", "c_fc2"), ("out_projection", "c_proj"))
_AURA_DOUBLE: _Layers = {
    **{f"ff.{there}": f"mlpX.{here}" for there, here in _AURA_MLP},
    **{f"ff_context.{there}": f"mlpC.{here}" for there, here in _AURA_MLP},
    "norm1.linear": "modX.1",
    "norm1_context.linear": "modC.1",
    "attn.to_q": "attn.w2q",
    "attn.to_k": "attn.w2k",
    "attn.to_v": "attn.w2v",
    "attn.to_out.0": "attn.w2o",
    "attn.add_q_proj": "attn.w1q",
    "attn.add_k_proj": "attn.w1k",
    "attn.add_v_proj": "attn.w1v",
    "attn.to_add_out": "attn.w1o",
}
_AURA_SINGLE: _Layers = {
    **{f"ff.{there}": f"mlp.{here}" for there, here in _AURA_MLP},
    "norm1.linear": "modCX.1",
    "attn.to_q": "attn.w1q",
    "attn.to_k": "attn.w1k",
    "attn.to_v": "attn.w1v",
    "attn.to_out.0": "attn.w1o",
}

# family: layers outside the blocks, then (blocks there, blocks here, layers of a block), then bare parameters.
_Blocks = tuple[tuple[str, str, _Layers], ...]
_TRANSFORMERS: Mapping[str, tuple[_Layers, _Blocks, dict[str, str]]] = MappingProxyType(
    {
        "flux": (
            _FLUX_TOP,
            (
                ("transformer_blocks.", "double_blocks.", _FLUX_DOUBLE),
                ("single_transformer_blocks.", "single_blocks.", _FLUX_SINGLE),
            ),
            {},
        ),
        "sd3": (
            _SD3_TOP,
            (("transformer_blocks.", "joint_blocks.", _SD3_BLOCK),),
            {"pos_embed.pos_embed": "pos_embed"},
        ),
        "aura": (
            _AURA_TOP,
            (
                ("joint_transformer_blocks.", "double_layers.", _AURA_DOUBLE),
                ("single_transformer_blocks.", "single_layers.", _AURA_SINGLE),
            ),
            {"register_tokens": "register_tokens", "pos_embed.pos_embed": "positional_encoding"},
        ),
        "z-image": (
            _Z_IMAGE_TOP,
            tuple((name, name, _Z_IMAGE_BLOCK) for name in ("layers.", "context_refiner.", "noise_refiner.")),
            {"x_pad_token": "x_pad_token", "cap_pad_token": "cap_pad_token"},
        ),
    }
)
_EXCHANGED = frozenset({"norm_out.linear"})

_UNET_TOP: _Layers = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = MappingProxyType(
    {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
)
_UNETS = frozenset({"sd15", "sd2", "sdxl", "sdxl-refiner"})

RENAMED_FAMILIES = frozenset(_TRANSFORMERS) | _UNETS


def place_of(family: str, name: str, keys: Keys) -> Place | None:
    """Return where a tensor of a diffusers file goes, None if the layout has no such name.

    Args:
        family: one of RENAMED_FAMILIES.
        name: the tensor's name in the file.
        keys: all names of the file: the number of blocks decides on UNet names and on the last block of sd3.
    """
    if family in _UNETS:
        return _unet_place(name, keys)
    top, kinds, bare = _TRANSFORMERS[family]
    if name in bare:
        return Place(bare[name])
    layer, _, end = name.rpartition(".")
    for there, here, layers in kinds:
        if layer.startswith(there):
            number, _, inner = layer[len(there) :].partition(".")
            exchanges = (
                family == "sd3" and inner == "norm1_context.linear" and int(number) == max(keys.blocks(there))
            )  # the last block's context is only read: its norm is a final one
            return _place(layers.get(inner), f"{here}{number}.", end, exchanges=exchanges)
    return _place(top.get(layer), "", end, exchanges=layer in _EXCHANGED)


def _place(target: str | tuple[str, int, int] | None, before: str, end: str, *, exchanges: bool) -> Place | None:
    if target is None:
        return None
    if isinstance(target, tuple):
        return Place(f"{before}{target[0]}.{end}", target[1], target[2])
    whole = target if target.endswith(".scale") else f"{target}.{end}"
    return Place(before + whole, exchanges_halves=exchanges)


def _unet_place(name: str, keys: Keys) -> Place | None:
    layer, _, end = name.rpartition(".")
    if layer in _UNET_TOP:
        return Place(f"{_UNET_TOP[layer]}.{end}")
    parts = name.split(".")
    residuals = len(keys.blocks("down_blocks.0.resnets."))
    if parts[0] == "mid_block" and len(parts) > 3 and parts[2].isdigit():
        index = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return _unet_inner(f"middle_block.{index}", parts[1], parts[3:])
    if parts[0] in {"down_blocks", "up_blocks"} and len(parts) > 4 and parts[1].isdigit() and parts[3].isdigit():
        block, kind, index = int(parts[1]), parts[2], int(parts[3])
        if parts[0] == "down_blocks":
            return _down(block, kind, index, residuals, parts[4:])
        return _up(block, kind, index, residuals, parts[4:], keys)
    return None


def _down(block: int, kind: str, index: int, residuals: int, rest: list[str]) -> Place | None:
    if kind == "downsamplers":
        return Place(f"input_blocks.{(block + 1) * (residuals + 1)}.0.op.{rest[-1]}") if rest[0] == "conv" else None
    number = 1 + block * (residuals + 1) + index
    return _unet_inner(f"input_blocks.{number}.{int(kind == 'attentions')}", kind, rest)


def _up(block: int, kind: str, index: int, residuals: int, rest: list[str], keys: Keys) -> Place | None:
    number = block * (residuals + 1) + index
    if kind == "upsamplers":
        place = 2 if keys.has_prefix(f"up_blocks.{block}.attentions.") else 1
        output = block * (residuals + 1) + residuals
        return Place(f"output_blocks.{output}.{place}.conv.{rest[-1]}") if rest[0] == "conv" else None
    return _unet_inner(f"output_blocks.{number}.{int(kind == 'attentions')}", kind, rest)


def _unet_inner(before: str, kind: str, rest: list[str]) -> Place | None:
    if kind == "attentions":  # inside, both have the same names
        return Place(f"{before}.{'.'.join(rest)}")
    if kind == "resnets" and len(rest) == 2 and rest[0] in _RESIDUAL:
        return Place(f"{before}.{_RESIDUAL[rest[0]]}.{rest[1]}")
    return None
