"""Foreign text made safe to show: the only way in for file names, logs, prompts, metadata and HTTP answers.

A ``str`` given to a Textual widget is parsed as markup and may end the app; an ESC inside it reaches the terminal and
could send it commands. Here control characters, line breaks and bidi overrides become visible signs.
"""

from __future__ import annotations

import re

from rich.cells import cell_len, set_cell_size
from textual.content import Content

_HOSTILE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 0x0A:
        return "⏎"
    if code == 0x09:
        return "⇥"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, kept by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def clean(text: str) -> str:
    """Return ``text`` on one line, with every character that could act on the terminal shown as a sign."""
    return text if text.isprintable() else _HOSTILE.sub(_visible, text)


def clean_log(text: str) -> str:
    r"""Return a log line without colour codes and with tabs as spaces; of a ``\\r`` progress bar the last state."""
    if "\r" in text:
        text = text.rstrip("\r").rpartition("\r")[2]
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return clean(text.replace("\t", "    "))


def clean_lines(text: str) -> list[str]:
    """Return foreign text as safe lines, split where it has line feeds."""
    return [clean(line.removesuffix("\r")) for line in text.split("\n")]


def content(text: str, style: str = "") -> Content:
    """Return foreign text as Textual content: no markup is read in it."""
    return Content(clean(text)) if not style else Content.styled(clean(text), style)


def fit(text: str, width: int, align: str = "left") -> str:
    """Return safe text cut or padded to exactly ``width`` cells, wide ones counted as two; a cut ends in ``…``."""
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    padding = " " * (width - size)
    return padding + text if align == "right" else text + padding
