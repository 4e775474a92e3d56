"""The signs of the screens and their plain-ASCII forms: a state is glyph + word, colour only repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Tone(str, Enum):
    """What a colour means; the theme decides which colour."""

    NORMAL = "normal"
    DIM = "dim"
    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    ACCENT = "accent"


# state -> glyph, ASCII form, tone. The states are DAEMON.md's; "reachable" is a ComfyUI that was found.
STATES: dict[str, tuple[str, str, Tone]] = {
    "stopped": ("○", ".", Tone.DIM),
    "starting": ("◌", ">", Tone.BUSY),
    "loading": ("◐", "%", Tone.BUSY),
    "ready": ("●", "+", Tone.GOOD),
    "busy": ("◉", "*", Tone.GOOD),
    "stopping": ("◒", "-", Tone.WARN),
    "crashed": ("✗", "X", Tone.BAD),
    "backoff": ("◔", "~", Tone.WARN),
    "failed": ("▲", "F", Tone.BAD),
    "unresponsive": ("?", "?", Tone.WARN),
    "orphan": ("◇", "o", Tone.WARN),
    "reachable": ("●", "+", Tone.GOOD),
}

LEVELS: dict[str, Tone] = {
    "debug": Tone.DIM,
    "info": Tone.NORMAL,
    "warning": Tone.WARN,
    "error": Tone.BAD,
    "critical": Tone.BAD,
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One set of signs; `UNICODE` and `ASCII` are the two that exist."""

    cursor: str
    mark: str
    full: str
    empty: str
    eighths: str
    sparks: str
    dash: str
    dot: str
    ellipsis: str
    alert: str
    ascii: bool = False

    def state(self, state: str) -> str:
        """Return the sign of a state."""
        glyph, plain, _ = STATES.get(state, ("?", "?", Tone.NORMAL))
        return plain if self.ascii else glyph

    def bar(self, fraction: float, width: int) -> str:
        """Return a bar of ``width`` cells filled to ``fraction`` (0-1)."""
        fraction = min(1.0, max(0.0, fraction))
        if self.ascii:
            full = round(fraction * width)
            return self.full * full + self.empty * (width - full)
        eighths = round(fraction * width * 8)
        full, rest = divmod(eighths, 8)
        return (self.full * full + (self.eighths[rest - 1] if rest else "")).ljust(width, self.empty)

    def sparkline(self, values: list[float], top: float) -> str:
        """Return one sign per value, scaled to ``top``."""
        last = len(self.sparks) - 1
        return "".join(
            self.sparks[min(last, max(0, round(value / top * last)))] if top > 0 else self.sparks[0] for value in values
        )


UNICODE = Glyphs("▸", "✓", "█", "░", "▏▎▍▌▋▊▉", "▁▂▃▄▅▆▇█", "–", "·", "…", "●")  # noqa: RUF001 - a dash for unknown
ASCII = Glyphs(">", "x", "#", ".", "", "_.-=+*#@", "-", "|", "~", "!", ascii=True)


def tone_of(state: str) -> Tone:
    """Return the tone of a daemon state."""
    return STATES.get(state, ("?", "?", Tone.NORMAL))[2]
