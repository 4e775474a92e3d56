"""The element types of safetensors and their sizes in bytes."""

from __future__ import annotations

from types import MappingProxyType

DTYPES = MappingProxyType(
    {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U64": 8,
        "U32": 4,
        "U16": 2,
        "U8": 1,
        "BOOL": 1,
    }
)

# Types of later versions of the format: a file with them can be listed, but not converted. Their elements may
# share bytes, so sizes are taken from the offsets.
LISTED_ONLY = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64"})

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
