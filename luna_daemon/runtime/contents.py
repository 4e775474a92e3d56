"""Content hashes of parts, kept by the file's stamp so that a file is hashed once and not at every start."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from luna_daemon.progress import advance
from luna_engine.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luna_daemon.runtime.files import Stamp
    from luna_daemon.runtime.parts import Part

_log = logging.getLogger("luna.daemon.models")
_TABLE = """
CREATE TABLE IF NOT EXISTS part_contents (
    device TEXT, inode TEXT, size_bytes INTEGER, mtime_ns INTEGER, role TEXT, content TEXT,
    PRIMARY KEY (device, inode, size_bytes, mtime_ns, role)
)
"""


def content_of(part: Part, stamp: Stamp, check: Callable[[], None]) -> str:
    """Return the content hash of a file's part, from ``luna.db`` if the file is as it was."""
    role = part.kind.role
    known = recall(stamp, role)
    if known is not None:
        advance(part.size_bytes)
        return known
    content = part.content(check)
    _keep(stamp, role, content)
    return content


def recall(stamp: Stamp, role: str) -> str | None:
    """Return the hash kept for a file's part, or None."""
    query = "SELECT content FROM part_contents WHERE device=? AND inode=? AND size_bytes=? AND mtime_ns=? AND role=?"
    with _store() as store:
        rows = store.rows(query, (*_key(stamp), role))
    return rows[0][0] if rows else None


def _keep(stamp: Stamp, role: str, content: str) -> None:
    row = (*_key(stamp), role, content)
    with _store() as store:
        store.write([("INSERT OR REPLACE INTO part_contents VALUES (?, ?, ?, ?, ?, ?)", row)])


def _key(stamp: Stamp) -> tuple[str, str, int, int]:
    # Device and inode are unsigned 64-bit numbers, SQLite's integers are signed.
    return str(stamp.device), str(stamp.inode), stamp.size_bytes, stamp.mtime_ns


@contextlib.contextmanager
def _store() -> Iterator[Store]:
    """Open ``luna.db``. One that cannot be used costs time, not correctness: it is logged, files are hashed anew."""
    with contextlib.closing(Store.open(_TABLE)) as store:
        yield store
        for notice in store.notices:
            _log.warning("%s", notice)
