"""LunaDynamicModelLoader in a real ComfyUI: the stock loader's picture in the source's precision, GGUF, laziness."""

from __future__ import annotations

import contextlib
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.weights.memory import Memory
from tests.nodes.workflows import CHECKPOINT, Prompt, node, succeeds, tensors, workflow, written

if TYPE_CHECKING:
    from tests.nodes.processes import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]


def loading(name: str, precision: str, folder: Path, **prompt: Any) -> Prompt:
    """Build the stock workflow with Luna's loader in place of the stock one."""
    built: Prompt = {**workflow("stock", name), **prompt}
    built["ckpt"] = node(
        "LunaDynamicModelLoader", ckpt_name=CHECKPOINT, precision=precision, local_weights_dir=str(folder)
    )
    built["path"] = node("LunaTestProbe", value=["ckpt", 3], name=f"{name}-path")
    return built


def test_in_the_sources_precision_the_picture_is_the_stock_loaders(comfy_server: ComfyServer, tmp_path: Path) -> None:
    succeeds(comfy_server.run(workflow("stock", "stock-loader")))
    succeeds(comfy_server.run(loading("fp16-loader", "fp16", tmp_path)))
    image = tensors(comfy_server, "fp16-loader")["image"]
    assert bool((image == tensors(comfy_server, "stock-loader")["image"]).all())
    made = Path(written(comfy_server, "fp16-loader-path"))
    assert made == tmp_path / "demo-sd15_fp16_unet.safetensors"
    before = made.stat().st_mtime_ns
    succeeds(comfy_server.run(loading("fp16-again", "fp16", tmp_path)))
    assert made.stat().st_mtime_ns == before


def test_gguf_needs_no_other_node_pack(
    comfy_server: ComfyServer, nodes_environment: dict[str, str], tmp_path: Path
) -> None:
    lora = node("LoraLoaderModelOnly", model=["ckpt", 0], lora_name="demo-lora_sd15.safetensors", strength_model=0.8)
    plain = loading("q8", "gguf_Q8_0", tmp_path)
    succeeds(comfy_server.run(plain))
    assert Path(written(comfy_server, "q8-path")).name == "demo-sd15_Q8_0.gguf"
    patched = loading("q8-lora", "gguf_Q8_0", tmp_path, lora=lora)
    patched["sampler"]["inputs"]["model"] = ["lora", 0]
    succeeds(comfy_server.run(patched))
    with contextlib.closing(Memory.open(Path(nodes_environment["LUNA_HOME"]) / "state" / "luna.db")) as memory:
        (use,) = memory.uses()[str((tmp_path / "demo-sd15_Q8_0.gguf").resolve())]
    assert use.holder == f"comfy:{comfy_server.port}"  # the catalogue knows who loaded it
    image, changed = tensors(comfy_server, "q8")["image"], tensors(comfy_server, "q8-lora")["image"]
    assert float((image - changed).abs().max()) > 1e-4
    succeeds(comfy_server.run({**plain, "probe": node("LunaTestProbe", value=["decode", 0], name="q8-after")}))
    assert bool((tensors(comfy_server, "q8-after")["image"] == image).all())


def test_a_path_alone_can_be_asked_for_and_a_name_that_is_not_there_is_said(
    comfy_server: ComfyServer, tmp_path: Path
) -> None:
    built = loading("alone", "gguf_Q8_0", tmp_path)
    only = {key: built[key] for key in ("ckpt", "path")}
    only["clip"] = node("LunaTestProbe", value=["ckpt", 3], name="alone-again")
    succeeds(comfy_server.run(only))
    first = Path(written(comfy_server, "alone-path"))
    only["ckpt"] = node(
        "LunaDynamicModelLoader", ckpt_name=first.name, precision="gguf_Q8_0", local_weights_dir=str(tmp_path)
    )
    with pytest.raises(urllib.error.HTTPError, match="there is no checkpoint or diffusion model"):
        comfy_server.run(only)
