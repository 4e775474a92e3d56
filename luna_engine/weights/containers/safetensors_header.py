"""Reads and checks a safetensors header: 8 bytes little-endian length, that many bytes of JSON, then the data.

Everything that the format's own library refuses is refused here as well, with the names and numbers at fault.
Format: https://github.com/huggingface/safetensors, section Format.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError
from luna_engine.weights.containers.dtypes import DTYPES, LISTED_ONLY
from luna_engine.weights.containers.reading import damaged, opened, pretender, read_at
from luna_engine.weights.containers.records import Header, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_MAX_NUMBER = 2**63
_METADATA = "__metadata__"


def read_safetensors_header(path: Path, start: bytes = b"") -> Header:
    """Read the header with two positioned reads and check it against the file's size.

    Args:
        path: the file.
        start: its first 8 bytes, from who has read them already.

    Raises:
        InputFileError: ``file-damaged`` with what was expected and found; ``precision-unsupported`` for an element
            type that Luna does not know.
    """
    with opened(path) as (file, size):
        start = start or read_at(file, 0, 8)
        if size < 8:
            raise damaged(path, f"{size} bytes are too few for a model")
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_HEADER_BYTES, size - 8):
            if (words := pretender(read_at(file, 0, 64))) is not None:  # text makes an absurd length
                raise damaged(path, words, "it holds text in place of weights")
            raise damaged(path, f"a header of {length:,} bytes is promised, the file has {size:,}")
        text = read_at(file, 8, length)
    if len(text) < length:
        raise damaged(path, f"the header ends after {len(text):,} of {length:,} bytes")
    fields = _parse(path, text)
    metadata = _metadata(path, fields.pop(_METADATA, {}))
    data_start = 8 + length
    tensors = tuple(_tensor(path, name, value, data_start) for name, value in fields.items())
    _check_layout(path, tensors, data_start, size)
    digest = hashlib.sha256(start + text).hexdigest()
    return Header(path, "safetensors", size, data_start, digest, metadata, tensors)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise damaged(path, "the header is no JSON object")
    try:
        fields = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=no_duplicates,
            parse_constant=_refuse,
            parse_int=_natural,
        )
    except UnicodeDecodeError as error:
        raise damaged(path, f"the header is not UTF-8 at byte {8 + error.start}") from error
    except RecursionError as error:
        raise damaged(path, "the header's JSON is nested without end") from error
    except ValueError as error:
        raise damaged(path, f"the header is not the JSON of a model: {error}") from error
    return fields  # type: ignore[no-any-return]  # it starts with a brace, so it is an object


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object; ValueError for a key that occurs twice (a hook of `json.loads`)."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} occurs twice")
        key.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
        found[key] = value
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no value of JSON")


def _natural(digits: str) -> int:
    if digits.startswith("-") or len(digits) > 19:
        raise ValueError(f"{digits[:24]} is no size")
    return int(digits)


def _metadata(path: Path, value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise damaged(path, "__metadata__ holds something other than strings")
    return value


def _tensor(path: Path, name: str, value: object, data_start: int) -> TensorInfo:
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise damaged(path, f"{name}: dtype, shape or data_offsets is missing")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise damaged(path, f"{name}: shape and data_offsets must be lists of whole numbers")
    begin, end = offsets
    if dtype in LISTED_ONLY:
        return TensorInfo(name, dtype, tuple(shape), data_start + begin, end - begin)
    if dtype not in DTYPES:
        raise InputFileError(
            "precision-unsupported", f"{path.name}: {name} has the unknown element type {dtype!r}",
            "a newer Luna may know it", file=str(path),
        )  # fmt: skip
    if begin > end:
        raise damaged(path, f"{name}: its data ends at {end} before it begins at {begin}")
    needed = math.prod(shape) * DTYPES[dtype]
    if needed >= _MAX_NUMBER or needed != end - begin:
        raise damaged(path, f"{name}: {dtype} {shape} takes {needed:,} bytes, {end - begin:,} are given")
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, end - begin)


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in value)


def _check_layout(path: Path, tensors: tuple[TensorInfo, ...], data_start: int, size: int) -> None:
    position, before = data_start, "the header"
    for tensor in sorted(tensors, key=lambda entry: (entry.offset, entry.size_bytes)):
        if tensor.offset < position:
            raise damaged(path, f"{tensor.name} overlaps {before} by {position - tensor.offset:,} bytes")
        if tensor.offset > position:
            raise damaged(path, f"{tensor.offset - position:,} bytes before {tensor.name} belong to no tensor")
        position, before = tensor.offset + tensor.size_bytes, tensor.name
    if position > size:
        raise damaged(path, f"{position:,} bytes are promised, {size:,} are there")
    if position < size:
        raise damaged(path, f"{size - position:,} bytes after the last tensor belong to nothing")
