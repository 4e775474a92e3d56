"""The daemon family's nodes hold to their table: ids, names, inputs in order with defaults and ranges, outputs.

The notation is the node contract's: `name T=default`, T is S string, I integer, C choice; `[a..b/s]` range and step;
CAPITALS a socket; `?` an input that may stay unlinked. What stands after `+` is declared optional.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

import comfy_nodes

FAMILY = "family C=auto"
ENCODING = "clip_skip I=0 [-24..0/1]; lora_stack? LORA_STACK; missing C=error"
CROPS = "crop_w I=0 [0..8192/1]; crop_h I=0 [0..8192/1]"
TARGETS = "target_width I=1024 [0..8192/1]; target_height I=1024 [0..8192/1]"
SIDES = "width I=1024 [512..4096/8]; height I=1024 [512..4096/8]"
TABLE = {
    "LunaSharedVAEEncode": ("Luna Shared VAE Encode", f"pixels IMAGE + {FAMILY}", "samples LATENT"),
    "LunaSharedVAEDecode": ("Luna Shared VAE Decode", f"samples LATENT + {FAMILY}", "image IMAGE"),
    "LunaSharedVAEEncodeTiled": (
        "Luna Shared VAE Encode (Tiled)",
        f"pixels IMAGE; tile_size I=512 [256..1024/64]; overlap I=64 [0..256/8] + {FAMILY}",
        "samples LATENT",
    ),
    "LunaSharedVAEDecodeTiled": (
        "Luna Shared VAE Decode (Tiled)",
        f"samples LATENT; tile_size I=64 [32..128/8]; overlap I=16 [0..64/4] + {FAMILY}",
        "image IMAGE",
    ),
    "LunaSharedCLIPEncode": (
        "Luna Shared CLIP Encode",
        f"text S + {FAMILY}; {ENCODING}",
        "conditioning CONDITIONING",
    ),
    "LunaSharedCLIPEncodeSDXL": (
        "Luna Shared CLIP Encode (SDXL)",
        f"positive S; negative S; {SIDES} + {CROPS}; {TARGETS}; positive_l S; negative_l S; {ENCODING}",
        "positive CONDITIONING; negative CONDITIONING",
    ),
    "LunaSharedCLIPEncodeDual": (
        "Luna Shared CLIP Encode (Positive + Negative)",
        f"positive S; negative S + {FAMILY}; {ENCODING}",
        "positive CONDITIONING; negative CONDITIONING",
    ),
    "LunaDaemonStatus": ("Luna Daemon Status", "", "status STRING; is_running BOOLEAN"),
    "LunaDaemonVAELoader": ("Luna Daemon VAE Loader", f"vae_name C=daemon default + {FAMILY}", "vae VAE"),
    "LunaDaemonCLIPLoader": (
        "Luna Daemon CLIP Loader",
        f"clip_name1 C; clip_name2 C=None + clip_name3 C=None; {FAMILY}",
        "clip CLIP",
    ),
    "LunaUNetTunnel": (
        "Luna UNet Tunnel",
        "model MODEL; model_type C=auto + clip? CLIP; vae? VAE",
        "model MODEL; clip CLIP; vae VAE; status STRING",
    ),
}
LETTERS = {"STRING": "S", "INT": "I"}


def written(name: str, kind: Any, options: dict[str, Any]) -> str:
    """Write one declared input in the table's notation; a socket that is optional has a question mark."""
    if isinstance(kind, list):
        return f"{name} C={options['default']}" if options.get("default") else f"{name} C"
    if kind not in LETTERS:
        return f"{name} {kind}"
    default = f"={options['default']}" if options.get("default", "") != "" else ""
    bounds = f" [{options['min']}..{options['max']}/{options['step']}]" if "min" in options else ""
    return f"{name} {LETTERS[kind]}{default}{bounds}"


def inputs(node: type[Any], group: str) -> str:
    found = [written(name, *declared) for name, declared in node.INPUT_TYPES().get(group, {}).items()]
    return "; ".join(re.sub(r"^(\w+) ([A-Z_]{3,})$", r"\1? \2", one) if group == "optional" else one for one in found)


@pytest.mark.parametrize("node_id", TABLE)
def test_the_class_says_what_the_table_says(node_id: str) -> None:
    node = comfy_nodes.NODE_CLASS_MAPPINGS[node_id]
    name, declared, outputs = TABLE[node_id]
    required, _, optional = declared.partition(" + ")
    assert name == node.DISPLAY_NAME
    assert inputs(node, "required") == required
    assert inputs(node, "optional") == optional
    assert "; ".join(map(" ".join, zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True))) == outputs
    assert node.CATEGORY == "Luna/Daemon"


def test_no_other_node_is_of_this_family() -> None:
    found = {name for name, node in comfy_nodes.NODE_CLASS_MAPPINGS.items() if node.CATEGORY == "Luna/Daemon"}
    assert found == set(TABLE)


def test_families_offered_are_those_of_the_table() -> None:
    for node_id, widget in (("LunaSharedVAEDecode", "family"), ("LunaUNetTunnel", "model_type")):
        declared = comfy_nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
        kind, _ = {**declared["required"], **declared["optional"]}[widget]
        assert kind == ["auto", "sd15", "sdxl", "sd3", "flux", "z-image"]
