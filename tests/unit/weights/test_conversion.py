"""Converted files hold the planned types, the reference's numbers and the right names; failures leave nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from luna_engine.errors import ConversionError, InputFileError, LunaError
from luna_engine.weights import ConversionOptions, Progress, convert, inspect, plan, provenance, verify
from luna_engine.weights.demo import writing
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.headers import read_header
from tests.synthetic_models import TINY_SDXL, random_values, under, write_holes, write_raw, write_values

Q8_0 = gguf.GGMLQuantizationType.Q8_0
PREFIX = "model.diffusion_model."
VAE = {
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
}
CLIP = {"conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}
V_PRED = {"v_pred": ("F32", np.zeros(0)), "ztsnr": ("F32", np.zeros(0))}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a small SDXL checkpoint with a VAE, a text encoder and v-prediction markers."""
    values = random_values({**under(PREFIX, TINY_SDXL), **VAE, **CLIP})
    return write_values(tmp_path / "checkpoints" / "tiny.safetensors", {**values, **V_PRED})


def source_values(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "pt") as file:
        return {name.removeprefix(PREFIX): file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix in {".part", ".lock", ".cancel"})


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
    assert refused(source, tmp_path / "out" / "b.safetensors", "bf16").code == "precision-unsupported"
    worse = gguf_source(tmp_path / "q4.gguf", gguf.GGMLQuantizationType.Q4_0)
    assert refused(worse, tmp_path / "out" / "q8.gguf", "Q8_0").code == "precision-unsupported"


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
    write_values(checkpoint, {**random_values({**under(PREFIX, TINY_SDXL), **VAE}, seed=2), **V_PRED})
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
    assert list(dict.fromkeys(phases)) == ["plan", "convert", "check", "commit"]
    done = [progress.done_bytes for progress in seen if progress.done_bytes is not None]
    assert done == sorted(done)
    assert done[-1] == seen[-2].total_bytes


# -- bad input -------------------------------------------------------------------------------------------------


def refused(source: Path, target: Path, label: str = "gguf_Q8_0") -> LunaError:
    """Convert, which must fail, and check that nothing is left."""
    before = sorted(path.name for path in target.parent.rglob("*")) if target.parent.exists() else []
    with pytest.raises(LunaError) as caught:
        convert(source, target, label)
    after = sorted(path.name for path in target.parent.rglob("*")) if target.parent.exists() else []
    assert after == before
    assert caught.value.hint or caught.value.code == "cancelled"
    return caught.value


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("lora_sd15", "wrong-type", "is a LoRA"),
        ("ti_sdxl", "wrong-type", "is an embedding"),
        ("sdxl_vae", "component-missing", "is a VAE: no diffusion part"),
        ("clip_l", "component-missing", "is a text encoder: no diffusion part"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, name: str, code: str, words: str) -> None:
    shapes = {tensor.name: tensor.shape for tensor in MODELS[name].build()}
    error = refused(write_holes(tmp_path / f"{name}.safetensors", shapes), tmp_path / "out" / "x.gguf")
    assert (error.code, error.exit_code) == (code, 4)
    assert words in error.message
    assert not (tmp_path / "out").exists()


def test_truncated_and_overlapping_sources_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-1000])
    assert refused(cut, tmp_path / "out" / "x.gguf").code == "file-damaged"
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    overlap = write_raw(tmp_path / "o.safetensors", {"a": entry, "b": entry}, bytes(16))
    error = refused(overlap, tmp_path / "out" / "x.gguf")
    assert error.code == "file-damaged"
    assert "overlaps" in error.message


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert refused(path, tmp_path / "out" / "x.gguf").code == "pickle-refused"


def test_missing_source_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "no" / "x.safetensors", tmp_path / "out" / "x.gguf").code == "file-missing"


@pytest.mark.parametrize(
    ("shapes", "dtype", "code"),
    [
        ({"clf.1.weight": (8, 8, 1, 1), "a": (4,), "b": (4,), "c": (4,)}, "F16", "family-unsupported"),
        ({"nobody.knows": (8, 8), "a": (4,), "b": (4,), "c": (4,)}, "F16", "family-unsupported"),
        ({"all_x_embedder.2-1.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}, "F16", "family-unsupported"),
        ({**TINY_SDXL, "middle_block.1.proj_in.wscales": (4,)}, "F16", "precision-unsupported"),
        ({**TINY_SDXL, "middle_block.1.proj_in.weight_scale_2": ()}, "U8", "precision-unsupported"),
        ({name: shape for name, shape in TINY_SDXL.items() if ".3.0." not in name}, "F16", "file-damaged"),
    ],
)
def test_sources_that_have_no_way_are_refused_with_their_code(
    tmp_path: Path, shapes: dict[str, Any], dtype: str, code: str
) -> None:
    source = write_holes(tmp_path / "x.safetensors", shapes, dtype)
    error = refused(source, tmp_path / "out" / "x.gguf")
    assert (error.code, error.exit_code) == (code, 4)


def test_a_shard_is_refused_as_one(tmp_path: Path) -> None:
    source = write_holes(tmp_path / "model-00002-of-00003.safetensors", TINY_SDXL)
    error = refused(source, tmp_path / "out" / "x.gguf")
    assert error.code == "family-unsupported"
    assert "part 2 of 3" in error.message


def test_a_finer_target_is_refused_unless_asked_for(tmp_path: Path) -> None:
    values: dict[str, Any] = {name: ("F8_E4M3", np.ones(shape)) for name, shape in TINY_SDXL.items()}
    source = write_values(tmp_path / "x.safetensors", values)
    target = tmp_path / "out" / "y.safetensors"
    assert refused(source, target, "bf16").code == "precision-unsupported"
    assert convert(source, target, "bf16", options=ConversionOptions(allow_finer=True)).state == "done"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["middle_block.1.proj_in.weight", "out.0.weight"])
@pytest.mark.parametrize("label", ["gguf_Q8_0", "bf16", "fp16"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, bad: float, name: str, label: str) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F16")
    values[name][1].reshape(-1)[5] = bad
    values["extra.weight"] = ("F32", np.ones(3))  # so that fp16 is no mere use of the source
    source = write_values(tmp_path / "x.safetensors", values)
    error = refused(source, tmp_path / "out" / "x", label)
    assert error.code == "source-nonfinite"
    assert name in error.message
    assert "at 5" in error.message


def test_values_beyond_half_are_refused_for_fp16_with_a_way_out(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["middle_block.1.proj_in.weight"][1][0, 0] = 1e5
    source = write_values(tmp_path / "x.safetensors", values)
    error = refused(source, tmp_path / "out" / "x.safetensors", "fp16")
    assert (error.code, error.hint) == ("value-range", "convert to bf16")
    assert "middle_block.1.proj_in.weight" in error.message
    assert convert(source, tmp_path / "out" / "x.safetensors", "bf16").state == "done"


def test_block_scale_beyond_half_is_refused(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["middle_block.1.proj_in.weight"][1][0, 0] = 1e8
    error = refused(write_values(tmp_path / "x.safetensors", values), tmp_path / "out" / "x.gguf")
    assert error.code == "value-range"


def test_a_name_taken_by_a_foreign_file_is_left_alone(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_bytes(b"precious")
    error = refused(checkpoint, target)
    assert (error.code, error.exit_code) == ("target-exists", 1)
    assert target.read_bytes() == b"precious"
    other = write_values(tmp_path / "other.safetensors", random_values(TINY_SDXL, "F32"))
    convert(other, tmp_path / "b.gguf", "Q8_0")
    assert refused(checkpoint, tmp_path / "b.gguf").code == "target-exists"


def test_the_source_is_never_its_own_destination(tmp_path: Path, checkpoint: Path) -> None:
    before = sha256(checkpoint)
    assert refused(checkpoint, checkpoint, "bf16").code == "path-outside"
    assert sha256(checkpoint) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    if os.geteuid() == 0:  # root ignores modes, but not the kernel's own file system
        folder = Path("/sys/luna-test")
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    error = refused(checkpoint, folder / "x.gguf")
    assert (error.code, error.exit_code) == ("target-readonly", 1)


def test_too_little_space_is_said_with_both_numbers(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 12_345))
    error = refused(checkpoint, tmp_path / "out.gguf")
    assert error.code == "disk-full"
    assert "12,345" in error.message


def test_a_full_disk_half_way_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """/dev/full cannot be renamed over, so the limit on file size stands in for a full disk in a process of its own."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from luna_engine.weights import convert; convert(sys.argv[1], sys.argv[2], 'Q8_0')"
    )
    target = tmp_path / "out" / "x.gguf"
    done = subprocess.run([sys.executable, "-c", code, checkpoint, target], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConversionError" in done.stderr
    assert list(target.parent.iterdir()) == []


def test_cancel_leaves_neither_part_nor_lock(tmp_path: Path, checkpoint: Path) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "convert":
            cancel.set()

    with pytest.raises(ConversionError) as caught:
        convert(checkpoint, tmp_path / "out" / "x.gguf", "Q8_0", stop, cancel=cancel)
    assert caught.value.code == "cancelled"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_replaced_half_way_is_noticed(tmp_path: Path, checkpoint: Path) -> None:
    def replace(progress: Progress) -> None:
        if progress.phase == "check":
            copy = checkpoint.with_suffix(".new")
            copy.write_bytes(checkpoint.read_bytes())
            copy.replace(checkpoint)

    with pytest.raises(InputFileError) as caught:
        convert(checkpoint, tmp_path / "out" / "x.gguf", "Q8_0", replace)
    assert caught.value.code == "source-changed"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("lines", [1, 2, 4, 7])
def test_a_killed_process_leaves_no_file_under_the_final_name_and_the_next_one_clears_up(
    tmp_path: Path, lines: int
) -> None:
    name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    source = write_holes(tmp_path / "large.safetensors", {**TINY_SDXL, name: (200_000, 4096)})
    before = source.stat()
    target = tmp_path / "out" / "x.gguf"
    code = (
        "import sys; from luna_engine.weights import convert;"
        "convert(sys.argv[1], sys.argv[2], 'Q8_0', lambda p: print(p.phase, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, source, target], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
    assert not target.exists()
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    write_holes(source, TINY_SDXL)  # small now, for a quick second run
    assert convert(source, target, "Q8_0").state == "done"
    assert [path.name for path in target.parent.iterdir()] == ["x.gguf"]


def test_parts_and_locks_of_dead_makers_are_cleared(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "x.gguf"
    (tmp_path / "x.gguf.20200101-dead.part").write_bytes(b"old")

    lock = {"host": socket.gethostname(), "pid": 2**22 + 1, "create_time": 1.0, "job": "dead"}
    (tmp_path / "x.gguf.lock").write_text(json.dumps(lock))
    assert convert(checkpoint, target, "Q8_0").state == "done"
    assert leftovers(tmp_path) == []


def test_two_makers_of_one_file_make_it_once(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "x.gguf"
    states: list[str] = []
    threads = [
        threading.Thread(target=lambda: states.append(convert(checkpoint, target, "Q8_0", job=f"t{i}").state))  # noqa: B023
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["done", "reused", "reused"]
    assert leftovers(tmp_path) == []


def test_verify_notices_a_flipped_bit_and_a_foreign_source(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "x.gguf"
    convert(checkpoint, target, "Q8_0")
    assert verify(target).checked == ("structure", "hash", "finite")
    data = bytearray(target.read_bytes())
    data[-500] ^= 1
    target.write_bytes(data)
    with pytest.raises(InputFileError) as caught:
        verify(target)
    assert caught.value.code == "file-damaged"
    with pytest.raises(InputFileError) as caught:
        verify(checkpoint)
    assert caught.value.code == "wrong-type"


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Peak of the whole process for a model of 20 MB and one of 700 MB, both mostly holes."""
    code = (
        "import sys; from luna_engine.weights.conversion import convert;"
        "print(convert(sys.argv[1], sys.argv[2], 'Q8_0').peak_rss_bytes)"
    )
    peaks = []
    for rows in (2_000, 85_000):
        name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
        source = write_holes(tmp_path / f"{rows}.safetensors", {**TINY_SDXL, name: (rows, 4096)})
        target = tmp_path / "out" / f"{rows}.gguf"
        done = subprocess.run([sys.executable, "-c", code, source, target], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        target.unlink()
    assert peaks[1] - peaks[0] <= 16 * 1024**2, peaks
    assert peaks[1] <= 220 * 1024**2, peaks
