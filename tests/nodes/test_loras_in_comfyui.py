"""LoRAs on shared text encoders in a real ComfyUI: Load LoRA behind the tunnel, and stacks on the shared nodes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from tests.nodes.workflows import CHECKPOINT, Prompt, node, succeeds, tensors

if TYPE_CHECKING:
    from tests.nodes.processes import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

LORA = "demo-lora_sd15.safetensors"
STRENGTHS = (0.9, -0.5, 0.4)
ROUNDING = 5e-3
"""ComfyUI rounds merged weights to fp16 and the side path does not; relative to what the LoRA changes."""


def base() -> Prompt:
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
    }


def loader(source: str, strength: float, model_strength: float = 1.0) -> dict[str, Any]:
    return node(
        "LoraLoader",
        model=[source, 0],
        clip=[source, 1],
        lora_name=LORA,
        strength_model=model_strength,
        strength_clip=strength,
    )


def assert_same_effect(found: torch.Tensor, stock: torch.Tensor, plain: torch.Tensor) -> None:
    """The LoRA has an effect, and the difference from stock is small beside it."""
    effect = float((stock - plain).abs().max())
    assert effect > 0.01
    assert float((found - stock).abs().max()) <= ROUNDING * effect


def test_load_lora_behind_the_tunnel_gives_the_stock_conditioning_one_or_three_in_a_chain(
    comfy_server: ComfyServer,
) -> None:
    prompt = base()
    for side in ("ckpt", "tunnel"):
        source = side
        for index, strength in enumerate(STRENGTHS):
            prompt[f"lora-{side}-{index}"] = loader(source, strength)
            source = f"lora-{side}-{index}"
            prompt[f"encode-{side}-{index}"] = node("CLIPTextEncode", text="a boat", clip=[source, 1])
            prompt[f"probe-{side}-{index}"] = node(
                "LunaTestProbe", value=[f"encode-{side}-{index}", 0], name=f"chain-{side}-{index}"
            )
    prompt["plain"] = node("CLIPTextEncode", text="a boat", clip=["tunnel", 1])
    prompt["probe"] = node("LunaTestProbe", value=["plain", 0], name="chain-plain")
    succeeds(comfy_server.run(prompt))
    plain = tensors(comfy_server, "chain-plain")
    for index in (0, 2):
        stock, found = (tensors(comfy_server, f"chain-{side}-{index}") for side in ("ckpt", "tunnel"))
        for name in plain:
            assert_same_effect(found[name], stock[name], plain[name])


def picture(side: str, name: str) -> Prompt:
    prompt = base()
    prompt["lora"] = loader(side, 1.0)
    prompt["empty"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    for role, text in (("positive", "a boat"), ("negative", "fog")):
        prompt[role] = node("CLIPTextEncode", text=text, clip=["lora", 1])
    prompt["sampler"] = node(
        "KSampler",
        model=["lora", 0],
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["empty", 0],
        seed=3,
        steps=2,
        cfg=2.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    prompt["decode"] = node("VAEDecode", samples=["sampler", 0], vae=[side, 2])
    prompt["probe"] = node("LunaTestProbe", value=["decode", 0], name=name)
    return prompt


def test_load_lora_behind_the_tunnel_gives_the_stock_picture(comfy_server: ComfyServer) -> None:
    for side in ("ckpt", "tunnel"):
        succeeds(comfy_server.run(picture(side, f"lora-picture-{side}")))
    stock, found = (tensors(comfy_server, f"lora-picture-{side}")["image"] for side in ("ckpt", "tunnel"))
    assert float(stock.std()) > 0.01
    assert float((found - stock).abs().max()) <= 1 / 255


@pytest.mark.parametrize("kind", ["LunaSharedCLIPEncode", "LunaSharedCLIPEncodeDual"])
def test_a_stack_on_the_shared_nodes_equals_load_lora(comfy_server: ComfyServer, kind: str) -> None:
    texts = {"text": "a boat"} if kind == "LunaSharedCLIPEncode" else {"positive": "a boat", "negative": "fog"}
    prompt = base()
    stack = [["demo-lora_sd15", 1.0, 0.9], ["None", 1.0, 1.0], ["nowhere", 0.0, 0.0]]
    prompt["stack"] = node("LunaTestStack", entries=json.dumps(stack))
    prompt["shared"] = node(kind, **texts, lora_stack=["stack", 0])
    prompt["plain"] = node(kind, **texts)
    prompt["lora"] = loader("ckpt", 0.9)
    for output, text in enumerate(texts.values()):
        prompt[f"stock-{output}"] = node("CLIPTextEncode", text=text, clip=["lora", 1])
        for name, link in (
            ("shared", ["shared", output]),
            ("plain", ["plain", output]),
            ("stock", [f"stock-{output}", 0]),
        ):
            prompt[f"{name}-probe-{output}"] = node("LunaTestProbe", value=link, name=f"{kind}-{name}-{output}")
    succeeds(comfy_server.run(prompt))
    for output in range(len(texts)):
        found, plain, stock = (
            tensors(comfy_server, f"{kind}-{name}-{output}") for name in ("shared", "plain", "stock")
        )
        for name in plain:
            assert_same_effect(found[name], stock[name], plain[name])


@pytest.mark.parametrize("is_scheduled", [True, False])
def test_a_lora_hook_changes_the_text_at_each_keyframe_as_stock_does(
    comfy_server: ComfyServer,
    is_scheduled: bool,  # noqa: FBT001 - a parameter
) -> None:
    prompt = base()
    for side in ("ckpt", "tunnel"):
        prompt |= {
            f"frame-{side}": node("CreateHookKeyframe", strength_mult=0.25, start_percent=0.5),
            f"hook-{side}": node("CreateHookLora", lora_name=LORA, strength_model=0.0, strength_clip=1.0),
            f"timed-{side}": node("SetHookKeyframes", hooks=[f"hook-{side}", 0], hook_kf=[f"frame-{side}", 0]),
            f"hooked-{side}": node(
                "SetClipHooks",
                clip=[side, 1],
                hooks=[f"timed-{side}", 0],
                apply_to_conds=True,
                schedule_clip=is_scheduled,
            ),
            f"encode-{side}": node("CLIPTextEncode", text="a boat", clip=[f"hooked-{side}", 0]),
            f"probe-{side}": node("LunaTestProbe", value=[f"encode-{side}", 0], name=f"hooks-{is_scheduled}-{side}"),
        }
    prompt["plain"] = node("CLIPTextEncode", text="a boat", clip=["tunnel", 1])
    prompt["probe"] = node("LunaTestProbe", value=["plain", 0], name=f"hooks-{is_scheduled}-plain")
    succeeds(comfy_server.run(prompt))
    plain = tensors(comfy_server, f"hooks-{is_scheduled}-plain")["0.cond"]
    stock, found = (tensors(comfy_server, f"hooks-{is_scheduled}-{side}") for side in ("ckpt", "tunnel"))
    assert found.keys() == stock.keys()
    conds = [name for name in stock if name.endswith(".cond")]
    assert len(conds) == (2 if is_scheduled else 1)
    for name in conds:
        assert_same_effect(found[name], stock[name], plain)


def stacked(entry: str) -> Prompt:
    return {
        "stack": node("LunaTestStack", entries=json.dumps([[entry, 1.0, 1.0]])),
        "shared": node("LunaSharedCLIPEncode", text="a boat", lora_stack=["stack", 0]),
        "probe": node("LunaTestProbe", value=["shared", 0], name="stack-entry"),
    }


def test_a_stack_entry_without_a_file_is_named_or_skipped(comfy_server: ComfyServer) -> None:
    prompt = stacked("nobody-has-this")
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "shared"
    assert "lora-missing" in run.error["exception_message"]
    prompt["shared"]["inputs"]["missing"] = "skip"
    succeeds(comfy_server.run(prompt))


@pytest.mark.parametrize(
    ("entry", "notice"),
    [
        ("demo-lora_flux", "demo-lora_flux.safetensors has nothing for text encoders"),
        ("demo-lora_sdxl", "text-encoder weights of demo-lora_sdxl.safetensors do not fit"),
    ],
)
def test_what_of_a_stack_has_no_effect_is_said(comfy_server: ComfyServer, entry: str, notice: str) -> None:
    names = comfy_server.request("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    if f"{entry}.safetensors" not in names:
        pytest.skip(f"the demo models here have no {entry}")
    succeeds(comfy_server.run(stacked(entry)))
    assert notice in comfy_server.log_text()


def test_a_lora_of_another_family_is_the_wrong_type(comfy_server: ComfyServer) -> None:
    folder = comfy_server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    foreign = {f"{stem}.lora_up.weight": torch.ones(5120, 2), f"{stem}.lora_down.weight": torch.ones(2, 1280)}
    save_file(foreign, folder / "only-clip-g.safetensors")
    run = comfy_server.run(stacked("only-clip-g"))
    assert run.error["node_id"] == "shared"
    assert "wrong-type" in run.error["exception_message"]
    assert "sd15" in run.error["exception_message"]
