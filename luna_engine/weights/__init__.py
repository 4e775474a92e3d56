"""Model files: what a header says, what a conversion would write, and the conversion itself.

Importing this package loads no tensor library. `inspect` and `plan` never do; `convert` and `verify` import NumPy when
they are called, and are meant for worker processes (`luna_engine.weights.worker`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.inspection import Inspection, inspect
from luna_engine.weights.plans import ConversionOptions, ConversionPlan, plan
from luna_engine.weights.progress import Progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from luna_engine.weights.conversion import ConversionReport
    from luna_engine.weights.precisions import Precision
    from luna_engine.weights.verification import VerificationReport

__all__ = ["ConversionOptions", "ConversionPlan", "Inspection", "Progress", "convert", "inspect", "plan", "verify"]


def convert(
    source: str | Path,
    destination: str | Path,
    precision: str | Precision,
    progress: Callable[[Progress], None] | None = None,
    *,
    cancel: threading.Event | None = None,
    options: ConversionOptions | None = None,
    job: str = "direct",
) -> ConversionReport:
    """Write the diffusion part of a file in another precision; see `luna_engine.weights.conversion`."""
    from luna_engine.weights import conversion

    return conversion.convert(source, destination, precision, progress, cancel=cancel, options=options, job=job)


def verify(path: str | Path, source: str | Path | None = None) -> VerificationReport:
    """Check a file that Luna made, and compare it with its source if given; see `luna_engine.weights.verification`."""
    from luna_engine.weights import verification

    return verification.verify(path, source)
