"""Real ComfyUI loads Luna's scaled fp8 files and reads exactly value x scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luna_engine.weights import ConversionOptions, convert
from luna_engine.weights.demo import writing
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.targets import Fp8Layout

PROBE = Path(__file__).with_name("comfyui_fp8_probe.py")
DIFFUSION = "model.diffusion_model."


@pytest.fixture(scope="module", params=["flux", "sdxl"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the diffusion part of a demo model."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set")
    tensors = list(MODELS[request.param].build())
    parts = [tensor for tensor in tensors if tensor.name.startswith(DIFFUSION)] or tensors
    path = tmp_path_factory.mktemp("demo") / f"{request.param}.safetensors"
    writing.write(path, request.param, parts, {}, lambda *_: None)
    return path


@pytest.mark.comfyui
@pytest.mark.slow
@pytest.mark.parametrize("layout", [Fp8Layout(), Fp8Layout(is_legacy=True)], ids=["current", "legacy"])
def test_the_stock_loader_reads_value_times_scale(tmp_path: Path, source: Path, layout: Fp8Layout) -> None:
    target = tmp_path / "scaled.safetensors"
    report = convert(source, target, "fp8_e4m3fn_scaled", options=ConversionOptions(fp8=layout))
    run = subprocess.run(
        [os.environ.get("COMFYUI_PYTHON", sys.executable), PROBE, os.environ["COMFYUI_PATH"], target,
         tmp_path / "decoded.safetensors"],
        capture_output=True, text=True, check=False, cwd=os.environ["COMFYUI_PATH"], timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    facts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert facts["config"].lower() == source.stem
    assert facts["quantised"] == facts["layers"] == report.quantised > 5
    assert facts["different"] == []
    assert facts["complaints"] == []
    assert facts["difference"] <= 1e-5 * max(1.0, facts["spread"])
    assert facts["spread"] > 0
