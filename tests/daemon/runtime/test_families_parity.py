"""flux, sd3 and z-image against ComfyUI's own classes: real tokenizers, encoders shallow or narrow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from luna_daemon.runtime import conditioning, tokens
from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.runtime.clip_text import ClipTextEncoder
from luna_daemon.runtime.families import FAMILIES
from luna_daemon.runtime.qwen3 import Qwen3Encoder
from luna_daemon.runtime.t5 import T5Encoder
from luna_daemon.runtime.vocabulary import open_role_vocabulary
from tests.daemon.runtime import small_encoders
from tests.daemon.runtime.small_encoders import CLIP_G_SHALLOW, CLIP_L_SHALLOW, QWEN, SIZES, T5, clip_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_daemon.runtime.text_encoder import TextEncoder

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

# Relative to the largest value. T5 sums in another order than ComfyUI: 2.7e-5 was seen on a long prompt.
LIMIT = 1e-5
SCRIPT = Path(__file__).with_name("comfy_families_golden.py")
TIMEOUT_S = 600
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "clip_l": clip_weights(CLIP_L_SHALLOW, 1),
        "clip_g": clip_weights(CLIP_G_SHALLOW, 2),
        "t5xxl": small_encoders.t5_weights(shape=T5),
        "qwen3_4b": small_encoders.qwen_weights(),
    }


@pytest.fixture(scope="module")
def encoders(weights: dict[str, dict[str, torch.Tensor]]) -> dict[str, TextEncoder]:
    return {
        "l": ClipTextEncoder(CLIP_L_SHALLOW, weights["clip_l"], CPU),
        "g": ClipTextEncoder(CLIP_G_SHALLOW, weights["clip_g"], CPU),
        "t5xxl": T5Encoder(T5, weights["t5xxl"], CPU),
        "qwen3_4b": Qwen3Encoder(QWEN, weights["qwen3_4b"], CPU),
    }


@pytest.fixture(scope="module")
def computed(weights: dict[str, dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that ComfyUI computes, once."""
    folder = tmp_path_factory.mktemp("families")
    stored = {f"{part}.{name}": tensor for part, found in weights.items() for name, tensor in found.items()}
    save_file(stored, folder / "weights.safetensors")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    given = [os.environ["COMFYUI_PATH"], str(folder / "weights.safetensors"), json.dumps(SIZES)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(SCRIPT), *given, str(folder / "golden.safetensors")],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=environ,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "weights.safetensors").unlink()
    return folder / "golden.safetensors"


def cases(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, torch.Tensor]]]:
    """Yield name, facts and tensors of each case."""
    with safe_open(path, framework="pt") as file:
        names = sorted(file.keys())
        for key, facts in json.loads(file.metadata()["cases"]).items():
            prefix = f"{key}."
            found = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
            yield key, facts, found


def rows_of(role: str, lengths: list[int], found: dict[str, torch.Tensor]) -> tuple[Row, ...]:
    ids = found[f"{role}.ids"].split(lengths)
    weights = found[f"{role}.weights"].split(lengths)
    return tuple(Row(tuple(one.tolist()), tuple(other.tolist())) for one, other in zip(ids, weights, strict=True))


def test_conditioning_equals_comfyuis(computed: Path, encoders: dict[str, TextEncoder]) -> None:
    """Weights, padding, clip skip, masks, and sd3 with parts missing; values are of mean size 0.1 to 1."""
    wrong: dict[str, float] = {}
    count = 0
    for key, facts, found in cases(computed):
        family, _, roles = key.partition("@")[0].partition(":")
        names = [{"t": "t5xxl"}.get(role, role) for role in roles] or list(FAMILIES[family].shapes)
        inputs = {role: EncoderInput(rows_of(role, facts["roles"][role], found)) for role in names}
        layers = {} if facts["layer"] is None else dict.fromkeys(names, facts["layer"])
        with torch.inference_mode():
            (made,) = conditioning.encode(
                FAMILIES[family],
                {role: encoders[role] for role in names},
                [EncodeItem(inputs, layers)],
                16,
                lambda: None,
            )
        assert made.cond.shape == found["cond"].shape, key
        worst = [float((made.cond - found["cond"]).abs().max() / found["cond"].abs().max().clamp(min=1))]
        assert (made.pooled is None) == ("pooled" not in found), key
        if made.pooled is not None:
            worst.append(float((made.pooled - found["pooled"]).abs().max()))
        for name, extra in made.extras.items():
            assert torch.equal(extra, found[f"extra.{name}"]), key
        assert {f"extra.{name}" for name in made.extras} == {name for name in found if name.startswith("extra.")}
        count += 1
        if max(worst) > LIMIT:
            wrong[key] = max(worst)
    assert count >= 40
    assert wrong == {}


@pytest.mark.parametrize("role", ["t5xxl", "qwen3_4b"])
def test_text_becomes_comfyuis_tokens(computed: Path, role: str) -> None:
    vocabulary = open_role_vocabulary(role, Path(os.environ["COMFYUI_PATH"]))
    seen = 0
    for key, facts, found in cases(computed):
        family = FAMILIES[key.partition("@")[0].partition(":")[0]]
        if role not in facts["roles"]:
            continue
        made = tokens.tokenize_whole(
            facts["text"],
            family.shapes[role],
            vocabulary,
            lambda _name: None,
            min_tokens=family.min_tokens[role],
            template=family.template,
        )
        assert made.input.rows == rows_of(role, facts["roles"][role], found), key
        seen += 1
    assert seen >= 5
