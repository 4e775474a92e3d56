"""A node pack for tests only: writes what reaches a node to files, so that floats can be compared, not PNGs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors.torch import save_file


class LunaTestProbe:
    """Write a value under a name into ComfyUI's output folder."""

    CATEGORY = "tests"
    FUNCTION = "write"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's protocol
        return {"required": {"value": ("*", {}), "name": ("STRING", {"default": ""})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, str]) -> bool:  # noqa: N802 - ComfyUI's protocol
        return True

    def write(self, value: Any, name: str) -> dict[str, Any]:
        target = Path(folder_paths.get_output_directory()) / name
        if isinstance(value, (str, bool, int)) or _is_lora_stack(value):
            target.with_suffix(".json").write_text(json.dumps(value))
        else:
            save_file(_tensors(value), target.with_suffix(".safetensors"))
        return {"ui": {"probe": [name]}}


class LunaTestStack:
    """Give a LORA_STACK written as JSON."""

    CATEGORY = "tests"
    FUNCTION = "give"
    RETURN_TYPES = ("LORA_STACK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's protocol
        return {"required": {"entries": ("STRING", {"default": "[]"})}}

    def give(self, entries: str) -> tuple[list[tuple[Any, ...]]]:
        return ([tuple(entry) for entry in json.loads(entries)],)


def _is_lora_stack(value: Any) -> bool:
    return isinstance(value, list) and all(len(entry) == 3 and isinstance(entry[0], str) for entry in value)


def _tensors(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"samples": value["samples"].clone().contiguous()}
    if not isinstance(value, list):
        return {"image": value.clone().contiguous()}
    tensors: dict[str, Any] = {}
    for index, (cond, extra) in enumerate(value):
        tensors[f"{index}.cond"] = cond.clone().contiguous()
        if extra.get("pooled_output") is not None:
            tensors[f"{index}.pooled"] = extra["pooled_output"].clone().contiguous()
        for name, item in extra.items():
            if name != "pooled_output" and isinstance(item, torch.Tensor):
                tensors[f"{index}.{name}"] = item.clone().contiguous()
            elif isinstance(item, (int, float)):
                tensors[f"{index}.{name}"] = torch.tensor(float(item))
    return tensors


class LunaTestGate:
    """Hold a prompt between two nodes: write ``<name>.reached`` and wait until somebody writes ``<name>.open``."""

    CATEGORY = "tests"
    FUNCTION = "wait"
    RETURN_TYPES = ("*",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's protocol
        return {"required": {"value": ("*", {}), "name": ("STRING", {"default": ""})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, str]) -> bool:  # noqa: N802 - ComfyUI's protocol
        return True

    def wait(self, value: Any, name: str) -> tuple[Any]:
        place = Path(folder_paths.get_output_directory()) / name
        place.with_suffix(".reached").touch()
        deadline = time.monotonic() + 300
        while not place.with_suffix(".open").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened {name}")
            time.sleep(0.05)
        return (value,)


class LunaTestConditioning:
    """Give random CONDITIONING of a shape, for models whose text encoders are too large for a test."""

    CATEGORY = "tests"
    FUNCTION = "give"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's protocol
        whole = {"default": 1, "min": 1, "max": 10_000}
        return {"required": {"tokens": ("INT", whole), "width": ("INT", whole), "pooled": ("INT", whole)}}

    def give(self, tokens: int, width: int, pooled: int) -> tuple[list[list[Any]]]:
        generator = torch.Generator().manual_seed(tokens + width)
        cond = torch.randn(1, tokens, width, generator=generator)
        return ([[cond, {"pooled_output": torch.randn(1, pooled, generator=generator)}]],)


class _OneBlock(torch.nn.Module):
    """As much of a ControlNet as SD1.5's last output block takes: what it adds follows from the encoded hint."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = torch.nn.Parameter(torch.randn(320, 4, 1, 1, generator=generator), requires_grad=False)

    def forward(self, x: torch.Tensor, hint: torch.Tensor, **_: Any) -> dict[str, list[Any]]:
        return {"output": [torch.nn.functional.conv2d(hint, self.weight), *[None] * 11]}


class LunaTestControlNet:
    """ComfyUI's own ControlNet class around a tiny model that works on latents, so that it needs a VAE."""

    CATEGORY = "tests"
    FUNCTION = "give"
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's protocol
        return {"required": {}}

    def give(self) -> tuple[Any]:
        import comfy.controlnet
        import comfy.latent_formats
        import comfy.model_management as management

        found = comfy.controlnet.ControlNet(
            _OneBlock(),
            compression_ratio=1,
            latent_format=comfy.latent_formats.SD15(),
            load_device=management.get_torch_device(),
        )
        return (found,)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind
    for kind in (LunaTestProbe, LunaTestStack, LunaTestGate, LunaTestConditioning, LunaTestControlNet)
}
