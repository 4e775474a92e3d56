"""The header of a safetensors file that is about to be written: every offset is known before the first byte."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING

from luna_engine.weights.containers.dtypes import DTYPES
from luna_engine.weights.containers.layout import Layout, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ALIGNMENT = 8


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor; ``dtype`` is safetensors' word for it."""
    return math.prod(shape) * DTYPES[dtype]


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    *,
    spare_bytes: int = 0,
    header_bytes: int | None = None,
) -> Layout:
    """Place tensors one behind the other, in the order given, and build the header.

    Args:
        tensors: (name, dtype, shape) of each.
        metadata: strings for ``__metadata__``; None writes none.
        spare_bytes: blanks behind the JSON, so that other metadata can be put in place later.
        header_bytes: the length of an earlier layout's header, which this one must fill exactly.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    placed: list[tuple[str, str, tuple[int, ...], int, int]] = []
    position = 0
    for name, dtype, shape in tensors:
        size = tensor_bytes(dtype, shape)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        placed.append((name, dtype, shape, position, size))
        position += size
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The format asks for no alignment, but readers map the file: blanks keep the data on 8 bytes.
    text += b" " * (spare_bytes + (-len(text) - spare_bytes) % _ALIGNMENT)
    if header_bytes is not None:
        text = text.rstrip(b" ").ljust(header_bytes - 8, b" ")
        if len(text) + 8 != header_bytes:
            raise ValueError(f"the header grew to {len(text) + 8} bytes, {header_bytes} are reserved")
    header = struct.pack("<Q", len(text)) + text
    slots = tuple(Slot(name, dtype, shape, len(header) + start, size) for name, dtype, shape, start, size in placed)
    return Layout(header, slots, len(header) + position)
