"""The tunnel and stock nodes on SDXL, its refiner and SD3 in real ComfyUI: the same as without Luna.

The demo models for it are large; LUNA_DEMO_MODELS names a folder that has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.nodes.workflows import Prompt, assert_equal_tensors, node, succeeds, tensors, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.nodes.processes import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1500), pytest.mark.usefixtures("only_the_demo_set")]

LIMIT = 1e-4
"""Of values up to about 10."""
SIZES = {"width": 512, "height": 640, "crop_w": 8, "crop_h": 16, "target_width": 768, "target_height": 896}
AE = "demo-ae.safetensors"


@pytest.fixture
def require(demo_models: Path) -> Callable[..., None]:
    """Skip where demo files are not there."""

    def check(*names: str) -> None:
        missing = [name for name in names if not (demo_models / name).is_file()]
        if missing:
            pytest.skip(f"LUNA_DEMO_MODELS holds no {', '.join(missing)}")

    return check


def compare(server: ComfyServer, prompt: Prompt, ends: dict[str, tuple[str, int]]) -> None:
    """Run a prompt whose nodes end in ``-ckpt`` or ``-tunnel`` and compare what the two of each end give."""
    for end, (name, output) in ends.items():
        for side in ("ckpt", "tunnel"):
            prompt[f"probe-{end}-{side}"] = node(
                "LunaTestProbe", value=[f"{name}-{side}", output], name=f"{end}-{side}"
            )
    succeeds(server.run(prompt))
    for end in ends:
        assert_equal_tensors(tensors(server, f"{end}-tunnel"), tensors(server, f"{end}-ckpt"), LIMIT)


def test_sdxl(comfy_server: ComfyServer, require: Callable[..., None]) -> None:
    """Two texts with the six numbers, inversions for both encoders, clip skip, the image."""
    require("checkpoints/demo-sdxl.safetensors")
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name="demo-sdxl.safetensors"),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
        "status": node("LunaTestProbe", value=["tunnel", 3], name="sdxl-status"),
        "image": node("EmptyImage", width=72, height=64, batch_size=1, color=0x406080),
    }
    texts = {"text_g": "a (red:1.3) boat", "text_l": "a boat embedding:demo-ti_sdxl on the sea"}
    for side in ("ckpt", "tunnel"):
        prompt[f"skip-{side}"] = node("CLIPSetLastLayer", clip=[side, 1], stop_at_clip_layer=-3)
        prompt[f"sdxl-{side}"] = node("CLIPTextEncodeSDXL", clip=[side, 1], **SIZES, **texts)
        prompt[f"plain-{side}"] = node("CLIPTextEncode", clip=[f"skip-{side}", 0], text="a boat")
        prompt[f"encode-{side}"] = node("VAEEncode", pixels=["image", 0], vae=[side, 2])
        prompt[f"decode-{side}"] = node("VAEDecode", samples=["encode-ckpt", 0], vae=[side, 2])
    ends = {f"sdxl-{name}": (name, 0) for name in ("sdxl", "plain", "encode", "decode")}
    compare(comfy_server, prompt, ends)
    assert "local" not in written(comfy_server, "sdxl-status")


def test_the_refiners_single_encoder(comfy_server: ComfyServer, require: Callable[..., None]) -> None:
    require("checkpoints/demo-sdxl.safetensors", "text_encoders/demo-clip_g.safetensors")
    prompt: Prompt = {
        "model": node("CheckpointLoaderSimple", ckpt_name="demo-sdxl.safetensors"),
        "clip": node("CLIPLoader", clip_name="demo-clip_g.safetensors", type="stable_diffusion"),
        "tunnel": node("LunaCheckpointTunnel", model=["model", 0], clip=["clip", 0], vae=["model", 2]),
    }
    for side, clip in (("ckpt", ["clip", 0]), ("tunnel", ["tunnel", 1])):
        prompt[f"refiner-{side}"] = node(
            "CLIPTextEncodeSDXLRefiner", ascore=6.0, width=512, height=512, text="a boat", clip=clip
        )
    compare(comfy_server, prompt, {"refiner": ("refiner", 0)})


def test_sd3_without_t5(comfy_server: ComfyServer, require: Callable[..., None]) -> None:
    require(
        "diffusion_models/demo-sd3.safetensors",
        "text_encoders/demo-clip_l.safetensors",
        "text_encoders/demo-clip_g.safetensors",
        f"vae/{AE}",
    )
    prompt: Prompt = {
        "model": node("UNETLoader", unet_name="demo-sd3.safetensors", weight_dtype="default"),
        "clip": node(
            "DualCLIPLoader", clip_name1="demo-clip_l.safetensors", clip_name2="demo-clip_g.safetensors", type="sd3"
        ),
        "vae": node("VAELoader", vae_name=AE),
        "tunnel": node("LunaCheckpointTunnel", model=["model", 0], clip=["clip", 0], vae=["vae", 0]),
        "status": node("LunaTestProbe", value=["tunnel", 3], name="sd3-status"),
    }
    for side, clip in (("ckpt", ["clip", 0]), ("tunnel", ["tunnel", 1])):
        prompt[f"encode-{side}"] = node(
            "CLIPTextEncodeSD3",
            clip=clip,
            clip_l="a boat",
            clip_g="a (red:0.7) boat",
            t5xxl="unused",
            empty_padding="none",
        )
    compare(comfy_server, prompt, {"sd3": ("encode", 0)})
    assert written(comfy_server, "sd3-status").startswith("[sd3] CLIP added | VAE ")
