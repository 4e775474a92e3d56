"""fp8 files: torch's rounding, ComfyUI's names, and scales that halve no error but cut it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from luna_engine.weights import ConversionOptions, convert, inspect, plan, verify
from luna_engine.weights.components import Form
from luna_engine.weights.kernels import casts
from luna_engine.weights.targets import Fp8Layout
from tests.synthetic_models import PREFIX, TINY_SDXL, random_values, write_values

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
E4M3 = torch.float8_e4m3fn
LEGACY = ConversionOptions(fp8=Fp8Layout(is_legacy=True))


def opened(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def codes(values: np.ndarray) -> np.ndarray:
    out = np.empty(values.size, np.uint8)
    casts.narrow("F8_E4M3", values, out)
    return out


def torchs(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.copy()).clamp(-448, 448).to(E4M3).view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_e4m3_equals_torch_on_every_finite_16_bit_value(dtype: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    values = np.empty(1 << 16, np.float32)
    casts.widen(dtype, patterns, values)
    finite = np.isfinite(values)
    out = np.empty(1 << 16, np.uint8)
    casts.cast(dtype, patterns, "F8_E4M3", out)
    assert np.array_equal(out[finite], torchs(values[finite]))
    assert np.array_equal(codes(values)[finite], out[finite])
    assert ((out[np.isnan(values)] & 0x7F) == 0x7F).all()


def test_e4m3_equals_torch_on_single_precision_and_at_every_tie() -> None:
    random = np.random.default_rng(5).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    grid = np.sort(torch.arange(0x7F, dtype=torch.uint8).view(E4M3).float().numpy())
    ties = (grid[1:] + grid[:-1]) / 2
    near = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, 1e9, dtype=np.float32), -ties])
    for values in (random[np.isfinite(random)], near.astype(np.float32)):
        assert np.array_equal(codes(values), torchs(values))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [96, 2400])  # beyond 2400 x 64 values a table does the work
def test_scaled_fp8_is_amax_by_448_and_torchs_rounding(tmp_path: Path, dtype: torch.dtype, rows: int) -> None:
    shapes = {**TINY_SDXL, f"{ATTENTION}.weight": (rows, 64)}
    generator = torch.Generator().manual_seed(3)
    source = {name: (torch.randn(shape, generator=generator) * 0.02).to(dtype) for name, shape in shapes.items()}
    save_file({PREFIX + name: value for name, value in source.items()}, tmp_path / "s.safetensors")
    report = convert(tmp_path / "s.safetensors", tmp_path / "out.safetensors", "fp8_e4m3fn_scaled")
    found = opened(tmp_path / "out.safetensors")
    scaled = [name for name, value in found.items() if value.dtype == E4M3]
    assert len(scaled) == report.quantised > 20
    for name in scaled:
        weight = source[name].float()
        amax = weight.abs().amax()
        expected = (weight * (torch.tensor(448.0) / amax)).clamp(-448, 448).to(E4M3)
        assert torch.equal(found[name].view(torch.uint8), expected.view(torch.uint8)), name
        layer = name.removesuffix(".weight")
        assert found[f"{layer}.weight_scale"].dtype == torch.float32
        assert found[f"{layer}.weight_scale"].shape == ()
        assert found[f"{layer}.weight_scale"] == amax / 448
        assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
    kept = torch.float16 if dtype == torch.float16 else torch.bfloat16
    for name in source.keys() - set(scaled):
        assert torch.equal(found[name], source[name].to(kept)), name
    assert verify(tmp_path / "out.safetensors", tmp_path / "s.safetensors").checked[-1] == "values"
    assert inspect(tmp_path / "out.safetensors").form is Form.FP8_SCALED


def test_only_linear_weights_of_blocks_become_fp8(tmp_path: Path, checkpoint: Path) -> None:
    convert(checkpoint, tmp_path / "out.safetensors", "fp8_e4m3fn")
    found = opened(tmp_path / "out.safetensors")
    assert found[f"{ATTENTION}.weight"].dtype == E4M3
    for name in ("middle_block.0.in_layers.2.weight", "time_embed.0.weight", "label_emb.0.0.weight", "out.2.weight"):
        assert found[name].dtype == torch.float16, name  # a convolution, and what stands outside the blocks
    assert {"v_pred", "ztsnr"} <= found.keys()
    assert found.keys() == {*TINY_SDXL, "v_pred", "ztsnr"}


def test_plain_fp8_is_torchs_cast_and_says_what_it_loses(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    for name, (kind, value) in values.items():
        values[name] = (kind, value * np.float32(0.1))  # sd .005: below the normal range
    values["middle_block.1.proj_in.weight"][1][0, 0] = 500
    source = write_values(tmp_path / "s.safetensors", values)
    report = convert(source, tmp_path / "out.safetensors", "fp8_e4m3fn")
    found = opened(tmp_path / "out.safetensors")
    original = opened(source)
    for name in (f"{ATTENTION}.weight", "middle_block.1.proj_in.weight"):
        expected = original[name].clamp(-448, 448).to(E4M3)
        assert torch.equal(found[name].view(torch.uint8), expected.view(torch.uint8))
    assert any("below its normal range" in warning for warning in report.warnings)
    assert any("1 values beyond 448" in warning for warning in report.warnings)
    assert sum(figures.get("clipped", 0) for figures in report.errors.values()) == 1
    assert verify(tmp_path / "out.safetensors", source).precision == "fp8_e4m3fn"


def test_scaled_error_is_at_most_85_hundredths_of_plain(tmp_path: Path) -> None:
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(9)) * 0.02
    save_file(
        {name: torch.zeros(shape) for name, shape in TINY_SDXL.items()} | {f"{ATTENTION}.weight": weight},
        tmp_path / "s.safetensors",
    )
    errors = {}
    for label in ("fp8_e4m3fn", "fp8_e4m3fn_scaled"):
        convert(tmp_path / "s.safetensors", tmp_path / f"{label}.safetensors", label)
        found = opened(tmp_path / f"{label}.safetensors")
        scale = found.get(f"{ATTENTION}.weight_scale", torch.tensor(1.0))
        errors[label] = (found[f"{ATTENTION}.weight"].float() * scale - weight).square().mean().sqrt()
    assert errors["fp8_e4m3fn_scaled"] / errors["fp8_e4m3fn"] <= 0.85


def test_zero_weights_have_the_scale_one(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL)
    values[f"{ATTENTION}.weight"] = ("F16", np.zeros((96, 64)))
    source = write_values(tmp_path / "s.safetensors", values)
    convert(source, tmp_path / "out.safetensors", "fp8_e4m3fn_scaled")
    found = opened(tmp_path / "out.safetensors")
    assert found[f"{ATTENTION}.weight_scale"] == 1
    assert not found[f"{ATTENTION}.weight"].float().any()


def test_legacy_layout_has_its_own_names_and_is_another_variant(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "out.safetensors"
    convert(checkpoint, target, "fp8_e4m3fn_scaled")
    current = opened(target)
    assert convert(checkpoint, target, "fp8_e4m3fn_scaled", options=LEGACY).state == "done"
    assert convert(checkpoint, target, "fp8_e4m3fn_scaled", options=LEGACY).state == "reused"
    legacy = opened(target)
    assert inspect(target).form is Form.FP8_SCALED_LEGACY
    assert legacy["scaled_fp8"].shape == (0,)
    assert legacy["scaled_fp8"].dtype == E4M3
    assert not [name for name in legacy if name.endswith((".comfy_quant", ".weight_scale"))]
    for name, value in current.items():
        if name.endswith(".weight_scale"):
            assert legacy[name.replace("weight_scale", "scale_weight")] == value
    assert verify(target, checkpoint).checked[-1] == "values"


@pytest.mark.parametrize("is_legacy", [False, True])
def test_full_matmul_is_asked_for_in_both_layouts(tmp_path: Path, checkpoint: Path, *, is_legacy: bool) -> None:
    options = ConversionOptions(fp8=Fp8Layout(is_legacy, is_full_matmul=True))
    convert(checkpoint, tmp_path / "out.safetensors", "fp8_e4m3fn_scaled", options=options)
    found = opened(tmp_path / "out.safetensors")
    if is_legacy:
        assert found["scaled_fp8"].shape == (2,)
    else:
        said = json.loads(bytes(found[f"{ATTENTION}.comfy_quant"].tolist()))
        assert said == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    assert verify(tmp_path / "out.safetensors", checkpoint).checked[-1] == "values"


def test_elements_lie_on_multiples_of_their_size(tmp_path: Path, checkpoint: Path) -> None:
    """Readers that map a file need that; a mark of 29 bytes or an odd fp8 tensor would break it."""
    convert(checkpoint, tmp_path / "out.safetensors", "fp8_e4m3fn_scaled")
    found = inspect(tmp_path / "out.safetensors")
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
    assert {tensor.dtype for tensor in found.tensors} == sizes.keys()
    assert [tensor.name for tensor in found.tensors if tensor.offset % sizes[tensor.dtype]] == []


@pytest.mark.parametrize("options", [ConversionOptions(), LEGACY])
def test_scaled_sources_are_used_copied_or_multiplied_back(
    tmp_path: Path, checkpoint: Path, options: ConversionOptions
) -> None:
    source = tmp_path / "scaled.safetensors"
    convert(checkpoint, source, "fp8_e4m3fn_scaled", options=options)
    assert convert(source, tmp_path / "x.safetensors", "fp8_e4m3fn_scaled", options=options).state == "reused"
    first = opened(source)
    suffix = "scale_weight" if options is LEGACY else "weight_scale"
    # Into the other layout, and out of a checkpoint: the same bytes and scales.
    other = ConversionOptions(fp8=Fp8Layout(is_legacy=options is not LEGACY))
    convert(source, tmp_path / "other.safetensors", "fp8_e4m3fn_scaled", options=other)
    again = opened(tmp_path / "other.safetensors")
    other_suffix = "weight_scale" if options is LEGACY else "scale_weight"
    assert torch.equal(first[f"{ATTENTION}.weight"].view(torch.uint8), again[f"{ATTENTION}.weight"].view(torch.uint8))
    assert first[f"{ATTENTION}.{suffix}"] == again[f"{ATTENTION}.{other_suffix}"]
    # Back to plain numbers: value times scale.
    convert(source, tmp_path / "b.safetensors", "bf16", options=ConversionOptions(allow_finer=True))
    plain = opened(tmp_path / "b.safetensors")
    expected = first[f"{ATTENTION}.weight"].float() * first[f"{ATTENTION}.{suffix}"]
    assert torch.equal(plain[f"{ATTENTION}.weight"], expected.to(torch.bfloat16))
    assert not [name for name in plain if "scale" in name or "quant" in name or name == "scaled_fp8"]


def test_plain_fp8_source_is_widened_exactly_and_kept_where_it_is_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    source = tmp_path / "plain.safetensors"
    convert(checkpoint, source, "fp8_e4m3fn")
    assert convert(source, tmp_path / "x.safetensors", "fp8_e4m3fn").state == "reused"
    convert(source, tmp_path / "b.safetensors", "bf16", options=ConversionOptions(allow_finer=True))
    plain, first = opened(tmp_path / "b.safetensors"), opened(source)
    assert torch.equal(plain[f"{ATTENTION}.weight"], first[f"{ATTENTION}.weight"].to(torch.bfloat16))
    prefixed = tmp_path / "checkpoint.safetensors"
    save_file({PREFIX + name: value for name, value in first.items()}, prefixed)
    assert plan(prefixed, "fp8_e4m3fn").count("quantised") == 0
    convert(prefixed, tmp_path / "copy.safetensors", "fp8_e4m3fn")
    copied = opened(tmp_path / "copy.safetensors")
    assert all(torch.equal(copied[n].view(torch.uint8), v.view(torch.uint8)) for n, v in first.items() if v.dim())
