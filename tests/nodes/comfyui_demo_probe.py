"""Run by ComfyUI's Python: loads one demo file with ComfyUI's own functions and prints what it took it for.

Usage: PYTHON comfyui_demo_probe.py COMFYUI_PATH DEMO_FOLDER NAME -> one JSON object on stdout.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(comfyui: str, folder: str, name: str) -> None:
    """Load the file and report its classes, output statistics and every complaint about keys."""
    sys.path.insert(0, comfyui)
    sys.argv = ["probe", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    logging.getLogger().setLevel(logging.DEBUG)
    import torch

    with torch.inference_mode():
        facts = PROBES[name](Path(folder))
    words = ("missing", "unexpected", "left over", "not loaded", "error", "shape mismatch")
    ignored = ("torchaudio missing",)
    facts["complaints"] = [
        line
        for line in collector.lines
        if any(word in line.lower() for word in words)
        and not line.startswith(ignored)
        and not line.rstrip().endswith(("[]", "set()"))
    ]
    print(json.dumps(facts))


def _difference(a: object, b: object) -> dict[str, object]:
    return {
        "finite": bool(a.isfinite().all() and b.isfinite().all()),
        "spread": float(a.float().std()),
        "difference": float((a.float() - b.float()).std()),
    }


def _encode(clip: object) -> dict[str, object]:
    first, second = (
        clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
        for text in ("a cat on a roof", "moonlit harbour, ink drawing")
    )
    facts = {"clip": type(clip.cond_stage_model).__name__, "text": _difference(first[0], second[0])}
    if first[1] is not None:
        facts["pooled"] = _difference(first[1], second[1])
    return facts


def _decode(vae: object) -> dict[str, object]:
    import torch

    channels = vae.latent_channels
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(1, channels, 8, 8, generator=generator) for _ in range(2)]
    images = [vae.decode(latent) for latent in latents]
    again = vae.encode(images[0])
    return {
        "vae": type(vae.first_stage_model).__name__,
        "latent_channels": channels,
        "image": _difference(*images),
        "latent_finite": bool(again.isfinite().all()),
    }


def _checkpoint(name: str):  # noqa: ANN202
    def probe(folder: Path) -> dict[str, object]:
        import comfy.sd

        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(folder / f"checkpoints/demo-{name}.safetensors"), output_vae=True, output_clip=True
        )
        facts = {"model": type(model.model).__name__, "config": type(model.model.model_config).__name__}
        return {**facts, **_encode(clip), **_decode(vae)}

    return probe


def _diffusion(name: str, inputs: dict[str, tuple[int, ...]], channels: int):  # noqa: ANN202
    def probe(folder: Path) -> dict[str, object]:
        import comfy.sd
        import torch

        patcher = comfy.sd.load_diffusion_model(str(folder / f"diffusion_models/demo-{name}.safetensors"))
        net = patcher.model.diffusion_model
        generator = torch.Generator().manual_seed(1)
        dtype = next(net.parameters()).dtype
        latent = torch.randn(1, channels, 8, 8, generator=generator, dtype=torch.float32).to(dtype)

        def run() -> torch.Tensor:
            extra = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in inputs.items()}
            if name == "z_image":
                extra |= {"num_tokens": inputs["context"][1]}
            if name == "flux":
                extra |= {"guidance": torch.tensor([3.5], dtype=dtype)}
            return net(latent, torch.tensor([0.5], dtype=dtype), **extra)

        facts = {
            "model": type(patcher.model).__name__,
            "config": type(patcher.model.model_config).__name__,
        }
        return {**facts, "output": _difference(run(), run())}

    return probe


def _text(name: str, kind: str):  # noqa: ANN202
    def probe(folder: Path) -> dict[str, object]:
        import comfy.sd
        import comfy.utils

        path = str(folder / f"text_encoders/demo-{name}.safetensors")
        detected = comfy.sd.detect_te_model(comfy.utils.load_torch_file(path))
        clip = comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType[kind])
        return {"detected": detected.name, **_encode(clip)}

    return probe


def _t5xxl(folder: Path) -> dict[str, object]:
    """Compare names and shapes with ComfyUI's class: the model itself would fill 14 GB."""
    import comfy.ops
    import comfy.sd
    import comfy.text_encoders.t5
    import comfy.utils
    import torch

    weights = comfy.utils.load_torch_file(str(folder / "text_encoders/demo-t5xxl.safetensors"))
    config = json.loads((Path(comfy.text_encoders.t5.__file__).with_name("t5_config_xxl.json")).read_text("utf-8"))
    model = comfy.text_encoders.t5.T5(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    return {
        "detected": comfy.sd.detect_te_model(weights).name,
        "fits": found == expected,
        "differs": sorted({*expected.items()} ^ {*found.items()}),
    }


def _vae(name: str):  # noqa: ANN202
    def probe(folder: Path) -> dict[str, object]:
        import comfy.sd
        import comfy.utils

        weights = comfy.utils.load_torch_file(str(folder / f"vae/demo-{name}.safetensors"))
        return _decode(comfy.sd.VAE(sd=weights))

    return probe


def _lora(name: str, base: str):  # noqa: ANN202
    def probe(folder: Path) -> dict[str, object]:
        import comfy.sd
        import comfy.utils

        clip = None
        if base in {"sd15", "sdxl"}:
            model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(
                str(folder / f"checkpoints/demo-{base}.safetensors"), output_vae=True, output_clip=True
            )
        else:
            model = comfy.sd.load_diffusion_model(str(folder / f"diffusion_models/demo-{base}.safetensors"))
        lora = comfy.utils.load_torch_file(str(folder / f"loras/demo-lora_{name}.safetensors"))
        patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
        return {
            "model_patches": len(patched.patches),
            "clip_patches": len(patched_clip.patcher.patches) if clip else 0,
        }

    return probe


def _embedding(name: str, base: str):  # noqa: ANN202
    def probe(folder: Path) -> dict[str, object]:
        import comfy.sd

        _, clip, _, _ = comfy.sd.load_checkpoint_guess_config(
            str(folder / f"checkpoints/demo-{base}.safetensors"),
            output_vae=True,
            output_clip=True,
            embedding_directory=str(folder / "embeddings"),
        )
        tokens = clip.tokenize(f"embedding:demo-ti_{name}")
        vectors = {key: sum(not isinstance(entry[0], int) for entry in rows[0]) for key, rows in tokens.items()}
        return {"vectors": vectors}

    return probe


def _converted_bf16(folder: Path) -> dict[str, object]:
    """Load Luna's bf16 file with the stock loader and compare every weight with the checkpoint's, cast by torch."""
    import comfy.sd
    import comfy.utils
    import torch

    patcher = comfy.sd.load_diffusion_model(str(folder / "converted.safetensors"))
    weights = comfy.utils.load_torch_file(str(folder / "checkpoints/demo-sdxl.safetensors"))
    prefix = "model.diffusion_model."
    source = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    loaded = patcher.model.diffusion_model.state_dict()
    return {
        "config": type(patcher.model.model_config).__name__,
        "same_names": loaded.keys() == source.keys(),
        "different": [
            key for key, value in source.items()
            if not torch.equal(loaded[key].float(), value.to(torch.bfloat16).float())
        ],
    }  # fmt: skip


def _converted_gguf(folder: Path) -> dict[str, object]:
    """Build the model from Luna's GGUF file, decoded by the gguf package's values that Luna put beside it."""
    import comfy.sd
    import comfy.utils

    weights = comfy.utils.load_torch_file(str(folder / "decoded.safetensors"))
    count = len(weights)
    patcher = comfy.sd.load_diffusion_model_state_dict(weights)
    return {
        "config": type(patcher.model.model_config).__name__,
        "model_type": patcher.model.model_type.name,
        "zsnr": patcher.model.model_config.sampling_settings.get("zsnr", False),
        "tensors": count,
    }


PROBES = {
    "converted_bf16": _converted_bf16,
    "converted_gguf": _converted_gguf,
    "sd15": _checkpoint("sd15"),
    "sdxl": _checkpoint("sdxl"),
    "flux": _diffusion("flux", {"context": (1, 16, 4096), "y": (1, 768)}, 16),
    "sd3": _diffusion("sd3", {"context": (1, 16, 4096), "y": (1, 2048)}, 16),
    "z_image": _diffusion("z_image", {"context": (1, 16, 2560)}, 16),
    "clip_l": _text("clip_l", "STABLE_DIFFUSION"),
    "clip_g": _text("clip_g", "STABLE_DIFFUSION"),
    "t5xxl": _t5xxl,
    "sd15_vae": _vae("sd15_vae"),
    "sdxl_vae": _vae("sdxl_vae"),
    "ae": _vae("ae"),
    "lora_sd15": _lora("sd15", "sd15"),
    "lora_sdxl": _lora("sdxl", "sdxl"),
    "lora_flux": _lora("flux", "flux"),
    "lora_z_image": _lora("z_image", "z_image"),
    "ti_sd15": _embedding("sd15", "sd15"),
    "ti_sdxl": _embedding("sdxl", "sdxl"),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
