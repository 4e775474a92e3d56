"""Numbers and times in words: bytes, ages, durations. Unknown is a dash, never 0. Imports nothing that draws."""

from __future__ import annotations

import time

UNKNOWN = "–"  # noqa: RUF001 - a dash, so that it cannot be taken for a minus


def size(value: int | None) -> str:
    """Return bytes as ``4.9 GiB``, ``235 MiB``, ``812 KiB`` or ``97 B``."""
    if value is None:
        return UNKNOWN
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if value >= factor:
            amount = value / factor
            return f"{amount:.1f} {unit}" if unit == "GiB" or amount < 10 else f"{amount:.0f} {unit}"
    return f"{value} B"


def gib(value: int | None) -> str:
    """Return bytes as a bare number of GiB with one decimal, for lines that name the unit once."""
    return UNKNOWN if value is None else f"{value / 1024**3:.1f}"


def duration(seconds: float | None) -> str:
    """Return a span as ``41 s``, ``4:02``, ``2:14:07`` or ``3 d 4 h``."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(at: float | None) -> str:
    """Return a Unix time as the local ``07:31:04``."""
    return UNKNOWN if at is None else time.strftime("%H:%M:%S", time.localtime(at))


def count(number: int, noun: str) -> str:
    """Return ``1 daemon`` or ``3 daemons``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def number(value: int | None) -> str:
    """Return an integer, or the dash."""
    return UNKNOWN if value is None else f"{value:,}"
