"""The GGUF header reader: agrees with the gguf package, refuses what is damaged, never crashes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights.containers.ggml_types import BY_NUMBER
from luna_engine.weights.containers.gguf_header import read_gguf_header
from luna_engine.weights.containers.gguf_writer import lay_out_gguf

if TYPE_CHECKING:
    from pathlib import Path


def package_file(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "sdxl")
    writer.add_uint32("some.number", 7)
    writer.add_array("some.list", [1, 2, 3])
    writer.add_array("some.words", ["a", "bc"] * 100)
    writer.add_array("comfy.gguf.orig_shape.r.weight", [4, 4, 4, 4])
    writer.add_tensor("a.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    packed = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("r.weight", np.ones((1, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return package_file(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


def test_header_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = package_file(tmp_path / "x.gguf")
    header = read_gguf_header(path)
    reader = gguf.GGUFReader(path)
    assert header.metadata["general.architecture"] == "sdxl"
    assert header.metadata["some.number"] == 7
    assert header.metadata["some.list"] == (1, 2, 3)
    assert header.metadata["some.words"] is None  # long: skipped
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.dtype) == (theirs.name, theirs.tensor_type.name)
        assert (ours.offset, ours.size_bytes) == (theirs.data_offset, theirs.n_bytes)
    assert [tensor.shape for tensor in header.tensors] == [(3, 4), (2, 64), (4, 4, 4, 4)]


def test_our_type_table_is_the_packages() -> None:
    for number, kind in BY_NUMBER.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (kind.name, (kind.block, kind.block_bytes)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])


def test_our_writer_is_read_by_the_gguf_package(tmp_path: Path) -> None:
    layout = lay_out_gguf(
        [("a", "F16", (3, 5, 2)), ("b", "Q8_0", (4, 32))],
        {"general.architecture": "flux", "n": 3, "list": (1, -2), "general.alignment": 32},
    )
    path = tmp_path / "x.gguf"
    path.write_bytes(layout.header + bytes(layout.size_bytes - len(layout.header)))
    reader = gguf.GGUFReader(path)
    assert [list(tensor.shape) for tensor in reader.tensors] == [[2, 5, 3], [32, 4]]
    assert [tensor.data_offset for tensor in reader.tensors] == [slot.offset for slot in layout.slots]
    assert reader.fields["list"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    assert reader.fields["list"].contents() == [1, -2]


def test_names_that_c_readers_would_cut_are_refused_all_at_once() -> None:
    with pytest.raises(LunaError) as caught:
        lay_out_gguf([("a" * 128, "F16", (1,)), ("b" * 200, "F16", (1,)), ("c", "F16", (1,))], {})
    assert caught.value.code == "name-too-long"
    assert "a" * 128 in caught.value.message
    assert "b" * 200 in caught.value.message


def gguf_bytes(*, version: int = 3, tensors: int = 1, keys: int = 0, body: bytes = b"", data: int = 64) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body
    return head + bytes(-len(head) % 32) + bytes(data)


def info(name: bytes = b"a", dims: tuple[int, ...] = (16,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    )  # fmt: skip


BAD = {
    "wrong magic": (b"GGML" + bytes(60), "does not start with GGUF"),
    "three bytes": (b"GGU", "GGUF"),
    "version 1": (gguf_bytes(version=1, body=info()), "version 1"),
    "big-endian": (gguf_bytes(version=3 << 24, body=info()), "big-endian"),
    "too many tensors": (gguf_bytes(tensors=2**40, body=info()), "tensors"),
    "too many keys": (gguf_bytes(keys=2**40, body=info()), "keys"),
    "string beyond the file": (gguf_bytes(body=struct.pack("<Q", 10**6)), "left"),
    "string of 1 GB": (gguf_bytes(body=struct.pack("<Q", 2**30)), "string"),
    "name no UTF-8": (gguf_bytes(body=info(b"\xff")), "UTF-8"),
    "rank 9": (gguf_bytes(body=info(dims=(1,) * 9)), "rank 9"),
    "unaligned": (gguf_bytes(body=info(offset=4)), "multiple of 32"),
    "outside": (gguf_bytes(body=info(dims=(1000,))), "ends at byte"),
    "overlap": (gguf_bytes(tensors=2, body=info() + info(b"b")), "overlaps"),
    "same name": (gguf_bytes(tensors=2, body=info() + info(offset=64), data=128), "same name"),
    "block does not divide": (gguf_bytes(body=info(dims=(33,), kind=8)), "packs 32"),
    "bad value type": (gguf_bytes(keys=1, body=struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77)), "value type 77"),
    "array beyond the file": (
        gguf_bytes(keys=1, body=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 10, 2**50)), "left"),
    "strings beyond the file": (
        gguf_bytes(keys=1, body=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**50)), "do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    data, words = BAD[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(InputFileError) as caught:
        read_gguf_header(path)
    assert caught.value.code == "file-damaged"
    assert words in caught.value.message, caught.value.message


def test_unknown_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(body=info(kind=200)))
    with pytest.raises(InputFileError) as caught:
        read_gguf_header(path)
    assert caught.value.code == "precision-unsupported"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=6), cut=st.integers(0, 4000))
def test_mutated_file_is_refused_or_read(
    tmp_path: Path, whole_gguf: bytes, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(whole_gguf)
    if cut < 2000:
        del data[max(1, len(data) - cut) :]
    for place, byte in edits:
        data[place % len(data)] = byte
    path = tmp_path / "mutated.gguf"
    path.write_bytes(data)
    code, tensors = None, ()
    try:
        tensors = read_gguf_header(path).tensors
    except LunaError as error:
        code = error.code
    assert code in {None, "file-damaged", "precision-unsupported"}
    for tensor in tensors:
        assert tensor.offset + tensor.size_bytes <= len(data)
