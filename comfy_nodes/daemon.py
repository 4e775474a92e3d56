"""LunaDaemonStatus: what the daemons say of themselves."""

from __future__ import annotations

import contextlib
from typing import Any

from luna_daemon.services import Services

from .serving import CATEGORY
from .status import describe


class LunaDaemonStatus:
    """Ask both services how they are; never cached, never an error."""

    DISPLAY_NAME = "Luna Daemon Status"
    DESCRIPTION = (
        "Shows what Luna's daemons are doing: state, device, memory, models served, queue. "
        "Asked anew at every run; a daemon that is down gives is_running false and the command that starts it."
    )
    SEARCH_ALIASES = ["health", "vram", "server"]
    CATEGORY = CATEGORY
    FUNCTION = "report"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "BOOLEAN")
    RETURN_NAMES = ("status", "is_running")
    OUTPUT_TOOLTIPS = (
        "The report, as shown on the node.",
        "True if at least one service answers and is healthy.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare no inputs."""
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:
        """Run always. The NaN is made anew: ComfyUI finds ``math.nan`` by identity and would never run again."""
        return float("nan")

    def report(self) -> dict[str, Any]:
        """Ask both ports."""
        with contextlib.closing(Services()) as fresh:  # a kept connection would try for seconds to reconnect
            lines, is_running = describe(fresh)
        report = "\n".join(lines)
        return {"ui": {"text": [report]}, "result": (report, is_running)}


NODES = (LunaDaemonStatus,)
