"""The ledger: every event that the platform acknowledged, whole, for as long as its period may be looked into.

The outbox lets go of bytes and rows to stay small. Before it does, they come here: blocks of some hundred events of one
hour (of event time) and one of 16 buckets of customers, compressed. So reconciliation can tell what was sent under
which id, with which quantity, and can send it again; and what the flow writes all the time stays small.

Cost: about 60 to 90 bytes an event on disk for events of 250 bytes (tests/connectors/outbox/test_ledger.py measures
it). Kept for `keep`, and never more than `bytes_max`: then the oldest hours go first. Losing the file loses only
explanations. What comes twice, after a crash between here and the outbox, is one event by its id.
"""

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.files.private_files import make_private_file, make_private_folder
from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.periods import HOUR

SCHEMA = 1
BUCKETS = 16
WAIT_S = 30.0
BLOCK_EVENTS = 1000
# Between two looks at what has grown too old.
TRIMMED_EVERY = 600 * 1_000_000

_SCHEMA = f"""
CREATE TABLE blocks (
    seq INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, hour INTEGER NOT NULL, events INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX places ON blocks (bucket, hour);
CREATE INDEX hours ON blocks (hour);
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('tidegate_ledger', {SCHEMA});
"""


class LedgerError(TidegateError):
    """The ledger cannot be opened, read or written; says what to do."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """An event that the platform acknowledged, with its own bytes. Times are µs since the epoch."""

    id: str
    customer: str
    at: int
    sent_at: int | None
    restamped_at: int | None
    settled_at: int
    body: bytes


_BLOCK = msgspec.msgpack.Decoder(list[Kept])


class Ledger:
    """The writing end; one thread at a time, and one process, as the outbox has one that sends."""

    def __init__(
        self,
        path: str | Path,
        *,
        keep: timedelta,
        bytes_max: int = 16 << 30,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._path = Path(path).absolute()
        self._keep, self._bytes_max, self._clock = keep // timedelta(microseconds=1), bytes_max, clock
        self._trimmed_at = 0
        try:
            make_private_folder(self._path.parent)
            make_private_file(self._path)
            self._db = _connect(self._path, "rwc")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._begin()
        except (OSError, sqlite3.Error) as error:
            raise _explained(self._path, "open", error) from error

    def add(self, events: Iterable[Kept]) -> None:
        """Keeps these events; on return they outlive a kill."""
        places: dict[tuple[int, int], list[Kept]] = {}
        for event in events:
            places.setdefault((shard_of(event.customer, BUCKETS), event.at // HOUR), []).append(event)
        rows = [
            (bucket, hour, len(some), zlib.compress(msgspec.msgpack.encode(some)))
            for (bucket, hour), found in sorted(places.items())
            for some in (found[i : i + BLOCK_EVENTS] for i in range(0, len(found), BLOCK_EVENTS))
        ]
        try:
            with _transaction(self._db):
                self._db.executemany(
                    "INSERT INTO blocks (bucket, hour, events, body) VALUES (?, ?, ?, ?)", rows
                )
            self._trim()
        except sqlite3.Error as error:
            raise _explained(self._path, "write", error) from error

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def _begin(self) -> None:
        with _transaction(self._db):
            if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                # What happened before may be in the outbox or lost; what happens from now on comes here.
                self._db.execute("INSERT INTO meta VALUES ('since', ?)", (self._clock(),))
        _check(self._path, self._db)

    def _trim(self) -> None:
        now = self._clock()
        if now - self._trimmed_at < TRIMMED_EVERY:
            return
        self._trimmed_at = now
        until = (now - self._keep) // HOUR
        with _transaction(self._db):
            self._drop(until)
            while _bytes_used(self._db) > self._bytes_max:
                oldest = self._db.execute("SELECT min(hour) FROM blocks").fetchone()[0]
                if oldest is None:
                    return
                self._drop(oldest + 1)

    def _drop(self, until: int) -> None:
        if self._db.execute("DELETE FROM blocks WHERE hour < ?", (until,)).rowcount:
            self._db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'since'", (until * HOUR,))


class LedgerReader:
    """Reads the ledger from any process. Raises LedgerError, also where there is no ledger yet."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        if not self._path.is_file():
            raise LedgerError(
                f"ledger {str(self._path)!r}: there is no such file; a flow that bills to dodo: makes it"
            )
        try:
            self._db = _connect(self._path, "ro")
            _check(self._path, self._db)
        except sqlite3.Error as error:
            raise _explained(self._path, "open", error) from error

    def since(self) -> int:
        """Events of this time (µs) or later are here, once they are acknowledged and no longer in the outbox."""
        return int(self._one("SELECT value FROM meta WHERE key = 'since'"))

    def events(self, customer: str, start: int, end: int) -> Iterator[Kept]:
        """The customer's events in [start, end) by their own time; some may come twice."""
        query = "SELECT body FROM blocks WHERE bucket = ? AND hour BETWEEN ? AND ?"
        given = shard_of(customer, BUCKETS), start // HOUR, (end - 1) // HOUR
        try:
            for (body,) in self._db.execute(query, given):
                for event in _BLOCK.decode(zlib.decompress(body)):
                    if event.customer == customer and start <= event.at < end:
                        yield event
        except (sqlite3.Error, zlib.error, msgspec.MsgspecError) as error:
            raise _explained(self._path, "read", error) from error

    def sizes(self) -> tuple[int, int]:
        """How many events it holds, and its bytes."""
        return int(self._one("SELECT coalesce(sum(events), 0) FROM blocks")), _bytes_used(self._db)

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def _one(self, query: str) -> int:
        try:
            value: int = self._db.execute(query).fetchone()[0]
        except sqlite3.Error as error:
            raise _explained(self._path, "read", error) from error
        return value


def ledger_path(outbox: Path) -> Path:
    """The ledger's file beside an outbox."""
    return outbox.with_name(f"{outbox.stem}-ledger.db")


class _transaction:
    """BEGIN IMMEDIATE, and COMMIT or ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False)


def _check(path: Path, db: sqlite3.Connection) -> None:
    with suppress(sqlite3.OperationalError):
        if db.execute("SELECT value FROM meta WHERE key = 'tidegate_ledger'").fetchone() == (SCHEMA,):
            return
    db.close()
    raise LedgerError(f"ledger {str(path)!r}: needs schema {SCHEMA}, got another file; move it away")


def _bytes_used(db: sqlite3.Connection) -> int:
    with closing(db.cursor()) as cursor:
        sizes = ("page_count", "freelist_count", "page_size")
        pages, free, size = (cursor.execute(f"PRAGMA {n}").fetchone()[0] for n in sizes)
    return int((pages - free) * size)


def _explained(path: Path, act: str, error: Exception) -> LedgerError:
    return LedgerError(
        f"ledger {str(path)!r}: cannot {act} it ({error}); it needs a writable folder on a local disk with room. It"
        " only serves to explain drift, so it may also be moved away"
    )
