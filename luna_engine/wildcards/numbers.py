"""Number ranges ``{lo-hi:step}`` in exact decimal arithmetic: integers scaled by a power of ten, no binary float."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?)"
_RANGE = re.compile(rf"{_NUMBER}-{_NUMBER}(?::{_NUMBER})?")
_MOST_DIGITS = 30
_MOST_POINTS = 10**30


@dataclass(frozen=True, slots=True)
class Grid:
    """The values ``first + i * step`` for i in ``range(points)``, scaled by ``10 ** decimals``."""

    first: int
    step: int
    points: int
    decimals: int
    was_reversed: bool = False
    had_bad_step: bool = False

    def text(self, index: int) -> str:
        """Return the value at ``index`` with all its decimals, never ``-0``."""
        value = self.first + index * self.step
        sign, digits = ("-", str(-value)) if value < 0 else ("", str(value))
        if not self.decimals:
            return sign + digits
        digits = digits.zfill(self.decimals + 1)
        return f"{sign}{digits[: -self.decimals]}.{digits[-self.decimals :]}"


def match_range(body: str) -> tuple[str, str, str | None] | None:
    """Return (low, high, step or None) if the whole body is a range, else None."""
    found = _RANGE.fullmatch(body)
    return (found[1], found[2], found[3]) if found else None


def make_grid(low: str, high: str, step: str | None) -> Grid | None:
    """Return the grid of a range, or None if a number or the number of values is beyond the limits."""
    if any(sum(c.isdigit() for c in number) > _MOST_DIGITS for number in (low, high, step or "")):
        return None
    low_decimals, high_decimals = _decimals(low), _decimals(high)
    work = max(low_decimals, high_decimals, _decimals(step or ""), 2)
    was_reversed = _scaled(low, work) > _scaled(high, work)
    if was_reversed:
        low, high, low_decimals = high, low, high_decimals
    bad_step = step is not None and _scaled(step, work) <= 0
    if step is None:
        has_dot = "." in low or "." in high
        shown = max(2, _decimals(low), _decimals(high)) if has_dot else 0
        step_scaled = 10 ** (work - shown)
    else:
        step = "1" if bad_step else step
        shown = max(low_decimals, _decimals(step))
        step_scaled = _scaled(step, work)
    first, last = _scaled(low, work), _scaled(high, work)
    points = (last - first) // step_scaled + 1
    if points > _MOST_POINTS:
        return None
    shrink = 10 ** (work - shown)
    return Grid(first // shrink, step_scaled // shrink, points, shown, was_reversed, bad_step)


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _scaled(number: str, decimals: int) -> int:
    whole, _, fraction = number.partition(".")
    return int(whole + fraction.ljust(decimals, "0"))
