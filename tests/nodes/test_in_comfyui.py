"""Luna's nodes in a real headless ComfyUI with a real daemon: the same pictures as with stock nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

import comfy_nodes
from tests.nodes.workflows import (
    CHECKPOINT,
    Prompt,
    assert_equal_tensors,
    node,
    succeeds,
    tensors,
    workflow,
    written,
)

if TYPE_CHECKING:
    from tests.nodes.processes import ComfyServer, DaemonHandle

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stock_image(comfy_server: ComfyServer) -> torch.Tensor:
    succeeds(comfy_server.run(workflow("stock", "stock")))
    return tensors(comfy_server, "stock")["image"]


def test_comfyui_starts_without_a_word_of_complaint_about_luna(comfy_server: ComfyServer) -> None:
    log, *_ = comfy_server.log_text().partition("got prompt")  # what prompts of other tests ran into is meant
    assert "luna-pack" in log
    assert "luna-pack (IMPORT FAILED)" not in log
    blocks = re.findall(r"^Traceback .*?(?=^\S(?!raceback))", log, re.MULTILINE | re.DOTALL)
    assert not [block for block in blocks if "luna-pack" in block or "luna_" in block]
    lines = [line for line in log.splitlines() if re.search(r"luna-pack|luna_(engine|daemon)|\bluna\b", line)]
    assert not [line for line in lines if re.search(r"warn|error|fail|cannot", line, re.IGNORECASE)]
    assert any("seconds" in line and "luna-pack" in line for line in lines)  # it is in the timing list


def test_object_info_lists_every_node_with_its_declaration(comfy_server: ComfyServer) -> None:
    info = comfy_server.request("/object_info")
    for node_id, kind in comfy_nodes.NODE_CLASS_MAPPINGS.items():
        assert info[node_id]["display_name"] == kind.DISPLAY_NAME
        assert info[node_id]["output_name"] == list(kind.RETURN_NAMES)
        assert info[node_id]["category"] == kind.CATEGORY


def test_web_files_and_help_pages_are_served(comfy_server: ComfyServer) -> None:
    served = comfy_server.request("/extensions")
    assert "/extensions/luna-pack/luna.js" in served


@pytest.mark.parametrize("variant", ["tunnel", "shared"])
def test_the_picture_equals_that_of_the_stock_nodes(
    comfy_server: ComfyServer, stock_image: torch.Tensor, variant: str
) -> None:
    run = comfy_server.run(workflow(variant, variant))
    succeeds(run)
    image = tensors(comfy_server, variant)["image"]
    assert image.shape == stock_image.shape == (1, 64, 64, 3)
    assert float((image - stock_image).abs().max()) <= 1 / 255
    assert float(stock_image.std()) > 0.01  # a flat picture would prove nothing
    assert written(comfy_server, f"{variant}-text") == written(comfy_server, "stock-text")


def test_the_tunnel_says_what_became_of_each_component(comfy_server: ComfyServer) -> None:
    succeeds(comfy_server.run(workflow("tunnel", "said")))
    status = written(comfy_server, "said-status")
    assert re.match(r"\[sd15\] CLIP (shared|added) \| VAE (shared|added) \| ", status), status
    assert "warning:" not in status


def test_weights_that_the_daemon_has_are_not_sent_again(comfy_server: ComfyServer) -> None:
    """Another workflow in between makes ComfyUI drop loader and tunnel, as a second instance would start without."""
    succeeds(comfy_server.run(workflow("tunnel", "sent")))
    succeeds(comfy_server.run({"status": node("LunaDaemonStatus")}))
    succeeds(comfy_server.run(workflow("tunnel", "sent-again")))
    assert written(comfy_server, "sent-again-status").startswith("[sd15] CLIP shared | VAE shared | ")


def test_an_identical_second_run_is_served_from_the_cache(comfy_server: ComfyServer) -> None:
    for variant in ("tunnel", "shared"):
        prompt = workflow(variant, f"again-{variant}")
        succeeds(comfy_server.run(prompt))
        second = comfy_server.run(prompt)
        assert second.is_success
        assert second.cached == set(prompt)


def test_two_prompts_in_turn_get_their_own_conditioning(comfy_server: ComfyServer) -> None:
    """The daemon's cache and the proxies keep texts apart, and weights, skips and chunks reach the encoder."""
    texts = {
        "plain": "a boat",
        "weighted": "a (red:1.4) boat, ((fog)) \\(at dawn\\)",
        "long": ", ".join(f"boat number {index} in the harbour" for index in range(30)),
        "empty": "",
        "inversion": "a boat, embedding:demo-ti_sd15, at sea",
    }
    for name, text in texts.items():
        prompt: Prompt = {
            "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
            "shared": node("LunaSharedCLIPEncode", text=text),
            "p3": node("LunaTestProbe", value=["shared", 0], name=f"{name}-shared"),
        }
        for index, clip in enumerate((["ckpt", 1], ["tunnel", 1])):
            prompt[f"skip{index}"] = node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)
            prompt[f"e{index}"] = node("CLIPTextEncode", text=text, clip=clip)
            prompt[f"s{index}"] = node("CLIPTextEncode", text=text, clip=[f"skip{index}", 0])
            prompt[f"p{index}"] = node("LunaTestProbe", value=[f"e{index}", 0], name=f"{name}-{index}")
            prompt[f"q{index}"] = node("LunaTestProbe", value=[f"s{index}", 0], name=f"{name}-{index}-skip")
        run = comfy_server.run(prompt)
        succeeds(run)
        stock = tensors(comfy_server, f"{name}-0")
        for other in (f"{name}-1", f"{name}-shared"):
            assert_equal_tensors(tensors(comfy_server, other), stock, 1e-5)
        skipped = tensors(comfy_server, f"{name}-0-skip")
        assert_equal_tensors(tensors(comfy_server, f"{name}-1-skip"), skipped, 1e-5)
        assert not torch.allclose(skipped["0.cond"], stock["0.cond"], atol=1e-2)


def test_clip_skip_on_the_shared_node_is_that_of_clip_set_last_layer(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "skip": node("CLIPSetLastLayer", clip=["ckpt", 1], stop_at_clip_layer=-2),
        "stock": node("CLIPTextEncode", text="a boat", clip=["skip", 0]),
        "shared": node("LunaSharedCLIPEncode", text="a boat", clip_skip=-2, family="sd15"),
        "p0": node("LunaTestProbe", value=["stock", 0], name="skip-stock"),
        "p1": node("LunaTestProbe", value=["shared", 0], name="skip-shared"),
    }
    succeeds(comfy_server.run(prompt))
    assert_equal_tensors(tensors(comfy_server, "skip-shared"), tensors(comfy_server, "skip-stock"), 1e-5)


@pytest.mark.parametrize(("width", "height", "batch"), [(64, 64, 1), (70, 52, 3)])
def test_encoding_and_decoding_equal_stock_for_odd_sizes_and_batches(
    comfy_server: ComfyServer, width: int, height: int, batch: int
) -> None:
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
        "flat": node("EmptyImage", width=width, height=height, batch_size=batch, color=0x406080),
        "dots": node("EmptyImage", width=width // 2, height=height // 2, batch_size=batch, color=0xF0A010),
        "image": node(
            "ImageCompositeMasked", destination=["flat", 0], source=["dots", 0], x=5, y=3, resize_source=False
        ),
        "shared": node("LunaSharedVAEEncode", pixels=["image", 0]),
        "stock": node("VAEEncode", pixels=["image", 0], vae=["ckpt", 2]),
        "proxy": node("VAEEncode", pixels=["image", 0], vae=["tunnel", 2]),
        "shared2": node("LunaSharedVAEDecode", samples=["shared", 0]),
        "stock2": node("VAEDecode", samples=["stock", 0], vae=["ckpt", 2]),
    }
    for name in ("shared", "stock", "proxy", "shared2", "stock2"):
        prompt[f"p-{name}"] = node("LunaTestProbe", value=[name, 0], name=f"vae-{width}-{name}")
    run = comfy_server.run(prompt)
    succeeds(run)
    latent = tensors(comfy_server, f"vae-{width}-stock")
    assert latent["samples"].shape == (batch, 4, height // 8, width // 8)
    assert_equal_tensors(tensors(comfy_server, f"vae-{width}-shared"), latent, 1e-4)
    assert_equal_tensors(tensors(comfy_server, f"vae-{width}-proxy"), latent, 1e-4)
    stock = tensors(comfy_server, f"vae-{width}-stock2")
    assert_equal_tensors(tensors(comfy_server, f"vae-{width}-shared2"), stock, 1e-4)


def lora_workflow(place: str, strength_clip: float) -> Prompt:
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
        "status": node("LunaTestProbe", value=["tunnel", 3], name="lora-status"),
    }
    behind = "ckpt" if place == "before" else "tunnel"
    prompt["lora"] = node(
        "LoraLoader",
        model=[behind, 0],
        clip=[behind, 1],
        lora_name="demo-lora_sd15.safetensors",
        strength_model=1.0,
        strength_clip=strength_clip,
    )
    if place == "before":
        prompt["tunnel"]["inputs"].update(model=["lora", 0], clip=["lora", 1])
    prompt["encode"] = node("CLIPTextEncode", text="a boat", clip=["tunnel" if place == "before" else "lora", 1])
    prompt["probe"] = node("LunaTestProbe", value=["encode", 0], name=f"lora-{place}")
    return prompt


def test_a_lora_before_the_tunnel_keeps_the_clip_local_and_its_effect(comfy_server: ComfyServer) -> None:
    succeeds(comfy_server.run(lora_workflow("before", 1.0)))
    assert "CLIP local: patched" in written(comfy_server, "lora-status")
    with_lora = tensors(comfy_server, "lora-before")["0.cond"]
    plain: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "encode": node("CLIPTextEncode", text="a boat", clip=["ckpt", 1]),
        "probe": node("LunaTestProbe", value=["encode", 0], name="lora-none"),
    }
    succeeds(comfy_server.run(plain))
    assert not torch.allclose(with_lora, tensors(comfy_server, "lora-none")["0.cond"], atol=1e-3)


def test_a_lora_behind_the_tunnel_with_clip_strength_zero_still_changes_the_model(comfy_server: ComfyServer) -> None:
    succeeds(comfy_server.run(lora_workflow("behind", 0.0)))


def test_a_node_that_wants_the_weights_gets_a_typed_error(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
        "save": node("VAESave", vae=["tunnel", 2], filename_prefix="never"),
    }
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "save"
    assert "remote-only" in run.error["exception_message"]


def test_a_missing_embedding_is_named_or_left_out_with_a_notice(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "shared": node("LunaSharedCLIPEncode", text="a boat, embedding:nobody-has-this, at sea"),
        "probe": node("LunaTestProbe", value=["shared", 0], name="embedding"),
    }
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "shared"
    assert "embedding-missing: no file for embedding:nobody-has-this" in run.error["exception_message"]
    prompt["shared"]["inputs"]["missing"] = "skip"
    succeeds(comfy_server.run(prompt))


def test_a_family_that_is_not_served_is_refused_with_what_is(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "shared": node("LunaSharedCLIPEncode", text="a boat", family="flux"),
        "probe": node("LunaTestProbe", value=["shared", 0], name="family"),
    }
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "shared"
    assert "wrong-type" in run.error["exception_message"]
    assert "sd15" in run.error["exception_message"]


def test_latents_of_another_kind_are_refused_with_the_channels(comfy_server: ComfyServer) -> None:
    prompt: Prompt = {
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "decode": node("LunaSharedVAEDecode", samples=["empty", 0]),
        "probe": node("LunaTestProbe", value=["decode", 0], name="channels"),
    }
    run = comfy_server.run(prompt)
    assert run.error["node_id"] == "decode"
    assert "latent-mismatch" in run.error["exception_message"]
    assert "16 channels" in run.error["exception_message"]


def status_of(server: ComfyServer) -> tuple[str, bool]:
    prompt: Prompt = {
        "status": node("LunaDaemonStatus"),
        "probe": node("LunaTestProbe", value=["status", 1], name="is-running"),
    }
    run = server.run(prompt)
    assert run.is_success
    return run.ui("status")["text"][0], written(server, "is-running")


def test_the_daemon_may_go_and_come_back_between_queues(comfy_server: ComfyServer, daemon: DaemonHandle) -> None:
    """True, false, true from one unchanged graph; errors at the right node meanwhile; then the same picture."""
    text, is_running = status_of(comfy_server)
    assert is_running
    assert "nodes is ready" in text
    tunnel = workflow("tunnel", "back")
    succeeds(comfy_server.run(tunnel))
    before = tensors(comfy_server, "back")["image"]

    daemon.kill()
    text, is_running = status_of(comfy_server)
    assert not is_running
    assert "luna" in text
    shared = workflow("shared", "gone", seed=6)
    run = comfy_server.run(shared)
    assert not run.is_success
    assert run.error["node_id"] in {"positive", "negative"}
    assert "daemon-unreachable" in run.error["exception_message"]
    local = comfy_server.run(workflow("tunnel", "gone-tunnel"))
    assert local.is_success
    assert "local: no daemon" in written(comfy_server, "gone-tunnel-status")
    assert float((tensors(comfy_server, "gone-tunnel")["image"] - before).abs().max()) <= 1 / 255

    daemon.start()
    _, is_running = status_of(comfy_server)
    assert is_running
    succeeds(comfy_server.run(workflow("shared", "back-shared", seed=6)))
    succeeds(comfy_server.run(tunnel))
    assert float((tensors(comfy_server, "back")["image"] - before).abs().max()) <= 1 / 255
