"""Counts and times of a daemon, kept cheaply while it works. `exposition.py` turns them into Prometheus' format."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_daemon.messages import OUT_OF_MEMORY

if TYPE_CHECKING:
    from collections.abc import Mapping

# 0.25 ms to 64 s, doubling.
SECONDS = (
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0,
    64.0,
)  # fmt: skip
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_ENOUGH = 20
_PAIRS_MAX = 64
_OTHER = ("other", "other")


@dataclass(slots=True)
class Histogram:
    """How many values fell up to each bound; the last count is of those above all bounds."""

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0.0] * (len(self.bounds) + 1)

    def add(self, value: float, share: float = 1.0) -> None:
        """Count one value, or this caller's share of one that several report."""
        self.counts[bisect.bisect_left(self.bounds, value)] += share
        self.total += value * share

    def upper_quantile(self, share: float) -> float | None:
        """Return the bound below which that share of the values lies; None while there are too few to tell."""
        seen = sum(self.counts)
        if seen < _ENOUGH:
            return None
        reached = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            reached += count
            if reached >= share * seen:
                return bound
        return None


@dataclass(frozen=True, slots=True)
class Reading:
    """A consistent copy of what a `Meter` counted; keys are label values in the order of the metric's labels."""

    requests: Mapping[tuple[str, str], int]
    seconds: Mapping[tuple[str, str], Histogram]
    rows: Histogram
    transport_bytes: Mapping[tuple[str, str], int]
    downgrades: Mapping[tuple[str, str], int]
    out_of_memory: Mapping[str, int]
    lora_rows: Mapping[str, int]


_OOM_STEPS = {"merged": "merged", "passes": "halved", "idle": "moved"}
"""First words of what the ladder (`luna_daemon.runtime.ladder`) did otherwise -> label."""


class Meter:
    """Counts what requests did. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[tuple[str, str], Histogram] = {}
        self._rows = Histogram(ROWS)
        self._transport_bytes: Counter[tuple[str, str]] = Counter()
        self._downgrades: Counter[tuple[str, str]] = Counter()
        self._out_of_memory: Counter[str] = Counter()
        self._lora_rows: Counter[str] = Counter()

    def answered(self, command: str, outcome: str, ms: Mapping[str, float] | None = None) -> None:
        """Count an answer.

        Args:
            command: of the table, or ``unknown``.
            outcome: ``ok`` or the error's code.
            ms: its time by phase, in milliseconds.
        """
        with self._lock:
            self._requests[command, outcome] += 1
            for phase, value in (ms or {}).items():
                histogram = self._seconds.get((command, phase))
                if histogram is None:
                    histogram = self._seconds[command, phase] = Histogram(SECONDS)
                histogram.add(value / 1000)
            if outcome == "out-of-memory":
                self._out_of_memory["refused"] += 1

    def did(self, record: Mapping[str, Any]) -> None:
        """Count what a request's ``did`` says: its batch, its LoRAs, what was done other than asked."""
        batch = record.get("batch") or {}
        with self._lock:
            if batch.get("rows"):
                self._rows.add(batch["rows"], 1 / max(1, batch.get("requests") or 1))
            for use in record.get("loras") or ():
                self._lora_rows[str(use.get("path"))] += 1
            for entry in record.get("downgraded") or ():
                pair = (str(entry["from"]), str(entry["reason"]))
                known = pair in self._downgrades or len(self._downgrades) < _PAIRS_MAX
                self._downgrades[pair if known else _OTHER] += 1
                if pair[1] == OUT_OF_MEMORY:
                    self._out_of_memory[_OOM_STEPS.get(pair[0].partition(" ")[0], "other")] += 1
            if record.get("tiled") == "oom":
                self._out_of_memory["tiled"] += 1

    def crossed(self, via: str, direction: str, nbytes: int) -> None:
        """Count bytes of tensors; the direction is ``in`` or ``out``, as the daemon sees it."""
        if nbytes:
            with self._lock:
                self._transport_bytes[via, direction] += nbytes

    def usual_run_s(self, command: str, share: float = 0.99) -> float | None:
        """Return the time below which that share of a command's runs stayed; None while there were too few."""
        with self._lock:
            histogram = self._seconds.get((command, "run"))
            return None if histogram is None else histogram.upper_quantile(share)

    def errors(self) -> dict[str, int]:
        """Return the errors that were answered, by code."""
        found: Counter[str] = Counter()
        with self._lock:
            for (_, outcome), count in self._requests.items():
                if outcome != "ok":
                    found[outcome] += count
        return dict(found)

    def read(self) -> Reading:
        """Return a copy of everything."""
        with self._lock:
            return Reading(
                dict(self._requests),
                {key: _copy(histogram) for key, histogram in self._seconds.items()},
                _copy(self._rows),
                dict(self._transport_bytes),
                dict(self._downgrades),
                dict(self._out_of_memory),
                dict(self._lora_rows),
            )


def _copy(histogram: Histogram) -> Histogram:
    return Histogram(histogram.bounds, histogram.total, list(histogram.counts))
