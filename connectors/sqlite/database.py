"""The file of the embedded store: how it comes to be, how it is opened, and what its errors mean.

Source: https://www.sqlite.org/wal.html
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from tidegate.connectors.files.private_files import make_private_file, make_private_folder
from tidegate.operators.model.ports import StoreError, StoreReplaced

SCHEMA = 4
BUCKETS = 16
WAIT = timedelta(seconds=30)

PACKED = [f"packed_{bucket:02}" for bucket in range(BUCKETS)]
"""The tables of totals (connectors/sqlite/table_layout.py)."""

TABLES = [f"totals_{bucket:02}" for bucket in range(BUCKETS)]
"""The same for readers, as views with a row for each total."""

KEY = "customer, window, start"

ADVICE = {
    sqlite3.SQLITE_BUSY: "another process kept the write lock; look for one that hangs, or a sqlite3 shell "
    "inside a transaction",
    sqlite3.SQLITE_FULL: "the disk is full; free space and start again, nothing that was written is lost",
    sqlite3.SQLITE_READONLY: "the file, its folder or the disk is read-only for this user; allow writing",
    sqlite3.SQLITE_CANTOPEN: "the file and its folder must exist and be writable, also for readers, "
    "who share the -shm file beside it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup, or move it away and replay",
    sqlite3.SQLITE_NOTADB: "this is no SQLite file; name another path",
    sqlite3.SQLITE_IOERR: "the disk fails or is no local disk; see the system's log",
}


def _packed(name: str) -> str:
    return f"""CREATE TABLE {name} (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY ({KEY})
    ) WITHOUT ROWID;"""


def _view(name: str, packed: str) -> str:
    def entry(place: int) -> str:
        return f"json_extract(entry.value, '$[{place}]')"

    return f"""CREATE VIEW {name} AS SELECT
        customer, window, {entry(0)} AS meter, start, start + {entry(1)} AS "end", {entry(2)} AS total,
        {entry(3)} AS version, coalesce({entry(5)}, {entry(3)}) AS events, start + {entry(4)} AS as_of,
        coalesce({entry(6)}, 0) AS late,
        coalesce({entry(7)}, 0) AS corrected, coalesce({entry(8)}, 0) AS adjustment, coalesce({entry(9)}, 1) AS steady,
        written_at FROM {packed}, json_each(body) AS entry;"""


def _usage(view: str) -> str:
    return f"""SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM {view}"""


_TABLES = f"""
{"".join(map(_packed, PACKED))}
{"".join(map(_view, TABLES, PACKED))}
CREATE TABLE counters (shard INTEGER, name TEXT, value INTEGER, PRIMARY KEY (shard, name)) WITHOUT ROWID;
CREATE TABLE feed (seq INTEGER PRIMARY KEY, bytes_so_far INTEGER, customers TEXT);
CREATE TABLE notes (
    seq INTEGER PRIMARY KEY, kind TEXT, id TEXT, customer TEXT, at INTEGER, body BLOB, UNIQUE (kind, id)
);
CREATE INDEX notes_by_time ON notes (kind, at);
CREATE INDEX notes_by_customer ON notes (kind, customer, at);
CREATE TABLE control (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, body BLOB);
CREATE TABLE catalogs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT, applied_at INTEGER, origin TEXT, author TEXT, note TEXT
);
CREATE TABLE holds (
    n INTEGER PRIMARY KEY AUTOINCREMENT, identity BLOB UNIQUE, customer TEXT, state INTEGER, asked TEXT,
    quantities TEXT, until INTEGER
);
CREATE INDEX holds_open ON holds (customer, until) WHERE state < 2;
CREATE INDEX holds_waiting ON holds (state) WHERE state < 5;
CREATE INDEX holds_until ON holds (until);
CREATE TABLE held (customer TEXT, meter TEXT, quantity TEXT, PRIMARY KEY (customer, meter)) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('tidegate_schema', {SCHEMA});
CREATE VIEW usage AS {" UNION ALL ".join(map(_usage, TABLES))};
"""


def make(path: Path) -> None:
    """Makes an empty store, if there is no file. It appears whole, so two may try at once."""
    if path.exists():
        return
    make_private_folder(path.parent)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        make_private_file(new)
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {_TABLES} COMMIT;")
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def connect(path: Path, mode: str, wait: timedelta) -> sqlite3.Connection:
    """A connection to a file that is a store of this schema, else StoreError."""
    if not path.exists():
        raise StoreError(f"store {str(path)!r}: there is no such file; start the flow, which creates it")
    if not path.is_file():
        raise StoreError(f"store {str(path)!r}: needs a file, got something else; name another path")
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=wait.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        _check_schema(path, db)
    except BaseException:
        db.close()
        raise
    return db


def _check_schema(path: Path, db: sqlite3.Connection) -> None:
    try:
        found = db.execute("SELECT value FROM meta WHERE key = 'tidegate_schema'").fetchone()
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR is what a missing table or column gives.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        found = None
    if found is None:
        raise StoreError(
            f"store {str(path)!r}: needs a store of Tidegate, got another database; name another path"
        )
    if found[0] != SCHEMA:
        raise StoreError(
            f"store {str(path)!r}: needs schema {SCHEMA}, got {found[0]}; "
            "run the version of Tidegate that wrote it, or name another path and replay"
        )


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing is written."""
    # IMMEDIATE waits for the lock here; a lock asked for later, after reading, could only fail.
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def reading(db: sqlite3.Connection, path: Path, opened: os.stat_result) -> Iterator[sqlite3.Connection]:
    """Give `db` to a block that reads it, while it is open on what the path names; StoreError says what goes wrong."""
    with explained(path, "read"):
        check_same(path, opened)
        yield db


def check_same(path: Path, opened: os.stat_result) -> None:
    """What is open is what the path names, else StoreReplaced: a deleted file would take writes in silence."""
    try:
        same = os.path.samestat(os.stat(path), opened)
    except FileNotFoundError:
        same = False
    if not same:
        raise StoreReplaced(
            f"store {str(path)!r}: the file was moved, replaced or deleted while open; start again"
        )


@contextmanager
def explained(path: Path, act: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"store {str(path)!r}: cannot {act} it ({error}); name another path") from error
    except sqlite3.Error as error:
        # The low byte is the kind, what is above it the detail.
        advice = ADVICE.get(
            getattr(error, "sqlite_errorcode", 0) & 0xFF, "this is unexpected, please report it"
        )
        raise StoreError(f"store {str(path)!r}: cannot {act} it ({error}); {advice}") from error
