"""luna.db: several writers at once, a database from a newer Luna, a damaged one, and one that cannot be written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from luna_engine.store import VERSION, Store

TABLES = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value INTEGER);"
PUT = "INSERT OR REPLACE INTO notes VALUES (?, ?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "luna.db"


def opened(path: Path) -> contextlib.closing[Store]:
    return contextlib.closing(Store.open(TABLES, path))


def values(store: Store) -> dict[str, int]:
    return dict(store.rows("SELECT name, value FROM notes"))


def test_what_is_written_is_there_for_the_next_process(path: Path) -> None:
    with opened(path) as store:
        store.write([(PUT, ("a", 1)), (PUT, ("b", 2))])
    with opened(path) as store:
        assert (values(store), store.notices, store.is_kept) == ({"a": 1, "b": 2}, [], True)
        assert store.rows("PRAGMA journal_mode") == [("wal",)]
        assert store.rows("PRAGMA user_version") == [(VERSION,)]


def test_a_transaction_holds_as_a_whole_or_not_at_all(path: Path) -> None:
    with opened(path) as store:
        with pytest.raises(sqlite3.Error):
            store.write([(PUT, ("a", 1)), ("INSERT INTO nowhere VALUES (?)", (1,))])
        assert (store.is_kept, values(store)) == (True, {})


WRITER = f"""
import sys
from pathlib import Path
from luna_engine.store import Store
store = Store.open({TABLES!r}, Path(sys.argv[1]))
for number in range(50):
    store.write([({PUT!r}, (f"{{sys.argv[2]}}-{{number}}", number))])
assert store.is_kept, store.notices
store.close()
"""


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], env=environment, cwd=root) for name in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with opened(path) as store:
        assert len(values(store)) == 150


def test_a_database_of_a_newer_luna_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.executescript(f"CREATE TABLE notes (name TEXT, strange BLOB); PRAGMA user_version={VERSION + 1};")
    before = path.read_bytes()
    with opened(path) as store:
        assert [notice.code for notice in store.notices] == ["database-newer"]
        assert not store.is_kept
        store.write([(PUT, ("a", 1))])
        assert values(store) == {"a": 1}  # this process remembers for itself
    assert path.read_bytes() == before


def test_a_damaged_database_is_set_aside_and_begun_anew(path: Path) -> None:
    path.write_bytes(b"no database at all" * 300)
    with opened(path) as store:
        (notice,) = store.notices
        assert notice.code == "database-damaged"
        assert "pins" in notice.message
        assert store.is_kept
        store.write([(PUT, ("a", 1))])
    (aside,) = path.parent.glob("luna.db.damaged-*")
    assert aside.read_bytes().startswith(b"no database at all")
    with opened(path) as store:
        assert (values(store), store.notices) == ({"a": 1}, [])


def test_damage_that_shows_only_later_is_mended_in_the_middle_of_the_work(path: Path) -> None:
    with opened(path) as store:
        store.write([(PUT, (f"{number:05}", number)) for number in range(5000)])
        store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = os.urandom(len(data) - 4096 * 2)  # the first pages stay: it opens
    path.write_bytes(data)
    with opened(path) as store:
        assert store.rows("SELECT name FROM notes ORDER BY name") == []
        assert [notice.code for notice in store.notices] == ["database-damaged"]
        store.write([(PUT, ("a", 1))])
        assert values(store) == {"a": 1}


def test_a_folder_that_cannot_be_written_costs_the_memory_and_not_the_work(tmp_path: Path) -> None:
    with opened(tmp_path / "no" / "folder" / "luna.db") as store:
        assert [notice.code for notice in store.notices] == ["database-unusable"]
        store.write([(PUT, ("a", 1))])
        assert values(store) == {"a": 1}
