"""Breaking foreign text into lines of a width, with every character's place kept."""

from __future__ import annotations

from rich.cells import cell_len, get_character_cell_size

from luna_tui.plain import clean


def clean_text(text: str) -> str:
    """Return foreign text with line feeds kept and all else that could act on the terminal shown as signs."""
    return text if text.isprintable() else "\n".join(clean(line) for line in text.split("\n"))


def clean_offset(text: str, offset: int) -> int:
    """Return where a character of ``text`` stands in ``clean_text(text)``."""
    return offset if text.isprintable() else len(clean_text(text[:offset]))


def wrap(text: str, width: int) -> list[tuple[int, int]]:
    """Return the [start, end) of each line of clean text, broken at blanks where there are any.

    Args:
        text: made by `clean_text`.
        width: cells in a line, at least 2.
    """
    lines: list[tuple[int, int]] = []
    start = 0
    for part in text.split("\n"):
        lines += _wrapped(part, start, max(2, width))
        start += len(part) + 1
    return lines


def _wrapped(part: str, offset: int, width: int) -> list[tuple[int, int]]:
    if cell_len(part) <= width:
        return [(offset, offset + len(part))]
    lines: list[tuple[int, int]] = []
    start = cells = 0
    blank = -1
    at = 0
    while at < len(part):
        size = get_character_cell_size(part[at])
        if cells + size > width and at > start:
            end = blank + 1 if blank >= start else at
            lines.append((offset + start, offset + end))
            start = at = end
            cells, blank = 0, -1
            continue
        if part[at] == " ":
            blank = at
        cells += size
        at += 1
    return [*lines, (offset + start, offset + len(part))]
