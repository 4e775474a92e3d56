"""Nodes that load models: LunaDynamicModelLoader keeps a small converted file of each checkpoint and loads that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luna_engine.errors import LunaError
from luna_engine.weights.precisions import find_precision

from . import comfy
from .access import require_writable
from .conversions import converted
from .linked import INPUT, is_linked
from .widgets import choice, text

_SCALED_FP8 = "fp8_e4m3fn_scaled"
# What the node offers, and the engine's label: the node's fp8 is the scaled form, as its name in the file says.
_PRECISIONS = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8_e4m3fn": _SCALED_FP8,
    "gguf_Q8_0": "gguf_Q8_0",
    "gguf_Q4_K_M": "gguf_Q4_K_M",
}
_MODEL, _CLIP, _VAE = 0, 1, 2


class LunaDynamicModelLoader:
    """Load a checkpoint's diffusion model in a chosen precision, converting it once; CLIP and VAE from the source."""

    DISPLAY_NAME = "Luna Dynamic Model Loader"
    DESCRIPTION = (
        "Loads a checkpoint with its diffusion model in another precision. The converted file is made once, in a "
        "process of its own, and found again by what it was made from; CLIP and VAE come from the checkpoint, and only "
        "what is linked is read. GGUF files need no other node pack."
    )
    SEARCH_ALIASES = ["fp8", "quantize", "optimized", "precision"]
    CATEGORY = "Luna/Models"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING")
    RETURN_NAMES = ("model", "clip", "vae", "unet_path")
    OUTPUT_TOOLTIPS = (
        "The diffusion model in the chosen precision.",
        "The checkpoint's text encoders; read only if linked.",
        "The checkpoint's VAE; read only if linked.",
        "The file that the model was loaded from.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the checkpoint, the precision and where converted files go."""
        return {
            "required": {
                "ckpt_name": (
                    comfy.current_host().model_files(),
                    {"tooltip": "A checkpoint, or a file with a diffusion model alone."},
                ),
                "precision": choice(
                    tuple(_PRECISIONS),
                    "bf16",
                    "What the diffusion model is loaded as. A finer one than the source's is refused.",
                ),
            },
            "optional": {
                "local_weights_dir": text(
                    "Folder for converted files, say on a fast disk; below ComfyUI's own or the setting allowed_roots."
                ),
            },
            "hidden": {INPUT: "STRING"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, ckpt_name: str | None = None) -> bool | str:
        """Say which files are nearest to a name that is not there."""
        try:
            if ckpt_name is not None:
                comfy.current_host().model_path(ckpt_name)
        except LunaError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, ckpt_name: str | None = None, **_: Any) -> str:
        """Run again when the checkpoint was replaced; never raises."""
        try:
            found = comfy.current_host().model_path(ckpt_name or "").stat()
        except (LunaError, OSError):
            return "missing"
        return f"{found.st_size} {found.st_mtime_ns}"

    def load(
        self, ckpt_name: str, precision: str, local_weights_dir: str = "", luna_linked: str | None = None
    ) -> tuple[Any, Any, Any, str]:
        """Convert if needed, and load what is linked.

        Raises:
            LunaError: ``model-missing``, ``path-outside``, ``component-missing`` (CLIP or VAE linked, none in the
                source), and all that a conversion raises.
        """
        host = comfy.current_host()
        source = host.model_path(ckpt_name)
        label = find_precision(_PRECISIONS.get(precision.strip().partition(" ")[0], precision)).label
        if label == _SCALED_FP8 and not host.reads_scaled_fp8():
            raise LunaError(
                "precision-unsupported",
                "this ComfyUI would read scaled fp8 without its scales",
                "choose another precision, or convert with `luna weights convert --fp8-layout legacy`",
            )
        folder = None
        if local_weights_dir.strip():
            folder = require_writable(Path(local_weights_dir), host)
        unet = converted(host, source, label, folder)
        model = host.load_diffusion_model(unet) if is_linked(luna_linked, _MODEL) else None
        clip, vae = host.load_clip_and_vae(source, clip=is_linked(luna_linked, _CLIP), vae=is_linked(luna_linked, _VAE))
        return model, clip, vae, str(unet)


NODES = (LunaDynamicModelLoader,)
