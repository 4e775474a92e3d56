"""The product's daemon with a stopwatch around the model: each encode appends its seconds to LUNA_BENCH_TIMES.

Run by path like `server.py`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[2])

from luna_daemon import process  # noqa: E402 - the import root comes first
from luna_daemon.engine_seam import here  # noqa: E402
from luna_daemon.runtime.engine import Engine  # noqa: E402

if TYPE_CHECKING:
    from luna_daemon.engine_seam import EngineOptions, ModelEngine, OnDevice, OnPhase


class TimedEngine(Engine):
    """Times what the backend computes, and nothing of what is around it."""

    def start(self, on_phase: OnPhase, on_device: OnDevice = here) -> None:
        """Start, then put the stopwatch on."""
        super().start(on_phase, on_device)
        from luna_daemon.runtime.backend_native import NativeSet

        encode = NativeSet.encode
        log = Path(os.environ["LUNA_BENCH_TIMES"]).open("a", buffering=1, encoding="ascii")  # noqa: SIM115 - for life

        def timed(*arguments: object) -> object:
            begin = time.perf_counter()
            result = encode(*arguments)  # type: ignore[arg-type]  # passed on as given
            log.write(f"{time.perf_counter() - begin!r}\n")
            return result

        NativeSet.encode = timed  # type: ignore[assignment, method-assign]  # for the life of this process


def make(options: EngineOptions) -> ModelEngine:
    """Make the engine."""
    return TimedEngine(options)


if __name__ == "__main__":
    process.main(make)
