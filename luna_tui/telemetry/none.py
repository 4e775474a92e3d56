"""The provider of machines without a usable card: it carries the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_tui.telemetry.protocol import Sample

if TYPE_CHECKING:
    from luna_tui.views import Failure


class NoGpu:
    """Says why there is no card."""

    def __init__(self, reason: Failure) -> None:
        self._sample = Sample("none", None, reason)

    def sample(self) -> Sample:
        """Return the reason."""
        return self._sample

    def close(self) -> None:
        """Hold nothing."""
