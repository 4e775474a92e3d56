"""CLIP and VAE of the daemon by file, by default and beside a lone MODEL; tiles; SDXL's texts. All against stock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.workflows import (
    CHECKPOINT,
    Prompt,
    assert_equal_tensors,
    node,
    succeeds,
    tensors,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.nodes.processes import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1500), pytest.mark.usefixtures("only_the_demo_set")]

AE, SD15_VAE = "demo-ae.safetensors", "demo-sd15_vae.safetensors"
CLIP_L, CLIP_G = "demo-clip_l.safetensors", "demo-clip_g.safetensors"
PIXELS = 1e-4


@pytest.fixture(autouse=True)
def demo_files(demo_models: Path) -> None:
    for name in (f"vae/{AE}", f"vae/{SD15_VAE}", f"text_encoders/{CLIP_L}", f"text_encoders/{CLIP_G}"):
        if not (demo_models / name).is_file():
            pytest.skip(f"LUNA_DEMO_MODELS holds no {name}")


def compare(server: ComfyServer, prompt: Prompt, ends: dict[str, tuple[str, int]], atol: float) -> None:
    """Run a prompt whose nodes end in ``-stock`` or ``-luna`` and compare what the two of each end give."""
    for end, (name, output) in ends.items():
        for side in ("stock", "luna"):
            prompt[f"probe-{end}-{side}"] = node(
                "LunaTestProbe", value=[f"{name}-{side}", output], name=f"{end}-{side}"
            )
    succeeds(server.run(prompt))
    for end in ends:
        assert_equal_tensors(tensors(server, f"{end}-luna"), tensors(server, f"{end}-stock"), atol)


def image(width: int, height: int) -> Prompt:
    return {
        "flat": node("EmptyImage", width=width, height=height, batch_size=1, color=0x406080),
        "dots": node("EmptyImage", width=width // 2, height=height // 2, batch_size=1, color=0xF0A010),
        "image": node(
            "ImageCompositeMasked", destination=["flat", 0], source=["dots", 0], x=9, y=7, resize_source=False
        ),
    }


@pytest.mark.parametrize("name", [SD15_VAE, AE])
def test_a_vae_by_file_equals_load_vae(comfy_server: ComfyServer, name: str) -> None:
    prompt = image(72, 64)
    prompt["vae-stock"] = node("VAELoader", vae_name=name)
    prompt["vae-luna"] = node("LunaDaemonVAELoader", vae_name=name)
    for side in ("stock", "luna"):
        prompt[f"encode-{side}"] = node("VAEEncode", pixels=["image", 0], vae=[f"vae-{side}", 0])
        prompt[f"decode-{side}"] = node("VAEDecode", samples=["encode-stock", 0], vae=[f"vae-{side}", 0])
    compare(comfy_server, prompt, {f"{name[:-12]}-{end}": (end, 0) for end in ("encode", "decode")}, PIXELS)
    again = comfy_server.run(prompt)
    assert again.cached == set(prompt)


def test_the_daemons_default_vae_and_a_name_that_is_not_there(comfy_server: ComfyServer) -> None:
    prompt = image(72, 64)
    prompt["vae"] = node("LunaDaemonVAELoader", vae_name="daemon default", family="sd15")
    prompt["encode-luna"] = node("VAEEncode", pixels=["image", 0], vae=["vae", 0])
    prompt["encode-stock"] = node("LunaSharedVAEEncode", pixels=["image", 0], family="sd15")
    compare(comfy_server, prompt, {"default": ("encode", 0)}, 0.0)
    prompt = {name: made for name, made in prompt.items() if not name.endswith("-stock")}
    prompt["vae"]["inputs"]["vae_name"] = "demo-sd15_va.safetensors"
    with pytest.raises(OSError, match=r"model-missing.*did you mean demo-sd15_vae\.safetensors"):
        comfy_server.run(prompt)


def test_a_clip_by_files_equals_the_stock_loaders(comfy_server: ComfyServer) -> None:
    """One file for SD1.5; the same file for SD3, which pads what is missing."""
    prompt: Prompt = {}
    for family, kind in (("auto", "stable_diffusion"), ("sd3", "sd3")):
        prompt[f"{family}-stock"] = node("CLIPLoader", clip_name=CLIP_L, type=kind)
        prompt[f"{family}-luna"] = node(
            "LunaDaemonCLIPLoader", clip_name1=CLIP_L, clip_name2="None", clip_name3="None", family=family
        )
        for side in ("stock", "luna"):
            prompt[f"skip-{family}-{side}"] = node(
                "CLIPSetLastLayer", clip=[f"{family}-{side}", 0], stop_at_clip_layer=-2
            )
            prompt[f"encode-{family}-{side}"] = node(
                "CLIPTextEncode", clip=[f"{family}-{side}", 0], text="a (red:1.2) boat, embedding:demo-ti_sd15"
            )
            prompt[f"skipped-{family}-{side}"] = node(
                "CLIPTextEncode", clip=[f"skip-{family}-{side}", 0], text="a boat"
            )
    for side in ("stock", "luna"):
        prompt[f"texts-{side}"] = node(
            "CLIPTextEncodeSD3", clip=[f"sd3-{side}", 0], clip_l="a boat", clip_g="", t5xxl="", empty_padding="none"
        )
    names = ("encode-auto", "encode-sd3", "skipped-auto", "skipped-sd3", "texts")
    ends = {f"by-file-{name}": (name, 0) for name in names}
    compare(comfy_server, prompt, ends, 1e-4)


def test_files_of_no_family_are_told_one_by_one(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "clip": node("LunaDaemonCLIPLoader", clip_name1=CLIP_L, clip_name2=CLIP_L),
        "encode": node("CLIPTextEncode", clip=["clip", 0], text="a boat"),
        "probe": node("LunaTestProbe", value=["encode", 0], name="no-family"),
    }
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "clip"
    assert f"{CLIP_L} is a CLIP-L text encoder; {CLIP_L} is a CLIP-L text encoder" in run.error["exception_message"]


@pytest.mark.parametrize(("width", "height"), [(344, 280), (248, 256)])
def test_the_tiled_nodes_equal_the_stock_ones_and_are_plain_for_one_tile(
    comfy_server: ComfyServer, width: int, height: int
) -> None:
    """The smaller picture is one tile. Random weights make tiled and plain differ, so plain is compared with plain."""
    is_tiled = width > 256
    prompt = image(width, height)
    prompt["ckpt"] = node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    sizes = {"tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    stock: dict[str, dict[str, Any]] = {
        "encode": node("VAEEncodeTiled", pixels=["image", 0], vae=["ckpt", 2], **sizes),
        "decode": node("VAEDecodeTiled", samples=["encode-stock", 0], vae=["ckpt", 2], **sizes),
    }
    if not is_tiled:
        stock = {
            "encode": node("VAEEncode", pixels=["image", 0], vae=["ckpt", 2]),
            "decode": node("VAEDecode", samples=["encode-stock", 0], vae=["ckpt", 2]),
        }
    prompt |= {f"{name}-stock": made for name, made in stock.items()}
    prompt["encode-luna"] = node(
        "LunaSharedVAEEncodeTiled", pixels=["image", 0], tile_size=256, overlap=64, family="sd15"
    )
    prompt["decode-luna"] = node(
        "LunaSharedVAEDecodeTiled", samples=["encode-stock", 0], tile_size=32, overlap=8, family="sd15"
    )
    ends = {f"tiles-{width}-{name}": (name, 0) for name in ("encode", "decode")}
    compare(comfy_server, prompt, ends, PIXELS)


def serve_ae(server: ComfyServer, name: str) -> Prompt:
    """Have the daemon load Flux's VAE; return the nodes, which end in ``decode-stock``."""
    prompt: Prompt = {
        "served": node("LunaDaemonVAELoader", vae_name=AE),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "decode-stock": node("VAEDecode", samples=["empty", 0], vae=["served", 0]),
        "probe": node("LunaTestProbe", value=["decode-stock", 0], name=f"{name}-served"),
    }
    succeeds(server.run(prompt))
    return prompt


def beside_a_lone_model(name: str) -> Prompt:
    return {
        "model": unet(name),
        "tunnel": node("LunaUNetTunnel", model=["model", 0], model_type="auto"),
        "status": node("LunaTestProbe", value=["tunnel", 3], name=f"{name}-status"),
    }


def unet(name: str) -> dict[str, Any]:
    return node("UNETLoader", unet_name=f"demo-{name}.safetensors", weight_dtype="default")


def test_the_unet_tunnel_gives_flux_its_vae_and_the_picture_is_stocks(comfy_server: ComfyServer) -> None:
    """The conditioning is made up: T5-XXL is too large for a test."""
    prompt = {**serve_ae(comfy_server, "flux"), **beside_a_lone_model("flux")}
    prompt["vae-stock"] = node("VAELoader", vae_name=AE)
    prompt["cond"] = node("LunaTestConditioning", tokens=256, width=4096, pooled=768)
    prompt["guided"] = node("FluxGuidance", conditioning=["cond", 0], guidance=3.5)
    for side, model in (("stock", ["model", 0]), ("luna", ["tunnel", 0])):
        prompt[f"sample-{side}"] = node(
            "KSampler",
            model=model,
            positive=["guided", 0],
            negative=["guided", 0],
            latent_image=["empty", 0],
            seed=3,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )
    prompt["decode-stock"] = node("VAEDecode", samples=["sample-stock", 0], vae=["vae-stock", 0])
    prompt["decode-luna"] = node("VAEDecode", samples=["sample-luna", 0], vae=["tunnel", 2])
    compare(comfy_server, prompt, {"unet-flux": ("decode", 0)}, 1 / 255)
    assert written(comfy_server, "flux-status").startswith("[flux] CLIP not linked | VAE daemon's ")

    prompt["text"] = node("CLIPTextEncode", clip=["tunnel", 1], text="a boat")
    prompt["probe-text"] = node("LunaTestProbe", value=["text", 0], name="flux-text")
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "tunnel"
    assert "no text encoder of flux is served; there is sd15" in run.error["exception_message"]


def test_the_unet_tunnel_gives_z_image_fluxs_vae(comfy_server: ComfyServer, demo_models: Path) -> None:
    """Nothing is sampled: the model is two gigabytes wide."""
    if not (demo_models / "diffusion_models/demo-z_image.safetensors").is_file():
        pytest.skip("LUNA_DEMO_MODELS holds no demo-z_image.safetensors")
    prompt = {**serve_ae(comfy_server, "z_image"), **beside_a_lone_model("z_image")}
    prompt["decode-luna"] = node("VAEDecode", samples=["empty", 0], vae=["tunnel", 2])
    compare(comfy_server, prompt, {"z-vae": ("decode", 0)}, 0.0)
    assert written(comfy_server, "z_image-status").startswith("[z-image] CLIP not linked | VAE daemon's ")


def test_the_checkpoint_tunnel_with_flux_moves_the_vae_and_says_why_a_clip_of_another_family_stays(
    comfy_server: ComfyServer,
) -> None:
    prompt: Prompt = {
        "model": unet("flux"),
        "clip": node("CLIPLoader", clip_name=CLIP_L, type="stable_diffusion"),
        "vae": node("VAELoader", vae_name=AE),
        "tunnel": node("LunaCheckpointTunnel", model=["model", 0], clip=["clip", 0], vae=["vae", 0]),
        "status": node("LunaTestProbe", value=["tunnel", 3], name="flux-tunnel-status"),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "decode-stock": node("VAEDecode", samples=["empty", 0], vae=["vae", 0]),
        "decode-luna": node("VAEDecode", samples=["empty", 0], vae=["tunnel", 2]),
        "text": node("CLIPTextEncode", clip=["tunnel", 1], text="a boat"),
        "probe-text": node("LunaTestProbe", value=["text", 0], name="flux-tunnel-text"),
    }
    compare(comfy_server, prompt, {"flux-tunnel": ("decode", 0)}, PIXELS)
    status = written(comfy_server, "flux-tunnel-status")
    assert status.startswith("[flux] CLIP local: component-missing | VAE added | "), status


def test_the_shared_sdxl_node_equals_clip_text_encode_sdxl(comfy_server: ComfyServer) -> None:
    """Two texts and six numbers, a prompt longer for one encoder than for the other, clip skip."""
    sizes = {
        "width": 512,
        "height": 640,
        "crop_w": 8,
        "crop_h": 16,
        "target_width": 768,
        "target_height": 896,
    }
    long = ", ".join(f"boat number {index} in the harbour" for index in range(20))
    prompt: Prompt = {
        "stock": node("DualCLIPLoader", clip_name1=CLIP_L, clip_name2=CLIP_G, type="sdxl"),
        "skipped": node("CLIPSetLastLayer", clip=["stock", 0], stop_at_clip_layer=-3),
        "served": node("LunaDaemonCLIPLoader", clip_name1=CLIP_G, clip_name2=CLIP_L),
        "plain-luna": node("CLIPTextEncode", clip=["served", 0], text="a boat"),
        "plain-stock": node("CLIPTextEncode", clip=["stock", 0], text="a boat"),
    }
    compare(comfy_server, prompt, {"sdxl-plain": ("plain", 0)}, PIXELS)
    for name, clip, extra in (("both", "stock", {}), ("skip", "skipped", {"clip_skip": -3})):
        prompt[f"{name}-luna"] = node(
            "LunaSharedCLIPEncodeSDXL",
            positive="a (red:1.3) boat",
            negative=long,
            positive_l="a ship",
            **sizes,
            **extra,
        )
        for index, (text_g, text_l) in enumerate((("a (red:1.3) boat", "a ship"), (long, long))):
            prompt[f"{name}{index}-stock"] = node(
                "CLIPTextEncodeSDXL", clip=[clip, 0], text_g=text_g, text_l=text_l, **sizes
            )
            for side, link in (("stock", [f"{name}{index}-stock", 0]), ("luna", [f"{name}-luna", index])):
                prompt[f"probe-{name}{index}-{side}"] = node(
                    "LunaTestProbe", value=link, name=f"sdxl-{name}{index}-{side}"
                )
    succeeds(comfy_server.run(prompt))
    for end in ("both0", "both1", "skip0", "skip1"):
        found, stock = (tensors(comfy_server, f"sdxl-{end}-{side}") for side in ("luna", "stock"))
        assert {"0.width", "0.crop_h", "0.target_height", "0.pooled"} <= stock.keys()
        assert_equal_tensors(found, stock, PIXELS)
