"""Real ComfyUI runs Luna's GGUF files through Luna's loader: the numbers are those of the decoded weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luna_engine.weights import convert
from luna_engine.weights.demo import writing
from luna_engine.weights.demo.models import MODELS

PROBE = Path(__file__).with_name("comfyui_gguf_probe.py")
DIFFUSION = "model.diffusion_model."
FAMILIES = ("sd15", "sdxl", "flux", "sd3", "z_image")


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the diffusion part of a demo model."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout")
    tensors = list(MODELS[request.param].build())
    parts = [tensor for tensor in tensors if tensor.name.startswith(DIFFUSION)] or tensors
    path = tmp_path_factory.mktemp("demo") / f"{request.param}.safetensors"
    writing.write(path, request.param, parts, {}, lambda *_: None)
    return path


@pytest.mark.comfyui
@pytest.mark.slow
@pytest.mark.parametrize("label", ["gguf_Q4_K_M", "gguf_Q5_0"])
def test_a_packed_model_computes_what_its_decoded_weights_compute(tmp_path: Path, source: Path, label: str) -> None:
    if label == "gguf_Q5_0" and source.stem != "flux":
        pytest.skip("one family shows the simple blocks; tests/unit/weights shows every type")
    report = convert(source, tmp_path / "packed.gguf", label)
    run = subprocess.run(
        [os.environ.get("COMFYUI_PYTHON", sys.executable), PROBE, os.environ["COMFYUI_PATH"], tmp_path / "packed.gguf",
         tmp_path / "decoded.safetensors"],
        capture_output=True, text=True, check=False, cwd=os.environ["COMFYUI_PATH"], timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    facts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert facts["config"] == facts["stock_config"]
    assert facts["packed"] == facts["still_packed"] == report.quantised > 5
    assert facts["spread"] > 0
    assert facts["difference"] == 0.0
    assert facts["lora_effect"] > 0
    assert facts["lora_difference"] == 0.0
    assert facts["after_lora"] == 0.0
    assert facts["after_reload"] == 0.0
    assert facts["packed_bytes"] < 0.3 * facts["stock_bytes"]
