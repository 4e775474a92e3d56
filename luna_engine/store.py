"""`luna.db`, the one database of the state folder: a cache that several processes read and write at once.

What is in it can be lost without losing a file: a damaged database is set aside and begun anew, one that a newer Luna
wrote is left alone and this process remembers for itself. Either is told as a notice, never silently.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from luna_engine import paths
from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
Statement = tuple[str, "Sequence[Any]"]

VERSION = 1
"""Raised when tables change so that an older Luna would misread them; new tables and columns need no new number."""
_PATIENCE_S = 5.0
_MEMORY = ":memory:"
_AWAY = ("locked", "disk", "readonly", "full", "unable to open")  # the codes have names only from Python 3.11 on


class Store:
    """One open database. Thread-safe; to be closed.

    Attributes:
        notices: what is wrong with the database, for people; empty normally.
        is_kept: whether what is written outlives this process.
    """

    def __init__(self, path: Path, tables: str) -> None:
        self.path = path
        self.notices: list[LunaError] = []
        self.is_kept = True
        self._tables = tables
        self._lock = threading.RLock()
        self._connection = self._connected()

    @classmethod
    def open(cls, tables: str, path: Path | None = None) -> Store:
        """Open ``luna.db`` of the state folder.

        Args:
            tables: ``CREATE TABLE IF NOT EXISTS`` statements of the caller's room.
            path: another database (tests).
        """
        if path is None:
            try:
                path = paths.private_dir() / "luna.db"
            except OSError:  # a state folder that cannot be made: told when the database is opened
                path = paths.state_dir() / "luna.db"
        return cls(path, tables)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query."""
        return self._tried(lambda connection: connection.execute(query, values).fetchall())

    def write(self, statements: Iterable[Statement]) -> None:
        """Run statements as one transaction: all of them hold, or none."""
        listed = list(statements)

        def run(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")  # waits for another writer here, not at the first change
            try:
                for query, values in listed:
                    connection.execute(query, values)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

        self._tried(run)

    def _tried(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run on the database; on a new one if it is damaged, in memory if it cannot be used."""
        with self._lock:
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                if not self.is_kept or not (_is_damage(error) or _is_away(error)):
                    raise
                self._connection.close()
                self._connection = self._mended() if _is_damage(error) else self._in_memory(_unusable(error))
                return work(self._connection)

    def _connected(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except _NewerError as newer:
            return self._in_memory(
                LunaError(
                    "database-newer",
                    f"{self.path.name} was written by a newer Luna (version {newer}, this one reads {VERSION}); "
                    "it is left as it is and nothing is remembered",
                    "use the newer Luna",
                )
            )
        except (sqlite3.Error, OSError) as error:
            return self._mended() if _is_damage(error) else self._in_memory(_unusable(error))

    def _opened(self) -> sqlite3.Connection:
        connection = _connect(str(self.path))
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise _NewerError(version)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # a power loss may cost the last entries, not the file
            connection.executescript(self._tables)
            if version < VERSION:
                connection.execute(f"PRAGMA user_version={VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _mended(self) -> sqlite3.Connection:
        """Set a damaged database aside and begin a new one, unless another process has just done so."""
        try:
            with self._mending():
                return self._begun_anew()
        except (sqlite3.Error, OSError) as error:
            return self._in_memory(_unusable(error))

    def _begun_anew(self) -> sqlite3.Connection:
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(self._opened()))
            if connection.execute("PRAGMA quick_check").fetchone() == ("ok",):
                stack.pop_all()
                return connection
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        self.path.replace(aside)
        for tail in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + tail).replace(aside.with_name(aside.name + tail))
        self.notices.append(
            LunaError(
                "database-damaged",
                f"{self.path.name} was damaged and is begun anew; pins and last uses are lost with it",
                f"the damaged one is {aside}",
            )
        )
        return self._opened()

    @contextlib.contextmanager
    def _mending(self) -> Iterator[None]:
        with self.path.with_name(f"{self.path.name}.lock").open("ab") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _in_memory(self, notice: LunaError) -> sqlite3.Connection:
        self.notices.append(notice)
        self.is_kept = False
        connection = _connect(_MEMORY)
        connection.executescript(self._tables)
        return connection


class _NewerError(Exception):
    """The database's version is above ours."""


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)


def _is_damage(error: Exception) -> bool:
    """Tell a damaged file from one that is locked, full or away: only the latter have an error class of their own."""
    return type(error) is sqlite3.DatabaseError


def _is_away(error: Exception) -> bool:
    """Tell a database that cannot be reached or written from a wrong query."""
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in _AWAY)


def _unusable(error: Exception) -> LunaError:
    return LunaError(
        "database-unusable", f"luna.db cannot be used, nothing is remembered: {error}", "check the state folder"
    )
