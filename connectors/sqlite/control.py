"""The control log and the catalog's versions in the embedded store's file.

Both are append-only tables: `control` the flow's control input, `catalogs` every catalog that was applied. What
`append` and `apply` return is on disk, as an operator's word or a repair must outlive a power cut.

Guarantees and limits are those of connectors/sqlite/store.py. Used by one thread at a time.
"""

import secrets
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.control_records import read_record
from tidegate.connectors.sqlite.connection import WAIT, Mode
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.store_schema import SCHEMA
from tidegate.operators.model.adjustments import is_same_request
from tidegate.operators.model.ports import (
    CatalogConflict,
    CatalogVersion,
    Control,
    ControlConflict,
    ControlRecord,
    Resend,
)

_VERSION = "SELECT number, text, applied_at, origin, author, note FROM catalogs"


class SqliteControl:
    """The control log in the file at `path`, made if it is not there, unless `create` is off. Raises StoreError."""

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = True,
        wait: timedelta = WAIT,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._clock = clock
        mode: Mode = "rwc" if create else "rw"
        self._file = open_file(Path(path), SCHEMA, mode, wait=wait, pragmas={"synchronous": "FULL"})
        self._db = self._file.db
        self._generation = self._named()

    def _named(self) -> str:
        """Return the log's name, given now to a new file or to one of a version that gave none."""
        query = "SELECT value FROM meta WHERE key = 'control_generation'"
        if (found := self._file.value(query)) is None:
            with self._file.transaction() as db:
                db.execute(
                    "INSERT INTO meta VALUES ('control_generation', ?) ON CONFLICT DO NOTHING",
                    (secrets.token_hex(8),),
                )
                found = db.execute(query).fetchone()[0]
        return str(found)

    def generation(self) -> str:
        """As in `ports.ControlLog`. A copy of the file has the generation of its original."""
        return self._generation

    def append(self, record: ControlRecord) -> str:
        """As in `ports.ControlLog`."""
        with self._file.transaction():
            self._db.execute(
                "INSERT INTO control (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (record.id, msgspec.json.encode(record)),
            )
            found = self._db.execute("SELECT seq, body FROM control WHERE id = ?", (record.id,)).fetchone()
        if not is_same_request(read_record(found[1]), record):
            raise ControlConflict(record.id)
        return str(found[0])

    def resend(self, *, anew: bool = False) -> str:
        """As in `ports.ControlLog`. A file that lost totals tells nobody, so each call asks anew."""
        id = secrets.token_hex(8)
        self.append(Resend(id=id))
        return id

    def after(self, position: str, limit: int = 1000) -> list[Control]:
        """Return the records past `position`, the oldest first."""
        query = "SELECT seq, body FROM control WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._file.reading() as db:
            rows = db.execute(query, (int(position or 0), limit)).fetchall()
        return [Control(str(seq), read_record(body)) for seq, body in rows]

    def at(self, position: str) -> Control | None:
        """Return the record at this very position; None too for what is a position in another kind of store."""
        if not position.isdecimal():
            return None
        query = "SELECT seq, body FROM control WHERE seq = ?"
        with self._file.reading() as db:
            row = db.execute(query, (int(position),)).fetchone()
        return Control(str(row[0]), read_record(row[1])) if row else None

    def memo(self, name: str) -> bytes | None:
        """As in `ports.ControlLog`."""
        query = "SELECT value FROM meta WHERE key = ?"
        with self._file.reading() as db:
            row = db.execute(query, (f"memo_{name}",)).fetchone()
        return row[0] if row else None

    def keep(self, name: str, body: bytes) -> None:
        """As in `ports.ControlLog`."""
        with self._file.transaction():
            self._db.execute("REPLACE INTO meta VALUES (?, ?)", (f"memo_{name}", body))

    def catalog(self, number: int | None = None) -> CatalogVersion | None:
        """Return the version of this number, or the newest; None where there is none."""
        query = f"{_VERSION} WHERE ? IN (number, 0) ORDER BY number DESC LIMIT 1"
        with self._file.reading() as db:
            row = db.execute(query, (number or 0,)).fetchone()
        return _version(row) if row else None

    def catalog_number(self) -> int:
        """Return the newest version's number, 0 before the first."""
        with self._file.reading() as db:
            return int(db.execute("SELECT max(number) FROM catalogs").fetchone()[0] or 0)

    def catalogs(self, limit: int = 50) -> list[CatalogVersion]:
        """Return the newest versions, the newest first."""
        with self._file.reading() as db:
            rows = db.execute(f"{_VERSION} ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
        return [_version(row) for row in rows]

    def apply(
        self, text: str, *, origin: str, by: str, note: str = "", expected: int | None = None
    ) -> CatalogVersion:
        """Make `text`, a validated catalog, the next version; CatalogConflict where `expected` is not the newest."""
        with self._file.transaction():
            newest = self._db.execute("SELECT max(number) FROM catalogs").fetchone()[0] or 0
            if expected is not None and expected != newest:
                raise CatalogConflict(newest)
            row = (newest + 1, text, self._clock(), origin, by, note)
            self._db.execute("INSERT INTO catalogs VALUES (?, ?, ?, ?, ?, ?)", row)
        return _version(row)

    def close(self) -> None:
        self._file.close()


def _version(row: tuple[object, ...]) -> CatalogVersion:
    names = ("number", "text", "applied_at", "origin", "by", "note")
    return msgspec.convert(dict(zip(names, row, strict=True)), CatalogVersion)
