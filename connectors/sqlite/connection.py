"""Connections to SQLite files, and the two kinds of transaction; `connect` here is the only one of the product."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

WAIT: Final = timedelta(seconds=30)

Mode = Literal["ro", "rw", "rwc"]
"""Read; write a file that is there; write it, and make or migrate it first if need be."""


def connect(path: Path, mode: Mode, wait: timedelta = WAIT) -> sqlite3.Connection:
    """Connect to a file, whatever is in it; for files that are not ours. Transactions are the caller's to begin."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=wait.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
    )


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all that the block writes, or nothing."""
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
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Have all that the block reads be of one moment."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")
