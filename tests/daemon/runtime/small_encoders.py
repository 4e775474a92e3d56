"""Encoders in the real layout and vocabulary, but narrow or shallow, with seeded weights. Not a test module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime import qwen3, t5
from luna_daemon.runtime.clip_text import END, ClipShape, expected_shapes
from luna_daemon.runtime.qwen3 import Qwen3Shape
from luna_daemon.runtime.t5 import T5Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

T5 = T5Shape(layers=3, width=64, heads=4, head_width=16, hidden=96, vocabulary=32128)
QWEN = Qwen3Shape(layers=4, width=64, heads=4, key_heads=2, head_width=128, hidden=96, vocabulary=151936)
CLIP_L_SHALLOW = ClipShape(layers=3, width=768, activation="quick_gelu", pad=END)
CLIP_G_SHALLOW = ClipShape(layers=3, width=1280, activation="gelu", pad=0)
SIZES = {
    "t5xxl": {
        "d_model": T5.width,
        "d_kv": T5.head_width,
        "d_ff": T5.hidden,
        "num_heads": T5.heads,
        "num_layers": T5.layers,
    },
    "clip_l": {"num_hidden_layers": CLIP_L_SHALLOW.layers},
    "clip_g": {"num_hidden_layers": CLIP_G_SHALLOW.layers},
    "qwen3_4b": {
        "hidden_size": QWEN.width,
        "intermediate_size": QWEN.hidden,
        "num_hidden_layers": QWEN.layers,
        "num_attention_heads": QWEN.heads,
        "num_key_value_heads": QWEN.key_heads,
    },
}
"""Model configurations for ComfyUI's classes."""


def clip_weights(shape: ClipShape, seed: int) -> dict[str, torch.Tensor]:
    """Return the weights of a CLIP in fp16, projection included."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: (torch.randn(size, generator=generator) * 0.05 + ("norm" in name and name.endswith("weight"))).half()
        for name, size in expected_shapes(shape).items()
    }
    found["text_projection.weight"] = (torch.randn(shape.width, shape.width, generator=generator) * 0.05).half()
    return found


def t5_weights(dtype: torch.dtype = torch.float16, shape: T5Shape = T5) -> dict[str, torch.Tensor]:
    """Return the weights of a T5."""
    return _weights(t5.expected_shapes(shape), 11, dtype, 1.6 / shape.width**0.5)


def qwen_weights(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Return the weights of `QWEN`."""
    return _weights(qwen3.expected_shapes(QWEN), 12, dtype, 0.1)


def _weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype, spread: float
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * spread + ("norm" in name)).to(dtype)
        for name, shape in shapes.items()
    }
