"""Positioned reads of tensors into memory of our own: a mapped file that is cut short would end the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import torch

from luna_engine.errors import InputFileError

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.weights.containers.records import TensorInfo


def read_bytes(file: BinaryIO, info: TensorInfo, path: Path) -> torch.Tensor:
    """Return a tensor's bytes as uint8 [n].

    Raises:
        InputFileError: ``file-damaged`` if the file ends early.
    """
    data = torch.empty(info.size_bytes, dtype=torch.uint8)
    view = memoryview(data.numpy().data)
    file.seek(info.offset)
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]  # binary files have it
        if not count:
            raise InputFileError("file-damaged", f"{path.name}: {info.name} ends early", file=str(path))
        filled += count
    return data
