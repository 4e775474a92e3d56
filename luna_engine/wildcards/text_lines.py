"""The items of a txt file as spans of its text, and new ones as its lines."""

from __future__ import annotations

import re

from luna_engine.errors import LunaError

LINE_END = re.compile(r"\r\n|\r|\n|\Z")


def line_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of the items of a txt file, without the blanks round them."""
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(text):
        found = LINE_END.search(text, at)
        end, stop = (found.start(), found.end()) if found else (len(text), len(text))
        line = text[at:end]
        if line.strip() and not line.startswith("#"):
            begin = at + len(line) - len(line.lstrip())
            spans.append((begin, begin + len(line.strip())))
        at = stop if stop > at else len(text)
    return spans


def add_lines(text: str, items: list[str], newline: str, file: str) -> str:
    """Return a text with items behind its last line."""
    if text and not text.endswith(("\n", "\r")):
        text += newline
    return text + "".join(written_line(item, file) + newline for item in items)


def written_line(item: str, file: str) -> str:
    """Return an item as a line.

    Raises:
        LunaError: ``edit-shape`` if no line can say it.
    """
    if "\n" in item or "\r" in item or not item.strip() or item != item.strip():
        message = f"{item[:40]!r} cannot be a line of a text file"
        raise LunaError("edit-shape", message, "use a YAML file for blanks and breaks", file=file)
    return f"\\{item}" if item.startswith("#") else item
