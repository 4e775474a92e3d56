"""GGUF files without blocks: which tensors are F16, BF16 or F32, and that every value is the source's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from luna_engine.errors import LunaError
from luna_engine.weights import ConversionOptions, convert, verify
from luna_engine.weights.precisions import find_precision
from tests.synthetic_models import PREFIX, TINY_SDXL, random_values, write_values

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"


def opened(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    return {
        tensor.name: (
            tensor.tensor_type.name,
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape.tolist()[::-1]),
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize(("label", "file_type"), [("gguf_F16", 1), ("gguf_BF16", 32)])
def test_blocks_have_the_named_type_and_every_value_is_the_sources_cast(
    tmp_path: Path, checkpoint: Path, label: str, file_type: int
) -> None:
    target = tmp_path / "out.gguf"
    convert(checkpoint, target, label)
    reader = gguf.GGUFReader(target)
    assert reader.fields["general.file_type"].contents() == file_type
    assert not [key for key in reader.fields if "orig_shape" in key]  # nothing has to fill blocks
    found = opened(target)
    assert found[ATTENTION][0] == label.removeprefix("gguf_")
    cast = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    with safe_open(checkpoint, "pt") as source:
        for name, shape in TINY_SDXL.items():
            kind, values = found[name]
            expected = source.get_tensor(PREFIX + name).to(cast[kind]).float().numpy()
            assert values.shape == shape
            assert np.array_equal(values, expected), name
    assert verify(target, checkpoint).checked[-1] == "values"


def test_bf16_keeps_what_no_layer_owns_in_f32(tmp_path: Path) -> None:
    shapes = {
        "cap_embedder.1.weight": (3840, 64), "x_pad_token": (1, 3840), "cap_pad_token": (1, 3840),
        "layers.0.attention.qkv.weight": (64, 64), "layers.0.attention_norm1.weight": (3840,),
        "final_layer.linear.weight": (64, 3840),
    }  # fmt: skip
    save_file({name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}, tmp_path / "z.safetensors")
    convert(tmp_path / "z.safetensors", tmp_path / "z.gguf", "gguf_BF16")
    assert {name: kind for name, (kind, _) in opened(tmp_path / "z.gguf").items()} == {
        "cap_embedder.1.weight": "BF16", "x_pad_token": "F32", "cap_pad_token": "F32",
        "layers.0.attention.qkv.weight": "BF16", "layers.0.attention_norm1.weight": "F32",
        "final_layer.linear.weight": "BF16",
    }  # fmt: skip


def test_f16_refuses_what_half_cannot_hold_in_a_block_and_widens_it_elsewhere(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["label_emb.0.0.weight"][1][3, 7] = 1e6
    source = write_values(tmp_path / "side.safetensors", values)
    convert(source, tmp_path / "side.gguf", "gguf_F16")
    assert opened(tmp_path / "side.gguf")["label_emb.0.0.weight"][0] == "F32"
    values[ATTENTION][1][0, 0] = 1e6
    source = write_values(tmp_path / "block.safetensors", values)
    with pytest.raises(LunaError) as caught:
        convert(source, tmp_path / "block.gguf", "gguf_F16")
    assert (caught.value.code, caught.value.hint) == ("value-range", "convert to bf16")
    assert convert(source, tmp_path / "block.gguf", "gguf_BF16").state == "done"


@pytest.mark.parametrize("label", ["gguf_F16", "gguf_BF16", "gguf_Q8_0"])
@pytest.mark.parametrize("target", ["bf16", "fp8_e4m3fn_scaled", "gguf_F16", "gguf_BF16"])
def test_gguf_sources_are_decoded_first(tmp_path: Path, checkpoint: Path, label: str, target: str) -> None:
    source = tmp_path / "source.gguf"
    convert(checkpoint, source, label)
    out = tmp_path / f"out{'.gguf' if 'gguf' in target else '.safetensors'}"
    report = convert(source, out, target, options=ConversionOptions(allow_finer=True))
    if label == target:
        assert (report.state, report.destination) == ("reused", source)
        return
    weight = opened(source)[ATTENTION][1] if label != "gguf_Q8_0" else _decoded(source)
    if target == "bf16":
        with safe_open(out, "pt") as file:
            assert torch.equal(file.get_tensor(ATTENTION), torch.from_numpy(weight).bfloat16())
            assert file.get_tensor(ATTENTION).shape == TINY_SDXL[ATTENTION]
    assert verify(out, source).checked[-1] == "values"


def _decoded(path: Path) -> np.ndarray:
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == ATTENTION)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(TINY_SDXL[ATTENTION])


def test_a_packed_source_becomes_a_finer_class_only_when_asked(tmp_path: Path, checkpoint: Path) -> None:
    convert(checkpoint, tmp_path / "q8.gguf", "gguf_Q8_0")
    with pytest.raises(LunaError) as caught:
        convert(tmp_path / "q8.gguf", tmp_path / "out.safetensors", "bf16")
    assert caught.value.code == "precision-unsupported"
    assert convert(tmp_path / "q8.gguf", tmp_path / "o.safetensors", "fp8_e4m3fn_scaled").state == "done"


@pytest.mark.parametrize(
    ("word", "label"),
    [("bf16", "bf16"), ("BF16", "bf16"), ("f16", "gguf_F16"), ("gguf_bf16", "gguf_BF16"), ("q8_0", "gguf_Q8_0"),
     ("fp8_e4m3fn", "fp8_e4m3fn"), ("fp8_e4m3fn_scaled (recommended)", "fp8_e4m3fn_scaled")],
)  # fmt: skip
def test_a_label_is_found_in_any_case_and_without_gguf(word: str, label: str) -> None:
    assert find_precision(word).label == label
