"""Files in diffusers' names come out under the reference names, rows joined and halves exchanged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from luna_engine.errors import InputFileError
from luna_engine.weights import ConversionOptions, convert, inspect, plan, verify
from tests.synthetic_layouts import AURA, FLUX
from tests.synthetic_models import demo_shapes, write_holes

PROBE = Path(__file__).with_name("comfyui_names_probe.py")
DIFFUSION = "model.diffusion_model."


def random_flux() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: (torch.randn(shape, generator=generator) * 0.02).half() for name, shape in FLUX.items()}


def opened(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def joined(values: dict[str, torch.Tensor], before: str, parts: tuple[str, ...], end: str) -> torch.Tensor:
    return torch.cat([values[f"{before}.{part}.{end}"] for part in parts])


QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


def test_flux_rows_are_joined_and_halves_exchanged(tmp_path: Path) -> None:
    values = random_flux()
    source = tmp_path / "flux.safetensors"
    save_file(values, source)
    assert convert(source, tmp_path / "out.safetensors", "fp16").state == "done"
    found = opened(tmp_path / "out.safetensors")
    shift, scale = values["norm_out.linear.weight"].chunk(2)
    expected = {
        "img_in.weight": values["x_embedder.weight"],
        "double_blocks.0.txt_attn.norm.key_norm.scale": values["transformer_blocks.0.attn.norm_added_k.weight"],
        "double_blocks.0.img_attn.norm.query_norm.scale": values["transformer_blocks.0.attn.norm_q.weight"],
        "double_blocks.0.img_attn.qkv.weight": joined(values, "transformer_blocks.0", QKV, "weight"),
        "double_blocks.0.img_attn.qkv.bias": joined(values, "transformer_blocks.0", QKV, "bias"),
        "double_blocks.0.img_attn.norm.key_norm.scale": values["transformer_blocks.0.attn.norm_k.weight"],
        "double_blocks.0.img_mlp.0.weight": values["transformer_blocks.0.ff.net.0.proj.weight"],
        "single_blocks.0.linear1.weight": joined(values, "single_transformer_blocks.0", (*QKV, "proj_mlp"), "weight"),
        "final_layer.adaLN_modulation.1.weight": torch.cat([scale, shift]),
        "final_layer.adaLN_modulation.1.bias": values["norm_out.linear.bias"].roll(64),
        "final_layer.linear.weight": values["proj_out.weight"],
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert (inspect(tmp_path / "out.safetensors").family, inspect(source).family) == ("flux", "flux")


@pytest.mark.parametrize("label", ["bf16", "fp8_e4m3fn_scaled", "fp8_e4m3fn", "gguf_Q8_0", "gguf_F16"])
def test_every_precision_takes_a_joined_source(tmp_path: Path, label: str) -> None:
    values = random_flux()
    source = tmp_path / "flux.safetensors"
    save_file(values, source)
    out = tmp_path / "out"
    convert(source, out.with_suffix(".gguf" if "gguf" in label else ".safetensors"), label)
    written = next(tmp_path.glob("out.*"))
    assert verify(written, source).checked[-1] == "values"
    if label == "fp8_e4m3fn_scaled":  # one scale for the joined weight
        rows = joined(values, "transformer_blocks.0", QKV, "weight").float()
        name = "double_blocks.0.img_attn.qkv"
        assert opened(written)[f"{name}.weight_scale"] == rows.abs().amax() / 448


def test_joined_scaled_rows_each_have_their_own_scale(tmp_path: Path) -> None:
    values = random_flux()
    stored: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    plain: dict[str, torch.Tensor] = {}
    for index, (name, value) in enumerate(values.items()):
        stored[name], plain[name] = value, value.float()
        if value.dim() == 2:
            scale = 0.001 * (index + 1)
            stored[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + ".scale_weight"] = torch.tensor(scale)
            plain[name] = stored[name].float() * torch.tensor(scale)
    source = tmp_path / "flux.safetensors"
    save_file(stored, source)
    convert(source, tmp_path / "out.safetensors", "bf16", options=ConversionOptions(allow_finer=True))
    found = opened(tmp_path / "out.safetensors")
    expected = joined(plain, "single_transformer_blocks.0", (*QKV, "proj_mlp"), "weight").bfloat16()
    assert torch.equal(found["single_blocks.0.linear1.weight"], expected)


def test_a_missing_part_and_a_name_of_no_layer_are_refused(tmp_path: Path) -> None:
    part = "transformer_blocks.0.attn.to_k.weight"
    for shapes, code, word in (
        ({name: shape for name, shape in FLUX.items() if name != part}, "file-damaged", "img_attn.qkv.weight"),
        ({**FLUX, "transformer_blocks.0.attn.to_z.weight": (8, 8)}, "family-unsupported", "to_z"),
        ({**FLUX, part: (64, 32)}, "file-damaged", "different length"),
        (
            {name.replace("transformer_blocks.0", "transformer_blocks.1"): shape for name, shape in FLUX.items()}
            | {"transformer_blocks.0.attn.norm_added_k.weight": (8,)},
            "file-damaged",
            "lacks single_blocks.0",
        ),
    ):
        with pytest.raises(InputFileError) as caught:
            plan(write_holes(tmp_path / "x.safetensors", shapes), "bf16")
        assert caught.value.code == code
        assert word in caught.value.message


def test_source_hash_does_not_depend_on_how_it_is_read(tmp_path: Path) -> None:
    """Exchanged halves are read out of order, and joins in one go; the hash is of the source's tensors."""
    source = tmp_path / "flux.safetensors"
    save_file(random_flux(), source)
    sums = {
        convert(source, tmp_path / f"{label}{end}", label).source_sha256
        for label, end in (("fp16", ".safetensors"), ("gguf_Q8_0", ".gguf"), ("fp8_e4m3fn_scaled", ".safetensors"))
    }
    assert len(sums) == 1


def reference_shapes(name: str) -> dict[str, tuple[int, ...]]:
    if name == "aura":
        return AURA
    shapes = demo_shapes(name)
    if name in {"sd15", "sdxl"}:
        return {key.removeprefix(DIFFUSION): value for key, value in shapes.items() if key.startswith(DIFFUSION)}
    return shapes


# Of names that ComfyUI reads for LoRAs only, the model's own do not have these.
OF_LORAS = ("class_embedding", ".ff.linear_", ".ff_context.linear_", "to_qkv_mlp_proj", ".attn.to_out.weight")


@pytest.mark.comfyui
@pytest.mark.parametrize("name", ["flux", "sd3", "aura", "z_image", "sd15", "sdxl"])
def test_names_rows_and_halves_are_those_comfyui_uses(tmp_path: Path, name: str) -> None:
    if not (root := os.environ.get("COMFYUI_PATH")):
        pytest.skip("COMFYUI_PATH is not set")
    shapes = reference_shapes(name)
    run = subprocess.run(
        [os.environ.get("COMFYUI_PYTHON", sys.executable), PROBE, root, name],
        input=json.dumps(shapes), capture_output=True, text=True, check=False, cwd=root, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    mapping: dict[str, list[Any]] = {
        key: place
        for key, place in json.loads(run.stdout.splitlines()[-1]).items()
        if place[0] in shapes and not any(mark in key for mark in OF_LORAS if name != "aura")
    }
    assert {place[0] for place in mapping.values()} == shapes.keys()
    diffusers = {key: (rows or shapes[target][0], *shapes[target][1:]) for key, (target, _, rows, _) in mapping.items()}
    found = plan(write_holes(tmp_path / "x.safetensors", diffusers), "bf16")
    assert {tensor.name: tensor.source.shape for tensor in found.tensors} == shapes
    ours: dict[str, list[Any]] = {}
    for tensor in found.tensors:
        row, width = 0, math.prod(tensor.source.shape[1:])
        if len(tensor.source.infos) < len(tensor.source.pieces):
            halves = [piece.first for piece in tensor.source.pieces]
            assert halves == [tensor.source.shape[0] // 2 * width, 0]
            ours[tensor.source.infos[0].name] = [tensor.name, None, None, True]
            continue
        for piece in tensor.source.pieces:
            is_part = len(tensor.source.pieces) > 1
            ours[piece.info.name] = [tensor.name, *((row, piece.count // width) if is_part else (None, None)), False]
            row += piece.count // width
    assert ours == mapping
