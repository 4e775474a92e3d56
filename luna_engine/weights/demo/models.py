"""The demo files: their names, their places in ComfyUI's folder layout, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

from luna_engine.weights.demo import adapters, text_encoders, transformers, unets, vaes
from luna_engine.weights.demo.parts import RandomTensor, under

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One file. ``path`` is relative to the folder given; ``build`` lists the tensors in file order."""

    name: str
    path: str
    what: str
    build: Callable[[], Iterable[RandomTensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)


def _sd15() -> Iterable[RandomTensor]:
    return chain(
        under("model.diffusion_model.", unets.unet(unets.SD15)),
        under("cond_stage_model.transformer.", text_encoders.clip_l()),
        under("first_stage_model.", vaes.vae(4, with_quant_convs=True)),
    )


def _sdxl() -> Iterable[RandomTensor]:
    return chain(
        under("model.diffusion_model.", unets.unet(unets.SDXL)),
        under("conditioner.embedders.0.transformer.", text_encoders.clip_l()),
        under("conditioner.embedders.1.model.", text_encoders.open_clip_g()),
        under("first_stage_model.", vaes.vae(4, with_quant_convs=True)),
    )


def _small_vae() -> Iterable[RandomTensor]:
    return vaes.vae(4, with_quant_convs=True)


def _flux_vae() -> Iterable[RandomTensor]:
    return vaes.vae(16, with_quant_convs=False)


_MODELS = (
    DemoModel("sd15", "checkpoints/demo-sd15.safetensors", "SD1.5 checkpoint: UNet, CLIP-L, VAE", _sd15),
    DemoModel("sdxl", "checkpoints/demo-sdxl.safetensors", "SDXL checkpoint: UNet, CLIP-L, CLIP-G, VAE", _sdxl),
    DemoModel("flux", "diffusion_models/demo-flux.safetensors", "Flux.1 dev, 1+1 blocks", transformers.flux),
    DemoModel("sd3", "diffusion_models/demo-sd3.safetensors", "SD3, 2 blocks", transformers.sd3),
    DemoModel("z_image", "diffusion_models/demo-z_image.safetensors", "Z-Image, 1 layer, bf16", transformers.z_image),
    DemoModel("clip_l", "text_encoders/demo-clip_l.safetensors", "CLIP-L", text_encoders.clip_l),
    DemoModel("clip_g", "text_encoders/demo-clip_g.safetensors", "CLIP-G", text_encoders.clip_g),
    DemoModel("t5xxl", "text_encoders/demo-t5xxl.safetensors", "T5-XXL, fp8", text_encoders.t5xxl),
    DemoModel("sd15_vae", "vae/demo-sd15_vae.safetensors", "SD1.5 VAE", _small_vae),
    DemoModel("sdxl_vae", "vae/demo-sdxl_vae.safetensors", "SDXL VAE", _small_vae),
    DemoModel("ae", "vae/demo-ae.safetensors", "Flux VAE, 16 channels", _flux_vae),
    DemoModel(
        "lora_sd15",
        "loras/demo-lora_sd15.safetensors",
        "SD1.5 LoRA, kohya naming",
        adapters.sd15_kohya,
        adapters.KOHYA_SD15,
    ),
    DemoModel(
        "lora_sdxl",
        "loras/demo-lora_sdxl.safetensors",
        "SDXL LoRA, kohya naming",
        adapters.sdxl_kohya,
        adapters.KOHYA_SDXL,
    ),
    DemoModel(
        "lora_flux",
        "loras/demo-lora_flux.safetensors",
        "Flux LoRA, diffusers naming",
        adapters.flux_diffusers,
    ),
    DemoModel(
        "lora_z_image",
        "loras/demo-lora_z_image.safetensors",
        "Z-Image LoRA, diffusers naming",
        adapters.z_image_diffusers,
    ),
    DemoModel("ti_sd15", "embeddings/demo-ti_sd15.safetensors", "SD1.5 textual inversion", adapters.sd15_embedding),
    DemoModel("ti_sdxl", "embeddings/demo-ti_sdxl.safetensors", "SDXL textual inversion", adapters.sdxl_embedding),
)

MODELS = MappingProxyType({model.name: model for model in _MODELS})
