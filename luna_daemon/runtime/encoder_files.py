"""Text encoders out of parts: which class a role has, what its file must hold, what it is called in ComfyUI."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime import clip_text, qwen3, t5
from luna_daemon.runtime.backend import NamedTensor
from luna_daemon.runtime.parts import FLOATS, LARGE_ROLES, SMALL_FLOATS, require_complete
from luna_daemon.runtime.stored import WIDEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_daemon.runtime.parts import Part
    from luna_daemon.runtime.text_encoder import TextEncoder

_CLIP: Mapping[str, clip_text.ClipShape] = {"l": clip_text.CLIP_L, "g": clip_text.CLIP_G}
WIRE_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8_e4m3",
    torch.float8_e5m2: "f8_e5m2",
}


def load(role: str, part: Part, device: torch.device, check: Callable[[], None]) -> TextEncoder:
    """Build the text encoder of a role.

    Raises:
        DaemonError: ``file-damaged`` or ``wrong-type`` for a part that lacks tensors or has others.
    """
    require_complete(part, expected_shapes(role))
    if role == "t5xxl":
        return t5.T5Encoder(t5.T5_XXL, part.read_all(check), device)
    if role == "qwen3_4b":
        return qwen3.Qwen3Encoder(qwen3.QWEN3_4B, part.read_all(check), device)
    return clip_text.ClipTextEncoder(_CLIP[role], part.read_all(check), device)


def expected_shapes(role: str) -> dict[str, tuple[int, ...]]:
    """Return standalone name → shape of every tensor that a file of a role's encoder must hold."""
    if role == "t5xxl":
        return t5.expected_shapes(t5.T5_XXL)
    return qwen3.expected_shapes(qwen3.QWEN3_4B) if role == "qwen3_4b" else clip_text.expected_shapes(_CLIP[role])


def held_bytes(role: str, part: Part, device: torch.device) -> int:
    """Return what the weights will hold: CLIP fp32 on a CPU and fp16 on a card, others as stored, 16 bits at most."""
    if role not in LARGE_ROLES:
        return part.elements * (4 if device.type == "cpu" else 2)
    sizes = {**FLOATS, **SMALL_FLOATS}
    return sum(math.prod(entry.shape) * min(WIDEST_BYTES, sizes.get(entry.dtype, 1)) for entry in part.entries.values())


def names(role: str, encoder: TextEncoder) -> list[NamedTensor]:
    """List an encoder's weights in ComfyUI's state-dict names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state().items()}
    if role in LARGE_ROLES:
        dtype = WIRE_NAMES[encoder.dtype]
    else:
        dtype = "f16"
        shapes["text_projection.weight"] = (encoder.shape.width,) * 2  # the identity where the file has none
    listed = [NamedTensor(prefix(role) + name, dtype, shape) for name, shape in shapes.items()]
    return [*listed, NamedTensor(f"{_root(role)}.logit_scale", "f32", ())]


def prefix(role: str) -> str:
    """Return what stands before an encoder's standalone names in ComfyUI's state dict."""
    return f"{_root(role)}.transformer."


def _root(role: str) -> str:
    return role if role in LARGE_ROLES else f"clip_{role}"
