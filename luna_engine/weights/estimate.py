"""What conversions will cost before any of them begins: disk, memory and time, from headers and measurements.

Sizes on disk are exact. Time is known only where this machine has done each step before (`rates`); memory does not
depend on the model, so it is what a worker took here last, else the bound that every worker keeps to. Torch-free.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from luna_engine.errors import ConversionError
from luna_engine.weights.rates import COMMIT, START, VERIFY, Rates, load_rates, step

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from luna_engine.weights.plans import ConversionPlan

SPARE_BYTES = 64 * 1024**2  # beyond the file: job files, the folder's own growth
WORKER_BOUND_BYTES = 220 * 1024**2  # see docs/benchmarks.md: what a worker never takes more than
MEASURED, BOUND = "measured", "bound"
# A plan is timed if at most this share of its bytes are of steps never measured; those count as the others' average.
_MOST_UNKNOWN = 0.02


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one conversion takes. Bytes and seconds; unknown is None.

    Attributes:
        output_bytes: size of the file, exact; 0 where the source is used as it is.
        free_bytes: what the disk has, less what earlier conversions of the same batch will take.
        free_after_bytes: what stays free, negative where room is missing.
        missing_bytes: how much room is missing, spare room and ``weights.keep_free_bytes`` counted; 0 if it suffices.
        peak_ram_bytes: the worker's memory. ``ram_source`` is measured or bound.
        missing_ram_bytes: how much memory is missing at the moment.
        duration_s: wall seconds. ``duration_source`` is measured, or None where it is not known.
    """

    output_bytes: int
    free_bytes: int
    free_after_bytes: int
    missing_bytes: int
    peak_ram_bytes: int
    ram_source: str
    missing_ram_bytes: int
    duration_s: float | None
    duration_source: str | None

    @property
    def problem(self) -> ConversionError | None:
        """Return what forbids the conversion, or None."""
        if self.missing_bytes:
            return ConversionError(
                "disk-full",
                f"{self.free_bytes:,} bytes are free, {self.free_bytes + self.missing_bytes:,} are needed",
                "free some space, or name another folder with --out",
            )
        if self.missing_ram_bytes:
            return ConversionError(
                "memory-short",
                f"the conversion takes {self.peak_ram_bytes:,} bytes of memory, {self.missing_ram_bytes:,} are missing",
                "close another program first",
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that `luna.weights.plan/1` has for it."""
        return {
            "disk_free_after_bytes": self.free_after_bytes,
            "peak_ram_bytes": self.peak_ram_bytes,
            "peak_ram_source": self.ram_source,
            "duration_s": None if self.duration_s is None else round(self.duration_s, 1),
            "duration_source": self.duration_source,
            "problems": [self.problem.code] if self.problem is not None else [],
        }


class Estimator:
    """Estimates one conversion after the other, each on the room that the earlier ones leave.

    Args:
        keep_free_bytes: room that must stay on each disk.
        rates: measurements; None reads those of the user's state folder.
    """

    def __init__(self, keep_free_bytes: int = 0, rates: Rates | None = None) -> None:
        self._keep_free = keep_free_bytes
        self._rates = load_rates() if rates is None else rates
        self._taken: Counter[int] = Counter()  # by file system

    def estimate(self, found: ConversionPlan, destination: Path) -> Estimate:
        """Estimate a conversion and count its file as written."""
        folder = existing(destination.parent)
        size = 0 if found.is_at_target else found.size_bytes
        device = folder.stat().st_dev
        free = shutil.disk_usage(folder).free - self._taken[device]
        self._taken[device] += size
        missing = max(0, needed_bytes(size, self._keep_free) - free) if size else 0
        memory, source = self._memory(found)
        seconds = 0.0 if found.is_at_target else self._duration(found)
        return Estimate(
            size,
            free,
            free - size,
            missing,
            memory,
            source,
            max(0, memory - psutil.virtual_memory().available),
            seconds,
            None if seconds is None else MEASURED,
        )

    def _memory(self, found: ConversionPlan) -> tuple[int, str]:
        known = self._rates.memory.get(found.kernel)
        return (WORKER_BOUND_BYTES, BOUND) if known is None else (known, MEASURED)

    def _duration(self, found: ConversionPlan) -> float | None:
        known = self._rates.seconds
        work: Counter[str] = Counter()
        for tensor in found.tensors:
            work[step(tensor.source.dtype, tensor.dtype)] += tensor.source.size_bytes
        timed = sum(size for name, size in work.items() if name in known)
        if timed < (1 - _MOST_UNKNOWN) * work.total() or COMMIT not in known or VERIFY not in known:
            return None
        convert = sum(size * known[name] for name, size in work.items() if name in known)
        convert *= work.total() / timed if timed else 1
        return known.get(START, 0.0) + convert + found.size_bytes * (known[COMMIT] + known[VERIFY])


def estimate_all(
    work: Iterable[tuple[ConversionPlan, Path]], keep_free_bytes: int = 0, rates: Rates | None = None
) -> tuple[Estimate, ...]:
    """Estimate a batch of plans with their destinations; the room that is left counts all earlier ones."""
    estimator = Estimator(keep_free_bytes, rates)
    return tuple(estimator.estimate(found, destination) for found, destination in work)


def needed_bytes(output_bytes: int, keep_free_bytes: int) -> int:
    """Return the room a disk must have before a file of that size is begun."""
    return output_bytes + SPARE_BYTES + keep_free_bytes


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def require_space(destination: Path, output_bytes: int, keep_free_bytes: int) -> None:
    """Raise before the first byte if the disk cannot hold the file.

    Raises:
        ConversionError: ``disk-full`` with both numbers.
    """
    folder = existing(destination.parent)
    free, needed = shutil.disk_usage(folder).free, needed_bytes(output_bytes, keep_free_bytes)
    if free < needed:
        raise ConversionError(
            "disk-full",
            f"{folder} has {free:,} bytes free, {needed:,} are needed",
            "free some space, or name another folder with --out",
        )
