"""What the catalogue remembers in `luna.db`: headers, hashes, verdicts, last uses, pins and trash batches.

Everything of a file is kept under its stamp (size, time, inode): once that changes, it is as if never known.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.store import Store
from luna_engine.weights import summary
from luna_engine.weights.walking import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luna_engine.store import Statement
    from luna_engine.weights.summary import Summary

_STAMP = "size_bytes INTEGER, mtime_ns INTEGER, inode TEXT"
_SAME = "path=? AND size_bytes=? AND mtime_ns=? AND inode=?"
_TABLES = f"""
CREATE TABLE IF NOT EXISTS weights_headers (path TEXT PRIMARY KEY, {_STAMP}, reader TEXT, record TEXT);
CREATE TABLE IF NOT EXISTS weights_hashes (path TEXT, what TEXT, {_STAMP}, sha256 TEXT, PRIMARY KEY (path, what));
CREATE TABLE IF NOT EXISTS weights_checks (path TEXT PRIMARY KEY, {_STAMP}, record TEXT);
CREATE TABLE IF NOT EXISTS weights_uses (
    path TEXT, holder TEXT, host TEXT, pid INTEGER, create_time REAL, at REAL, PRIMARY KEY (path, holder, host));
CREATE TABLE IF NOT EXISTS weights_pins (path TEXT PRIMARY KEY, at REAL);
CREATE TABLE IF NOT EXISTS weights_trash (folder TEXT PRIMARY KEY, at REAL);
"""

SOURCE, WHOLE, DATA = "source", "whole", "data"
"""What a hash is of: a source's diffusion tensors, a whole file, a converted file's tensors."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header said, or the error that reading it met."""

    summary: Summary | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Use:
    """A load of a file: by whom, in which process, when (Unix seconds)."""

    path: str
    holder: str
    host: str
    pid: int
    create_time: float
    at: float


@dataclass(frozen=True, slots=True)
class Check:
    """What the last `verify` of a file found. ``error`` is None if it was whole."""

    at: str
    version: str
    error: Mapping[str, Any] | None = None
    rms_error: float | None = None
    max_error: float | None = None
    against: str = ""


class Memory:
    """The catalogue's tables. Thread-safe; to be closed."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, path: Path | None = None) -> Memory:
        """Open ``luna.db`` of the state folder, or another one."""
        return cls(Store.open(_TABLES, path))

    def close(self) -> None:
        """Let go of the database."""
        self.store.close()

    # -- headers ---------------------------------------------------------------------------------------------

    def headers(self) -> dict[str, tuple[Stamp, Header]]:
        """Return what is known of all files, by path, as far as this Luna would read them alike."""
        query = "SELECT path, size_bytes, mtime_ns, inode, record FROM weights_headers WHERE reader=?"
        found: dict[str, tuple[Stamp, Header]] = {}
        for path, size, mtime, inode, record in self.store.rows(query, (_reader(),)):
            if (header := _header(record)) is not None:
                found[path] = (Stamp(size, mtime, inode), header)
        return found

    def keep_headers(self, found: Mapping[str, tuple[Stamp, Header]], gone: Iterable[str] = ()) -> None:
        """Remember headers; forget everything of files that are gone, except last use and pins."""
        statements: list[Statement] = [
            ("INSERT OR REPLACE INTO weights_headers VALUES (?, ?, ?, ?, ?, ?)",
             (path, *_key(stamp), _reader(), _record(header)))
            for path, (stamp, header) in found.items()
        ]  # fmt: skip
        for path in gone:
            statements += [
                (f"DELETE FROM {table} WHERE path=?", (path,))  # noqa: S608 - the names are ours
                for table in ("weights_headers", "weights_hashes", "weights_checks")
            ]
        if statements:
            self.store.write(statements)

    # -- hashes and verdicts ---------------------------------------------------------------------------------

    def hashes(self, what: str) -> dict[str, tuple[Stamp, str]]:
        """Return all known hashes of one sort by path."""
        query = "SELECT path, size_bytes, mtime_ns, inode, sha256 FROM weights_hashes WHERE what=?"
        return {path: (Stamp(*stamp), digest) for path, *stamp, digest in self.store.rows(query, (what,))}

    def hash_of(self, path: Path, what: str, stamp: Stamp) -> str | None:
        """Return a hash if the file is as it was then."""
        query = f"SELECT sha256 FROM weights_hashes WHERE {_SAME} AND what=?"  # noqa: S608 - the text is ours
        rows = self.store.rows(query, (str(path), *_key(stamp), what))
        return rows[0][0] if rows else None

    def keep_hash(self, path: Path, what: str, stamp: Stamp, digest: str) -> None:
        """Remember a hash."""
        self._write("INSERT OR REPLACE INTO weights_hashes VALUES (?, ?, ?, ?, ?, ?)",
                    str(path), what, *_key(stamp), digest)  # fmt: skip

    def checks(self) -> dict[str, tuple[Stamp, Check]]:
        """Return what verifications found, by path."""
        query = "SELECT path, size_bytes, mtime_ns, inode, record FROM weights_checks"
        return {path: (Stamp(*stamp), Check(**json.loads(record))) for path, *stamp, record in self.store.rows(query)}

    def keep_check(self, path: Path, stamp: Stamp, found: Check) -> None:
        """Remember what a verification found."""
        self._write("INSERT OR REPLACE INTO weights_checks VALUES (?, ?, ?, ?, ?)",
                    str(path), *_key(stamp), json.dumps(dataclasses.asdict(found)))  # fmt: skip

    # -- uses and pins ---------------------------------------------------------------------------------------

    def uses(self) -> dict[str, list[Use]]:
        """Return all loads by path, each holder's last."""
        found: dict[str, list[Use]] = {}
        for row in self.store.rows("SELECT path, holder, host, pid, create_time, at FROM weights_uses ORDER BY at"):
            found.setdefault(row[0], []).append(Use(*row))
        return found

    def keep_use(self, use: Use) -> None:
        """Remember a load in place of the same holder's earlier one."""
        self._write("INSERT OR REPLACE INTO weights_uses VALUES (?, ?, ?, ?, ?, ?)",
                    use.path, use.holder, use.host, use.pid, use.create_time, use.at)  # fmt: skip

    def pins(self) -> frozenset[str]:
        """Return the paths that shall stay whatever is pruned."""
        return frozenset(path for (path,) in self.store.rows("SELECT path FROM weights_pins"))

    def pin(self, path: Path) -> None:
        """Let a file stay."""
        self._write("INSERT OR REPLACE INTO weights_pins VALUES (?, ?)", str(path), time.time())

    def unpin(self, path: Path) -> None:
        """Let a file go again when it is pruned."""
        self._write("DELETE FROM weights_pins WHERE path=?", str(path))

    # -- trash -----------------------------------------------------------------------------------------------

    def batches(self) -> list[Path]:
        """Return the folders of the trash batches that were made."""
        return [Path(folder) for (folder,) in self.store.rows("SELECT folder FROM weights_trash")]

    def keep_batch(self, folder: Path) -> None:
        """Remember where a trash batch lies."""
        self._write("INSERT OR REPLACE INTO weights_trash VALUES (?, ?)", str(folder), time.time())

    def drop_batch(self, folder: Path) -> None:
        """Forget a batch that is empty."""
        self._write("DELETE FROM weights_trash WHERE folder=?", str(folder))

    def _write(self, query: str, *values: Any) -> None:
        self.store.write([(query, values)])


def _key(stamp: Stamp) -> tuple[int, int, str]:
    return stamp.size_bytes, stamp.mtime_ns, stamp.inode


@functools.cache
def _reader() -> str:
    """Return what stands for the code that reads headers: a Luna that recognises more reads every file anew."""
    here = Path(__file__).parent
    stamps = [(path.name, path.stat()) for path in sorted((*here.glob("*.py"), *here.glob("containers/*.py")))]
    text = repr([(name, status.st_size, status.st_mtime_ns) for name, status in stamps])
    return format(zlib.crc32(text.encode()), "08x")


def _record(header: Header) -> str:
    found = header.summary.as_record() if header.summary is not None else None
    return json.dumps({"summary": found, "error": header.error}, separators=(",", ":"))


def _header(text: str) -> Header | None:
    """Return a remembered header; None for one that cannot be read any more, which is then read from the file."""
    try:
        record = json.loads(text)
        found = record["summary"]
        return Header(None if found is None else summary.from_record(found), record["error"])
    except (KeyError, TypeError, ValueError):
        return None
