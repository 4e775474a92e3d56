"""Luna's own themes. Screens use theme variables only, so that every other theme works too."""

from __future__ import annotations

from textual.theme import Theme

NIGHT = Theme(
    name="luna-night",
    primary="#8aa6ff",
    secondary="#7ec8d8",
    accent="#a9bcff",
    foreground="#d7dcec",
    background="#10131c",
    surface="#151a26",
    panel="#1c2333",
    success="#7fd49a",
    warning="#e9c46a",
    error="#f28b82",
    dark=True,
    variables={
        "luna-tab": "#3d4f8a",
        "luna-tab-text": "#ffffff",
        "border": "#34405e",
        "border-blurred": "#2a3350",
        "block-cursor-background": "#2b3a63",
        "block-cursor-blurred-background": "#212a42",
        "scrollbar": "#34405e",
        "scrollbar-background": "#151a26",
        "footer-background": "#151a26",
    },
)
DAY = Theme(
    name="luna-day",
    primary="#3552b5",
    secondary="#1f6f82",
    accent="#2f49a3",
    foreground="#1d2433",
    background="#f6f7fb",
    surface="#eceff7",
    panel="#e1e6f3",
    success="#1f7a3d",
    warning="#8a5a00",
    error="#b3261e",
    dark=False,
    variables={"luna-tab": "#3552b5", "luna-tab-text": "#ffffff", "border": "#b4bedb"},
)
THEMES = (NIGHT, DAY)
