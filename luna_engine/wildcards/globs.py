"""Glob patterns over addresses: ``*`` within one part, ``**`` any number of parts. Linear in pattern times address."""

from __future__ import annotations


def match_parts(pattern: list[str], parts: list[str]) -> bool:
    """Tell whether a pattern, cut into parts, fits an address, cut into parts (both case-folded)."""
    reach = {0}
    for piece in pattern:
        if piece == "**":
            reach = set(range(min(reach), len(parts) + 1))
        else:
            reach = {at + 1 for at in reach if at < len(parts) and match_part(piece, parts[at])}
        if not reach:
            return False
    return len(parts) in reach


def match_part(pattern: str, part: str) -> bool:
    """Tell whether ``pattern``, whose ``*`` stands for any characters, fits ``part`` whole."""
    pieces = pattern.split("*")
    if len(pieces) == 1:
        return pattern == part
    first, *middle, last = pieces
    if len(part) < len(first) + len(last) or not part.startswith(first) or not part.endswith(last):
        return False
    at, end = len(first), len(part) - len(last)
    for piece in middle:
        found = part.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
