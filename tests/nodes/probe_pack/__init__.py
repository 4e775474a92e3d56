"""A node pack for tests only: writes what reaches a node to files, so that floats can be compared, not PNGs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
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
    return tensors


NODE_CLASS_MAPPINGS = {"LunaTestProbe": LunaTestProbe, "LunaTestStack": LunaTestStack}
