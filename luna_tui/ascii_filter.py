"""Draws Luna's and Textual's own signs with ASCII ones, line by line, for terminals that have no others.

Works on what is drawn, so that no sentence needs two forms. Letters of other scripts are the user's own and stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment
from textual.filter import LineFilter

if TYPE_CHECKING:
    from textual.color import Color

# Punctuation and arrows that sentences use; each as wide as what replaces it.
_SIGNS = {
    "\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2022": "*",
    "\u2026": "~", "\u00b1": "~", "\u00b7": "|", "\u00d7": "x", "\u2190": "<", "\u2191": "^", "\u2192": ">",
    "\u2193": "v", "\u21bb": "@", "\u21e5": ">", "\u23ce": "$", "\u2248": "~", "\u2264": "<", "\u2265": ">",
    "\u2713": "+", "\u2714": "+", "\u2717": "X", "\u25a0": "#", "\u25a1": "-", "\u25b2": "^", "\u25b6": ">",
    "\u25b8": ">", "\u25bc": "v", "\u25be": "v", "\u25cb": "o", "\u25cf": "*", "\u00a0": " ",
    "\u00b0": " ", "\u2421": "?",
}  # fmt: skip
_HORIZONTAL = "\u2501\u2500\u2504\u2505\u2508\u2509\u254c\u254d\u2550"
_VERTICAL = "\u2502\u2503\u2506\u2507\u250a\u250b\u254e\u254f\u2551"


def _table() -> dict[int, str]:
    table = dict.fromkeys(range(9472, 9600), "+")
    table.update(dict.fromkeys(range(0x2580, 0x25A0), " "))  # blocks: edges and bar ends, where a gap reads best
    table.update(dict.fromkeys(map(ord, _HORIZONTAL), "-"))
    table.update(dict.fromkeys(map(ord, _VERTICAL), "|"))
    table.update({ord(sign): plain for sign, plain in _SIGNS.items()})
    table.update(dict.fromkeys(range(0x2400, 0x2421), "?"))  # a control character made visible
    return table


_TABLE = _table()


def to_ascii(text: str) -> str:
    """Return ``text`` with its signs in ASCII and no cell wider or narrower."""
    return text if text.isascii() else text.translate(_TABLE)


class AsciiSigns(LineFilter):
    """The filter; the application gives it to Textual beside the ones for colour."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Replace signs in one line."""
        del background
        return [
            segment if segment.control or segment.text.isascii() else Segment(to_ascii(segment.text), segment.style)
            for segment in segments
        ]
