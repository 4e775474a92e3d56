"""Reads the values of source tensors in chunks, whatever pieces and types they are made of.

Memory does not depend on the model: one chunk as it stands in the file and one as floats, both reused.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights.containers.dtypes import DTYPES, FLOATS
from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.kernels import casts
from luna_engine.weights.kernels.seam import make_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.kernels.seam import Kernels
    from luna_engine.weights.sources import Piece, SourceTensor

CHUNK = 1 << 20  # values: 2 MiB of halves
_LARGEST_ITEM = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """Values of a tensor, ``count`` from ``first`` on: as bytes of one type, and where asked for as floats."""

    source: SourceTensor
    first: int
    count: int
    raw: np.ndarray


def file_bytes(dtype: str, elements: int) -> int:
    """Return the bytes of that many elements (whole blocks) of a type of either container."""
    return elements * DTYPES[dtype] if dtype in DTYPES else BY_NAME[dtype].size_bytes(elements)


def finite_or_raise(name: str, dtype: str, raw: np.ndarray, first: int, file: str) -> None:
    """Raise if plain floats are not all finite.

    Raises:
        LunaError: ``source-nonfinite`` with the number of values and the first place, or ``value-range`` for a
            double beyond single precision.
    """
    if math.isfinite(casts.greatest(dtype, raw)):
        return
    values = np.empty(raw.size // DTYPES[dtype], np.float32)
    casts.widen(dtype, raw, values)
    kept = raw.view(np.float64) if dtype == "F64" else values
    _raise_for(name, np.flatnonzero(~np.isfinite(kept)), first, file)


def _raise_for(name: str, bad: np.ndarray, first: int, file: str) -> None:
    if not bad.size:
        raise out_of_range(name, math.inf, "a value")
    raise InputFileError(
        "source-nonfinite",
        f"{name}: {bad.size} values are not finite, the first at {first + int(bad[0])}",
        "the model is broken there: take another copy or version",
        file=file,
    )


def out_of_range(name: str, magnitude: float, what: str) -> LunaError:
    """Return the error for a value that half precision cannot hold."""
    return LunaError(
        "value-range",
        f"{name}: {what} of {magnitude:.6g} is beyond half precision ({casts.GREATEST_HALF:.0f})",
        "convert to bf16",
    )


class ChunkReader:
    """One thread's open source files and buffers. ``name`` is the source's, for messages."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: list[BinaryIO] = []
        for file in files:
            self._files.append(file.open("rb", buffering=0))
        self._names = [str(file) for file in files]
        self.name = self._names[0]
        self._raw = np.empty(CHUNK * 2, np.uint8)
        self._single = np.empty(0, np.float32)

    @functools.cached_property
    def _kernels(self) -> Kernels:
        return make_kernels()  # only where a source has blocks: compiled kernels cost memory

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def raw(self, source: SourceTensor, first: int, count: int) -> np.ndarray:
        """Return values as they stand in the file; all pieces must be of one type."""
        dtype = source.dtype
        out = self._room(file_bytes(dtype, count))
        filled = 0
        for piece, begin, length in _parts(source, first, count):
            size = file_bytes(dtype, length)
            self._read(piece.info, file_bytes(dtype, begin), out[filled : filled + size])
            filled += size
        return out

    def values(self, source: SourceTensor, first: int, count: int) -> np.ndarray:
        """Return values as floats, multiplied with their scales, every one finite.

        Raises:
            LunaError: ``source-nonfinite``, ``value-range``, ``file-damaged`` (a scale), ``source-changed``.
        """
        out = self._floats(count)
        done = 0
        for piece, begin, length in _parts(source, first, count):
            dtype = piece.info.dtype
            raw = self._room(file_bytes(dtype, length))
            self._read(piece.info, file_bytes(dtype, begin), raw)
            part = out[done : done + length]
            if dtype in FLOATS:
                finite_or_raise(piece.info.name, dtype, raw, begin, self.name)
                casts.widen(dtype, raw, part)
            else:
                self._kernels.decode(dtype, raw, part)
            if piece.scale is not None:
                np.multiply(part, np.float32(self.scale(piece.scale)), out=part)
            if (dtype not in FLOATS or piece.scale is not None) and not np.isfinite(part).all():
                _raise_for(piece.info.name, np.flatnonzero(~np.isfinite(part)), begin, self.name)
            done += length
        return out

    def widened(self, chunk: Chunk) -> np.ndarray:
        """Return a chunk of plain floats of one type as single precision, without scales."""
        out = self._floats(chunk.count)
        casts.widen(chunk.source.dtype, chunk.raw, out)
        return out

    def scale(self, info: TensorInfo) -> float:
        """Read a scale.

        Raises:
            InputFileError: ``file-damaged`` if it is no positive number.
        """
        raw = np.empty(info.size_bytes, np.uint8)
        self._read(info, 0, raw)
        value = np.full(1, np.nan, np.float32)
        if info.dtype in FLOATS:
            casts.widen(info.dtype, raw, value)
        if not (np.isfinite(value[0]) and value[0] > 0):
            raise InputFileError(
                "file-damaged",
                f"{info.name} is {value[0]}: a scale must be a positive number",
                "take the original file",
                file=self.name,
            )
        return float(value[0])

    def digest(self, info: TensorInfo) -> str:
        """Return the SHA-256 of a tensor's bytes, read in the order of the file."""
        digest = hashlib.sha256()
        for start in range(0, info.size_bytes, CHUNK):
            part = self._room(min(CHUNK, info.size_bytes - start))
            self._read(info, start, part)
            digest.update(part.data)
        return digest.hexdigest()

    def _room(self, size: int) -> np.ndarray:
        if size > self._raw.size:
            self._raw = np.empty(CHUNK * _LARGEST_ITEM, np.uint8)
        return self._raw[:size]

    def _floats(self, count: int) -> np.ndarray:
        if self._single.size < count:
            self._single = np.empty(CHUNK, np.float32)
        return self._single[:count]

    def _read(self, info: TensorInfo, offset: int, out: np.ndarray) -> None:
        view = out.data
        file, name = self._files[info.part], self._names[info.part]
        file.seek(info.offset + offset)
        filled = 0
        while filled < out.size:
            got = file.readinto(view[filled:])  # type: ignore[attr-defined]  # an unbuffered file has it
            if not got:
                raise InputFileError(
                    "source-changed",
                    f"{name}: {info.name} ends after {offset + filled:,} bytes: the file was cut short",
                    "copy the file again and retry",
                    file=name,
                )
            filled += got


def _parts(source: SourceTensor, first: int, count: int) -> Iterator[tuple[Piece, int, int]]:
    """Yield (piece, first value within its tensor, number of values) of a run of a tensor's values."""
    start = 0
    for piece in source.pieces:
        begin, end = max(first, start), min(first + count, start + piece.count)
        if begin < end:
            yield piece, piece.first + begin - start, end - begin
        start += piece.count
