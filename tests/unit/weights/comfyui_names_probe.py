"""Runs under ComfyUI's Python: prints where ComfyUI itself takes each diffusers name of a model, as JSON.

`python comfyui_names_probe.py COMFYUI FAMILY < SHAPES`: SHAPES maps reference names to shapes.
Prints {diffusers name: [reference name, first row or null, rows or null, whether halves are exchanged]}.
"""

from __future__ import annotations

import json
import sys

MAPPINGS = {
    "flux": "flux_to_diffusers",
    "sd3": "mmdit_to_diffusers",
    "aura": "auraflow_to_diffusers",
    "z_image": "z_image_to_diffusers",
    "sd15": "unet_to_diffusers",
    "sdxl": "unet_to_diffusers",
}


def main() -> None:
    """Detect the model from shapes alone and ask for its mapping."""
    root, family = sys.argv[1:]
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, root)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_detection
    import comfy.utils
    import torch

    shapes = json.load(sys.stdin)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = comfy.model_detection.detect_unet_config(state, "")
    found = {}
    for name, place in getattr(comfy.utils, MAPPINGS[family])(config).items():
        target, rows, change = place, None, None
        if isinstance(place, tuple):
            target, rows, change = (*place, None)[:3]
        first, count = rows[1:] if rows else (None, None)
        found[name] = [target, first, count, change is not None]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
