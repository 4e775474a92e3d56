"""Cosmetics that are never applied unasked."""

from __future__ import annotations

import re

_BLANKS = re.compile(r"[ \t]+")
_COMMAS = re.compile(r"[ \t]*,(?:[ \t]*,)*[ \t]*")


def tidy(text: str) -> str:
    """Even out blanks and doubled commas, line by line; line breaks stay."""
    return "\n".join(_tidy_line(line) for line in text.split("\n"))


def _tidy_line(line: str) -> str:
    line = _BLANKS.sub(" ", _COMMAS.sub(", ", line))
    return line.strip(" ").removeprefix(", ").strip(" ").removesuffix(",").rstrip(" ")
