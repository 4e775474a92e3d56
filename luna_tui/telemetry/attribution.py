"""From a driver's sample to the screen's view: who a process is, where its bytes come from, what is unexplained."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import psutil

from luna_tui.views import GpuCard, GpuProcess, MemoryView

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luna_tui.telemetry.protocol import CardSample, ProcessSample
    from luna_tui.views import DaemonRow

_HISTORY = 120


class Attribution:
    """Keeps peaks and history between samples. Used under one lock by its owner."""

    def __init__(self) -> None:
        self._peaks: dict[str, tuple[int, float]] = {}
        self._history: dict[str, tuple[float, ...]] = {}
        self._names: dict[tuple[int, float], str] = {}

    def reset_peaks(self) -> None:
        """Forget the highest use seen."""
        self._peaks.clear()

    def card(self, sample: CardSample, daemons: Mapping[int, DaemonRow], at: float) -> GpuCard:
        """Return the view of one card; its rows add up to what is used."""
        peak, peak_at = self._peak(sample.uuid, sample.used_bytes, at)
        rows = [self._process(process, daemons) for process in sample.processes]
        rows.sort(key=lambda row: -(row.bytes or 0))
        known = sum(row.bytes or 0 for row in rows)
        if sample.used_bytes is not None and sample.used_bytes > known:
            rest = sample.used_bytes - known
            rows.append(GpuProcess(None, "driver and unexplained", "remainder", rest, "remainder"))
        return GpuCard(
            sample.uuid, sample.index, sample.name, total_bytes=sample.total_bytes, used_bytes=sample.used_bytes,
            free_bytes=sample.free_bytes, peak_bytes=peak, peak_at=peak_at, util_percent=sample.util_percent,
            temperature_c=sample.temperature_c, power_w=sample.power_w,
            history=self._remember(sample.uuid, sample.used_bytes), processes=tuple(rows), lost=sample.lost,
        )  # fmt: skip

    def memory(self, daemons: Iterable[DaemonRow]) -> MemoryView:
        """Return main memory and the daemons in it."""
        state = psutil.virtual_memory()
        rows = tuple(
            GpuProcess(daemon.pid, f"luna {daemon.name}", "daemon", daemon.rss_bytes, "system")
            for daemon in daemons
            if daemon.pid is not None
        )
        return MemoryView(state.total, state.total - state.available, state.available, rows)

    def _process(self, process: ProcessSample, daemons: Mapping[int, DaemonRow]) -> GpuProcess:
        daemon = daemons.get(process.pid)
        created, name = self._identify(process.pid)
        if daemon is not None:
            used, source = process.bytes, "nvml"
            if used is None and daemon.vram_bytes is not None:
                used, source = daemon.vram_bytes, "self-report"
            return GpuProcess(process.pid, f"luna {daemon.name}", "daemon", used, source, created)
        return GpuProcess(process.pid, name, "other", process.bytes, "nvml", created)

    def _identify(self, pid: int) -> tuple[float | None, str]:
        """Return creation time and name; in a container the driver's pids may mean nothing here."""
        try:
            process = psutil.Process(pid)
            created = process.create_time()
            key = (pid, created)
            if key not in self._names:
                self._names[key] = _describe(process)
            return created, self._names[key]
        except psutil.Error:
            return None, "not visible from here"

    def _peak(self, uuid: str, used: int | None, at: float) -> tuple[int | None, float | None]:
        known = self._peaks.get(uuid)
        if used is not None and (known is None or used > known[0]):
            self._peaks[uuid] = known = (used, at)
        return known if known is not None else (None, None)

    def _remember(self, uuid: str, used: int | None) -> tuple[float, ...]:
        history = (*self._history.get(uuid, ()), float(used or 0))[-_HISTORY:]
        self._history[uuid] = history
        return history


def _describe(process: psutil.Process) -> str:
    name = process.name()
    try:
        words = process.cmdline()
    except psutil.Error:
        return name
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    return f"{name} {script.rpartition('/')[2]}" if script else name


def with_peaks(card: GpuCard, peaks: Mapping[int, int]) -> GpuCard:
    """Return the card with the highest use of each of its processes."""
    rows = tuple(
        dataclasses.replace(row, peak_bytes=peaks.get(row.pid)) if row.pid is not None else row
        for row in card.processes
    )
    return dataclasses.replace(card, processes=rows)
