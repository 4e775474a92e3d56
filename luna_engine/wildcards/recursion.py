"""Room for nested texts: the engine's own limits (200 frames, 100 braces) need more stack than Python's default."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED = 6_000


@contextlib.contextmanager
def recursion_room() -> Iterator[None]:
    """Raise the recursion limit to what the limits of WILDCARDS section 7 can need; it is never lowered again.

    Lowering it on the way out would pull the floor from under another thread that is expanding.
    """
    if sys.getrecursionlimit() < _NEEDED:
        sys.setrecursionlimit(_NEEDED)
    yield
