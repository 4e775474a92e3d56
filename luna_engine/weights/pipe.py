"""One thread's way from source to output: reads, checks, converts, hashes and writes a tensor in chunks."""

from __future__ import annotations

import functools
import hashlib
import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from luna_engine.errors import LunaError
from luna_engine.weights.chunks import CHUNK, Chunk, ChunkReader, finite_or_raise, out_of_range
from luna_engine.weights.containers.dtypes import DTYPES, FLOATS
from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.content import hash_line
from luna_engine.weights.kernels import casts
from luna_engine.weights.kernels.seam import make_kernels
from luna_engine.weights.rates import step
from luna_engine.weights.targets import NUMBERS
from luna_engine.weights.tensor_classes import ErrorSum, tensor_class

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from luna_engine.weights.containers.layout import Slot
    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.kernels.seam import Kernels
    from luna_engine.weights.sources import SourceTensor
    from luna_engine.weights.targets import PlannedTensor

_CHECKED_SHARE = 16
_TABLED = frozenset({"F16", "BF16", "F8_E4M3", "F8_E5M2"})
_WORTH_A_TABLE = 1 << 17
# The greatest scale or minimum of a block that holds a value x is at most x divided by this; it must fit a half.
_SCALE_SHARE = {
    "Q8_0": 127, "Q4_0": 8, "Q4_1": 1, "Q5_0": 16, "Q5_1": 1, "Q4_K": 63, "Q5_K": 63, "Q6_K": 4096,
}  # fmt: skip
# A tensor whose greatest value is below this is zero for every purpose; its scale would be no normal float.
_LEAST_SCALED = np.float32(1e-30)


class Cancelled(Exception):  # noqa: N818 - a request, not an error
    """The user asked to stop."""


@dataclass(frozen=True, slots=True)
class TensorResult:
    """What is known about one tensor when it is written. Hashes are of the bytes in the two files.

    ``step`` names the two types (see `rates`), ``source_bytes`` were read in ``seconds`` of one thread.
    """

    name: str
    source_lines: tuple[str, ...]
    output_lines: tuple[str, ...]
    kind: str
    errors: ErrorSum
    step: str
    source_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """How values become F8_E4M3: times ``factor``; read back times ``scale``. ``table`` does the first by look-up."""

    factor: np.float32
    scale: np.float32
    table: npt.NDArray[np.uint8] | None


@dataclass(slots=True)
class Tally:
    """How far all threads are; read by the one that reports."""

    done_bytes: int = 0
    done_tensors: int = 0
    tensor: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int, name: str) -> None:
        """Count bytes read of a tensor."""
        with self.lock:
            self.done_bytes += count
            self.tensor = name


class Pipe:
    """One thread's way from source to output: open files and their buffers."""

    def __init__(self, files: Sequence[Path], part: Path, cancel: threading.Event, tally: Tally) -> None:
        self._reader = ChunkReader(files)
        self._part: BinaryIO = part.open("r+b", buffering=0)
        self._cancel, self._tally = cancel, tally
        self._out = np.empty(CHUNK * 4, np.uint8)

    @functools.cached_property
    def _kernels(self) -> Kernels:
        return make_kernels()

    def close(self) -> None:
        """Close both files."""
        self._reader.close()
        self._part.close()

    def run(self, planned: PlannedTensor, slot: Slot, extras: tuple[Slot, ...]) -> TensorResult:
        """Convert one tensor and write what stands beside it.

        Raises:
            Cancelled: the cancel event was set.
            LunaError: ``source-nonfinite``, ``value-range``, ``source-changed``, ``file-damaged``, ``convert-failed``.
        """
        begun = time.monotonic()
        source = planned.source
        elements = math.prod(source.shape)
        scaling = self._scaling(planned, elements)
        in_order = len(source.infos) == len(source.pieces)
        hashes = _SourceHashes(source) if in_order and source.is_uniform else None
        output_hash, written = hashlib.sha256(), 0
        errors = ErrorSum(tensors=1)
        for first in range(0, elements, CHUNK):
            if self._cancel.is_set():
                raise Cancelled
            count = min(CHUNK, elements - first)
            raw = self._reader.raw(source, first, count) if source.is_uniform else np.empty(0, np.uint8)
            if hashes is not None:
                hashes.update(raw)
            out = self._convert(planned, Chunk(source, first, count, raw), scaling, errors)
            output_hash.update(out.data)
            _write_at(self._part, slot.offset + written, out)
            written += out.size
            self._tally.add(count * source.size_bytes // elements, planned.name)
        if written < slot.size_bytes:  # an empty marker that GGUF holds as one zero
            output_hash.update(bytes(slot.size_bytes - written))
        digests = hashes.digests() if hashes is not None else {info: self._reader.digest(info) for info in source.infos}
        lines = [hash_line(planned.name, planned.dtype, planned.stored_shape, output_hash.hexdigest())]
        lines += self._write_extras(planned, extras, scaling)
        return TensorResult(
            planned.name,
            tuple(hash_line(info.name, info.dtype, info.shape, digest) for info, digest in digests.items()),
            tuple(lines),
            tensor_class(planned.name, len(source.shape)),
            errors,
            step(source.dtype, planned.dtype),
            source.size_bytes,
            time.monotonic() - begun,
        )

    def _write_extras(self, planned: PlannedTensor, slots: tuple[Slot, ...], scaling: Scaling | None) -> list[str]:
        lines: list[str] = []
        for extra, slot in zip(planned.extras, slots, strict=True):
            scale = np.float32(scaling.scale if scaling is not None else 1)
            data = scale.tobytes() if extra.data is None else extra.data
            _write_at(self._part, slot.offset, np.frombuffer(data, np.uint8))
            lines.append(hash_line(extra.name, extra.dtype, extra.shape, hashlib.sha256(data).hexdigest()))
        return lines

    def _scaling(self, planned: PlannedTensor, elements: int) -> Scaling | None:
        """Return what F8_E4M3 values are divided by: the source's own scale, or the greatest magnitude by 448."""
        source = planned.source
        if planned.action == "copied":
            scale = source.pieces[0].scale if source.pieces else None
            return None if scale is None else Scaling(np.float32(1), np.float32(self._reader.scale(scale)), None)
        if planned.action != "quantised" or planned.dtype != "F8_E4M3":
            return None
        if not planned.has_scale:
            return Scaling(np.float32(1), np.float32(1), None)
        greatest = np.float32(0)
        for first in range(0, elements, CHUNK):
            if self._cancel.is_set():
                raise Cancelled
            greatest = np.maximum(greatest, self._greatest(source, first, min(CHUNK, elements - first)))
        if greatest < _LEAST_SCALED:
            return Scaling(np.float32(1), np.float32(1), None)
        e4m3 = np.float32(casts.GREATEST_E4M3)
        factor = e4m3 / greatest
        table = None
        if not source.is_scaled and source.is_uniform and source.dtype in _TABLED and elements >= _WORTH_A_TABLE:
            table = casts.scaled_table(source.dtype, factor)
        return Scaling(factor, greatest / e4m3, table)

    def _greatest(self, source: SourceTensor, first: int, count: int) -> np.float32:
        """Return the greatest magnitude of a run of values, all of which are finite."""
        if not source.is_uniform or source.is_scaled or source.dtype not in FLOATS:
            return np.float32(np.abs(self._reader.values(source, first, count)).max())
        raw = self._reader.raw(source, first, count)
        finite_or_raise(source.infos[0].name, source.dtype, raw, first, self._reader.name)
        return np.float32(casts.greatest(source.dtype, raw))

    def _convert(
        self, planned: PlannedTensor, chunk: Chunk, scaling: Scaling | None, errors: ErrorSum
    ) -> npt.NDArray[np.uint8]:
        source, target = planned.source, planned.dtype
        if source.is_uniform and source.dtype not in NUMBERS:
            return chunk.raw if planned.action == "copied" else _whole_numbers(source.dtype, chunk.raw)
        is_plain = source.is_uniform and source.dtype in FLOATS
        if is_plain:
            finite_or_raise(source.infos[0].name, source.dtype, chunk.raw, chunk.first, self._reader.name)
        if planned.action == "copied":
            return chunk.raw
        if scaling is not None:
            return self._to_fp8(chunk, scaling, errors, is_counted=not planned.has_scale)
        if planned.action == "quantised":
            return self._to_blocks(planned, chunk, errors)
        out = self._out[: chunk.count * DTYPES[target]]
        if is_plain and not source.is_scaled:
            casts.cast(source.dtype, chunk.raw, target, out)
        else:
            casts.narrow(target, self._values(chunk), out)
        if target == "F16" and not math.isfinite(casts.greatest(target, out)):
            greatest = float(np.abs(self._values(chunk)).max())
            raise out_of_range(source.infos[0].name, greatest, "a value")
        self._compare(chunk, lambda begin, end, to: casts.widen(target, _cut(out, target, begin, end), to), errors, 1)
        return out

    def _values(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        """Return a chunk as floats; the reader's buffer of bytes keeps what it holds if they are plain."""
        source = chunk.source
        if source.is_uniform and source.dtype in FLOATS and not source.is_scaled:
            return self._reader.widened(chunk)
        return self._reader.values(source, chunk.first, chunk.count)

    def _to_fp8(self, chunk: Chunk, scaling: Scaling, errors: ErrorSum, *, is_counted: bool) -> npt.NDArray[np.uint8]:
        out = self._out[: chunk.count]
        if scaling.table is not None:
            casts.look_up(scaling.table, chunk.raw, out)
        else:
            values = self._values(chunk)
            if is_counted:
                _count_lost(values, errors)
            if scaling.factor != 1:
                np.multiply(values, scaling.factor, out=values)
            casts.narrow("F8_E4M3", values, out)

        def decode(begin: int, end: int, to: npt.NDArray[np.float32]) -> None:
            casts.widen("F8_E4M3", out[begin:end], to)
            np.multiply(to, scaling.scale, out=to)

        self._compare(chunk, decode, errors, 1)
        return out

    def _to_blocks(self, planned: PlannedTensor, chunk: Chunk, errors: ErrorSum) -> npt.NDArray[np.uint8]:
        target = planned.dtype
        kind = BY_NAME[target]
        values = self._values(chunk)
        out = self._out[: kind.size_bytes(chunk.count)]
        magnitude = self._kernels.quantize(target, values, out)
        if magnitude / _SCALE_SHARE[target] > casts.GREATEST_HALF:
            raise out_of_range(planned.source.infos[0].name, magnitude, "a block's scale")

        def decode(begin: int, end: int, to: npt.NDArray[np.float32]) -> None:
            self._kernels.decode(target, out[kind.size_bytes(begin) : kind.size_bytes(end)], to)

        self._compare(chunk, decode, errors, kind.block)
        return out

    def _compare(
        self,
        chunk: Chunk,
        decode: Callable[[int, int, npt.NDArray[np.float32]], None],
        errors: ErrorSum,
        block: int,
    ) -> None:
        """Decode a sixteenth of the chunk and compare; the place moves along from chunk to chunk."""
        length = max(block, chunk.count // _CHECKED_SHARE // block * block)
        start = (chunk.first // CHUNK * length) % (chunk.count - length + 1) // block * block
        before = self._values_between(chunk, start, length)
        after = np.empty(length, np.float32)
        decode(start, start + length, after)
        _measure(before, after, errors)

    def _values_between(self, chunk: Chunk, start: int, length: int) -> npt.NDArray[np.float32]:
        source = chunk.source
        if source.is_uniform and source.dtype in FLOATS and not source.is_scaled:
            before = np.empty(length, np.float32)
            casts.widen(source.dtype, _cut(chunk.raw, source.dtype, start, start + length), before)
            return before
        block = BY_NAME[source.dtype].block if source.dtype in BY_NAME else 1
        low = start // block * block
        high = -(-(start + length) // block) * block
        return self._reader.values(source, chunk.first + low, high - low)[start - low : start - low + length]


class _SourceHashes:
    """Hashes the bytes of a tensor's sources as they are read, one source behind the other."""

    def __init__(self, source: SourceTensor) -> None:
        self._left = [(info, info.size_bytes, hashlib.sha256()) for info in source.infos]
        self._done: dict[TensorInfo, str] = {}

    def update(self, raw: npt.NDArray[np.uint8]) -> None:
        """Take in the next bytes."""
        while raw.size:
            info, left, digest = self._left[0]
            digest.update(raw[:left].data)
            if raw.size < left:
                self._left[0] = (info, left - raw.size, digest)
                return
            raw = raw[left:]
            self._done[info] = digest.hexdigest()
            del self._left[0]

    def digests(self) -> dict[TensorInfo, str]:
        """Return the hash of each source; those that are left have no bytes."""
        return {**self._done, **{info: digest.hexdigest() for info, _, digest in self._left}}


def _cut(data: npt.NDArray[np.uint8], dtype: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
    return data[begin * DTYPES[dtype] : end * DTYPES[dtype]]


def _count_lost(values: npt.NDArray[np.float32], errors: ErrorSum) -> None:
    """Count values that plain fp8 holds with fewer bits, and those that it cannot hold."""
    magnitude = np.abs(values)
    errors.values += values.size
    errors.low += int(np.count_nonzero((magnitude < casts.LEAST_E4M3) & (magnitude > 0)))
    errors.clipped += int(np.count_nonzero(magnitude > casts.GREATEST_E4M3))


def _measure(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], errors: ErrorSum) -> None:
    difference = after - before
    greatest = float(np.max(np.abs(difference), initial=0.0))
    errors.add(float(difference @ difference), float(before @ before), greatest)


def _whole_numbers(dtype: str, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return whole numbers that GGUF has no type for as floats, exactly or not at all."""
    kinds = {"U8": "<u1", "BOOL": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
    values = raw.view(kinds[dtype]).astype(np.float32)
    if not np.array_equal(values.astype(np.float64), raw.view(kinds[dtype]).astype(np.float64)):
        raise LunaError("value-range", f"a {dtype} tensor has numbers that single precision cannot hold")
    return values.view(np.uint8)


def _write_at(file: BinaryIO, offset: int, data: npt.NDArray[np.uint8]) -> None:
    file.seek(offset)
    view = data.data
    while view:
        view = view[file.write(view) :]
