"""Reads, checks, converts, hashes and writes tensors in chunks, with a few threads that each own their buffers.

Memory does not depend on the model: per thread it is one chunk in, one as floats, one out.
"""

from __future__ import annotations

import hashlib
import math
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights.containers.dtypes import DTYPES, FLOATS
from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.kernels import casts
from luna_engine.weights.kernels.numpy_blocks import NumpyBlocks
from luna_engine.weights.tensor_classes import ErrorSum, tensor_class

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from luna_engine.weights.containers.layout import Slot
    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.plans import PlannedTensor

CHUNK = 1 << 20  # values: 2 MiB of halves
_CHECKED_SHARE = 16
_LARGEST_ITEM = 8


class Cancelled(Exception):  # noqa: N818 - a request, not an error
    """The user asked to stop."""


@dataclass(frozen=True, slots=True)
class TensorResult:
    """What is known about one tensor when it is written. Hashes are of the bytes in the two files."""

    name: str
    source_line: str
    output_line: str
    kind: str
    errors: ErrorSum


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


def hash_line(name: str, dtype: str, shape: tuple[int, ...], digest: str) -> str:
    """Return a tensor's line in a file's hash tree."""
    return f"{name} {dtype} {'x'.join(map(str, shape))} {digest}\n"


def tree_hash(lines: Sequence[str]) -> str:
    """Return the hash of a file's tensors: that of their lines, sorted, so that the order of work does not matter."""
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


class Pipe:
    """One thread's way from source to output: two open files and four buffers."""

    def __init__(self, source: Path, part: Path, cancel: threading.Event, tally: Tally) -> None:
        self._source: BinaryIO = source.open("rb", buffering=0)
        self._part: BinaryIO = part.open("r+b", buffering=0)
        self._cancel, self._tally = cancel, tally
        self._raw = np.empty(CHUNK * 2, np.uint8)
        self._single = np.empty(0, np.float32)
        self._out = np.empty(CHUNK * 4, np.uint8)
        self._blocks = NumpyBlocks()

    def close(self) -> None:
        """Close both files."""
        self._source.close()
        self._part.close()

    def run(self, planned: PlannedTensor, slot: Slot) -> TensorResult:
        """Convert one tensor.

        Raises:
            Cancelled: the cancel event was set.
            LunaError: ``source-nonfinite``, ``value-range``, ``source-changed``, ``file-damaged``, ``convert-failed``.
        """
        info = planned.source
        size = DTYPES[info.dtype]
        scale = None if planned.scale is None else self._read_scale(planned.scale)
        source_hash, output_hash = hashlib.sha256(), hashlib.sha256()
        errors = ErrorSum(tensors=1)
        elements, done, written = math.prod(info.shape), 0, 0
        while done < elements:
            if self._cancel.is_set():
                raise Cancelled
            count = min(CHUNK, elements - done)
            raw = self._read(info, done * size, count * size)
            source_hash.update(raw.data)
            out = self._convert(planned, raw, count, scale, done, errors)
            if planned.action != "copied":  # the same bytes have the same hash
                output_hash.update(out.data)
            self._part.seek(slot.offset + written)
            _write_all(self._part, out)
            done, written = done + count, written + out.size
            self._tally.add(count * size, info.name)
        if planned.action == "copied":
            output_hash = source_hash.copy()
        if written < slot.size_bytes:  # an empty marker that GGUF holds as one zero
            output_hash.update(bytes(slot.size_bytes - written))
        return TensorResult(
            planned.name,
            hash_line(info.name, info.dtype, info.shape, source_hash.hexdigest()),
            hash_line(planned.name, planned.dtype, planned.stored_shape, output_hash.hexdigest()),
            tensor_class(planned.name, len(info.shape)),
            errors,
        )

    def _read(self, info: TensorInfo, offset: int, count: int) -> np.ndarray:
        if count > self._raw.size:
            self._raw = np.empty(CHUNK * _LARGEST_ITEM, np.uint8)
        view = self._raw.data[:count]
        self._source.seek(info.offset + offset)
        filled = 0
        while filled < count:
            got = self._source.readinto(view[filled:])  # type: ignore[attr-defined]  # an unbuffered file has it
            if not got:
                raise InputFileError(
                    "source-changed",
                    f"{self._source.name}: {info.name} ends after {offset + filled:,} bytes: the file was cut short",
                    "copy the file again and retry",
                    file=str(self._source.name),
                )
            filled += got
        return self._raw[:count]

    def _read_scale(self, info: TensorInfo) -> float:
        raw = self._read(info, 0, info.size_bytes)
        value = np.empty(1, np.float32)
        if info.dtype not in FLOATS:
            value[0] = np.nan
        else:
            casts.widen(info.dtype, raw, value)
        if not (np.isfinite(value[0]) and value[0] > 0):
            raise InputFileError(
                "file-damaged",
                f"{info.name} is {value[0]}: a scale must be a positive number",
                "take the original file",
                file=str(self._source.name),
            )
        return float(value[0])

    def _convert(
        self,
        planned: PlannedTensor,
        raw: np.ndarray,
        count: int,
        scale: float | None,
        first: int,
        errors: ErrorSum,
    ) -> np.ndarray:
        source, target = planned.source.dtype, planned.dtype
        if source in FLOATS and planned.action != "quantised":
            self._check_finite(planned, raw, count, first)
        if planned.action == "copied":
            return raw
        if source not in FLOATS:
            return _whole_numbers(source, raw)
        if planned.action == "quantised":
            single = self._widen(source, raw, count, scale)
            out = self._out[: BY_NAME[target].size_bytes(count)]
            magnitude = self._blocks.quantize(target, single, out)
            if not math.isfinite(magnitude):
                self._check_finite(planned, raw, count, first)
            if magnitude / 127 > casts.GREATEST_HALF:
                raise _out_of_range(planned.source.name, magnitude, "a block's scale")
            self._compare(target, single, out, errors, first)
            return out
        out = self._out[: count * DTYPES[target]]
        if scale is None:
            casts.cast(source, raw, target, out)
        else:
            casts.narrow(target, self._widen(source, raw, count, scale), out)
        if target == "F16" and source != "F16" and not math.isfinite(casts.greatest(target, out)):
            raise _out_of_range(planned.source.name, casts.greatest(source, raw), "a value")
        self._compare_cast(planned, raw, count, scale, out, errors)
        return out

    def _check_finite(self, planned: PlannedTensor, raw: np.ndarray, count: int, first: int) -> None:
        dtype = planned.source.dtype
        if math.isfinite(casts.greatest(dtype, raw)):
            return
        bad = np.flatnonzero(~np.isfinite(self._widen(dtype, raw, count, None)))
        if not bad.size:  # a double beyond single precision
            raise _out_of_range(planned.source.name, math.inf, "a value")
        raise InputFileError(
            "source-nonfinite",
            f"{planned.source.name}: {bad.size} values are not finite, the first at {first + int(bad[0])}",
            "the model is broken there: take another copy or version",
            file=str(self._source.name),
        )

    def _widen(self, dtype: str, raw: np.ndarray, count: int, scale: float | None) -> np.ndarray:
        if self._single.size < count:
            self._single = np.empty(CHUNK, np.float32)
        single = self._single[:count]
        casts.widen(dtype, raw, single)
        if scale is not None:
            np.multiply(single, np.float32(scale), out=single)
        return single

    def _compare(self, target: str, single: np.ndarray, out: np.ndarray, errors: ErrorSum, first: int) -> None:
        """Decode a sixteenth of the chunk and compare; the place moves along from chunk to chunk."""
        kind = BY_NAME[target]
        length = max(kind.block, single.size // _CHECKED_SHARE // kind.block * kind.block)
        start = (first // CHUNK * length) % (single.size - length + 1) // kind.block * kind.block
        decoded = np.empty(length, np.float32)
        begin = kind.size_bytes(start)
        self._blocks.decode(target, out[begin : begin + kind.size_bytes(length)], decoded)
        _measure(single[start : start + length], decoded, errors)

    def _compare_cast(
        self,
        planned: PlannedTensor,
        raw: np.ndarray,
        count: int,
        scale: float | None,
        out: np.ndarray,
        errors: ErrorSum,
    ) -> None:
        length = max(1, count // _CHECKED_SHARE)
        source, target = planned.source.dtype, planned.dtype
        before, after = np.empty(length, np.float32), np.empty(length, np.float32)
        casts.widen(source, raw[: length * DTYPES[source]], before)
        if scale is not None:
            before *= np.float32(scale)
        casts.widen(target, out[: length * DTYPES[target]], after)
        _measure(before, after, errors)


def _measure(before: np.ndarray, after: np.ndarray, errors: ErrorSum) -> None:
    difference = after - before
    greatest = float(np.max(np.abs(difference), initial=0.0))
    errors.add(float(difference @ difference), float(before @ before), greatest)


def _whole_numbers(dtype: str, raw: np.ndarray) -> np.ndarray:
    """Return whole numbers that GGUF has no type for as floats, exactly or not at all."""
    kinds = {"U8": "<u1", "BOOL": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
    values = raw.view(kinds[dtype]).astype(np.float32)
    if not np.array_equal(values.astype(np.float64), raw.view(kinds[dtype]).astype(np.float64)):
        raise LunaError("value-range", f"a {dtype} tensor has numbers that single precision cannot hold")
    return values.view(np.uint8)


def _out_of_range(name: str, magnitude: float, what: str) -> LunaError:
    return LunaError(
        "value-range",
        f"{name}: {what} of {magnitude:.6g} is beyond half precision ({casts.GREATEST_HALF:.0f})",
        "convert to bf16",
    )


def _write_all(file: BinaryIO, data: np.ndarray) -> None:
    view = data.data
    while view:
        view = view[file.write(view) :]


def stream(
    source: Path,
    part: Path,
    work: Sequence[tuple[PlannedTensor, Slot]],
    threads: int,
    cancel: threading.Event,
    report: Callable[[Tally], None],
) -> list[TensorResult]:
    """Convert all tensors into ``part`` and return their results in order.

    Args:
        source, part: the files; ``part`` has its full size.
        work: tensors with their places, in source order.
        threads: how many work at once.
        cancel: set by the caller to stop.
        report: called about four times a second.
    """
    tally, stop, local = Tally(), threading.Event(), threading.local()
    pipes: list[Pipe] = []

    def run(planned: PlannedTensor, slot: Slot) -> TensorResult:
        if stop.is_set() or cancel.is_set():
            raise Cancelled
        pipe = getattr(local, "pipe", None)
        if pipe is None:
            pipe = local.pipe = Pipe(source, part, cancel, tally)
            pipes.append(pipe)
        result = pipe.run(planned, slot)
        with tally.lock:
            tally.done_tensors += 1
        return result

    with ThreadPoolExecutor(threads, "luna-convert") as pool:
        futures: list[Future[TensorResult]] = [pool.submit(run, planned, slot) for planned, slot in work]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.25, return_when=FIRST_EXCEPTION)
                failed = [future for future in done if future.exception() is not None]
                if failed:
                    break
                report(tally)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for pipe in pipes:
                pipe.close()
    return _results(futures)


def _results(futures: list[Future[TensorResult]]) -> list[TensorResult]:
    """Return all results; of several failures raise the one that is no mere consequence."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in errors:
        if not isinstance(error, Cancelled):
            raise error
    if errors or any(future.cancelled() for future in futures):
        raise Cancelled
    return [future.result() for future in futures]


def greatest_magnitude(source: Path, info: TensorInfo) -> float:
    """Return the greatest magnitude of a float tensor, reading it in chunks."""
    top, item = 0.0, DTYPES[info.dtype]
    with source.open("rb", buffering=0) as file:
        file.seek(info.offset)
        left = info.size_bytes
        while left:
            data = file.read(min(left, CHUNK * item))
            if not data:
                raise InputFileError(
                    "source-changed", f"{source.name}: {info.name} was cut short", "copy it again", file=str(source)
                )
            top = max(top, casts.greatest(info.dtype, np.frombuffer(data[: len(data) // item * item], np.uint8)))
            left -= len(data)
    return top
