"""Small LoRAs in the two common namings, and textual inversions, made to fit the demo models."""

from __future__ import annotations

import json
import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from luna_engine.weights.demo.parts import RandomTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RANK = 4
_STRENGTH = 0.3  # the change's spread beside that of the weight it changes

# What kohya's trainer notes in a file; other tools read the trigger words from the tag counts.
KOHYA_SD15: Mapping[str, str] = MappingProxyType(
    {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_RANK),
        "ss_network_alpha": str(_RANK),
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "demo-lora-sd15",
        "ss_tag_frequency": json.dumps({"10_luna style": {"luna style": 20, "moonlight": 12, "sketch": 4}}),
    }
)
KOHYA_SDXL: Mapping[str, str] = MappingProxyType(
    {**KOHYA_SD15, "ss_base_model_version": "sdxl_base_v1-0", "ss_output_name": "demo-lora-sdxl"}
)


def sd15_kohya() -> Iterator[RandomTensor]:
    """Yield a LoRA on SD1.5's first attention and CLIP-L's first layer."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    yield from _kohya(f"{block}_attn1_to_q", 320, 320)
    yield from _kohya(f"{block}_attn2_to_k", 320, 768)
    yield from _kohya(f"{block}_attn2_to_v", 320, 768)
    for part in ("q_proj", "v_proj"):
        yield from _kohya(f"lora_te_text_model_encoder_layers_0_self_attn_{part}", 768, 768)


def sdxl_kohya() -> Iterator[RandomTensor]:
    """Yield a LoRA on SDXL's UNet and both of its text encoders."""
    block = "lora_unet_input_blocks_4_1_transformer_blocks_0"
    yield from _kohya(f"{block}_attn1_to_q", 320, 320)
    yield from _kohya(f"{block}_attn2_to_k", 320, 2048)
    for encoder, width in (("te1", 768), ("te2", 1280)):
        for part in ("q_proj", "v_proj"):
            yield from _kohya(f"lora_{encoder}_text_model_encoder_layers_0_self_attn_{part}", width, width)


def flux_diffusers() -> Iterator[RandomTensor]:
    """Yield a LoRA on the demo Flux in diffusers naming; its q and v are row ranges of a joined weight."""
    for part in ("to_q", "to_v"):
        yield from _diffusers(f"transformer.transformer_blocks.0.attn.{part}", 128, 128)
    yield from _diffusers("transformer.single_transformer_blocks.0.attn.to_q", 128, 128)
    yield from _diffusers("transformer.single_transformer_blocks.0.proj_mlp", 512, 128)


def z_image_diffusers() -> Iterator[RandomTensor]:
    """Yield a LoRA on the demo Z-Image in diffusers naming."""
    for part in ("to_q", "to_v"):
        yield from _diffusers(f"diffusion_model.layers.0.attention.{part}", 3840, 3840)


def sd15_embedding() -> Iterator[RandomTensor]:
    """Yield a textual inversion of three vectors for CLIP-L."""
    yield RandomTensor("emb_params", (3, 768), 0.5, dtype="F32")


def sdxl_embedding() -> Iterator[RandomTensor]:
    """Yield a textual inversion of two vectors for each of SDXL's encoders."""
    yield RandomTensor("clip_l", (2, 768), 0.5, dtype="F32")
    yield RandomTensor("clip_g", (2, 1280), 0.5, dtype="F32")


def _kohya(name: str, rows: int, columns: int) -> Iterator[RandomTensor]:
    yield from _pair(f"{name}.lora_down.weight", f"{name}.lora_up.weight", rows, columns)
    yield RandomTensor(f"{name}.alpha", (), 0.0, float(_RANK))


def _diffusers(name: str, rows: int, columns: int) -> Iterator[RandomTensor]:
    yield from _pair(f"{name}.lora_A.weight", f"{name}.lora_B.weight", rows, columns)


def _pair(down: str, up: str, rows: int, columns: int) -> Iterator[RandomTensor]:
    yield RandomTensor(down, (_RANK, columns), 1 / math.sqrt(columns))
    yield RandomTensor(up, (rows, _RANK), _STRENGTH / math.sqrt(_RANK))
