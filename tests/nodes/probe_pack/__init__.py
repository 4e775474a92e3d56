"""A node pack for tests only: writes what reaches a node to files, so that floats can be compared, not PNGs."""

import json
from pathlib import Path

import folder_paths
from safetensors.torch import save_file


class LunaTestProbe:
    """Write a value under a name into ComfyUI's output folder."""

    CATEGORY = "tests"
    FUNCTION = "write"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*", {}), "name": ("STRING", {"default": ""})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def write(self, value, name):
        target = Path(folder_paths.get_output_directory()) / name
        if isinstance(value, (str, bool)):
            target.with_suffix(".json").write_text(json.dumps(value))
            return {"ui": {"probe": [name]}}
        tensors = {}
        if isinstance(value, dict):  # LATENT
            tensors["samples"] = value["samples"].clone()
        elif isinstance(value, list):  # CONDITIONING
            for index, (cond, extra) in enumerate(value):
                tensors[f"{index}.cond"] = cond.clone()
                if extra.get("pooled_output") is not None:
                    tensors[f"{index}.pooled"] = extra["pooled_output"].clone()
        else:  # IMAGE
            tensors["image"] = value.clone()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, target.with_suffix(".safetensors"))
        return {"ui": {"probe": [name]}}


NODE_CLASS_MAPPINGS = {"LunaTestProbe": LunaTestProbe}
