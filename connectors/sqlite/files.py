"""Every SQLite file of ours is made, opened, read and written here, in one way; schema.py says what is in it.

Guarantees: a new file appears with all its tables or not at all, for its owner alone. What opens is of this release's
version: mode `rwc` makes or migrates it, the others refuse what is older, and nothing opens what is newer or not ours.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidegate.connectors.files.private_files import make_private_file, make_private_folder
from tidegate.connectors.sqlite.connection import WAIT, Mode, connect, snapshot, transaction
from tidegate.connectors.sqlite.schema import Schema, check_version, migrate


class DatabaseFile:
    """An open file: its connection, and how it is read and written. Used by one thread at a time."""

    def __init__(self, path: Path, schema: Schema, db: sqlite3.Connection) -> None:
        self.path, self.db, self._schema = path, db, schema
        self._opened = os.stat(path)

    def explained(self, act: str) -> AbstractContextManager[None]:
        """As in `Schema`."""
        return self._schema.explained(self.path, act)

    @contextmanager
    def reading(self, act: str = "read") -> Iterator[sqlite3.Connection]:
        """Give the connection to a block that reads."""
        with self._schema.explained(self.path, act):
            self.check_same()
            yield self.db

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """As `reading`; all that the block reads is of one moment."""
        with self.reading(), snapshot(self.db):
            yield self.db

    @contextmanager
    def transaction(self, act: str = "write") -> Iterator[sqlite3.Connection]:
        """Write all that the block writes, or nothing. Waits for the write lock first."""
        with self._schema.explained(self.path, act), transaction(self.db):
            self.check_same()
            yield self.db

    def rows(self, query: str, given: tuple[object, ...] = ()) -> list[Any]:
        """Return what a query finds."""
        with self.reading() as db:
            return db.execute(query, given).fetchall()

    def value(self, query: str, given: tuple[object, ...] = ()) -> Any:
        """Return the first value of the first row, None where there is no row."""
        found = self.rows(query, given)
        return found[0][0] if found else None

    def check_same(self) -> None:
        """Raise the schema's `replaced` where the path names another file by now."""
        if self._schema.replaced is None:
            return
        try:
            same = os.path.samestat(os.stat(self.path), self._opened)
        except FileNotFoundError:
            same = False
        if not same:
            raise self._schema.replaced(
                f"{self._schema.name} {str(self.path)!r}: the file was moved, replaced or deleted while open; "
                "start again"
            )

    def bytes_used(self) -> int:
        """Return how many bytes of the file hold something."""
        pages, free, size = (
            self.value(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def close(self) -> None:
        with self.explained("close"):
            self.db.close()


def open_file(
    path: Path,
    schema: Schema,
    mode: Mode,
    *,
    wait: timedelta = WAIT,
    pragmas: Mapping[str, str | int] | None = None,
) -> DatabaseFile:
    """Open the file at `path`, in this release's version; with `rwc` it is made, or migrated, if need be.

    `wait` bounds how long another writer is waited for. Raises: the schema's error.
    """
    path = path.absolute()
    with schema.explained(path, "open"):
        if mode == "rwc" and not path.exists():
            _check_no_orphan(path, schema)
            _create(path, schema)
        if not path.exists():
            raise schema.problem(path, f"there is no such file; {schema.maker}, which creates it")
        if not path.is_file():
            raise schema.problem(path, "needs a file, got something else; name another path")
        db = connect(path, mode, wait)
        try:
            for name, value in (pragmas or {}).items():
                db.execute(f"PRAGMA {name} = {value}")
            check_version(path, schema, mode, db)
            if mode == "rwc":
                _set_journal(db, schema)
                migrate(path, schema, db)
            return DatabaseFile(path, schema, db)
        except BaseException:
            db.close()
            raise


def _check_no_orphan(path: Path, schema: Schema) -> None:
    """Raise the schema's error where a log lies there without its file: SQLite would write it into the new one.

    Source: https://www.sqlite.org/howtocorrupt.html, 1.4
    """
    logs = [path.with_name(path.name + end) for end in ("-wal", "-journal")]
    found = [log.name for log in logs if log.exists() and log.stat().st_size]
    # Somebody else may have made the file meanwhile, and begun its log.
    if found and not path.exists():
        raise schema.problem(
            path,
            f"the file is missing, but its log {found[0]!r} is there; put the file back, or move the log away too "
            "to begin with an empty one",
        )


def _create(path: Path, schema: Schema) -> None:
    """Make the file whole under another name first, so that two may try at once and no reader finds half of it."""
    make_private_folder(path.parent)
    if schema.journal == "DELETE":
        # File systems that machines share may have no links; without a log, filling it in place is as safe.
        make_private_file(path)
        return
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        make_private_file(new)
        with closing(connect(new, "rw")) as db:
            _set_journal(db, schema)
            migrate(path, schema, db)
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _set_journal(db: sqlite3.Connection, schema: Schema) -> None:
    """Change the journal's mode; a file that is open elsewhere in another one stays as it is until a later start."""
    if db.execute("PRAGMA journal_mode").fetchone()[0].upper() == schema.journal:
        return
    wait = db.execute("PRAGMA busy_timeout").fetchone()[0]
    db.execute("PRAGMA busy_timeout = 0")
    try:
        db.execute(f"PRAGMA journal_mode = {schema.journal}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
    db.execute(f"PRAGMA busy_timeout = {wait}")
