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
        dtype: element type of quantised tensors, or of all floats where nothing is quantised.
        suffix: how file names end behind the source's stem.
        file_type: GGUF's ``general.file_type``, None elsewhere.
        bits: class of fineness: a target finer than its source is refused.
        usual_error: relative RMSE on heavy-tailed weights; twice that is a warning.
        is_scaled: each quantised tensor has one F32 scale beside it.
        is_error_open: the error depends on how large the weights are, so that no error proves a mistake.
    """

    label: str
    container: str
    dtype: str
    suffix: str
    file_type: int | None
    bits: int
    usual_error: float
    is_scaled: bool = False
    is_error_open: bool = False

    @property
    def is_fp8(self) -> bool:
        """Tell whether linear weights of the blocks become 8-bit floats."""
        return self.dtype == "F8_E4M3"


PRECISIONS = MappingProxyType(
    {
        precision.label: precision
        for precision in (
            Precision("bf16", "safetensors", "BF16", "_bf16_unet.safetensors", None, 16, 0.0017),
            Precision("fp16", "safetensors", "F16", "_fp16_unet.safetensors", None, 16, 0.0005),
            Precision(
                "fp8_e4m3fn_scaled", "safetensors", "F8_E4M3", "_fp8_e4m3fn_scaled_unet.safetensors", None, 8, 0.0265,
                is_scaled=True,
            ),
            Precision(
                "fp8_e4m3fn", "safetensors", "F8_E4M3", "_fp8_e4m3fn_unet.safetensors", None, 8, 0.033,
                is_error_open=True,
            ),
            Precision("gguf_F16", "gguf", "F16", "_F16.gguf", 1, 16, 0.0005),
            Precision("gguf_BF16", "gguf", "BF16", "_BF16.gguf", 32, 16, 0.0017),
            Precision("gguf_Q8_0", "gguf", "Q8_0", "_Q8_0.gguf", 7, 8, 0.0073),
            Precision("gguf_Q6_K", "gguf", "Q6_K", "_Q6_K.gguf", 18, 4, 0.0228),
            Precision("gguf_Q5_K_M", "gguf", "Q5_K", "_Q5_K_M.gguf", 17, 4, 0.0439),
            Precision("gguf_Q4_K_M", "gguf", "Q4_K", "_Q4_K_M.gguf", 15, 4, 0.0867),
            Precision("gguf_Q4_K_S", "gguf", "Q4_K", "_Q4_K_S.gguf", 14, 4, 0.0867),
            Precision("gguf_Q5_0", "gguf", "Q5_0", "_Q5_0.gguf", 8, 4, 0.0563),
            Precision("gguf_Q4_0", "gguf", "Q4_0", "_Q4_0.gguf", 2, 4, 0.1153),
        )
    }
)  # fmt: skip

# Bits per weight class of source types; blocks below 8 bits are 4 whatever their exact size.
SOURCE_BITS = MappingProxyType(
    {"F64": 32, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "Q8_0": 8, "Q8_1": 8, "Q8_K": 8}
)
_LOWEST_BITS = 4


def source_bits(dtype: str) -> int:
    """Return the class of fineness of a source's element type."""
    return SOURCE_BITS.get(dtype, _LOWEST_BITS)


def find_precision(label: str) -> Precision:
    """Return the precision of a label; case and text after a blank do not matter, nor a missing ``gguf_``.

    A whole label goes before one without ``gguf_``.

    Raises:
        LunaError: ``precision-unsupported`` with the labels that exist.
    """
    word = label.strip().partition(" ")[0].lower()
    by_word = {name.lower(): precision for name, precision in PRECISIONS.items()}
    found = by_word.get(word) or by_word.get(f"gguf_{word}")
    if found is None:
        raise LunaError(
            "precision-unsupported",
            f"{label!r} is no precision that Luna writes",
            f"choose from {', '.join(PRECISIONS)}",
        )
    return found
