"""The precisions Luna writes, by the labels that commands, nodes and file names use."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from luna_engine.errors import LunaError


@dataclass(frozen=True, slots=True)
class Precision:
    """One target.

    Attributes:
        label: what the user types.
        container: ``safetensors`` or ``gguf``.
        dtype: element type of quantised tensors (GGUF) or of all floats (safetensors).
        suffix: how file names end behind the source's stem.
        file_type: GGUF's ``general.file_type``, None elsewhere.
        bits: class of fineness: a target finer than its source is refused.
        usual_error: relative RMSE on heavy-tailed weights; twice that is a warning.
    """

    label: str
    container: str
    dtype: str
    suffix: str
    file_type: int | None
    bits: int
    usual_error: float


PRECISIONS = MappingProxyType(
    {
        precision.label: precision
        for precision in (
            Precision("bf16", "safetensors", "BF16", "_bf16_unet.safetensors", None, 16, 0.0017),
            Precision("fp16", "safetensors", "F16", "_fp16_unet.safetensors", None, 16, 0.0005),
            Precision("gguf_Q8_0", "gguf", "Q8_0", "_Q8_0.gguf", 7, 8, 0.0073),
        )
    }
)

# Bits per weight class of source types; blocks below 8 bits are 4 whatever their exact size.
SOURCE_BITS = MappingProxyType(
    {"F64": 32, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "Q8_0": 8, "Q8_1": 8, "Q8_K": 8}
)
_LOWEST_BITS = 4


def source_bits(dtype: str) -> int:
    """Return the class of fineness of a source's element type."""
    return SOURCE_BITS.get(dtype, _LOWEST_BITS)


def find_precision(label: str) -> Precision:
    """Return the precision of a label; case, a missing ``gguf_`` and text after a blank do not matter.

    Raises:
        LunaError: ``precision-unsupported`` with the labels that exist.
    """
    word = label.strip().partition(" ")[0].lower()
    for name, precision in PRECISIONS.items():
        if word in {name.lower(), name.lower().removeprefix("gguf_")}:
            return precision
    raise LunaError(
        "precision-unsupported",
        f"{label!r} is no precision that Luna writes",
        f"choose from {', '.join(PRECISIONS)}",
    )
