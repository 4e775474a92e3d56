"""A converted file beside its source: which state it is in, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from luna_engine.weights import provenance

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from luna_engine.weights.memory import Check
    from luna_engine.weights.provenance import Provenance
    from luna_engine.weights.summary import Summary
    from luna_engine.weights.walking import Stamp


class VariantState(str, Enum):
    """How a converted file stands to its source."""

    CURRENT = "current"
    TOUCHED = "touched"  # the source has another time, its content is the same
    UNSURE = "unsure"  # the source has another time, nobody has looked at its content since
    STALE = "stale"
    OUTDATED = "outdated"
    ORPHANED = "orphaned"
    DAMAGED = "damaged"
    FOREIGN = "foreign"

    @property
    def is_usable(self) -> bool:
        """Tell whether a loader may take it for its source as it is now."""
        return self in {VariantState.CURRENT, VariantState.TOUCHED, VariantState.OUTDATED}


@dataclass(frozen=True, slots=True)
class Variant:
    """A converted file.

    Attributes:
        path, size_bytes: the file; of a link what it leads to.
        stamp: its state when it was looked at.
        home: the folder of converted files it lies in; None elsewhere.
        precision: the label, as provenance says or, of a foreign file, as its name claims.
        state, reason: see VariantState; the reason is a sentence part for people, "" where nothing is to be said.
        provenance: None for a foreign file.
        dtypes: parameters per element type: what the file truly holds.
        is_link: the name is a symbolic link.
        is_pinned: it stays whatever is pruned.
        users: who holds it now: processes that loaded it and run.
        used_at: its last load, Unix seconds; None if none is known.
        created_at: when its file was last written, Unix seconds.
        check: what the last verification found.
        suggestion: of a foreign file the source that its folder and name point to.
    """

    path: Path
    size_bytes: int
    stamp: Stamp
    home: Path | None
    precision: str
    state: VariantState
    reason: str
    provenance: Provenance | None
    dtypes: Mapping[str, int]
    is_link: bool = False
    is_pinned: bool = False
    users: tuple[str, ...] = ()
    used_at: float | None = None
    created_at: float = 0.0
    check: Check | None = None
    suggestion: Path | None = None

    @property
    def age_from(self) -> float:
        """Return the time its idleness counts from: the last load, else when it was made."""
        return self.used_at if self.used_at is not None else self.created_at


def state_of(
    made: Provenance, source: tuple[Stamp, Summary | None] | None, source_sha256: str | None
) -> tuple[VariantState, str]:
    """Return how a file that Luna made stands to its source.

    Args:
        made: its provenance.
        source: the source's stamp and header (None: unreadable); None if there is no such file.
        source_sha256: the hash of the source's diffusion tensors under that very stamp, None if nobody computed it.
    """
    if source is None:
        return VariantState.ORPHANED, f"its source {made.stamp.path} is gone"
    stamp, found = source
    if found is None:
        return VariantState.STALE, "its source cannot be read any more"
    if made.stamp.header_sha256 != found.header_sha256:
        return VariantState.STALE, "its source has another header"
    state, reason = VariantState.CURRENT, ""
    if (made.stamp.size_bytes, made.stamp.mtime_ns) != (stamp.size_bytes, stamp.mtime_ns):
        if source_sha256 is None:
            return VariantState.UNSURE, "its source has another time: maybe stale"
        if source_sha256 != made.source_sha256:
            return VariantState.STALE, "its source holds other values"
        state, reason = VariantState.TOUCHED, "its source has another time and the same content"
    if made.rules < provenance.RULES:
        return VariantState.OUTDATED, f"made by rules {made.rules}, now {provenance.RULES}"
    return state, reason
