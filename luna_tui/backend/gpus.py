"""The GPU port: asks the provider at most once a second and turns the answer into the screen's view."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from luna_tui.telemetry.attribution import Attribution, with_peaks
from luna_tui.telemetry.nvml import NvmlProvider
from luna_tui.views import Failure, GpusView, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_tui.telemetry.protocol import GpuProvider
    from luna_tui.views import DaemonRow

_FRESH_S = 0.8


class LocalGpus:
    """Cards of this machine. Thread-safe.

    Args:
        daemons: gives the daemons as last seen, for naming processes; must not block.
        provider: the driver; NVML if None.
    """

    def __init__(self, daemons: Callable[[], Sequence[DaemonRow]], provider: GpuProvider | None = None) -> None:
        self._daemons = daemons
        self._provider = provider or NvmlProvider()
        self._attribution = Attribution()
        self._process_peaks: dict[int, int] = {}
        self._lock = threading.Lock()
        self._last: GpusView | None = None

    def snapshot(self) -> GpusView:
        """Return all cards, or main memory and the reason why there are none."""
        with self._lock:
            now = time.time()
            if self._last is not None and 0 <= now - self._last.at < _FRESH_S:
                return self._last
            self._last = self._read(now)
            return self._last

    def reset_peaks(self) -> Outcome:
        """Forget the highest use seen."""
        with self._lock:
            self._attribution.reset_peaks()
            self._process_peaks.clear()
            self._last = None
        return Outcome.done("peaks start again from now")

    def close(self) -> None:
        """Let go of the driver."""
        with self._lock:
            self._provider.close()

    def _read(self, now: float) -> GpusView:
        sample = self._provider.sample()
        daemons = self._daemons()
        by_pid = {daemon.pid: daemon for daemon in daemons if daemon.pid is not None}
        cards = tuple(self._attribution.card(card, by_pid, now) for card in sample.cards)
        for row in (row for card in cards for row in card.processes):
            if row.pid is not None and row.bytes is not None:
                self._process_peaks[row.pid] = max(row.bytes, self._process_peaks.get(row.pid, 0))
        cards = tuple(with_peaks(card, self._process_peaks) for card in cards)
        reason = sample.reason or (_hidden() if _hides(cards) else None)
        return GpusView(now, sample.provider, sample.version, reason, cards, self._attribution.memory(daemons))


def _hides(cards: Sequence[object]) -> bool:
    rows = [row for card in cards for row in getattr(card, "processes", ()) if row.pid is not None]
    return bool(rows) and all(row.label == "not visible from here" for row in rows)


def _hidden() -> Failure:
    return Failure("gpu-processes-hidden", "the driver hides processes here (container or WSL2)")
