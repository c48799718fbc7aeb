"""The control log and the catalog's versions in the embedded store's file.

Both are append-only tables: `control` the flow's control input, `catalogs` every catalog that was applied. What
`append` and `apply` return is on disk, as an operator's word or a repair must outlive a power cut.

Guarantees and limits are those of connectors/sqlite.py. Used by one thread at a time.
"""

import os
import secrets
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec

from connectors.clock import wall_clock
from connectors.sqlite_file import WAIT, check_same, connect, explained, make, transaction
from operators.ports import Adjustment, CatalogConflict, CatalogVersion, Control, Resend

_RECORD = msgspec.json.Decoder(Adjustment | Resend)
_VERSION = "SELECT number, text, applied_at, origin, author, note FROM catalogs"


class SqliteControl:
    """The control log in the file at `path`, made if it is not there. Raises StoreError."""

    def __init__(
        self, path: str | Path, *, wait: timedelta = WAIT, clock: Callable[[], int] = wall_clock
    ) -> None:
        self._path = Path(path).absolute()
        self._clock = clock
        with explained(self._path, "open"):
            make(self._path)
            self._db = connect(self._path, "rw", wait)
            self._opened = os.stat(self._path)
            self._db.execute("PRAGMA synchronous = FULL")

    def append(self, record: Adjustment | Resend) -> str:
        """Its position. A record whose id is there already is not added again."""
        with explained(self._path, "write"), transaction(self._db):
            check_same(self._path, self._opened)
            self._db.execute(
                "INSERT INTO control (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (record.id, msgspec.json.encode(record)),
            )
            found = self._db.execute("SELECT seq FROM control WHERE id = ?", (record.id,)).fetchone()
        return str(found[0])

    def resend(self, *, anew: bool = False) -> str:
        """As in `operators.ports.ControlLog`. A file that lost totals tells nobody, so each call asks anew."""
        id = secrets.token_hex(8)
        self.append(Resend(id=id))
        return id

    def after(self, position: str, limit: int = 1000) -> list[Control]:
        """The records past `position`, the oldest first."""
        query = "SELECT seq, body FROM control WHERE seq > ? ORDER BY seq LIMIT ?"
        with explained(self._path, "read"):
            rows = self._db.execute(query, (int(position or 0), limit)).fetchall()
        return [Control(str(seq), _RECORD.decode(body)) for seq, body in rows]

    def catalog(self, number: int | None = None) -> CatalogVersion | None:
        """The version of this number, or the newest; None where there is none."""
        query = f"{_VERSION} WHERE ? IN (number, 0) ORDER BY number DESC LIMIT 1"
        with explained(self._path, "read"):
            row = self._db.execute(query, (number or 0,)).fetchone()
        return _version(row) if row else None

    def catalog_number(self) -> int:
        """The newest version's number, 0 before the first."""
        with explained(self._path, "read"):
            check_same(self._path, self._opened)
            return int(self._db.execute("SELECT max(number) FROM catalogs").fetchone()[0] or 0)

    def catalogs(self, limit: int = 50) -> list[CatalogVersion]:
        """The newest versions, the newest first."""
        with explained(self._path, "read"):
            rows = self._db.execute(f"{_VERSION} ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
        return [_version(row) for row in rows]

    def apply(
        self, text: str, *, origin: str, by: str, note: str = "", expected: int | None = None
    ) -> CatalogVersion:
        """Makes `text`, a validated catalog, the next version; CatalogConflict where `expected` is not the newest."""
        with explained(self._path, "write"), transaction(self._db):
            check_same(self._path, self._opened)
            newest = self._db.execute("SELECT max(number) FROM catalogs").fetchone()[0] or 0
            if expected is not None and expected != newest:
                raise CatalogConflict(newest)
            row = (newest + 1, text, self._clock(), origin, by, note)
            self._db.execute("INSERT INTO catalogs VALUES (?, ?, ?, ?, ?, ?)", row)
        return _version(row)

    def close(self) -> None:
        with explained(self._path, "close"):
            self._db.close()


def _version(row: tuple[object, ...]) -> CatalogVersion:
    names = ("number", "text", "applied_at", "origin", "by", "note")
    return msgspec.convert(dict(zip(names, row, strict=True)), CatalogVersion)
