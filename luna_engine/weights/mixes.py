"""Which block type each weight gets in precisions that mix several: finer where an error costs most.

The rows follow the mixes that GGUF tools share (llama.cpp's names); the row of convolutions is Luna's own: in SDXL they
are 13 % of the weights, and finer ones nearly halve the error of the whole model.
"""

from __future__ import annotations

import fnmatch
import re
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Convolutions(str, Enum):
    """What convolutions of UNets become in a mix: their own row, that of other weights, or half precision."""

    MIX = "mix"
    SAME = "same"
    F16 = "f16"


# The first row with a pattern inside the name decides; a star stands for any text.
_VALUE = ("attn_v.weight", ".to_v.weight", ".v.weight", ".attn.w1v.weight", ".attn.w2v.weight", "_attn.v_proj.weight")
_FUSED = ("attn_qkv.weight", "attn.qkv.weight", "attention.qkv.weight")
_FFN_DOWN = (
    "ffn_down.",
    ".experts.*.w2.weight",
    ".ffn.2.weight",
    ".ff.net.2.weight",
    ".mlp.layer2.weight",
    ".adaln_modulation_mlp.2.weight",
    ".feed_forward.w2.weight",
)
_ROLES = (("value", _VALUE), ("fused", _FUSED), ("ffn_down", _FFN_DOWN))
_CONVOLUTION, _OTHER = "convolution", "other"
MIXES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gguf_Q4_K_S": {"value": "Q4_K", "fused": "Q4_K", "ffn_down": "Q5_K", _CONVOLUTION: "Q5_K", _OTHER: "Q4_K"},
        "gguf_Q4_K_M": {"value": "Q6_K", "fused": "Q5_K", "ffn_down": "Q6_K", _CONVOLUTION: "Q6_K", _OTHER: "Q4_K"},
        "gguf_Q5_K_M": {"value": "Q6_K", "fused": "Q6_K", "ffn_down": "Q6_K", _CONVOLUTION: "Q6_K", _OTHER: "Q5_K"},
        "gguf_Q4_0": {"value": "Q4_0", "fused": "Q4_0", "ffn_down": "Q4_1", _CONVOLUTION: "Q8_0", _OTHER: "Q4_0"},
        "gguf_Q5_0": {"value": "Q5_0", "fused": "Q5_0", "ffn_down": "Q5_1", _CONVOLUTION: "Q8_0", _OTHER: "Q5_0"},
    }
)
# In this mix the first value projections, counted by block, are finer.
_FINER_FIRST = "gguf_Q4_K_S"
_FINER_COUNT, _FINER_TYPE = 4, "Q5_K"
_NUMBERS = re.compile(r"\d+")


def role(name: str, rank: int) -> str:
    """Return the mix's row of a tensor, by its name without prefix and its number of dimensions."""
    for found, patterns in _ROLES:
        if any(fnmatch.fnmatchcase(name, f"*{pattern}*") for pattern in patterns):
            return found
    return _CONVOLUTION if rank == 4 else _OTHER


def block_types(
    label: str, dtype: str, weights: Sequence[tuple[str, int]], convolutions: Convolutions = Convolutions.MIX
) -> dict[str, str]:
    """Return the type of each weight that is quantised.

    Args:
        label: the precision; one without a mix gives every weight ``dtype``.
        dtype: the precision's own type.
        weights: (name, number of dimensions) of the weights in repeating blocks.
        convolutions: what convolutions become.
    """
    mix = MIXES.get(label)
    roles = {name: role(name, rank) for name, rank in weights}
    found = {name: mix[roles[name]] if mix else dtype for name, _ in weights}
    for name, rank in weights:
        if rank == 4 and convolutions is Convolutions.F16:
            found[name] = "F16"
        elif rank == 4 and mix and convolutions is Convolutions.SAME:
            found[name] = mix[_OTHER]
    if label == _FINER_FIRST:
        values = sorted((name for name in found if roles[name] == "value"), key=_by_number)
        found.update(dict.fromkeys(values[:_FINER_COUNT], _FINER_TYPE))
    return found


def _by_number(name: str) -> tuple[list[int], str]:
    """Order by block number and not by text, where 10 comes before 2; equal numbers by name."""
    return [int(number) for number in _NUMBERS.findall(name)], name
