"""How one source tensor is stored in the output: its type, its shape, and what stands beside it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.weights.architectures import Architecture, is_bare
from luna_engine.weights.components import Form
from luna_engine.weights.containers.dtypes import FLOATS
from luna_engine.weights.containers.ggml_types import BY_NAME

if TYPE_CHECKING:
    from luna_engine.weights.precisions import Precision
    from luna_engine.weights.sources import SourceTensor

_SIDE_ELEMENTS = 1024
_RESHAPED_COLUMNS = 256
_SMALL_BLOCKS = "Q8_0"
_GGUF_WHOLE = frozenset({"I8", "I16", "I32", "I64"})
_HALVES = frozenset({"F16", "BF16"})
# Block types that can be decoded, and so be a source.
DECODED = frozenset({"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})
NUMBERS = FLOATS | DECODED


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor that belongs to another's stored form. ``data`` None is the scale, known when that is converted."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | None


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output. ``action`` is copied, cast or quantised; ``stored_shape`` differs where reshaped.

    ``in_block``: it stands in a repeating block, where a value that its type cannot hold is an error and not a
    reason for a larger type.
    """

    source: SourceTensor
    dtype: str
    stored_shape: tuple[int, ...]
    action: str
    in_block: bool = False
    extras: tuple[Extra, ...] = ()

    @property
    def name(self) -> str:
        """Return the name it has in the output."""
        return self.source.name

    @property
    def is_reshaped(self) -> bool:
        """Tell whether readers need the original shape's key."""
        return self.action == "quantised" and self.stored_shape != self.source.shape

    @property
    def has_scale(self) -> bool:
        """Tell whether a scale is written beside it."""
        return any(extra.data is None for extra in self.extras)


@dataclass(frozen=True, slots=True)
class Fp8Layout:
    """How scaled fp8 is written: ComfyUI's current names or the legacy ones, and what it shall multiply with."""

    is_legacy: bool = False
    is_full_matmul: bool = False

    @property
    def form(self) -> Form:
        """Return the form a file of this layout has."""
        return Form.FP8_SCALED_LEGACY if self.is_legacy else Form.FP8_SCALED

    def beside(self, layer: str) -> tuple[Extra, ...]:
        """Return what stands beside a layer's weight."""
        if self.is_legacy:
            return (Extra(f"{layer}.scale_weight", "F32", (), None),)
        what: dict[str, object] = {"format": "float8_e4m3fn"}
        if self.is_full_matmul:
            what["full_precision_matrix_mult"] = True
        text = json.dumps(what).encode()
        return (
            Extra(f"{layer}.weight_scale", "F32", (), None),
            Extra(f"{layer}.comfy_quant", "U8", (len(text),), text),
        )

    def mark(self) -> tuple[Extra, ...]:
        """Return what stands once in the file; two elements ask for full precision."""
        count = 2 if self.is_full_matmul else 0
        return (Extra("scaled_fp8", "F8_E4M3", (count,), bytes(count)),) if self.is_legacy else ()


def plain_target(source: SourceTensor, target: Precision) -> PlannedTensor:
    """Store every float as the target's type."""
    dtype = target.dtype if source.dtype in NUMBERS else source.dtype
    return PlannedTensor(source, dtype, source.shape, _action(source, dtype))


def fp8_target(
    source: SourceTensor, target: Precision, architecture: Architecture, layout: Fp8Layout, *, is_same_form: bool
) -> PlannedTensor:
    """Store linear weights of the blocks as F8_E4M3, other floats as 16 bits: ComfyUI has fp8 layers for Linear only.

    Args:
        source: the tensor.
        target: plain or scaled fp8.
        architecture: says what stands in blocks.
        layout: how scales are written.
        is_same_form: the source is stored so already; its 8-bit floats are copied with their scales.
    """
    if source.dtype not in NUMBERS:
        return plain_target(source, target)
    is_kept_fp8 = is_same_form and source.dtype == target.dtype and (source.is_scaled or not target.is_scaled)
    if is_kept_fp8 and len(source.pieces) > 1 and source.is_scaled:
        is_kept_fp8 = False  # joined rows had scales of their own
    if is_kept_fp8 or (len(source.shape) == 2 and architecture.is_quantised(source.name, source.shape)):
        extras = layout.beside(source.name.removesuffix(".weight")) if target.is_scaled else ()
        action = "copied" if is_kept_fp8 else "quantised"
        return PlannedTensor(source, target.dtype, source.shape, action, in_block=True, extras=extras)
    dtype = "F16" if source.dtype == "F16" else "BF16"
    return PlannedTensor(source, dtype, source.shape, _action(source, dtype))


def is_in_block(source: SourceTensor, architecture: Architecture) -> bool:
    """Tell whether a tensor is a weight that may be stored in blocks."""
    return source.dtype in NUMBERS and architecture.is_quantised(source.name, source.shape)


def gguf_target(
    source: SourceTensor,
    target: Precision,
    architecture: Architecture,
    wanted: str | None,
    *,
    reshape: bool,
    overflows: bool,
) -> PlannedTensor:
    """Store weights of the blocks as their type in the mix (``wanted``), the rest (None) as 16 or 32 bits.

    A weight whose values fill no blocks of 256 becomes Q8_0 if its rows fill blocks of 32, else it is kept.
    """
    if wanted in _HALVES:
        return PlannedTensor(source, wanted, source.shape, _action(source, wanted), in_block=True)
    if wanted is not None:
        for dtype in (wanted, _SMALL_BLOCKS):
            stored = _blocked_shape(source.shape, BY_NAME[dtype].block, reshape=reshape)
            if stored is not None:
                action = "copied" if _action(source, dtype) == "copied" else "quantised"
                return PlannedTensor(source, dtype, stored, action, in_block=True)
    dtype = _side_type(source, target, architecture, overflows=overflows)
    stored = source.shape if math.prod(source.shape) and source.shape else (1,)
    return PlannedTensor(source, dtype, stored, _action(source, dtype))


def _action(source: SourceTensor, dtype: str) -> str:
    return "copied" if source.dtype == dtype and source.is_uniform and not source.is_scaled else "cast"


def _blocked_shape(shape: tuple[int, ...], block: int, *, reshape: bool) -> tuple[int, ...] | None:
    """Return the shape to store in whole blocks; None if the tensor cannot be."""
    if shape[-1] % block == 0:
        return shape
    elements = math.prod(shape)
    for columns in (_RESHAPED_COLUMNS, block):
        if reshape and columns % block == 0 and elements % columns == 0:
            return (elements // columns, columns)
    return None


def _side_type(source: SourceTensor, target: Precision, architecture: Architecture, *, overflows: bool) -> str:
    """Return the type of a tensor that is not quantised; loaders read bare parameters only as F32 or F16."""
    if source.dtype in _GGUF_WHOLE:
        return source.dtype
    is_small = len(source.shape) <= 1 or math.prod(source.shape) <= _SIDE_ELEMENTS
    is_layers = source.dtype in NUMBERS and not is_small and not is_bare(architecture, source.name)
    if is_layers and target.dtype == "BF16":
        return "BF16"
    if source.dtype == "F16":
        return "F16"
    return "F16" if is_layers and not overflows else "F32"
