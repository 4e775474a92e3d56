"""The demo files: the same bytes for the same name, sound numbers, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from luna_engine.weights.demo import writing
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.demo.parts import RandomTensor

if TYPE_CHECKING:
    from pathlib import Path

WORKER = [sys.executable, "-m", "luna_engine.weights.demo"]


def run(folder: Path, *names: str) -> list[dict[str, object]]:
    done = subprocess.run([*WORKER, folder, *names], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_same_name_gives_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """A fixed sum: a change of NumPy, platform or drawing would show here."""
    run(tmp_path, "flux")
    data = (tmp_path / MODELS["flux"].path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == "69bd68c6bff0601d3eb9d58c75ea82d26f059f06873656c2fc4ca2ab26b71f84"


def test_a_file_opens_with_the_safetensors_library_and_is_finite_and_varied(tmp_path: Path) -> None:
    run(tmp_path, "flux", "sd3", "lora_sd15", "ti_sdxl")
    for name in ("flux", "sd3", "lora_sd15", "ti_sdxl"):
        tensors = safetensors.numpy.load_file(tmp_path / MODELS[name].path)
        assert len(tensors) == len(list(MODELS[name].build()))
        for key, value in tensors.items():
            assert np.isfinite(value).all(), key
            assert value.size < 64 or value.astype(np.float32).std() > 0.001, key


def test_weights_keep_the_spread_of_what_passes_through_them(tmp_path: Path) -> None:
    run(tmp_path, "flux")
    weight = safetensors.numpy.load_file(tmp_path / MODELS["flux"].path)["txt_in.weight"].astype(np.float64)
    assert weight.std() * weight.shape[1] ** 0.5 == pytest.approx(1, rel=0.02)
    assert weight.mean() == pytest.approx(0, abs=1e-4)
    shifted = np.corrcoef(weight[:-1].ravel(), weight[1:].ravel())[0, 1]
    assert abs(shifted) < 0.01  # rows are independent: no repeated random stream


def test_zero_layers_cost_no_disk_space_where_files_may_have_holes(tmp_path: Path) -> None:
    last = run(tmp_path, "clip_g")[-1]
    with safe_open(tmp_path / MODELS["clip_g"].path, "pt") as file:
        assert not file.get_tensor("text_model.encoder.layers.5.mlp.fc1.weight").any()
        assert file.get_tensor("text_model.encoder.layers.31.mlp.fc1.weight").all(dim=1).any()
    assert last["size_bytes"] == (tmp_path / MODELS["clip_g"].path).stat().st_size


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("F16", torch.float16), ("BF16", torch.bfloat16), ("F8_E4M3", torch.float8_e4m3fn), ("F32", torch.float32)],
)
def test_stored_values_are_rounded_as_torch_rounds(tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    writing.write(path, "t", [RandomTensor("x", (1000,), 3.0, 0.5, dtype)], {}, lambda *_: None)
    exact = tmp_path / "y.safetensors"
    writing.write(exact, "t", [RandomTensor("x", (1000,), 3.0, 0.5, "F32")], {}, lambda *_: None)
    with safe_open(path, "pt") as rounded, safe_open(exact, "pt") as full:
        assert rounded.get_tensor("x").dtype == kind
        assert torch.equal(rounded.get_tensor("x").float(), full.get_tensor("x").to(kind).float())


def test_a_stopped_worker_leaves_no_file(tmp_path: Path) -> None:
    worker = subprocess.Popen([*WORKER, tmp_path, "sdxl"], stdout=subprocess.PIPE, text=True)
    with worker:
        assert worker.stdout is not None
        worker.stdout.readline()  # it is writing now
        worker.send_signal(signal.SIGTERM)
        worker.stdout.read()
    assert worker.returncode == 128 + signal.SIGTERM
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    done = subprocess.run([*WORKER, blocker, "flux"], capture_output=True, text=True, check=False)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 1
    assert error["code"] == "write-failed"
    assert str(blocker) in error["message"]
    assert error["hint"]
