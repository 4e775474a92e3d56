"""Own themes are readable: contrast as WCAG 2 defines it, of every tone on the background and under the cursor."""

from __future__ import annotations

from typing import Any

import pytest
from textual.color import Color

from luna_tui.glyphs import Tone
from luna_tui.themes import THEMES
from luna_tui.widgets.table import ListTable


def luminance(color: Color) -> float:
    parts = [value / 255 for value in color.rgb]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES])
async def test_every_tone_can_be_read(tui: Any, theme: str) -> None:
    async with tui.running(theme=theme) as pilot:
        table = pilot.app.screen.query_one(ListTable)
        backs = [
            table.get_component_rich_style(name).bgcolor
            for name in ("list--header", "list--cursor", "list--cursor-blurred")
        ]
        for tone in Tone:
            style = table.get_component_rich_style(f"list--{tone.value}")
            for back in backs:
                ratio = contrast(Color.from_rich_color(style.color), Color.from_rich_color(back))
                least = 3.0 if tone is Tone.DIM else 4.5
                assert ratio >= least, f"{tone.value} has {ratio:.2f} on {back}"
