"""The safetensors header reader: refuses with names and numbers, and never crashes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights import inspect
from luna_engine.weights.containers.safetensors_header import read_safetensors_header
from tests.synthetic_models import TINY_SDXL, write_holes, write_raw

A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def test_header_agrees_with_the_formats_own_library(tmp_path: Path) -> None:
    values = {
        "b": np.ones((2, 3), np.float16),
        "a.ä": np.zeros((0, 4), np.float32),
        "c": np.array(3.0),
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(values, path, metadata={"k": "v"})
    header = read_safetensors_header(path)
    assert header.metadata == {"k": "v"}
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {"b": (2, 3), "a.ä": (0, 4), "c": ()}
    data = path.read_bytes()
    for tensor in header.tensors:
        stored = data[tensor.offset : tensor.offset + tensor.size_bytes]
        assert stored == values[tensor.name].tobytes()


BAD: dict[str, tuple[Any, bytes, int | None, str]] = {
    "empty file": (None, b"", None, "too few"),
    "a web page": (None, b"<!DOCTYPE html><html>" + bytes(40), None, "download page"),
    "an LFS pointer": (None, b"version https://git-lfs.github.com/spec/v1\n" + bytes(40), None, "LFS pointer"),
    "header longer than the file": ({"a": A}, bytes(16), 5000, "promised"),
    "header of 100 MB and more": ({"a": A}, bytes(16), 200_000_000, "promised"),
    "no UTF-8": (b'{"\xff": 1}', b"", None, "UTF-8"),
    "no JSON": (b"{nonsense", b"", None, "JSON"),
    "no object": (b"[1, 2]", b"", None, "JSON object"),
    "nested without end": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None, "nested"),
    "NaN": (b'{"a": NaN}', b"", None, "NaN"),
    "truncated data": ({"a": A}, bytes(15), None, "promised"),
    "bytes after the end": ({"a": A}, bytes(17), None, "belong to nothing"),
    "hole": ({"a": A, "b": {**A, "data_offsets": [20, 36]}}, bytes(36), None, "belong to no tensor"),
    "overlap": ({"a": A, "b": {**A, "data_offsets": [8, 24]}}, bytes(24), None, "overlaps"),
    "end before begin": ({"a": {**A, "data_offsets": [16, 0]}}, bytes(16), None, "before it begins"),
    "size disagrees": ({"a": {**A, "shape": [2, 3]}}, bytes(16), None, "takes 24 bytes"),
    "negative dimension": ({"a": {**A, "shape": [-2, -2]}}, bytes(16), None, "no size"),
    "fractional dimension": ({"a": {**A, "shape": [2.0, 2]}}, bytes(16), None, "whole numbers"),
    "overflowing dimension": ({"a": {**A, "shape": [2**62, 2**62]}}, bytes(16), None, "takes"),
    "truth as dimension": ({"a": {**A, "shape": [True, 4]}}, bytes(16), None, "whole numbers"),
    "duplicate key": (b'{"a":{},"a":{}}', b"", None, "occurs twice"),
    "missing field": ({"a": {"dtype": "F32", "shape": [4]}}, bytes(16), None, "missing"),
    "metadata with numbers": ({"__metadata__": {"k": 1}, "a": A}, bytes(16), None, "__metadata__"),
    "lone surrogate": (b'{"\\ud800": {}}', b"", None, "JSON"),
}  # fmt: skip


# DAEMON S12
@pytest.mark.parametrize("case", BAD)
def test_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    header, data, length, words = BAD[case]
    path = tmp_path / "x.safetensors"
    if header is None:
        path.write_bytes(data)
    else:
        write_raw(path, header, data, length)
    with pytest.raises(InputFileError) as caught:
        read_safetensors_header(path)
    assert caught.value.code == "file-damaged"
    assert caught.value.exit_code == 4
    assert words in caught.value.message, caught.value.message
    assert "x.safetensors" in caught.value.message
    assert caught.value.hint
    assert caught.value.file == str(path)


def test_unknown_element_type_is_named(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"a": {**A, "dtype": "F13"}}, bytes(16))
    with pytest.raises(InputFileError) as caught:
        read_safetensors_header(path)
    assert caught.value.code == "precision-unsupported"
    assert "F13" in caught.value.message


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputFileError) as caught:
        read_safetensors_header(tmp_path / "none.safetensors")
    assert caught.value.code == "file-missing"
    with pytest.raises(InputFileError) as caught:
        read_safetensors_header(tmp_path)
    assert caught.value.code == "wrong-type"


def good_file() -> bytes:
    header = json.dumps(
        {"__metadata__": {"a": "b"}, "x": A, "y": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(19)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    place=st.integers(0, 200),
    kind=st.sampled_from(["flip", "insert", "delete", "cut"]),
    byte=st.integers(0, 255),
    count=st.integers(1, 8),
)
@example(place=0, kind="flip", byte=255, count=8)
def test_mutated_header_is_refused_or_read_and_never_more_lenient_than_the_library(
    tmp_path: Path, place: int, kind: str, byte: int, count: int
) -> None:
    data = bytearray(good_file())
    place = min(place, len(data) - 1)
    if kind == "flip":
        data[place] = byte
    elif kind == "insert":
        data[place:place] = bytes([byte]) * count
    elif kind == "delete":
        del data[place : place + count]
    else:
        del data[place:]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    code = None
    try:
        read_safetensors_header(path)
    except LunaError as error:
        code = error.code
    assert code in {None, "file-damaged", "precision-unsupported"}
    if code is None:
        safetensors.deserialize(bytes(data))  # what we take, the format's own reader takes


@pytest.mark.skipif(not Path("/proc/thread-self/io").exists(), reason="only Linux counts a thread's reads")
def test_an_inspection_reads_the_header_and_the_eight_bytes_before_it(tmp_path: Path) -> None:
    """By the kernel's own count of bytes that this thread read."""

    def read_so_far() -> int:
        return int(Path("/proc/thread-self/io").read_text().split()[1])

    path = write_holes(tmp_path / "model.safetensors", TINY_SDXL)
    inspect(path)  # imports, and whatever else happens once
    start = read_so_far()
    counting = read_so_far() - start  # what looking at the counter costs
    start = read_so_far()
    found = inspect(path)
    assert found.header is not None
    assert read_so_far() - start - counting == found.header.header_bytes
