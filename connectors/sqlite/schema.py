"""What a SQLite file of ours holds, and how it comes from one version to the next.

A `Schema` is a list of migrations, each from one version to the next. The version is in `PRAGMA user_version`; a file
without one (0) is new, or of a release from before versions, and the first migration takes both to version 1, so its
statements say IF NOT EXISTS. A file is known by its `mark`, so that a wrong path is an error and the database there
stays as it is.

To change a schema, append a migration; earlier ones stay as they are. tests/connectors/sqlite/test_schemas.py then
holds every earlier version against the new one.

Guarantees: a migration is one transaction under the write lock: a kill leaves the file as before or after, and of two
processes that start at once one migrates. A file of a newer version is refused and left as it is. Every error of
SQLite or of the disk is one line of the file's own error class.

Source: https://www.sqlite.org/pragma.html#pragma_user_version, https://www.sqlite.org/rescode.html
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tidegate.connectors.sqlite.connection import Mode, transaction
from tidegate.operators.model.errors import TidegateError, one_line

Migration = str | Callable[[sqlite3.Connection], object]

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "another process kept the write lock; look for one that hangs, or a sqlite3 shell "
    "inside a transaction",
    sqlite3.SQLITE_FULL: "the disk is full; free space and start again, nothing that was written is lost",
    sqlite3.SQLITE_READONLY: "the file, its folder or the disk is read-only for this user; allow writing",
    sqlite3.SQLITE_CANTOPEN: "the file and its folder must exist and be writable, also for readers, "
    "who share the -shm file beside it",
    sqlite3.SQLITE_NOTADB: "this is no SQLite file; name another path",
    sqlite3.SQLITE_IOERR: "the disk fails or is no local disk; see the system's log",
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What one kind of file holds; `migrations[n]` takes it from version n to n + 1, and is SQL or a function.

    `name` is what messages call the file, `error` what they are raised as. `mark` is a query whose value is `marked` in
    every file of this kind, whatever its version. `maker` says what creates and migrates the file, `if_damaged` what to
    do with one that is damaged. With `replaced`, a file that is no longer what its path names is that error, instead of
    taking writes in silence. `DELETE` is the journal of a file that several machines share.
    """

    name: str
    error: type[TidegateError]
    mark: str
    marked: int = 1
    migrations: tuple[Migration, ...]
    maker: str
    if_damaged: str
    journal: Literal["WAL", "DELETE"] = "WAL"
    replaced: type[TidegateError] | None = None

    @property
    def version(self) -> int:
        """The version that this release writes."""
        return len(self.migrations)

    def problem(self, path: Path, text: str) -> TidegateError:
        """Return the error that says this of the file at `path`."""
        return self.error(f"{self.name} {str(path)!r}: {text}")

    @contextmanager
    def explained(self, path: Path, act: str) -> Iterator[None]:
        """Translate errors of SQLite and of the disk to the file's own error; `act` is a verb such as "read"."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise self.problem(path, f"cannot {act} it ({one_line(error)}); {self._advice(error)}") from error

    def _advice(self, error: OSError | sqlite3.Error) -> str:
        if isinstance(error, OSError):
            return (
                "it needs a folder on a local disk that this user may write; allow it, or name another path"
            )
        # The low byte is the kind, what is above it the detail.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_CORRUPT:
            return f"the file is damaged; {self.if_damaged}"
        return _ADVICE.get(code, "this is unexpected, please report it")


def migrate(path: Path, schema: Schema, db: sqlite3.Connection) -> None:
    """Take a file to this release's version, in one transaction. Raises the schema's error, or what SQLite raises."""
    if _version(db) == schema.version:
        return
    with transaction(db):
        # Another process may have come first.
        for migration in schema.migrations[check_version(path, schema, "rwc", db) :]:
            if callable(migration):
                migration(db)
            else:
                for statement in _statements(migration):
                    db.execute(statement)
        db.execute(f"PRAGMA user_version = {schema.version}")


def check_version(path: Path, schema: Schema, mode: Mode, db: sqlite3.Connection) -> int:
    """Return the file's version, where it is one that can be opened in this mode. Raises the schema's error."""
    version = _version(db)
    if db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None and version == 0:
        if mode != "rwc":
            raise schema.problem(path, f"the file is empty; {schema.maker}, which fills it")
        return 0
    _check_mark(path, schema, db)
    if version > schema.version:
        raise schema.problem(
            path,
            f"needs version {schema.version} at most, got {version}, of a newer release of Tidegate; run that release, "
            "or put back a backup from before it",
        )
    # What has no version yet has the tables of the first one.
    if mode != "rwc" and max(version, 1) < schema.version:
        raise schema.problem(
            path,
            f"needs version {schema.version}, got {max(version, 1)}, of an earlier release; {schema.maker}, which "
            "migrates it",
        )
    return version


def _check_mark(path: Path, schema: Schema, db: sqlite3.Connection) -> None:
    try:
        found = db.execute(schema.mark).fetchone()
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR is what a missing table or column gives.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        found = None
    if found is None:
        raise schema.problem(path, f"needs Tidegate's {schema.name}, got another database; name another path")
    if found[0] != schema.marked:
        raise schema.problem(
            path,
            f"needs schema {schema.marked}, got {found[0]}; run the version of Tidegate that wrote it, or name "
            "another path",
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """Take a script apart, as `executescript` would commit the transaction that it runs in."""
    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            if piece.strip():
                yield statement.strip()
            statement = ""
