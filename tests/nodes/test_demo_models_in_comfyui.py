"""Real ComfyUI takes each demo file for what it claims to be, misses no key and computes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    run = subprocess.run(
        [python, PROBE, comfyui, demo_folder, name],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=comfyui,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    facts = json.loads(run.stdout.splitlines()[-1])
    assert {key: facts.get(key) for key in EXPECTED[name]} == EXPECTED[name]
    assert [line for line in facts["complaints"] if line not in KNOWN_ABSENT] == []
    for key in ("text", "pooled", "image", "output"):
        if key in facts:
            assert facts[key]["finite"], (key, facts)
            assert facts[key]["difference"] > 0.05 * facts[key]["spread"] > 0, (key, facts)
