"""Room for nested texts: the engine's own limits (200 frames, 100 braces) need more stack than Python's default."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED = 6_000
_lock = threading.Lock()
_inside = 0
_before = 0


@contextlib.contextmanager
def recursion_room() -> Iterator[None]:
    """Raise the recursion limit to what the limits of WILDCARDS section 7 can need, while anybody is inside.

    The limit belongs to the interpreter, so the last thread that leaves puts it back.
    """
    global _inside, _before  # noqa: PLW0603 - the limit itself is global
    with _lock:
        if _inside == 0:
            _before = sys.getrecursionlimit()
            if _before < _NEEDED:
                sys.setrecursionlimit(_NEEDED)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _before < _NEEDED:
                sys.setrecursionlimit(_before)
