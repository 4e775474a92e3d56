"""Workflows in ComfyUI's API form, and reading what the probe nodes wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

if TYPE_CHECKING:
    import torch

    from tests.nodes.processes import ComfyServer, Run

CHECKPOINT = "demo-sd15.safetensors"
TEMPLATE = "a {2-4::small|(tall:1.3)} {red|blue} boat, {fog|rain}"
Prompt = dict[str, dict[str, Any]]
Link = list[Any]
Build = Callable[[Link, Link, str], tuple[Prompt, Link]]
"""Gets links to CLIP and VAE and a suffix for names; gives nodes and the link to look at."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def workflow(variant: str, name: str, *, template: str = TEMPLATE, seed: int = 5) -> Prompt:
    """Build wildcard prompt, two encodes, one sampler step, decode, probe; the variant says who does CLIP and VAE."""
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "wild": node(
            "LunaYAMLWildcard",
            prompt_template=template,
            seed=seed,
            negative_template="{blurry|dark} picture",
            missing="keep",
        ),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["ckpt", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=3,
            steps=1,
            cfg=2.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "probe": node("LunaTestProbe", value=["decode", 0], name=name),
        "text": node("LunaTestProbe", value=["wild", 0], name=f"{name}-text"),
    }
    clip, vae = (["ckpt", 1], ["ckpt", 2])
    if variant == "tunnel":
        prompt["tunnel"] = node("LunaCheckpointTunnel", model=["ckpt", 0], clip=clip, vae=vae)
        prompt["status"] = node("LunaTestProbe", value=["tunnel", 3], name=f"{name}-status")
        clip, vae = (["tunnel", 1], ["tunnel", 2])
    for output, role in enumerate(("positive", "negative")):
        prompt[role] = (
            node("LunaSharedCLIPEncode", text=["wild", output])
            if variant == "shared"
            else node("CLIPTextEncode", text=["wild", output], clip=clip)
        )
    prompt["decode"] = (
        node("LunaSharedVAEDecode", samples=["sampler", 0])
        if variant == "shared"
        else node("VAEDecode", samples=["sampler", 0], vae=vae)
    )
    return prompt


def succeeds(run: Run) -> None:
    assert run.is_success, run


def tensors(server: ComfyServer, name: str) -> dict[str, torch.Tensor]:
    return load_file(server.output(f"{name}.safetensors"))


def written(server: ComfyServer, name: str) -> Any:
    return json.loads(server.output(f"{name}.json").read_text())


def assert_equal_tensors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
        assert float((found[name] - tensor).abs().max()) <= atol, name


def both(name: str, build: Build) -> Prompt:
    """Build the same nodes twice, on the stock CLIP and VAE and on the proxies, each ending in a probe."""
    prompt: Prompt = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "tunnel": node("LunaCheckpointTunnel", model=["ckpt", 0], clip=["ckpt", 1], vae=["ckpt", 2]),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    }
    for side in ("ckpt", "tunnel"):
        nodes, last = build([side, 1], [side, 2], side)
        prompt.update(nodes)
        prompt[f"probe-{side}"] = node("LunaTestProbe", value=last, name=f"{name}-{side}")
    return prompt


def same_on_both_sides(server: ComfyServer, name: str, build: Build, atol: float = 1e-5) -> None:
    """Run what `both` builds and compare what reached the two probes."""
    succeeds(server.run(both(name, build)))
    assert_equal_tensors(tensors(server, f"{name}-tunnel"), tensors(server, f"{name}-ckpt"), atol)
