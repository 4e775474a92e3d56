"""Weights as they are written, ``n::`` before an option or item: exact decimals."""

from __future__ import annotations

import re

from luna_engine.wildcards.syntax import Weight

match_weight = re.compile(r"[ \t\r\n]*(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))::").match


def read_weight(text: str) -> tuple[Weight | None, int]:
    """Read ``n::`` at the start of an option or item; returns (None, 0) if there is none, else the text's start."""
    found = match_weight(text)
    return (make_weight(found[1]), found.end()) if found else (None, 0)


def make_weight(written: str) -> Weight:
    """Return the weight for a decimal number; at most 9 digits before and 6 behind the point."""
    negative = written.startswith("-")
    whole, _, fraction = written.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    if negative:
        return Weight(0, f"the weight {written} is negative and counts 0")
    if len(whole.lstrip("0")) > 9 or len(fraction) > 6:
        return Weight(1_000_000, f"the weight {written[:40]} has too many digits and counts 1")
    return Weight(int((whole or "0") + fraction.ljust(6, "0")))
