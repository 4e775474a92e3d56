"""One door to both containers: reads the header of whatever a file is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights.containers.gguf_header import MAGIC, read_gguf_header
from luna_engine.weights.containers.reading import is_pickle, opened, read_at
from luna_engine.weights.containers.safetensors_header import read_safetensors_header
from luna_engine.weights.shards import read_shards, shard_set

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.weights.containers.records import Header

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin"})
MODEL_SUFFIXES = frozenset({".safetensors", ".sft", ".gguf"}) | PICKLE_SUFFIXES


def read_header(path: Path) -> Header:
    """Read and check the header; the first bytes decide what the file is, not its name.

    An index or a shard gives the header of the whole model.

    Raises:
        InputFileError: ``file-missing``, ``file-damaged``, ``precision-unsupported``, or ``pickle-refused`` for a
            torch archive, which has no header and runs code when it is loaded carelessly.
    """
    if (shards := shard_set(path)) is not None:
        return read_shards(shards)
    with opened(path) as (file, _):
        start = read_at(file, 0, 8)
    if _looks_pickled(path, start):
        raise InputFileError(
            "pickle-refused",
            f"{path.name} is a pickle: its contents are unknown until it is loaded",
            "use a safetensors version of the model",
            file=str(path),
        )
    if start.startswith(MAGIC) or path.suffix.lower() == ".gguf":
        return read_gguf_header(path)
    return read_safetensors_header(path, start)


def _looks_pickled(path: Path, start: bytes) -> bool:
    """Tell a pickle by its first bytes, or by its suffix where the bytes could be a short header's length."""
    return is_pickle(start) and (start.startswith(b"PK") or path.suffix.lower() in PICKLE_SUFFIXES)
