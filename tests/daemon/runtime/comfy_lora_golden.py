"""Run by ComfyUI's interpreter: which weights its own LoRA loader hits, and what it makes of them.

`python comfy_lora_golden.py COMFYUI WEIGHTS SIZES LORAS OUT`; WEIGHTS and SIZES as for comfy_families_golden.py, LORAS
a folder of ``<family>@<anything>.safetensors``. Not a test module and never imported by Luna.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STRENGTHS = (0.7, 1.0)


def main(comfyui: str, weights: str, sizes: str, loras: str, out: str) -> None:
    """Apply every file at every strength and write the patched weights, rounded and not."""
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0]]
    import comfy.options

    comfy.options.enable_args_parsing(enable=False)
    from comfy.cli_args import args

    args.cpu = True
    import torch
    from comfy import lora, lora_convert, model_patcher
    from comfy.text_encoders import flux, sd3_clip, z_image
    from safetensors.torch import load_file, save_file

    stored, options = load_file(weights), json.loads(sizes)
    narrow = {f"{name}_model_config": config for name, config in options.items()}
    half, cpu = torch.float16, torch.device("cpu")
    models = {
        "sdxl": sd3_clip.SD3ClipModel(True, True, False, dtype=half, model_options=narrow),  # noqa: FBT003 - ComfyUI's signature
        "flux": flux.FluxClipModel(dtype_t5=half, dtype=half, model_options=narrow),
        "z-image": z_image.ZImageTEModel(dtype=torch.bfloat16, model_options=narrow),
    }
    for model in models.values():
        for name, child in model.named_children():
            part = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
            child.transformer.load_state_dict(part, strict=False)
    tensors: dict[str, Any] = {}
    for file in sorted(Path(loras).glob("*.safetensors")):
        model = models[file.stem.partition("@")[0]]
        keys = lora.model_lora_keys_clip(model, {})
        patches = lora.load_lora(lora_convert.convert_lora(load_file(file)), keys, log_missing=False)
        for strength in STRENGTHS:
            patcher = model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
            patcher.add_patches(patches, strength)
            for key in patcher.patches:
                weight = model.state_dict()[key]
                # A copy: a shape that differs is only logged, and what comes back is then the weight itself.
                exact = patcher.patch_weight_to_device(key, return_weight=True).clone()
                tensors[f"{file.stem}|{strength}|exact|{key}"] = exact
                whole = lora.calculate_weight(patcher.patches[key], weight.float().clone(), key)
                tensors[f"{file.stem}|{strength}|whole|{key}"] = whole.clone()
    save_file(tensors, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
