"""Reads the text encoders and the VAE out of a checkpoint, and of its diffusion model nothing but names and shapes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from luna_engine.errors import InputFileError
from luna_engine.weights.components import component_of
from luna_engine.weights.containers.reading import opened
from luna_engine.weights.inspection import inspect

from .tensor_reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DTYPES = MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)  # fmt: skip
TEXT_ENCODERS, VAE = "text encoder", "VAE"
_OTHERS = frozenset({"vae", "vision", "dropped"})


def read_parts(
    path: Path, *, clip: bool, vae: bool
) -> tuple[dict[str, torch.Tensor], Mapping[str, str], frozenset[str]]:
    """Read a safetensors checkpoint's wanted parts.

    Args:
        path: the checkpoint.
        clip, vae: which parts are wanted.

    Returns:
        All tensors by name, those that are not wanted on the meta device; the header's metadata; which of
        `TEXT_ENCODERS` and `VAE` were read.

    Raises:
        InputFileError: ``file-damaged``, ``precision-unsupported``, ``component-missing`` for a GGUF file.
    """
    found = inspect(path)
    if found.container != "safetensors":
        raise InputFileError(
            "component-missing",
            f"{path.name} is a {found.container} file: it holds a diffusion model alone",
            "load text encoders and VAE with nodes of their own",
            file=str(path),
        )
    tensors: dict[str, torch.Tensor] = {}
    read: set[str] = set()
    with opened(path) as (file, _):
        for info in found.tensors:
            part = _part(info.name)
            if info.dtype not in _DTYPES:
                raise InputFileError(
                    "precision-unsupported", f"{path.name}: {info.name} is {info.dtype}", "", file=str(path)
                )
            dtype = _DTYPES[info.dtype]
            if (part == TEXT_ENCODERS and clip) or (part == VAE and vae):
                read.add(part)
                tensors[info.name] = read_bytes(file, info, path).view(dtype).reshape(info.shape)
            else:
                tensors[info.name] = torch.empty(info.shape, dtype=dtype, device="meta")
    strings = {key: value for key, value in found.metadata.items() if isinstance(value, str)}
    return tensors, strings, frozenset(read)


def _part(name: str) -> str | None:
    component = component_of(name)
    if component is None:
        return None
    if component[0] == "vae":
        return VAE
    return None if component[0] in _OTHERS else TEXT_ENCODERS
