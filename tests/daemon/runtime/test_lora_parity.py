"""LoRA files of every kind and naming against ComfyUI's own loader and arithmetic: same weights hit, same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from luna_daemon.encode_messages import LoraUse
from luna_daemon.runtime.clip_text import ClipTextEncoder
from luna_daemon.runtime.encoder_files import prefix
from luna_daemon.runtime.lora import Recipe
from luna_daemon.runtime.lora_files import from_file
from luna_daemon.runtime.merged import merge
from luna_daemon.runtime.qwen3 import Qwen3Encoder
from luna_daemon.runtime.t5 import T5Encoder
from tests.daemon.runtime import small_encoders
from tests.daemon.runtime.small_encoders import CLIP_G_SHALLOW, CLIP_L_SHALLOW, QWEN, SIZES, T5, clip_weights

if TYPE_CHECKING:
    from luna_daemon.runtime.side_path import Slot

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("comfy_lora_golden.py")
CPU = torch.device("cpu")
RANK = 8
WHOLE_LIMIT = 1e-6
"""Relative to the largest value of a weight: the formulas are the same, sums may be taken in another order."""

Stems = dict[str, tuple[int, int]]
NAMINGS: dict[str, Stems] = {
    "sdxl@kohya": {
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": (3072, 768),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
        "lora_te2_text_model_encoder_layers_2_mlp_fc2": (1280, 5120),
        "lora_te2_text_projection": (1280, 1280),
    },
    "sdxl@kohya_unnumbered": {"lora_te_text_model_encoder_layers_2_self_attn_out_proj": (768, 768)},
    "sdxl@diffusers": {
        "text_encoder.text_model.encoder.layers.0.mlp.fc2": (768, 3072),
        "text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj": (1280, 1280),
    },
    "sdxl@generic": {
        "text_encoders.clip_l.transformer.text_model.encoder.layers.1.self_attn.k_proj": (768, 768),
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1": (5120, 1280),
    },
    "flux@onetrainer": {
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": (3072, 768),
        "lora_te2_encoder_block_1_layer_0_SelfAttention_q": (64, 64),
        "lora_te2_encoder_block_2_layer_1_DenseReluDense_wi_0": (96, 64),
    },
    "flux@third": {"lora_te3_encoder_block_0_layer_1_DenseReluDense_wo": (64, 96)},
    "flux@generic": {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.o": (64, 64)},
    "z-image@generic": {
        "text_encoders.qwen3_4b.transformer.model.layers.1.self_attn.q_proj": (512, 64),
        "text_encoders.qwen3_4b.transformer.model.layers.3.mlp.down_proj": (64, 96),
    },
}
KINDS = (
    "lora",
    "peft",
    "dora_out",
    "dora_in",
    "loha",
    "lokr",
    "lokr_full",
    "oft",
    "oft_bounded",
    "boft",
    "glora",
    "glora_old",
    "diff",
    "set",
)


def random(generator: torch.Generator, *sizes: int, spread: float = 0.1) -> torch.Tensor:
    return (torch.randn(sizes, generator=generator) * spread).half()


def tensors_of(kind: str, out: int, into: int, seed: int) -> dict[str, torch.Tensor]:  # noqa: PLR0911 - one return a kind
    """Return what trainers write for one weight: suffix → tensor."""
    generator = torch.Generator().manual_seed(seed)
    up, down = random(generator, out, RANK), random(generator, RANK, into)
    alpha = {".alpha": torch.tensor(RANK / 4)}
    pair = {".lora_up.weight": up, ".lora_down.weight": down, **alpha}
    match kind:
        case "lora":
            return pair
        case "peft":
            return {".lora_B.weight": up, ".lora_A.weight": down}
        case "dora_out":
            return {**pair, ".dora_scale": random(generator, out, 1).abs() + 0.5}
        case "dora_in":
            return {**pair, ".dora_scale": random(generator, 1, into).abs() + 0.5}
        case "loha":
            names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
            more = (random(generator, out, RANK), random(generator, RANK, into))
            return {**dict(zip(names, (up, down, *more), strict=True)), **alpha}
        case "lokr":
            w2 = (random(generator, out // 4, RANK), random(generator, RANK, into // 4))
            return {".lokr_w1": random(generator, 4, 4), ".lokr_w2_a": w2[0], ".lokr_w2_b": w2[1], **alpha}
        case "lokr_full":
            w2 = random(generator, out // 4, into // 4)
            return {".lokr_w1": random(generator, 4, 4), ".lokr_w2": w2, ".alpha": torch.tensor(1e10)}
        case "oft":
            return {".oft_blocks": random(generator, out // 8, 8, 8)}
        case "oft_bounded":
            return {".oft_blocks": random(generator, out // 8, 8, 8), ".alpha": torch.tensor(0.01)}
        case "boft":
            blocks = random(generator, 2, out // 8, 8, 8)
            return {".oft_blocks": blocks, ".rescale": 1 + random(generator, out, 1), ".alpha": torch.tensor(0.5)}
        case "glora":
            a1, a2 = random(generator, into, RANK), random(generator, RANK, into)
            return {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": up, ".b2.weight": down, **alpha}
        case "glora_old":
            a2, a1 = random(generator, into, RANK), random(generator, RANK, into)
            return {".a1.weight": a1, ".a2.weight": a2, ".b2.weight": up, ".b1.weight": down, **alpha}
        case "diff":
            return {".diff": random(generator, out, into)}
        case _:
            return {".set_weight": random(generator, out, into)}


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "clip_l": clip_weights(CLIP_L_SHALLOW, 1),
        "clip_g": clip_weights(CLIP_G_SHALLOW, 2),
        "t5xxl": small_encoders.t5_weights(shape=T5),
        "qwen3_4b": small_encoders.qwen_weights(),
    }


@pytest.fixture(scope="module")
def slots(weights: dict[str, dict[str, torch.Tensor]]) -> dict[str, Slot]:
    encoders = {
        "l": ClipTextEncoder(CLIP_L_SHALLOW, weights["clip_l"], CPU),
        "g": ClipTextEncoder(CLIP_G_SHALLOW, weights["clip_g"], CPU),
        "t5xxl": T5Encoder(T5, weights["t5xxl"], CPU),
        "qwen3_4b": Qwen3Encoder(QWEN, weights["qwen3_4b"], CPU),
    }
    return {prefix(role) + name: slot for role, one in encoders.items() for name, slot in one.slots().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a LoRA file for every naming and kind, and one with norms and biases."""
    folder = tmp_path_factory.mktemp("loras")
    for naming, stems in NAMINGS.items():
        for kind in KINDS:
            made = {
                f"{stem}{suffix}": tensor
                for stem, (out, into) in stems.items()
                for suffix, tensor in tensors_of(kind, out, into, zlib.crc32(f"{stem} {kind}".encode())).items()
            }
            save_file(made, folder / f"{naming}@{kind}.safetensors")
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0"
    generator = torch.Generator().manual_seed(9)
    rest = {f"{layer}.layer_norm1{suffix}": random(generator, 768) for suffix in (".w_norm", ".b_norm")}
    rest[f"{layer}.mlp.fc1.diff_b"] = random(generator, 3072)
    save_file(rest, folder / "sdxl@rest.safetensors")
    return folder


@pytest.fixture(scope="module")
def computed(
    weights: dict[str, dict[str, torch.Tensor]], files: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Everything that ComfyUI computes, once."""
    folder = tmp_path_factory.mktemp("golden")
    stored = {f"{part}.{name}": tensor for part, found in weights.items() for name, tensor in found.items()}
    save_file(stored, folder / "weights.safetensors")
    python, out = os.environ.get("COMFYUI_PYTHON", sys.executable), folder / "golden.safetensors"
    given = [os.environ["COMFYUI_PATH"], folder / "weights.safetensors", json.dumps(SIZES), files, out]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(SCRIPT), *map(str, given)], capture_output=True, text=True, check=False, timeout=600, env=environ
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = load_file(out)
    out.unlink()
    return found


@pytest.mark.parametrize("kind", [*KINDS, "rest"])
def test_the_same_weights_become_the_same_numbers(
    kind: str, files: Path, slots: dict[str, Slot], computed: dict[str, torch.Tensor]
) -> None:
    """Exact copies are equal to the last bit, unrounded ones to 1e-6."""
    seen = 0
    for path in sorted(files.glob(f"*@{kind}.safetensors")):
        read = from_file(path, path.name, None, 2**30, CPU, lambda: None)
        assert read.unknown == ()
        for strength in (0.7, 1.0):
            recipe = Recipe((LoraUse(read.entry.hash, strength),), (read.entry,))
            for word, made in (
                ("exact", merge(slots, recipe, is_exact=True)),
                ("whole", merge(slots, recipe, is_exact=False)),
            ):
                start = f"{path.stem}|{strength}|{word}|"
                wanted = {name.removeprefix(start): one for name, one in computed.items() if name.startswith(start)}
                assert made.keys() == wanted.keys(), path.stem
                for name, tensor in wanted.items():
                    if word == "exact":
                        assert torch.equal(made[name], tensor.to(made[name].dtype)), (path.stem, name)
                    else:
                        limit = WHOLE_LIMIT * float(tensor.abs().max())
                        assert float((made[name] - tensor).abs().max()) <= limit, (path.stem, name)
                    changed = not torch.equal(tensor.float(), slots[name].weight.float())
                    assert changed, (path.stem, name)  # ComfyUI logs a failure and goes on with the weight as it was
                    seen += 1
    assert seen >= 4
