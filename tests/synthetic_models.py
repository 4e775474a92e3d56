"""Small model files for tests: real key names, chosen shapes, written in milliseconds."""

from __future__ import annotations

import json
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from luna_engine.weights.containers.dtypes import DTYPES
from luna_engine.weights.containers.safetensors_writer import lay_out
from luna_engine.weights.demo.models import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Shapes = dict[str, tuple[int, ...]]

_NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8,
    "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "BOOL": np.uint8,
}  # fmt: skip


def write_holes(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", **metadata: str) -> Path:
    """Write a file whose tensors are zero and cost no disk space: real shapes of any size."""
    layout = lay_out([(name, dtype, shape) for name, shape in shapes.items()], metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(layout.header)
    os.truncate(path, layout.size_bytes)
    return path


def write_values(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]], **metadata: str) -> Path:
    """Write (dtype, values) pairs; BF16 and 8-bit floats are given as their bit patterns."""
    layout = lay_out([(name, dtype, value.shape) for name, (dtype, value) in tensors.items()], metadata)
    data = b"".join(value.astype(_NUMPY[dtype]).tobytes() for dtype, value in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(layout.header + data)
    return path


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file from a header as it is (text or JSON value), right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def demo_shapes(name: str) -> Shapes:
    """Return names and shapes of a demo model."""
    return {tensor.name: tensor.shape for tensor in MODELS[name].build()}


def random_values(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", seed: int = 1) -> dict[str, Any]:
    """Return normal values for names and shapes."""
    generator = np.random.default_rng(seed)
    return {
        name: (dtype, (generator.standard_normal(shape) * 0.05).astype(np.float32)) for name, shape in shapes.items()
    }


PREFIX = "model.diffusion_model."
V_PRED = {"v_pred": ("F32", np.zeros(0)), "ztsnr": ("F32", np.zeros(0))}

TINY_SDXL: Shapes = {
    "time_embed.0.weight": (16, 8),
    "time_embed.0.bias": (16,),
    "label_emb.0.0.weight": (16, 2816),
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    **{f"input_blocks.{index}.0.in_layers.0.weight": (32,) for index in (1, 2, 4, 5, 7, 8)},
    "input_blocks.1.0.in_layers.2.weight": (32, 32, 3, 3),
    "input_blocks.3.0.op.weight": (32, 32, 3, 3),
    "input_blocks.6.0.op.weight": (32, 32, 3, 3),
    **{
        f"input_blocks.{index}.1.transformer_blocks.{block}.attn2.to_k.weight": (16, 2048)
        for index, depth in ((4, 2), (5, 2), (7, 10), (8, 10))
        for block in range(depth)
    },
    "input_blocks.4.1.norm.weight": (32,),
    "input_blocks.4.1.proj_in.weight": (32, 32),
    "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (96, 64),
    "input_blocks.4.1.transformer_blocks.0.attn1.to_odd.weight": (33, 17),
    "middle_block.0.in_layers.2.weight": (32, 32, 3, 3),
    "middle_block.1.proj_in.weight": (32, 32),
    "middle_block.2.in_layers.2.weight": (32, 32, 3, 3),
    "output_blocks.0.0.in_layers.2.weight": (32, 64, 3, 3),
    "out.0.weight": (32,),
    "out.2.weight": (4, 32, 3, 3),
}


def under(prefix: str, shapes: Shapes) -> Shapes:
    """Put a prefix before every name."""
    return {prefix + name: shape for name, shape in shapes.items()}


def total_bytes(shapes: Iterable[tuple[int, ...]], dtype: str) -> int:
    """Return the bytes of tensors of these shapes."""
    return sum(math.prod(shape) * DTYPES[dtype] for shape in shapes)
