"""Mixes of block types: which weight gets which, and that files hold just that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from luna_engine.weights import ConversionOptions, convert, inspect, plan, verify
from luna_engine.weights.kernels.lanes import LaneBlocks
from luna_engine.weights.mixes import MIXES, Convolutions, block_types, role
from luna_engine.weights.precisions import PRECISIONS
from tests.synthetic_models import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

CROSS = "input_blocks.4.1.transformer_blocks.0"
BLOCKED = [label for label, found in PRECISIONS.items() if found.dtype.startswith("Q")]


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [
        (f"{CROSS}.attn1.to_v.weight", 2, "value"),
        (f"{CROSS}.attn1.to_q.weight", 2, "other"),
        (f"{CROSS}.ff.net.2.weight", 2, "ffn_down"),
        ("input_blocks.1.0.in_layers.2.weight", 4, "convolution"),
        ("double_blocks.0.img_attn.qkv.weight", 2, "fused"),
        ("single_blocks.0.linear1.weight", 2, "other"),
        ("joint_blocks.3.x_block.attn.qkv.weight", 2, "fused"),
        ("layers.7.attention.qkv.weight", 2, "fused"),
        ("layers.7.feed_forward.w2.weight", 2, "ffn_down"),
        ("blocks.0.self_attn.v.weight", 2, "value"),
        ("blocks.0.ffn.2.weight", 2, "ffn_down"),
        ("transformer_blocks.0.attn.to_v.weight", 2, "value"),
        ("double_stream_blocks.0.block.ff_i.experts.3.w2.weight", 2, "ffn_down"),
        ("double_stream_blocks.0.block.ff_i.shared_experts.w1.weight", 2, "other"),
        ("blocks.0.mlp.layer2.weight", 2, "ffn_down"),
        ("double_layers.0.attn.w1v.weight", 2, "value"),
    ],
)
def test_a_name_decides_the_row_of_the_mix(name: str, rank: int, expected: str) -> None:
    assert role(name, rank) == expected


def test_the_first_value_projections_are_counted_by_block_and_not_by_text() -> None:
    names = [f"transformer_blocks.{number}.attn.to_v.weight" for number in range(12)]
    types = block_types("gguf_Q4_K_S", "Q4_K", [(name, 2) for name in sorted(names)])
    assert [name for name in names if types[name] == "Q5_K"] == names[:4]
    assert {types[name] for name in names[4:]} == {"Q4_K"}


def test_convolutions_follow_the_option() -> None:
    weights = [("input_blocks.1.0.in_layers.2.weight", 4), (f"{CROSS}.attn1.to_q.weight", 2)]
    found = {way: list(block_types("gguf_Q4_K_M", "Q4_K", weights, way).values()) for way in Convolutions}
    assert found == {
        Convolutions.MIX: ["Q6_K", "Q4_K"], Convolutions.SAME: ["Q4_K", "Q4_K"], Convolutions.F16: ["F16", "Q4_K"],
    }  # fmt: skip


@pytest.mark.parametrize("label", BLOCKED)
def test_a_file_holds_the_planned_types_and_the_kernels_values(tmp_path: Path, checkpoint: Path, label: str) -> None:
    report = convert(checkpoint, tmp_path / "out.gguf", label)
    planned = {tensor.name: tensor for tensor in plan(checkpoint, label).tensors}
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.file_type"].contents() == PRECISIONS[label].file_type
    blocks = LaneBlocks()
    quantised = 0
    with safe_open(checkpoint, "pt") as source:
        for tensor in reader.tensors:
            plan_of = planned[tensor.name]
            assert tensor.tensor_type.name == plan_of.dtype, tensor.name
            if plan_of.action == "quantised":
                quantised += 1
                values = source.get_tensor(PREFIX + tensor.name).float().numpy().reshape(-1)
                expected = np.empty(tensor.n_bytes, np.uint8)
                blocks.quantize(plan_of.dtype, values, expected)
                assert np.array_equal(tensor.data.reshape(-1), expected), tensor.name
    assert quantised == report.quantised > 20
    assert report.kernel.startswith("lanes")
    mixed = {tensor.dtype for tensor in planned.values() if tensor.action == "quantised"}
    assert mixed <= {*MIXES.get(label, {}).values(), PRECISIONS[label].dtype, "Q5_K", "Q8_0"}
    assert verify(tmp_path / "out.gguf", checkpoint).errors.keys() >= {"convolution", "attention other"}


def test_weights_that_fill_no_large_block_take_small_ones(tmp_path: Path, checkpoint: Path) -> None:
    found = {
        reshape: {
            tensor.name: tensor.dtype
            for tensor in plan(checkpoint, "Q6_K", options=ConversionOptions(reshape=reshape)).tensors
        }
        for reshape in (True, False)
    }
    name = f"{CROSS}.attn1.to_q.weight"  # rows of 64 values
    assert (found[True][name], found[False][name]) == ("Q6_K", "Q8_0")
    assert found[True][f"{CROSS}.attn1.to_odd.weight"] == "F16"  # 33 x 17 values


@pytest.mark.parametrize("label", ["gguf_Q4_K_M", "gguf_Q5_0"])
def test_packed_files_are_sources_too(tmp_path: Path, checkpoint: Path, label: str) -> None:
    packed = tmp_path / "packed.gguf"
    convert(checkpoint, packed, label)
    assert inspect(packed).precision in {"Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    convert(packed, tmp_path / "wide.safetensors", "bf16", options=ConversionOptions(allow_finer=True))
    with safe_open(tmp_path / "wide.safetensors", "pt") as output:
        for tensor in gguf.GGUFReader(packed).tensors:
            if tensor.tensor_type.name.startswith("Q"):
                values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
                written = output.get_tensor(tensor.name).float().numpy().reshape(-1)
                np.testing.assert_allclose(written, values, rtol=2**-8, atol=0)


def test_a_file_made_with_other_convolutions_is_made_anew(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "out.gguf"
    assert convert(checkpoint, target, "Q4_K_M").state == "done"
    assert convert(checkpoint, target, "Q4_K_M").state == "reused"
    other = ConversionOptions(convolutions=Convolutions.F16)
    assert convert(checkpoint, target, "Q4_K_M", options=other).state == "done"
    assert convert(checkpoint, target, "Q4_K_M", options=other).state == "reused"
    assert verify(target, checkpoint).errors["convolution"]["rmse"] == 0
