"""Stock nodes on DaemonCLIP and DaemonVAE: what they reach into, beyond the plain encode and decode."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.nodes.processes import poll_until
from tests.nodes.workflows import CHECKPOINT, Prompt, assert_equal_tensors, node, same_on_both_sides, succeeds, tensors

if TYPE_CHECKING:
    from tests.nodes.processes import ComfyServer, DaemonHandle

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]


def test_hooks_with_a_clip_schedule_give_one_entry_per_keyframe(comfy_server: ComfyServer) -> None:
    def build(clip: list[object], vae: list[object], side: str) -> tuple[Prompt, list[object]]:
        nodes: Prompt = {
            f"frame-{side}": node("CreateHookKeyframe", strength_mult=0.5, start_percent=0.4),
            f"hook-{side}": node(
                "CreateHookLora", lora_name="demo-lora_sd15.safetensors", strength_model=1.0, strength_clip=0.0
            ),
            f"timed-{side}": node("SetHookKeyframes", hooks=[f"hook-{side}", 0], hook_kf=[f"frame-{side}", 0]),
            f"hooked-{side}": node(
                "SetClipHooks", clip=clip, hooks=[f"timed-{side}", 0], apply_to_conds=True, schedule_clip=True
            ),
            f"encode-{side}": node("CLIPTextEncode", text="a boat", clip=[f"hooked-{side}", 0]),
        }
        return nodes, [f"encode-{side}", 0]

    same_on_both_sides(comfy_server, "hooks", build)
    assert "1.cond" in tensors(comfy_server, "hooks-tunnel")


def test_a_hook_that_patches_the_text_encoder_follows_its_keyframes(comfy_server: ComfyServer) -> None:
    """A LoRA of full strength that a keyframe halves; the LoRA of a loader before it stays as it is."""

    def build(clip: list[object], vae: list[object], side: str) -> tuple[Prompt, list[object]]:
        nodes: Prompt = {
            f"lora-{side}": node(
                "LoraLoader",
                model=["ckpt", 0],
                clip=clip,
                lora_name="demo-lora_sd15.safetensors",
                strength_model=1.0,
                strength_clip=0.25,
            ),
            f"frame-{side}": node("CreateHookKeyframe", strength_mult=0.5, start_percent=0.4),
            f"hook-{side}": node(
                "CreateHookLora", lora_name="demo-lora_sd15.safetensors", strength_model=1.0, strength_clip=1.0
            ),
            f"timed-{side}": node("SetHookKeyframes", hooks=[f"hook-{side}", 0], hook_kf=[f"frame-{side}", 0]),
            f"hooked-{side}": node(
                "SetClipHooks",
                clip=[f"lora-{side}", 1],
                hooks=[f"timed-{side}", 0],
                apply_to_conds=True,
                schedule_clip=True,
            ),
            f"encode-{side}": node("CLIPTextEncode", text="a boat", clip=[f"hooked-{side}", 0]),
        }
        return nodes, [f"encode-{side}", 0]

    # ComfyUI rounds the merged weights to fp16, the daemon adds the LoRA in fp32 (DAEMON.md 5).
    same_on_both_sides(comfy_server, "lora-hooks", build, 5e-3)
    found = tensors(comfy_server, "lora-hooks-tunnel")
    assert float((found["0.cond"] - found["1.cond"]).abs().max()) > 0.05


def test_inpaint_encoding_equals_stock(comfy_server: ComfyServer) -> None:
    def build(clip: list[object], vae: list[object], side: str) -> tuple[Prompt, list[object]]:
        nodes: Prompt = {
            f"image-{side}": node("EmptyImage", width=72, height=64, batch_size=1, color=0x806040),
            f"mask-{side}": node("SolidMask", value=1.0, width=72, height=64),
            f"encode-{side}": node(
                "VAEEncodeForInpaint",
                pixels=[f"image-{side}", 0],
                vae=vae,
                mask=[f"mask-{side}", 0],
                grow_mask_by=6,
            ),
        }
        return nodes, [f"encode-{side}", 0]

    same_on_both_sides(comfy_server, "inpaint", build, 1e-4)


@pytest.mark.parametrize("option", ["CLIPTextEncodeSDXL", "CLIPTextEncodeFlux"])
def test_nodes_of_other_families_fail_with_a_sentence_not_a_crash(comfy_server: ComfyServer, option: str) -> None:
    """Stock CLIPTextEncodeSDXL on an SD1.5 CLIP raises KeyError 'g'; the proxy behaves as the CLIP it stands for."""
    inputs = {
        "CLIPTextEncodeSDXL": {
            **dict.fromkeys(("width", "height", "target_width", "target_height"), 64),
            **dict.fromkeys(("crop_w", "crop_h"), 0),
            "text_g": "a",
            "text_l": "b",
        },
        "CLIPTextEncodeFlux": {"clip_l": "a", "t5xxl": "b", "guidance": 3.5},
    }[option]
    answers = []
    for side in ("ckpt", "tunnel"):
        prompt: Prompt = {
            "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
            "encode": node(option, clip=[side, 1], **inputs),
            "probe": node("LunaTestProbe", value=["encode", 0], name=f"other-{side}"),
        }
        run = comfy_server.run(prompt)
        answers.append((run.is_success, None if run.is_success else run.error["exception_type"]))
    assert answers[0] == answers[1]


def test_an_interrupt_ends_a_wait_for_the_daemon_and_comfyui_goes_on(
    comfy_server: ComfyServer, daemon: DaemonHandle
) -> None:
    """Decoding 200 images takes the daemon a minute or more; the interrupt comes while it works on one of them."""
    prompt: Prompt = {
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=200),
        "decode": node("LunaSharedVAEDecode", samples=["latent", 0]),
        "probe": node("LunaTestProbe", value=["decode", 0], name="interrupted"),
    }
    ended: list[object] = []
    runner = threading.Thread(target=lambda: ended.append(comfy_server.run(prompt)))
    runner.start()
    poll_until("the daemon computes", 60, daemon.is_computing)
    comfy_server.request("/interrupt", {})
    runner.join(30)
    assert not runner.is_alive()
    (run,) = ended
    assert not run.is_success  # type: ignore[attr-defined]  # a Run
    assert "execution_interrupted" in run.messages  # type: ignore[attr-defined]
    status: Prompt = {"status": node("LunaDaemonStatus")}
    succeeds(comfy_server.run(status))


def test_tiled_encode_and_decode_equal_stock(comfy_server: ComfyServer) -> None:
    """Random weights make tiled and plain differ a lot, so only the same tiles blended the same way can agree."""

    def build(clip: list[object], vae: list[object], side: str) -> tuple[Prompt, list[object]]:
        nodes: Prompt = {
            f"flat-{side}": node("EmptyImage", width=88, height=72, batch_size=1, color=0x406080),
            f"dots-{side}": node("EmptyImage", width=40, height=35, batch_size=1, color=0xF0A010),
            f"image-{side}": node(
                "ImageCompositeMasked",
                destination=[f"flat-{side}", 0],
                source=[f"dots-{side}", 0],
                x=21,
                y=13,
                resize_source=False,
            ),
            f"encode-{side}": node(
                "VAEEncodeTiled",
                pixels=[f"image-{side}", 0],
                vae=vae,
                tile_size=64,
                overlap=16,
                temporal_size=64,
                temporal_overlap=8,
            ),
            f"decode-{side}": node(
                "VAEDecodeTiled",
                samples=[f"encode-{side}", 0],
                vae=vae,
                tile_size=64,
                overlap=16,
                temporal_size=64,
                temporal_overlap=8,
            ),
            f"latent-{side}": node("LunaTestProbe", value=[f"encode-{side}", 0], name=f"tiled-latent-{side}"),
        }
        return nodes, [f"decode-{side}", 0]

    same_on_both_sides(comfy_server, "tiled", build, 1e-4)
    assert_equal_tensors(tensors(comfy_server, "tiled-latent-tunnel"), tensors(comfy_server, "tiled-latent-ckpt"), 1e-4)
