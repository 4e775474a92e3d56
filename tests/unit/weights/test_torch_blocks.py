"""Blocks read by torch hold the values that the gguf package reads, and no operation sees packed bytes."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from comfy_nodes.checkpoints import TEXT_ENCODERS, read_parts
from comfy_nodes.packed import PackedTensor, read_gguf
from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights import convert
from luna_engine.weights.containers.ggml_types import BY_NAME, SCALE_PLACES
from luna_engine.weights.kernels import torch_blocks

if TYPE_CHECKING:
    from pathlib import Path


def random_blocks(dtype: str, count: int) -> np.ndarray:
    """Return random bytes with finite scales: every level and every 6-bit scale occurs."""
    random = np.random.default_rng(3)
    data = random.integers(0, 256, (count, BY_NAME[dtype].block_bytes), np.uint8)
    for place in SCALE_PLACES[dtype]:
        data[:, place : place + 2] = random.normal(0, 0.1, (count, 1)).astype(np.float16).view(np.uint8)
    return data


@pytest.mark.parametrize("dtype", torch_blocks.DECODERS)
def test_values_equal_the_gguf_packages(dtype: str) -> None:
    data = random_blocks(dtype, 300)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[dtype])
    assert np.array_equal(torch_blocks.decode(dtype, torch.from_numpy(data)).numpy(), expected)


@pytest.fixture
def packed() -> PackedTensor:
    return PackedTensor(torch.from_numpy(random_blocks("Q4_K", 6).reshape(-1)), "Q4_K", (6, 256))


def test_a_packed_weight_shows_the_shape_and_the_numbers_of_its_values(packed: PackedTensor) -> None:
    values = packed.decoded()
    assert (packed.shape, packed.ndim, packed.size(1), packed.numel()) == ((6, 256), 2, 256, 1536)
    assert packed.nbytes == 6 * 144
    x = torch.randn(2, 256)
    assert torch.equal(torch.nn.functional.linear(x, packed), x @ values.T)
    assert torch.equal(packed + 1, values + 1)
    assert torch.equal(packed.to(torch.bfloat16), values.bfloat16())
    assert torch.equal(torch.empty(6, 256).copy_(packed), values)


def test_bytes_that_are_moved_or_copied_stay_packed(packed: PackedTensor) -> None:
    for copy in (
        packed.clone(), packed.detach(), packed.to("cpu"), packed.to(device="cpu", copy=True),
        torch.nn.Parameter(packed, requires_grad=False), packed.cpu(),
    ):  # fmt: skip
        assert isinstance(copy, PackedTensor)
        assert (copy.block_type, copy.shape) == ("Q4_K", (6, 256))
        assert torch.equal(copy.packed, packed.packed)
    assert packed.to(device="cpu", copy=True).data_ptr() != packed.data_ptr()
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert isinstance(module.to("cpu").state_dict()["weight"], PackedTensor)
    with pytest.raises(LunaError, match="cannot be saved"):
        pickle.dumps(packed)


def test_a_file_is_read_with_its_shapes_and_its_metadata(tmp_path: Path, checkpoint: Path) -> None:
    convert(checkpoint, tmp_path / "a.gguf", "Q4_K_M")
    seen: list[tuple[int, int]] = []
    tensors, metadata = read_gguf(tmp_path / "a.gguf", lambda done, total: seen.append((done, total)))
    assert metadata["general.architecture"] == "sdxl"
    assert seen[-1][0] == seen[-1][1] > 0
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for name, tensor in tensors.items():
        expected = gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(-1)
        values = tensor.decoded() if isinstance(tensor, PackedTensor) else tensor.float()
        assert np.array_equal(values.numpy().reshape(-1), expected), name
    assert tensors["middle_block.0.in_layers.2.weight"].ndim == 4


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "flux")
    blocks = np.zeros((1, 84), np.uint8)
    writer.add_tensor("x.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q2_K)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(InputFileError, match=r"x\.weight is packed as Q2_K") as caught:
        read_gguf(tmp_path / "a.gguf")
    assert caught.value.code == "precision-unsupported"


def test_of_a_checkpoint_only_the_wanted_parts_are_read(checkpoint: Path) -> None:
    tensors, _, parts = read_parts(checkpoint, clip=True, vae=False)
    assert parts == {TEXT_ENCODERS}
    read = {name for name, tensor in tensors.items() if tensor.device.type != "meta"}
    assert read == {name for name in tensors if name.startswith("conditioner.")} != set()
    with safe_open(checkpoint, "pt") as file:
        for name, tensor in tensors.items():
            expected = file.get_tensor(name)
            assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype), name
            assert name not in read or torch.equal(tensor, expected), name


def test_a_gguf_file_holds_no_text_encoder(tmp_path: Path, checkpoint: Path) -> None:
    convert(checkpoint, tmp_path / "a.gguf", "Q8_0")
    with pytest.raises(InputFileError, match="a diffusion model alone") as caught:
        read_parts(tmp_path / "a.gguf", clip=True, vae=True)
    assert caught.value.code == "component-missing"
