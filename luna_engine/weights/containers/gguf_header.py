"""Reads and checks the header of a GGUF file, versions 2 and 3, little-endian.

Every count and length is compared with the bytes that are left before anything is allocated for it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from luna_engine.errors import InputFileError
from luna_engine.weights.containers.ggml_types import BY_NUMBER
from luna_engine.weights.containers.reading import damaged, opened, pretender, read_at
from luna_engine.weights.containers.records import Header, TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

_MAX_ENTRIES = 65_536
_MAX_STRING_BYTES = 16 * 1024**2
_MAX_RANK = 8
_KEPT_ARRAY = 64  # longer arrays (token lists) are skipped: nothing here needs them
_WINDOW = 1 << 16

# Value types of the metadata, by number.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class _Cursor:
    """Reads forward through a file, refusing to go past its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size, self.position = path, size, 0
        self.digest = hashlib.sha256()
        self._file = file
        self._window = b""
        self._window_at = 0

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            raise damaged(self.path, f"{what} needs {count:,} bytes, {self.size - self.position:,} are left")
        start = self.position - self._window_at
        if start < 0 or start + count > len(self._window):
            self._window = read_at(self._file, self.position, max(count, _WINDOW))
            self._window_at, start = self.position, 0
        found = self._window[start : start + count]
        if len(found) < count:
            raise damaged(self.path, f"{what}: the file ends early")
        self.position += count
        self.digest.update(found)
        return found

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def text(self, what: str) -> str:
        length = self.number("Q", what)
        if length > _MAX_STRING_BYTES:
            raise damaged(self.path, f"{what}: a string of {length:,} bytes")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"{what} is not UTF-8") from error

    def skip(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise damaged(self.path, f"{what} needs {count:,} bytes, {self.size - self.position:,} are left")
        self.position += count


def read_gguf_header(path: Path) -> Header:
    """Read keys and tensor table and check them against the file's size.

    Raises:
        InputFileError: ``file-damaged``, or ``precision-unsupported`` for an unknown tensor type.
    """
    with opened(path) as (file, size):
        cursor = _Cursor(path, file, size)
        tensor_count, key_count = _preamble(path, cursor, read_at(file, 0, 32))
        metadata = _keys(cursor, key_count)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment % 8:
            raise damaged(path, f"general.alignment is {alignment!r}")
        entries = [_entry(cursor) for _ in range(tensor_count)]
        data_start = -(-cursor.position // alignment) * alignment
        tensors = _place(path, entries, metadata, data_start, alignment, size)
        return Header(path, "gguf", size, data_start, cursor.digest.hexdigest(), metadata, tensors)


def _preamble(path: Path, cursor: _Cursor, start: bytes) -> tuple[int, int]:
    if (words := pretender(start)) is not None:
        raise damaged(path, words, "it holds text in place of weights")
    if cursor.take(min(4, cursor.size), "the magic number") != MAGIC:
        raise damaged(path, "it does not start with GGUF")
    version = cursor.number("I", "the version")
    if version not in {2, 3}:
        big = " (big-endian)" if version and version % (1 << 24) == 0 else ""
        raise damaged(path, f"GGUF version {version}{big}; versions 2 and 3, little-endian, can be read")
    tensor_count = cursor.number("Q", "the tensor count")
    key_count = cursor.number("Q", "the key count")
    for count, what in ((tensor_count, "tensors"), (key_count, "keys")):
        if count > _MAX_ENTRIES:
            raise damaged(path, f"{count:,} {what}")
    return tensor_count, key_count


def _keys(cursor: _Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index in range(count):
        key = cursor.text(f"key {index}")
        if key in found:
            raise damaged(cursor.path, f"the key {key!r} occurs twice")
        found[key] = _value(cursor, cursor.number("I", key), key)
    return found


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], key)
    if kind == _STRING:
        return cursor.text(key)
    if kind == _ARRAY:
        return _array(cursor, key)
    raise damaged(cursor.path, f"{key}: unknown value type {kind}")


def _array(cursor: _Cursor, key: str) -> tuple[Any, ...] | None:
    """Return a short array, or None for one that is skipped."""
    kind, count = cursor.number("I", key), cursor.number("Q", key)
    if kind == _STRING:
        if count > (cursor.size - cursor.position) // 8:
            raise damaged(cursor.path, f"{key}: {count:,} strings do not fit into the file")
        if count <= _KEPT_ARRAY:
            return tuple(cursor.text(key) for _ in range(count))
        for _ in range(count):
            cursor.skip(cursor.number("Q", key), key)
        return None
    if kind not in _SCALARS:
        raise damaged(cursor.path, f"{key}: an array of value type {kind}")
    if count <= _KEPT_ARRAY:
        return tuple(cursor.number(_SCALARS[kind], key) for _ in range(count))
    cursor.skip(count * struct.calcsize(_SCALARS[kind]), key)
    return None


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name")
    rank = cursor.number("I", name)
    if rank > _MAX_RANK:
        raise damaged(cursor.path, f"{name}: rank {rank}")
    stored = tuple(cursor.number("Q", name) for _ in range(rank))
    return name, stored[::-1], cursor.number("I", name), cursor.number("Q", name)


def _place(
    path: Path,
    entries: list[tuple[str, tuple[int, ...], int, int]],
    metadata: dict[str, Any],
    data_start: int,
    alignment: int,
    size: int,
) -> tuple[TensorInfo, ...]:
    tensors = [_tensor(path, entry, data_start, alignment, size) for entry in entries]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise damaged(path, "two tensors have the same name")
    position, before = data_start, "the header"
    for tensor in sorted(tensors, key=lambda item: (item.offset, item.size_bytes)):
        if tensor.size_bytes and tensor.offset < position:
            raise damaged(path, f"{tensor.name} overlaps {before} by {position - tensor.offset:,} bytes")
        position, before = max(position, tensor.offset + tensor.size_bytes), tensor.name
    return tuple(_reshaped(path, tensor, metadata) for tensor in tensors)


def _tensor(
    path: Path, entry: tuple[str, tuple[int, ...], int, int], data_start: int, alignment: int, size: int
) -> TensorInfo:
    name, shape, number, offset = entry
    kind = BY_NUMBER.get(number)
    if kind is None:
        raise InputFileError(
            "precision-unsupported", f"{path.name}: {name} has the unknown GGUF type {number}",
            "a newer Luna may know it", file=str(path),
        )  # fmt: skip
    if offset % alignment:
        raise damaged(path, f"{name} begins at {offset:,}, which is no multiple of {alignment}")
    if kind.block > 1 and (not shape or shape[-1] % kind.block):
        raise damaged(path, f"{name}: {kind.name} packs {kind.block} values, its rows have {shape[-1:]}")
    length = kind.size_bytes(math.prod(shape))
    if data_start + offset + length > size:
        raise damaged(path, f"{name} ends at byte {data_start + offset + length:,}, the file has {size:,}")
    return TensorInfo(name, kind.name, shape, data_start + offset, length)


def _reshaped(path: Path, tensor: TensorInfo, metadata: dict[str, Any]) -> TensorInfo:
    """Give a tensor that was stored in another shape, to fill whole blocks, its own shape again."""
    original = metadata.get(ORIGINAL_SHAPE + tensor.name)
    if original is None:
        return tensor
    is_sizes = isinstance(original, tuple) and all(type(entry) is int and entry >= 0 for entry in original)
    if not is_sizes or math.prod(original) != math.prod(tensor.shape):
        raise damaged(path, f"{tensor.name}: original shape {original} does not fit {list(tensor.shape)}")
    return TensorInfo(tensor.name, tensor.dtype, original, tensor.offset, tensor.size_bytes)
