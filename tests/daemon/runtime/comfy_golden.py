"""Run by ComfyUI's interpreter: what ComfyUI's own classes compute, written to one safetensors file.

`python comfy_golden.py COMFYUI CHECKPOINT EMBEDDINGS OUT [--brief]`; brief is a few prompts and no images. With
`--vae` the file is a VAE alone and only images are computed; with `--type=SD3` (a CLIPType) CHECKPOINT is a list of
text encoders, joined by `os.pathsep`, and prompts are very few. Not a test module and never imported by Luna.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

PROMPTS = {
    "plain": "a photo of a cat sitting on a red chair",
    "weighted": "a (red:1.3) cat, (blue) dog and [a] (tiny:0.4) bird",
    "nested": "((a) (cat:1.5 (dog:0.7))) (x:abc) (a:b:1.2)",
    "escaped": r"smile \(happy\), (loud \(very\):1.2) end",
    "stray": "a) b (c d) ) (e:1.3) f (g",
    "unclosed": "(a cat sat (down:1.2)",
    "over_77": ", ".join(f"masterpiece number {index}" for index in range(30)),
    "over_3_chunks": "(" + " ".join(f"word{index} thing" for index in range(90)) + ":1.1) end",
    "empty": "",
    "blank": "  \n ",
    "emoji_cjk": "🐱 emoji 日本語の猫 (赤い:1.2) café",
    "embedding_start": "embedding:luna_two, a cat",
    "embedding_middle": "a cat embedding:luna_two on a chair",
    "embedding_weighted": "a cat (embedding:luna_two on:1.4) a chair",
    "embedding_missing": "a cat embedding:nowhere, on a chair",
    "embedding_wide": "a cat embedding:luna_wide on a chair",
    "comma_only": ",,, (,:1.2)",
    "long_word": "a " + "pneumonoultramicroscopicsilicovolcanoconiosis" * 12 + " b",
}
LAYERS = (None, -1, -2, -5, -12, -13, 3)
BRIEF = ("plain", "weighted", "over_77", "empty", "embedding_middle")
FEW = ("plain", "weighted", "empty")
LONG_AND_SHORT = ("a cat, " * 40, "a dog")
BRIEF_LAYERS = (None, -1, -13, -40)


def main(comfyui: str, checkpoint: str, embeddings: str, out: str, *flags: str) -> None:
    """Compute every case and write it."""
    kind = next((flag.removeprefix("--type=") for flag in flags if flag.startswith("--type=")), None)
    brief = "--brief" in flags or kind is not None
    names = (BRIEF if kind is None else FEW) if brief else tuple(PROMPTS)
    layered = ("weighted",) if kind is not None else ("plain", "weighted")
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0]]
    import comfy.options

    comfy.options.enable_args_parsing(enable=False)
    from comfy.cli_args import args

    args.cpu = True
    import torch
    from comfy import sd
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, dict[str, object]] = {}
    torch.set_num_threads(1)  # as in the tests: a convolution's sums depend on how many threads share them
    with torch.inference_mode():
        if "--vae" in flags:
            import comfy.utils

            _vae(sd.VAE(sd=comfy.utils.load_torch_file(checkpoint)), tensors, torch)
            save_file(tensors, out)
            return
        vae = None
        if kind is not None:
            clip = sd.load_clip(checkpoint.split(os.pathsep), embeddings, getattr(sd.CLIPType, kind))
        else:
            _, clip, vae, _ = sd.load_checkpoint_guess_config(
                checkpoint,
                output_vae=not brief,
                output_clip=True,
                output_model=False,
                embedding_directory=embeddings,
            )
        for name in names:
            text = PROMPTS[name]
            for layer in (BRIEF_LAYERS if brief else LAYERS) if name in layered else (None,):
                one = clip.clone()
                if layer is not None:
                    one.clip_layer(layer)
                _keep(f"{name}@{layer}", one, text, one.tokenize(text), facts, tensors, torch)
        _keep("unprojected", clip, PROMPTS["weighted"], clip.tokenize(PROMPTS["weighted"]), facts, tensors, torch)
        if kind is None and "g" in clip.tokenize(""):
            _keep("two_texts", clip, "", _two_texts(clip), facts, tensors, torch)
        if vae is not None:
            _vae(vae, tensors, torch)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, {"cases": json.dumps(facts)})


def _two_texts(clip: Any) -> Any:
    """As CLIPTextEncodeSDXL joins two prompts: the shorter side is filled with empty chunks."""
    long, short = LONG_AND_SHORT
    tokens, empty = clip.tokenize(short), clip.tokenize("")
    tokens["l"] = clip.tokenize(long)["l"]
    while len(tokens["g"]) < len(tokens["l"]):
        tokens["g"] += empty["g"]
    return tokens


def _keep(
    key: str, clip: Any, text: str, tokens: Any, facts: dict[str, Any], tensors: dict[str, Any], torch: Any
) -> None:
    """Encode one prompt and note all of it; a key of "unprojected" asks for that pooled output."""
    projected = key != "unprojected"
    cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True if projected else "unprojected")
    kept = {role: chunks for role, chunks in tokens.items() if _has(clip, role)}
    roles = _flatten(key, kept, tensors, torch)
    facts[key] = {"text": text, "layer": clip.layer_idx, "roles": roles, "projected": projected}
    tensors[f"{key}.cond"], tensors[f"{key}.pooled"] = cond.clone(), pooled.clone()


def _has(clip: Any, role: str) -> bool:
    model = clip.cond_stage_model
    return any(getattr(model, name, None) is not None for name in (role, f"clip_{role}"))


def _flatten(key: str, tokens: Any, tensors: dict[str, Any], torch: Any) -> dict[str, list[int]]:
    roles = {}
    for role, chunks in tokens.items():
        ids, weights, vectors = [], [], []
        for token, weight in (pair for chunk in chunks for pair in chunk):
            if torch.is_tensor(token):
                vectors.append(token.float())
                ids.append(-len(vectors))
            else:
                ids.append(int(token))
            weights.append(float(weight))
        tensors[f"{key}.{role}.ids"] = torch.tensor(ids, dtype=torch.int32)
        tensors[f"{key}.{role}.weights"] = torch.tensor(weights, dtype=torch.float64)
        if vectors:
            tensors[f"{key}.{role}.vectors"] = torch.stack(vectors)
        roles[role] = [len(chunk) for chunk in chunks]
    return roles


def _vae(vae: Any, tensors: dict[str, Any], torch: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for height, width, count in ((64, 64, 1), (70, 93, 1), (64, 128, 3), (129, 72, 1)):
        key = f"vae@{height}x{width}x{count}"
        pixels = torch.rand((count, height, width, 3), generator=generator)
        latent = torch.randn((count, vae.latent_channels, height // 8, width // 8), generator=generator)
        tensors[f"{key}.pixels"], tensors[f"{key}.latent"] = pixels, latent
        tensors[f"{key}.encoded"] = vae.encode(pixels).clone().contiguous()
        tensors[f"{key}.decoded"] = vae.decode(latent).clone().contiguous()
        if count == 3:  # two axes of different length; pixels for encoding, latent units for decoding
            tensors[f"{key}.encoded_tiled"] = vae.encode_tiled(pixels, tile_x=48, tile_y=64, overlap=16).contiguous()
            tensors[f"{key}.decoded_tiled"] = vae.decode_tiled(latent, tile_x=6, tile_y=8, overlap=2).contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
