"""Converted files hold the planned types, the reference's numbers and the right names; failures leave nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from luna_engine.errors import InputFileError
from luna_engine.weights import Progress, convert, inspect, plan, provenance, verify
from luna_engine.weights.demo import writing
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.headers import read_header
from tests.synthetic_models import PREFIX, TINY_SDXL, V_PRED, random_values, under, write_values

if TYPE_CHECKING:
    from pathlib import Path

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def source_values(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "pt") as file:
        return {name.removeprefix(PREFIX): file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_q8_0_opens_with_the_gguf_package_with_architecture_names_and_shapes(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "out" / "tiny_Q8_0.gguf"
    report = convert(checkpoint, target, "gguf_Q8_0")
    reader = gguf.GGUFReader(target)
    assert reader.fields["general.architecture"].contents() == "sdxl"
    assert reader.fields["general.file_type"].contents() == 7
    assert reader.fields["general.quantization_version"].contents() == 2
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found.keys() == {*TINY_SDXL, "v_pred", "ztsnr"}
    for name, shape in TINY_SDXL.items():
        original = reader.fields.get(f"comfy.gguf.orig_shape.{name}")
        stored = original.contents() if original else found[name].shape.tolist()[::-1]
        assert tuple(stored) == shape, name
        if original:
            assert original.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    assert report.quantised == sum(tensor.tensor_type == Q8_0 for tensor in reader.tensors) > 20
    assert target.stat().st_size == report.size_bytes


def test_q8_0_quantises_blocks_and_keeps_the_rest_in_16_bits(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "tiny.gguf"
    convert(checkpoint, target, "gguf_Q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}
    assert types["input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"] == "Q8_0"
    assert types["middle_block.0.in_layers.2.weight"] == "Q8_0"  # a 3x3 convolution, in another shape
    assert types["input_blocks.0.0.weight"] == "F16"
    assert types["out.2.weight"] == "F16"
    assert types["time_embed.0.weight"] == "F16"
    assert types["label_emb.0.0.weight"] == "F16"
    assert types["input_blocks.4.1.norm.weight"] == "F16"
    # 33 x 17 values fill no whole blocks in any shape
    assert types["input_blocks.4.1.transformer_blocks.0.attn1.to_odd.weight"] == "F16"
    assert types["v_pred"] == "F32"


def test_q8_0_values_are_ggmls_and_side_tensors_are_exact(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "tiny.gguf"
    convert(checkpoint, target, "gguf_Q8_0")
    source = source_values(checkpoint)
    for tensor in gguf.GGUFReader(target).tensors:
        if tensor.name in V_PRED:
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(source[tensor.name].shape)
        if tensor.tensor_type == Q8_0:
            expected = gguf.quants.dequantize(gguf.quants.quantize(source[tensor.name].reshape(-1, 32), Q8_0), Q8_0)
            assert np.array_equal(values.ravel(), expected.ravel()), tensor.name
        else:
            assert np.array_equal(values, source[tensor.name]), tensor.name


@pytest.mark.parametrize(("label", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_cast_file_equals_torchs_cast_bit_for_bit(
    tmp_path: Path, checkpoint: Path, label: str, kind: torch.dtype
) -> None:
    target = tmp_path / "out.safetensors"
    convert(checkpoint, target, label)
    with safe_open(checkpoint, "pt") as source, safe_open(target, "pt") as output:
        assert set(output.keys()) == {*TINY_SDXL, "v_pred", "ztsnr"}
        for name in TINY_SDXL:
            assert torch.equal(output.get_tensor(name), source.get_tensor(PREFIX + name).to(kind)), name
        assert output.get_tensor("v_pred").shape == (0,)
    assert inspect(target).prediction == "v, zero terminal SNR"


@pytest.mark.parametrize("name", ["flux", "sd3"])
@pytest.mark.parametrize("label", ["gguf_Q8_0", "bf16"])
def test_demo_models_convert_and_are_recognised_again(tmp_path: Path, name: str, label: str) -> None:
    source = tmp_path / "demo.safetensors"
    writing.write(source, name, list(MODELS[name].build()), {}, lambda *_: None)
    target = tmp_path / f"out{'.gguf' if 'gguf' in label else '.safetensors'}"
    report = convert(source, target, label)
    before, after = inspect(source), inspect(target)
    assert (after.family, after.variant) == (before.family, before.variant)
    assert {t.name: t.shape for t in after.tensors} == {t.name: t.shape for t in before.tensors}
    assert verify(target, source).checked == ("structure", "hash", "finite", "values")
    assert report.warnings == ()
    if label == "gguf_Q8_0":
        assert gguf.GGUFReader(target).fields["general.architecture"].contents() == name
        shape = (
            next(
                tensor.shape
                for tensor in gguf.GGUFReader(target).tensors
                if tensor.name == "double_blocks.0.img_attn.qkv.weight"
            )
            if name == "flux"
            else None
        )
        assert shape is None or shape.tolist() == [128, 384]


def test_bare_parameters_and_small_tensors_of_bf16_sources_become_f32(tmp_path: Path) -> None:
    """Loaders decode other types only inside layers."""
    shapes = {
        "cap_embedder.1.weight": (3840, 64), "x_pad_token": (1, 3840), "cap_pad_token": (1, 3840),
        "layers.0.attention.qkv.weight": (64, 64), "layers.0.attention_norm1.weight": (3840,),
        "final_layer.linear.weight": (64, 3840),
    }  # fmt: skip
    values = {
        name: ("BF16", torch.randn(shape).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16))
        for name, shape in shapes.items()
    }
    source = write_values(tmp_path / "z.safetensors", values)
    target = tmp_path / "z.gguf"
    convert(source, target, "Q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}
    assert types == {
        "cap_embedder.1.weight": "F16", "x_pad_token": "F32", "cap_pad_token": "F32",
        "layers.0.attention.qkv.weight": "Q8_0", "layers.0.attention_norm1.weight": "F32",
        "final_layer.linear.weight": "F16",
    }  # fmt: skip


def test_side_tensor_beyond_half_is_kept_in_f32(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["label_emb.0.0.weight"][1][3, 7] = 1e6
    source = write_values(tmp_path / "x.safetensors", values)
    target = tmp_path / "x.gguf"
    convert(source, target, "Q8_0")
    tensor = next(t for t in gguf.GGUFReader(target).tensors if t.name == "label_emb.0.0.weight")
    assert tensor.tensor_type.name == "F32"
    assert tensor.data[3, 7] == 1e6


def test_scaled_fp8_is_multiplied_back_before_it_is_packed(tmp_path: Path) -> None:
    """Tools that skip the scale write noise."""
    name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    values: dict[str, Any] = random_values(TINY_SDXL)
    weight = torch.randn(96, 64).to(torch.float8_e4m3fn)
    values[f"{name}.weight"] = ("F8_E4M3", weight.view(torch.uint8).numpy())
    for other, (_, array) in list(values.items()):
        if other.endswith(".weight") and array.ndim == 2 and other != f"{name}.weight":
            values[other] = ("F8_E4M3", torch.from_numpy(array).to(torch.float8_e4m3fn).view(torch.uint8).numpy())
            values[other.removesuffix(".weight") + ".scale_weight"] = ("F32", np.array(1.0))
    values[f"{name}.scale_weight"] = ("F32", np.array(0.25))
    values["scaled_fp8"] = ("F8_E4M3", np.zeros(0))
    source = write_values(tmp_path / "s.safetensors", values)
    target = tmp_path / "s.gguf"
    convert(source, target, "Q8_0")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    assert not [key for key in found if "scale" in key]
    expected = gguf.quants.dequantize(gguf.quants.quantize(weight.float().numpy() * 0.25, Q8_0), Q8_0)
    assert np.array_equal(gguf.quants.dequantize(found[f"{name}.weight"].data, Q8_0), expected)


def test_scaled_fp8_without_a_scale_is_refused_with_its_layer(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL)
    values["middle_block.1.proj_in.weight"] = ("F8_E4M3", np.ones((32, 32)))
    values["scaled_fp8"] = ("F8_E4M3", np.zeros(0))
    with pytest.raises(InputFileError) as caught:
        plan(write_values(tmp_path / "s.safetensors", values), "Q8_0")
    assert caught.value.code == "file-damaged"
    assert "middle_block.1.proj_in" in caught.value.message


def gguf_source(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Write TINY_SDXL with the gguf package, its attention packed as ``kind``."""
    writer = gguf.GGUFWriter(path, "sdxl")
    for name, (_, values) in random_values(TINY_SDXL).items():
        if name.endswith("to_q.weight"):
            writer.add_tensor(name, gguf.quants.quantize(np.tile(values, (300, 1)), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_of_plain_floats_is_a_source(tmp_path: Path) -> None:
    source = gguf_source(tmp_path / "f16.gguf", gguf.GGMLQuantizationType.F16)
    assert convert(source, tmp_path / "q8.gguf", "Q8_0").state == "done"
    assert convert(source, tmp_path / "b.safetensors", "bf16").state == "done"
    values = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    with safe_open(tmp_path / "b.safetensors", "pt") as output:
        for name, tensor in values.items():
            expected = torch.from_numpy(np.array(tensor.data)).to(torch.bfloat16)
            assert torch.equal(output.get_tensor(name), expected.reshape(output.get_tensor(name).shape)), name


def test_a_gguf_that_is_packed_is_used_as_it_is_or_refused(tmp_path: Path) -> None:
    source = gguf_source(tmp_path / "q8.gguf", Q8_0)
    assert inspect(source).precision == "Q8_0"
    report = convert(source, tmp_path / "out.gguf", "Q8_0")
    assert (report.state, report.destination) == ("reused", source)
    worse = gguf_source(tmp_path / "q4.gguf", gguf.GGMLQuantizationType.Q4_0)  # finer is no better
    for packed, label in ((source, "bf16"), (worse, "Q8_0")):
        with pytest.raises(InputFileError) as caught:
            convert(packed, tmp_path / "out" / "x", label)
        assert caught.value.code == "precision-unsupported"
    assert not (tmp_path / "out").exists()


def test_provenance_names_source_and_state(tmp_path: Path, checkpoint: Path) -> None:
    for label, target in (("bf16", tmp_path / "a.safetensors"), ("gguf_Q8_0", tmp_path / "a.gguf")):
        report = convert(checkpoint, target, label)
        known = provenance.read(read_header(target).metadata)
        assert known is not None
        assert (known.precision, known.stamp.name, known.stamp.path) == (label, "tiny.safetensors", "tiny.safetensors")
        assert known.stamp.size_bytes == checkpoint.stat().st_size
        assert known.source_sha256 == report.source_sha256
        assert known.errors.keys() == report.errors.keys()
        assert str(tmp_path) not in target.read_bytes()[:20_000].decode("latin-1")


def test_nothing_is_made_twice_and_a_changed_source_is_made_anew(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "a.gguf"
    assert convert(checkpoint, target, "Q8_0").state == "done"
    first = sha256(target)
    assert convert(checkpoint, target, "Q8_0").state == "reused"
    assert sha256(target) == first
    write_values(checkpoint, {**random_values(under(PREFIX, TINY_SDXL), seed=2), **V_PRED})
    assert convert(checkpoint, target, "Q8_0").state == "done"
    assert sha256(target) != first


def test_a_source_that_is_at_the_target_is_used_as_it_is(tmp_path: Path) -> None:
    source = write_values(tmp_path / "x.safetensors", random_values(TINY_SDXL))
    report = convert(source, tmp_path / "y.safetensors", "fp16")
    assert (report.state, report.destination) == ("reused", source)
    assert not (tmp_path / "y.safetensors").exists()


def test_progress_tells_phases_and_grows_to_the_whole(tmp_path: Path, checkpoint: Path) -> None:
    seen: list[Progress] = []
    convert(checkpoint, tmp_path / "a.gguf", "Q8_0", seen.append)
    phases = [progress.phase for progress in seen]
    assert list(dict.fromkeys(phases)) == ["plan", "kernels", "convert", "check", "commit"]
    done = [progress.done_bytes for progress in seen if progress.done_bytes is not None]
    assert done == sorted(done)
    assert done[-1] == seen[-2].total_bytes
