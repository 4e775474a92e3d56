"""Run by ComfyUI's interpreter: what its own classes of flux, sd3 and z-image compute with narrow encoders.

`python comfy_families_golden.py COMFYUI WEIGHTS SIZES OUT`; WEIGHTS is a safetensors file with ``clip_l.``,
``clip_g.``, ``t5xxl.`` and ``qwen3_4b.`` in front of the standalone names, SIZES a JSON of model configurations.
Not a test module and never imported by Luna.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PROMPTS = {
    "plain": "a photo of a cat sitting on a red chair",
    "weighted": "a (red:1.3) cat, (blue) dog and [a] (tiny:0.4) bird",
    "escaped": r"smile \(happy\), (loud \(very\):1.2) end",
    "long": ", ".join(f"masterpiece number {index}" for index in range(60)),
    "empty": "",
}
LAYERS = (None, -1, -2, -40)


def main(comfyui: str, weights: str, sizes: str, out: str) -> None:
    """Compute every case and write it."""
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0]]
    import comfy.options

    comfy.options.enable_args_parsing(enable=False)
    from comfy.cli_args import args

    args.cpu = True
    import torch
    from comfy.text_encoders import flux, sd3_clip, z_image
    from safetensors.torch import load_file, save_file

    stored = load_file(weights)
    options = json.loads(sizes)

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}

    def filled(model: Any, parts: tuple[str, ...]) -> Any:
        for name in parts:
            missing, _ = getattr(model, name).transformer.load_state_dict(part(f"{name}."), strict=False)
            if [entry for entry in missing if not entry.startswith("text_projection")]:
                raise RuntimeError(f"{name} lacks {missing}")
        return model

    half, brain = torch.float16, torch.bfloat16
    narrow = {f"{name}_model_config": config for name, config in options.items()}
    models = {
        "flux": (
            filled(flux.FluxClipModel(dtype_t5=half, dtype=half, model_options=narrow), ("clip_l", "t5xxl")),
            flux.FluxTokenizer(),
        ),
        "z-image": (
            filled(z_image.ZImageTEModel(dtype=brain, model_options=narrow), ("qwen3_4b",)),
            z_image.ZImageTokenizer(),
        ),
    }
    # A narrow T5 cannot be joined with CLIP: sd3 is computed without it.
    for name, roles in (("sd3:lg", "lg"), ("sd3:l", "l"), ("sd3:g", "g")):
        has = [role in roles for role in "lgt"]
        model = sd3_clip.SD3ClipModel(*has, dtype_t5=half, dtype=half, model_options=narrow)
        parts = tuple(each for each, there in zip(("clip_l", "clip_g", "t5xxl"), has, strict=True) if there)
        models[name] = (filled(model, parts), sd3_clip.SD3Tokenizer())
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, dict[str, object]] = {}
    with torch.inference_mode():
        for family, (model, tokenizer) in models.items():
            for prompt, text in PROMPTS.items():
                for layer in LAYERS if prompt == "weighted" else (None,):
                    key = f"{family}@{prompt}@{layer}"
                    tokens = tokenizer.tokenize_with_weights(text)
                    model.reset_clip_options()
                    if layer is not None:
                        model.set_clip_options({"layer": layer})
                    # CLIP.encode_from_tokens calls it once more: this sends a skip beyond the layers to the default.
                    model.set_clip_options({"execution_device": torch.device("cpu")})
                    encoded = model.encode_token_weights(tokens)
                    tensors[f"{key}.cond"] = encoded[0].float().contiguous().clone()
                    if encoded[1] is not None:
                        tensors[f"{key}.pooled"] = encoded[1].float().contiguous().clone()
                    for name, extra in (encoded[2] if len(encoded) > 2 else {}).items():
                        tensors[f"{key}.extra.{name}"] = extra.contiguous().clone()
                    roles = {}
                    for role, chunks in tokens.items():
                        flat = [pair for chunk in chunks for pair in chunk]
                        tensors[f"{key}.{role}.ids"] = torch.tensor([int(one) for one, _ in flat], dtype=torch.int32)
                        tensors[f"{key}.{role}.weights"] = torch.tensor(
                            [float(one) for _, one in flat], dtype=torch.float64
                        )
                        roles[role] = [len(chunk) for chunk in chunks]
                    facts[key] = {"text": text, "layer": layer, "roles": roles}
    save_file(tensors, out, {"cases": json.dumps(facts)})


if __name__ == "__main__":
    main(*sys.argv[1:])
