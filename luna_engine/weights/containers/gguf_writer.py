"""The header of a GGUF file that is about to be written: every offset is known before the first byte."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.containers.gguf_header import DEFAULT_ALIGNMENT, MAGIC
from luna_engine.weights.containers.layout import Layout, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_VERSION = 3
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
MAX_NAME_BYTES = 127  # C readers keep names in 128 bytes, the last one zero

Value = str | int | tuple[int, ...]


def lay_out_gguf(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, Value]) -> Layout:
    """Place tensors in the order given and build the header.

    Args:
        tensors: (name, GGUF type, stored shape in row-major order) of each.
        metadata: strings, whole numbers (written as UINT32) and arrays of INT32.

    Raises:
        LunaError: ``name-too-long`` with every name that C readers would cut.
    """
    entries = list(tensors)
    _check_names([name for name, _, _ in entries])
    infos: list[bytes] = []
    places: list[tuple[int, int]] = []
    position = 0
    for name, dtype, shape in entries:
        kind = BY_NAME[dtype]
        size = kind.size_bytes(math.prod(shape))
        infos.append(
            _text(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *shape[::-1])
            + struct.pack("<IQ", kind.number, position)
        )
        places.append((position, size))
        position += aligned(size)
    header = MAGIC + struct.pack("<IQQ", _VERSION, len(entries), len(metadata))
    header += b"".join(_text(key) + _value(value) for key, value in metadata.items()) + b"".join(infos)
    header += bytes(aligned(len(header)) - len(header))
    slots = tuple(
        Slot(name, dtype, shape, len(header) + start, size)
        for (name, dtype, shape), (start, size) in zip(entries, places, strict=True)
    )
    return Layout(header, slots, len(header) + position)


def aligned(size: int) -> int:
    """Round up to the file's alignment."""
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<IIQ", _ARRAY, _INT32, len(value)) + struct.pack(f"<{len(value)}i", *value)


def _check_names(names: Sequence[str]) -> None:
    long = [name for name in names if len(name.encode("utf-8")) > MAX_NAME_BYTES]
    if long:
        raise LunaError(
            "name-too-long",
            f"{len(long)} tensor names have more than {MAX_NAME_BYTES} bytes: {', '.join(long)}",
            "convert to bf16: safetensors has no such limit",
        )
