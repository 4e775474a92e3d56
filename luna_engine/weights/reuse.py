"""Whether a conversion has been done before: the file is there, from this source as it is, as it would be made now."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from luna_engine.errors import ConversionError, InputFileError
from luna_engine.weights import provenance
from luna_engine.weights.headers import read_header
from luna_engine.weights.memory import Memory
from luna_engine.weights.settling import source_content

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from luna_engine.weights.plans import ConversionPlan


def is_current(destination: Path, found: ConversionPlan, tell: Callable[[int], None]) -> bool:
    """Tell whether a file is what the plan would make.

    A source that only has another time is read, once for each state of it: that is less work than converting.

    Args:
        destination: the file's name.
        found: the plan.
        tell: called with the number of bytes of the source that were read since; may raise to stop.

    Raises:
        ConversionError: ``target-exists`` if the name belongs to something else.
    """
    if not destination.exists():
        return False
    try:
        known = provenance.read(read_header(destination).metadata)
    except InputFileError:
        known = None
    if known is None or (known.stamp.path, known.stamp.root_id) != (found.stamp.path, found.stamp.root_id):
        raise ConversionError(
            "target-exists",
            f"{destination} exists and was not made by Luna from {found.source.name}",
            "move it away, or name another folder with --out",
        )
    is_as_planned = (
        known.stamp.header_sha256 == found.stamp.header_sha256
        and known.rules == provenance.RULES
        and known.precision == found.precision.label
        and known.fp8_layout == found.fp8_layout
        and known.convolutions == found.convolutions.value
    )
    if not is_as_planned or known.stamp == found.stamp:
        return is_as_planned
    with contextlib.closing(Memory.open()) as memory:
        return source_content(found.source, memory, tell) == known.source_sha256
