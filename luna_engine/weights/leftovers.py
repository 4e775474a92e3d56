"""Files that a conversion left when it was killed: `<name>.<job>.part`, and the lock beside the name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.weights.headers import MODEL_SUFFIXES
from luna_engine.weights.locking import maker_of
from luna_engine.weights.walking import Stamp, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_QUIET_S = 60.0  # between making the lock and the part nobody else may think the part abandoned
_PART = ".part"


def leftover_parts(folders: Iterable[Path]) -> Iterator[tuple[Path, int, str, Stamp]]:
    """Yield (path, bytes, reason, stamp) of part files whose maker is dead, below folders of converted files.

    A part that a maker on another machine holds counts as alive until its lock has not been touched for a day.
    """
    told: set[Path] = set()
    for folder in folders:
        for at, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in names:
                path = Path(at) / name
                if path in told or not _is_part(path) or maker_of(_final(path)) is not None:
                    continue
                told.add(path)
                status = path.stat()
                if time.time() - status.st_mtime > _QUIET_S:
                    yield path, status.st_blocks * 512, "left by a conversion that died", stamp_of(path)


def _is_part(path: Path) -> bool:
    return path.suffix == _PART and _final(path).suffix.lower() in MODEL_SUFFIXES


def _final(part: Path) -> Path:
    """Return the name that a part was made for: without `.<job>.part`."""
    return part.with_suffix("").with_suffix("")
