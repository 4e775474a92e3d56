"""What a file is for, before what family it belongs to: LoRA, ControlNet, embedding, checkpoint, VAE and so on."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_engine.weights.keys import Keys


class Kind(str, Enum):
    """The uses of a model file."""

    CHECKPOINT = "checkpoint"
    DIFFUSION_MODEL = "diffusion model"
    VAE = "vae"
    TEXT_ENCODER = "text encoder"
    VISION_ENCODER = "vision encoder"
    LORA = "lora"
    CONTROLNET = "controlnet"
    EMBEDDING = "embedding"
    UPSCALER = "upscaler"
    PICKLE = "pickle"
    UNKNOWN = "unknown"


_LORA_SUFFIXES = (
    ".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight",
    ".lora_B.default.weight", ".lora.up.weight", ".lora.down.weight", "_lora.up.weight", "_lora.down.weight",
    ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b",
    ".lokr_w2_a", ".lokr_w2_b", ".oft_blocks", ".dora_scale", ".diff", ".diff_b",
)  # fmt: skip
_CONTROLNET_KEYS = (
    "zero_convs.0.0.weight", "controlnet_cond_embedding.conv_in.weight", "controlnet_blocks.0.weight",
    "controlnet_x_embedder.weight",
)  # fmt: skip
_EMBEDDING_WIDTHS = frozenset({768, 1024, 1280})
_CLIP = {768: "clip_l", 1280: "clip_g", 1024: "clip_h"}
_T5 = {4096: "t5xxl", 2048: "t5xl", 768: "t5 base"}


def adapter_kind(keys: Keys) -> tuple[Kind, str] | None:
    """Return the kind and its evidence for files that change a model, which may carry the model's own names."""
    names = [name for name in keys if not name.endswith(".alpha")]
    adapters = [name for name in names if name.endswith(_LORA_SUFFIXES)]
    if adapters and 2 * len(adapters) > len(names):
        return Kind.LORA, f"{len(adapters)} of {len(names)} keys such as {adapters[0]}"
    if keys.has_prefix("control_model."):
        return Kind.CONTROLNET, "control_model."
    if (key := next((key for key in _CONTROLNET_KEYS if key in keys), None)) is not None:
        return Kind.CONTROLNET, key
    if "emb_params" in keys:
        return Kind.EMBEDDING, "emb_params"
    if 0 < len(keys) <= 3 and all(keys.last(name) in _EMBEDDING_WIDTHS for name in keys):
        shapes = ", ".join(f"{name} {list(keys.shape(name))}" for name in keys)
        return Kind.EMBEDDING, f"only {shapes}"
    return None


def part_kind(keys: Keys) -> tuple[Kind, str, str] | None:
    """Return the kind, what it is (such as ``clip_l``) and its evidence for a file that holds one other part."""
    for prefix in ("", "vae.", "first_stage_model."):
        if (found := _vae(keys.behind(prefix))) is not None:
            return (Kind.VAE, found[0], prefix + found[1])
    if (found := _text_encoder(keys)) is not None:
        return (Kind.TEXT_ENCODER, *found)
    for mark in ("vision_model.encoder.layers.0.", "visual.transformer.resblocks."):
        if keys.has_prefix(mark):
            return Kind.VISION_ENCODER, "", mark
    if "body.0.rdb1.conv1.weight" in keys:
        return Kind.UPSCALER, "", "body.0.rdb1.conv1.weight"
    if "model.0.weight" in keys and keys.has_prefix("model.1.sub."):
        return Kind.UPSCALER, "", "model.1.sub."
    return None


def _vae(keys: Keys) -> tuple[str, str] | None:
    if "decoder.conv_in.weight" in keys and "encoder.conv_in.weight" in keys:
        channels = keys.columns("decoder.conv_in.weight")
        layout = " in diffusers layout" if "encoder.down_blocks.0.resnets.0.conv1.weight" in keys else ""
        return f"{channels} channels{layout}", "decoder.conv_in.weight"
    if "decoder.middle.0.residual.0.gamma" in keys:
        return "Wan", "decoder.middle.0.residual.0.gamma"
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in keys:
        return "diffusers layout", "encoder.down_blocks.0.resnets.0.conv1.weight"
    return None


def _text_encoder(keys: Keys) -> tuple[str, str] | None:
    clip = "text_model.encoder.layers.0.mlp.fc1.weight"
    if keys.has_prefix("text_model.encoder.layers.0."):
        width = keys.columns(clip)
        return _CLIP.get(width, f"CLIP {width} wide"), clip
    t5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
    if t5 in keys:
        width = keys.columns(t5)
        return _T5.get(width, f"t5 {width} wide"), t5
    llm = "model.layers.0.self_attn.q_proj.weight"
    if llm in keys:
        sees = keys.has_prefix("visual.") or keys.has_prefix("model.visual.")
        kind = "vision-language model" if sees else "language model"
        return f"{kind} {keys.columns(llm)} wide, {len(keys.blocks('model.layers.'))} layers", llm
    if "blk.0.attn_q.weight" in keys:
        return f"language model, {len(keys.blocks('blk.'))} layers", "blk.0.attn_q.weight"
    return None
