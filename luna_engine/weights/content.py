"""What a file's tensors hash to: the two hashes of the provenance, computed again from the file. Torch-free.

A file's hash is that of one line per tensor, sorted, so that tensors may be hashed in any order.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import TYPE_CHECKING, BinaryIO

from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.containers.reading import damaged, opened
from luna_engine.weights.headers import read_header
from luna_engine.weights.inspection import inspect
from luna_engine.weights.sources import source_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from luna_engine.weights.containers.records import TensorInfo

_STEP = 4 * 1024**2


def hash_line(name: str, dtype: str, shape: tuple[int, ...], digest: str) -> str:
    """Return a tensor's line in a file's hash tree."""
    return f"{name} {dtype} {'x'.join(map(str, shape))} {digest}\n"


def tree_hash(lines: Sequence[str]) -> str:
    """Return the hash of a file's tensors: that of their lines, sorted, so that the order of work does not matter."""
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


def stored_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Return the shape as it stands in the file: a reshaped tensor has rows of 256, or of one block."""
    kind = BY_NAME.get(tensor.dtype)
    if kind is None or kind.block == 1 or tensor.shape[-1] % kind.block == 0:
        return tensor.shape
    elements = math.prod(tensor.shape)
    columns = 256 if elements % 256 == 0 else kind.block
    return (elements // columns, columns)


def data_hash(path: Path, tell: Callable[[int], None] | None = None) -> str:
    """Return what ``luna.data_sha256`` of a converted file must be.

    Args:
        path: the file.
        tell: called with the number of bytes read, now and then; may raise to stop.

    Raises:
        InputFileError: the header or the data cannot be read.
    """
    header = read_header(path)
    return tree_hash(_lines(header.files, ((tensor, stored_shape(tensor)) for tensor in header.tensors), tell))


def source_hash(path: Path, tell: Callable[[int], None] | None = None) -> str:
    """Return what ``luna.source.sha256`` of a file converted from this source now would be.

    Raises:
        InputFileError: as `inspect` and `source_tensors`.
    """
    found = inspect(path)
    infos = {info.name: info for tensor in source_tensors(found) for info in tensor.infos}
    files = found.header.files if found.header is not None else (found.path,)
    return tree_hash(_lines(files, ((info, info.shape) for info in infos.values()), tell))


def file_hash(files: Sequence[Path], tell: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of whole files, one behind the other."""
    digest = hashlib.sha256()
    for path in files:
        with opened(path) as (file, _):
            while data := file.read(_STEP):
                digest.update(data)
                if tell is not None:
                    tell(len(data))
    return digest.hexdigest()


def _lines(
    files: Sequence[Path],
    tensors: Iterable[tuple[TensorInfo, tuple[int, ...]]],
    tell: Callable[[int], None] | None,
) -> list[str]:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(opened(path))[0] for path in files]
        return [_line(files, streams, tensor, shape, tell) for tensor, shape in tensors]


def _line(
    files: Sequence[Path],
    streams: Sequence[BinaryIO],
    tensor: TensorInfo,
    shape: tuple[int, ...],
    tell: Callable[[int], None] | None,
) -> str:
    digest = hashlib.sha256()
    stream = streams[tensor.part]
    stream.seek(tensor.offset)
    left = tensor.size_bytes
    while left:
        data = stream.read(min(left, _STEP))
        if not data:
            raise damaged(files[tensor.part], f"{tensor.name} ends early")
        digest.update(data)
        left -= len(data)
        if tell is not None:
            tell(len(data))
    return hash_line(tensor.name, tensor.dtype, shape, digest.hexdigest())
