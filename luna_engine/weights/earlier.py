"""Names of converted files that earlier releases of Luna wrote, which say nothing of themselves inside.

A name is a claim: the types in the file are what it holds, and some hold F16 under a Q4 name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.mixes import MIXES
from luna_engine.weights.precisions import PRECISIONS

if TYPE_CHECKING:
    from luna_engine.weights.summary import Summary

# From the right, the longest label first: `_fp8_e4m3fn_scaled_unet` is no `_scaled_unet` of a stem `..._fp8_e4m3fn`.
_SUFFIXES = sorted(
    ((precision.suffix.lower(), label) for label, precision in PRECISIONS.items()),
    key=lambda pair: -len(pair[0]),
)


def parse_name(name: str) -> tuple[str, str] | None:
    """Return (stem of the source, precision label) that a file's name claims, or None."""
    lowered = name.lower()
    for suffix, label in _SUFFIXES:
        if lowered.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], label
    return None


def contradiction(name: str, found: Summary) -> str:
    """Say how a file's types contradict its name; "" if they do not, or the name claims nothing."""
    claim = parse_name(name)
    if claim is None or found.precision == "none":
        return ""
    label = claim[1]
    allowed = {PRECISIONS[label].dtype, *MIXES.get(label, {}).values()}
    return "" if found.precision in allowed else f"named {label}, holds mostly {found.precision}"
