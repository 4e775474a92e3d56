"""How much a piece of work may take at once. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_daemon.encode_messages import Tile
    from luna_daemon.messages import Downgrade


@dataclass(slots=True)
class Effort:
    """How much one piece of work may take at once; the ladder (`luna_daemon.runtime.ladder`) lowers it.

    Attributes:
        rows: rows of tokens in one pass; None for work without rows.
        tile: tiles that nobody asked for.
        spare_tile: what ``tile`` becomes; None for work that is not tiled, or is tiled already.
        set_id: the set that works, which is not moved to make room for itself.
        downgraded: what was done other than asked.
    """

    rows: int | None = None
    tile: Tile | None = None
    spare_tile: Tile | None = None
    set_id: str | None = None
    downgraded: list[Downgrade] = field(default_factory=list)
