"""Stock nodes of ComfyUI on the daemon's CLIP and VAE: the same as on local ones, or one clear error at the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.workflows import CHECKPOINT, Link, Prompt, node, same_on_both_sides, succeeds, tensors

if TYPE_CHECKING:
    from tests.nodes.processes import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

PIXELS = 1e-4
SAMPLING = {
    "seed": 3,
    "steps": 2,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}


def require_nodes(server: ComfyServer, *kinds: str) -> None:
    info = server.request("/object_info")
    if missing := [kind for kind in kinds if kind not in info]:
        pytest.skip(f"this ComfyUI has no {', '.join(missing)}")


def picture(side: str, width: int = 72, height: int = 64) -> Prompt:
    """A picture with an edge in it."""
    return {
        f"flat-{side}": node("EmptyImage", width=width, height=height, batch_size=1, color=0x406080),
        f"dots-{side}": node("EmptyImage", width=width // 2, height=height // 2, batch_size=1, color=0xF0A010),
        f"image-{side}": node(
            "ImageCompositeMasked",
            destination=[f"flat-{side}", 0],
            source=[f"dots-{side}", 0],
            x=5,
            y=3,
            resize_source=False,
        ),
        f"mask-{side}": node("SolidMask", value=0.7, width=width, height=height),
    }


def base() -> Prompt:
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
    }


TEXT_NODES: dict[str, dict[str, Any]] = {
    "CLIPTextEncode": {"text": "a (red:1.3) boat, ((fog)) \\(at dawn\\)"},
    "CLIPTextEncodeSDXL": {
        **dict.fromkeys(("width", "height", "target_width", "target_height"), 64),
        **dict.fromkeys(("crop_w", "crop_h"), 0),
        "text_g": "a",
        "text_l": "b",
    },
    "CLIPTextEncodeSDXLRefiner": {"ascore": 6.0, "width": 64, "height": 64, "text": "a boat"},
    "CLIPTextEncodeFlux": {"clip_l": "a", "t5xxl": "b", "guidance": 3.5},
    "CLIPTextEncodeSD3": {"clip_l": "a", "clip_g": "b", "t5xxl": "c", "empty_padding": "none"},
    "CLIPTextEncodeHunyuanDiT": {"bert": "a", "mt5xl": "b"},
    "CLIPTextEncodePixArtAlpha": {"width": 64, "height": 64, "text": "a boat"},
    "CLIPTextEncodeLumina2": {"system_prompt": "superior", "user_prompt": "a boat"},
    "CLIPTextEncodeHiDream": {"clip_l": "a", "clip_g": "b", "t5xxl": "c", "llama": "d"},
    "TextEncodeQwenImageEdit": {"prompt": "a boat"},
}


@pytest.mark.parametrize("kind", TEXT_NODES)
def test_each_text_node_does_on_the_proxy_what_it_does_on_the_clip_it_stands_for(
    comfy_server: ComfyServer, kind: str
) -> None:
    """On an SD1.5 CLIP most nodes of other families fail with a KeyError; some work. Both sides must agree."""
    require_nodes(comfy_server, kind)
    answers = []
    for side in ("ckpt", "tunnel"):
        prompt = base()
        prompt["encode"] = node(kind, clip=[side, 1], **TEXT_NODES[kind])
        prompt["probe"] = node("LunaTestProbe", value=["encode", 0], name=f"{kind}-{side}")
        run = comfy_server.run(prompt)
        answers.append((run.is_success, None if run.is_success else run.error["exception_type"]))
        if not run.is_success:
            assert run.error["node_id"] == "encode"
    assert answers[0] == answers[1]
    if answers[0][0]:
        stock, found = (tensors(comfy_server, f"{kind}-{side}") for side in ("ckpt", "tunnel"))
        assert found.keys() == stock.keys()
        for name, tensor in stock.items():
            assert float((found[name] - tensor).abs().max()) <= 1e-5, name


def test_tokenizer_options_and_the_controlnet_text_node(comfy_server: ComfyServer) -> None:
    require_nodes(comfy_server, "T5TokenizerOptions", "CLIPTextEncodeControlnet")

    def build(clip: Link, vae: Link, side: str) -> tuple[Prompt, Link]:
        nodes: Prompt = {
            f"options-{side}": node("T5TokenizerOptions", clip=clip, min_padding=3, min_length=9),
            f"encode-{side}": node("CLIPTextEncode", text="a boat", clip=[f"options-{side}", 0]),
            f"control-{side}": node(
                "CLIPTextEncodeControlnet", clip=clip, conditioning=[f"encode-{side}", 0], text="a ship"
            ),
        }
        return nodes, [f"control-{side}", 0]

    same_on_both_sides(comfy_server, "options", build)
    assert "0.cross_attn_controlnet" in tensors(comfy_server, "options-tunnel")


def test_attention_multiplied_changes_the_proxy_as_the_clip(comfy_server: ComfyServer) -> None:
    """The node scales the weights themselves; ComfyUI rounds them to half precision, the daemon need not."""
    require_nodes(comfy_server, "CLIPAttentionMultiply")

    def build(clip: Link, vae: Link, side: str) -> tuple[Prompt, Link]:
        nodes: Prompt = {
            f"times-{side}": node("CLIPAttentionMultiply", clip=clip, q=1.5, k=0.75, v=1.25, out=0.5),
            f"encode-{side}": node("CLIPTextEncode", text="a boat", clip=[f"times-{side}", 0]),
            f"plain-{side}": node("CLIPTextEncode", text="a boat", clip=clip),
            f"p-{side}": node("LunaTestProbe", value=[f"plain-{side}", 0], name=f"times-plain-{side}"),
        }
        return nodes, [f"encode-{side}", 0]

    same_on_both_sides(comfy_server, "times", build, 2e-2)
    changed, plain = tensors(comfy_server, "times-tunnel"), tensors(comfy_server, "times-plain-tunnel")
    assert float((changed["0.cond"] - plain["0.cond"]).abs().max()) > 0.5


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("CLIPSave", {"clip": ["tunnel", 1], "filename_prefix": "never"}),
        ("CLIPMergeSimple", {"clip1": ["ckpt", 1], "clip2": ["tunnel", 1], "ratio": 0.5}),
        ("VAESave", {"vae": ["tunnel", 2], "filename_prefix": "never"}),
        (
            "CheckpointSave",
            {"model": ["ckpt", 0], "clip": ["tunnel", 1], "vae": ["ckpt", 2], "filename_prefix": "never"},
        ),
    ],
)
def test_what_needs_the_weights_says_so_at_its_node_and_comfyui_goes_on(
    comfy_server: ComfyServer, kind: str, inputs: dict[str, Any]
) -> None:
    prompt = base()
    prompt["wants"] = node(kind, **inputs)
    if kind == "CLIPMergeSimple":
        prompt["encode"] = node("CLIPTextEncode", text="a boat", clip=["wants", 0])
        prompt["probe"] = node("LunaTestProbe", value=["encode", 0], name="merged")
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "wants"
    assert "remote-only" in run.error["exception_message"]
    assert "from before the tunnel" in run.error["exception_message"]
    succeeds(comfy_server.run({"status": node("LunaDaemonStatus")}))


def test_inpaint_and_instruct_conditioning(comfy_server: ComfyServer) -> None:
    """Both encode with the VAE and put latents into the conditioning, where a sampler finds them."""

    def build(clip: Link, vae: Link, side: str) -> tuple[Prompt, Link]:
        nodes = picture(side)
        common = {"pixels": [f"image-{side}", 0], "vae": vae}
        nodes[f"encode-{side}"] = node("CLIPTextEncode", text="a boat", clip=clip)
        both = {"positive": [f"encode-{side}", 0], "negative": [f"encode-{side}", 0], **common}
        nodes[f"inpaint-{side}"] = node("InpaintModelConditioning", **both, mask=[f"mask-{side}", 0], noise_mask=True)
        nodes[f"instruct-{side}"] = node("InstructPixToPixConditioning", **both)
        for name in ("inpaint", "instruct"):
            for output in range(3):
                nodes[f"{name}-{output}-{side}"] = node(
                    "LunaTestProbe", value=[f"{name}-{side}", output], name=f"{name}-{output}-{side}"
                )
        return nodes, [f"inpaint-{side}", 0]

    same_on_both_sides(comfy_server, "concat", build, PIXELS)
    assert "0.concat_latent_image" in tensors(comfy_server, "concat-tunnel")
    for name in ("inpaint", "instruct"):
        for output in range(3):
            stock, found = (tensors(comfy_server, f"{name}-{output}-{side}") for side in ("ckpt", "tunnel"))
            assert found.keys() == stock.keys()
            assert all(float((found[key] - stock[key]).abs().max()) <= PIXELS for key in stock)


def test_a_fourth_channel_and_a_mask_in_the_latent(comfy_server: ComfyServer) -> None:
    def build(clip: Link, vae: Link, side: str) -> tuple[Prompt, Link]:
        nodes = picture(side)
        nodes[f"rgba-{side}"] = node("JoinImageWithAlpha", image=[f"image-{side}", 0], alpha=[f"mask-{side}", 0])
        nodes[f"encode-{side}"] = node("VAEEncode", pixels=[f"rgba-{side}", 0], vae=vae)
        nodes[f"masked-{side}"] = node("SetLatentNoiseMask", samples=[f"encode-{side}", 0], mask=[f"mask-{side}", 0])
        nodes[f"decode-{side}"] = node("VAEDecode", samples=[f"masked-{side}", 0], vae=vae)
        nodes[f"latent-{side}"] = node("LunaTestProbe", value=[f"masked-{side}", 0], name=f"rgba-latent-{side}")
        return nodes, [f"decode-{side}", 0]

    same_on_both_sides(comfy_server, "rgba", build, PIXELS)


def test_an_overlap_of_half_a_tile_is_an_error_with_the_limit(comfy_server: ComfyServer) -> None:
    """The stock VAE divides by zero here."""
    prompt = {**base(), **picture("x", 96, 96)}
    prompt["encode"] = node(
        "VAEEncodeTiled",
        pixels=["image-x", 0],
        vae=["tunnel", 2],
        tile_size=64,
        overlap=32,
        temporal_size=64,
        temporal_overlap=8,
    )
    prompt["probe"] = node("LunaTestProbe", value=["encode", 0], name="half")
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "encode"
    assert "value-range" in run.error["exception_message"]
    assert "use less than 32" in run.error["exception_message"]


@pytest.mark.parametrize("kind", ["ControlNetApplyAdvanced", "ControlNetApplySD3"])
def test_a_controlnet_encodes_its_hint_in_the_daemon_while_the_model_samples(
    comfy_server: ComfyServer, kind: str
) -> None:
    """ComfyUI calls the VAE from inside the sampler, then reloads its models."""

    def build(clip: Link, vae: Link, side: str) -> tuple[Prompt, Link]:
        nodes = picture(side, 96, 80)
        for role, text in (("positive", "a boat"), ("negative", "fog")):
            nodes[f"{role}-{side}"] = node("CLIPTextEncode", text=text, clip=clip)
        both = {"positive": [f"positive-{side}", 0], "negative": [f"negative-{side}", 0]}
        nodes[f"net-{side}"] = node("LunaTestControlNet")
        nodes[f"apply-{side}"] = node(
            kind,
            **both,
            control_net=[f"net-{side}", 0],
            vae=vae,
            image=[f"image-{side}", 0],
            strength=10.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        for name, source in (
            ("with", {"positive": [f"apply-{side}", 0], "negative": [f"apply-{side}", 1]}),
            ("without", both),
        ):
            nodes[f"{name}-{side}"] = node(
                "KSampler", model=["ckpt", 0], **source, latent_image=["latent", 0], **SAMPLING
            )
            nodes[f"decode-{name}-{side}"] = node("VAEDecode", samples=[f"{name}-{side}", 0], vae=vae)
        nodes[f"p-{side}"] = node("LunaTestProbe", value=[f"decode-without-{side}", 0], name=f"{kind}-without-{side}")
        return nodes, [f"decode-with-{side}", 0]

    require_nodes(comfy_server, kind)
    same_on_both_sides(comfy_server, kind, build, 1 / 255)
    controlled, plain = (tensors(comfy_server, f"{kind}{name}")["image"] for name in ("-tunnel", "-without-tunnel"))
    assert float((controlled - plain).abs().max()) > 0.01
