"""Real ComfyUI takes each demo file for what it claims to be, misses no key and computes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from luna_engine.weights import convert
from luna_engine.weights.demo.models import MODELS

PROBE = Path(__file__).with_name("comfyui_demo_probe.py")

EXPECTED = {
    "sd15": {"config": "SD15", "clip": "SD1ClipModel", "vae": "AutoencoderKL", "latent_channels": 4},
    "sdxl": {"config": "SDXL", "clip": "SDXLClipModel", "vae": "AutoencoderKL", "latent_channels": 4},
    "flux": {"config": "Flux", "model": "Flux"},
    "sd3": {"config": "SD3", "model": "SD3"},
    "z_image": {"config": "ZImage", "model": "Lumina2"},
    "clip_l": {"detected": "CLIP_L", "clip": "SD1ClipModel"},
    "clip_g": {"detected": "CLIP_G", "clip": "SDXLRefinerClipModel"},
    "t5xxl": {"detected": "T5_XXL", "fits": True, "differs": []},
    "sd15_vae": {"vae": "AutoencoderKL", "latent_channels": 4},
    "sdxl_vae": {"vae": "AutoencoderKL", "latent_channels": 4},
    "ae": {"vae": "AutoencodingEngine", "latent_channels": 16},
    "lora_sd15": {"model_patches": 3, "clip_patches": 2},
    "lora_sdxl": {"model_patches": 2, "clip_patches": 4},
    # Two of Flux's diffusers names are row ranges of one joined weight, which carries both patches.
    "lora_flux": {"model_patches": 2, "clip_patches": 0},
    "lora_z_image": {"model_patches": 1, "clip_patches": 0},
    "ti_sd15": {"vectors": {"l": 3}},
    "ti_sdxl": {"vectors": {"l": 2, "g": 2}},
}
# Real checkpoints lack these as well; ComfyUI says so each time and does not use them.
KNOWN_ABSENT = ("clip missing: ['clip_l.logit_scale', 'clip_l.transformer.text_projection.weight']",
                "clip missing: ['text_projection.weight']")  # fmt: skip


@pytest.fixture(scope="session")
def comfyui() -> str:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set")
    return path


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the whole set once (4 GB), or use the folder LUNA_DEMO_MODELS names."""
    if ready := os.environ.get("LUNA_DEMO_MODELS"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "luna_engine.weights.demo", folder], check=True, capture_output=True)
    return folder


def test_every_demo_file_is_tried() -> None:
    assert EXPECTED.keys() == MODELS.keys()


@pytest.mark.comfyui
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_comfyui_takes_the_file_for_what_it_claims_to_be(name: str, comfyui: str, demo_folder: Path) -> None:
    facts = probe(comfyui, demo_folder, name)
    assert {key: facts.get(key) for key in EXPECTED[name]} == EXPECTED[name]
    assert [line for line in facts["complaints"] if line not in KNOWN_ABSENT] == []
    for key in ("text", "pooled", "image", "output"):
        if key in facts:
            assert facts[key]["finite"], (key, facts)
            assert facts[key]["difference"] > 0.05 * facts[key]["spread"] > 0, (key, facts)


@pytest.mark.comfyui
@pytest.mark.slow
def test_a_bf16_file_is_loaded_by_the_stock_loader_with_the_sources_weights(
    comfyui: str, demo_folder: Path, tmp_path: Path
) -> None:
    convert(demo_folder / "checkpoints/demo-sdxl.safetensors", tmp_path / "converted.safetensors", "bf16")
    (tmp_path / "checkpoints").symlink_to((demo_folder / "checkpoints").absolute())
    facts = probe(comfyui, tmp_path, "converted_bf16")
    assert facts == {"config": "SDXL", "same_names": True, "different": [], "complaints": []}


@pytest.mark.comfyui
@pytest.mark.slow
def test_a_v_prediction_model_keeps_its_sampling_through_gguf(comfyui: str, demo_folder: Path, tmp_path: Path) -> None:
    """ComfyUI drops top-level markers where a prefix is present: without one the model stays v with zero SNR."""
    marked = tmp_path / "marked.safetensors"
    with safe_open(demo_folder / "checkpoints/demo-sdxl.safetensors", "np") as file:
        weights = {key: file.get_tensor(key) for key in file.keys() if key.startswith("model.")}  # noqa: SIM118
    markers = {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}
    safetensors.numpy.save_file({**weights, **markers}, marked)
    convert(marked, tmp_path / "marked.gguf", "gguf_Q8_0")
    reader = gguf.GGUFReader(tmp_path / "marked.gguf")
    decoded = {}
    for tensor in reader.tensors:
        shape = reader.fields.get(f"comfy.gguf.orig_shape.{tensor.name}")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        decoded[tensor.name] = values.reshape(shape.contents() if shape else tensor.shape[::-1].tolist())
    safetensors.numpy.save_file(decoded, tmp_path / "decoded.safetensors")
    facts = probe(comfyui, tmp_path, "converted_gguf")
    assert (facts["config"], facts["model_type"], facts["zsnr"]) == ("SDXL", "V_PREDICTION", True)
    assert facts["tensors"] == len(weights) + len(markers)
    # The markers are read and then belong to no layer; ComfyUI says so of the original as well.
    assert facts["complaints"] == ["unet unexpected: ['v_pred', 'ztsnr']"]


def probe(comfyui: str, folder: Path, name: str) -> dict[str, Any]:
    """Run a probe under ComfyUI's Python and return what it printed."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    run = subprocess.run(
        [python, PROBE, comfyui, folder, name],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=comfyui,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    facts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return facts
