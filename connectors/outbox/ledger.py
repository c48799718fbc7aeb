"""The ledger: every event that the provider acknowledged, whole, for as long as its period may be looked into.

The outbox lets go of bytes and rows to stay small. Before it does, they come here: blocks of some hundred events of one
hour (of event time) and one of 16 buckets of customers, compressed. So reconciliation can tell what was sent under
which id, with which quantity, and can send it again; and what the flow writes all the time stays small.

Cost: about 60 to 90 bytes an event on disk for events of 250 bytes (tests/connectors/outbox/test_ledger.py measures
it). Kept for `keep`, and never more than `bytes_max`: then the oldest hours go first. Losing the file loses only
explanations. What comes twice, after a crash between here and the outbox, is one event by its id.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.periods import HOUR

BUCKETS = 16
BLOCK_EVENTS = 1000
# Between two looks at what has grown too old.
TRIMMED_EVERY = 600 * 1_000_000

# `since` is set as the ledger is opened for the first time: what happened before may be in the outbox or lost.
_NEVER: Final = 2**62
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS blocks (
    seq INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, hour INTEGER NOT NULL, events INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS places ON blocks (bucket, hour);
CREATE INDEX IF NOT EXISTS hours ON blocks (hour);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('tidegate_ledger', 1), ('since', {_NEVER});
"""


class LedgerError(TidegateError):
    """The ledger cannot be opened, read or written; says what to do."""


SCHEMA: Final = Schema(
    name="ledger",
    error=LedgerError,
    mark="SELECT value FROM meta WHERE key = 'tidegate_ledger'",
    migrations=(_SCHEMA,),
    maker="start a flow that bills to dodo:",
    if_damaged="move it away: it only serves to explain drift",
)


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """An event that the provider acknowledged, with its own bytes. Times are µs since the epoch."""

    id: str
    customer: str
    at: int
    sent_at: int | None
    restamped_at: int | None
    settled_at: int
    body: bytes


_SINCE: Final = "SELECT value FROM meta WHERE key = 'since'"
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
        self._keep, self._bytes_max, self._clock = keep // timedelta(microseconds=1), bytes_max, clock
        self._trimmed_at = 0
        self._file = open_file(Path(path), SCHEMA, "rwc", pragmas={"synchronous": "NORMAL"})
        if self._file.value(_SINCE) == _NEVER:
            with self._file.transaction() as db:
                db.execute("UPDATE meta SET value = min(value, ?) WHERE key = 'since'", (clock(),))

    def add(self, events: Iterable[Kept]) -> None:
        """Keep these events; on return they outlive a kill."""
        places: dict[tuple[int, int], list[Kept]] = {}
        for event in events:
            places.setdefault((shard_of(event.customer, BUCKETS), event.at // HOUR), []).append(event)
        rows = [
            (bucket, hour, len(some), zlib.compress(msgspec.msgpack.encode(some)))
            for (bucket, hour), found in sorted(places.items())
            for some in (found[i : i + BLOCK_EVENTS] for i in range(0, len(found), BLOCK_EVENTS))
        ]
        with self._file.transaction() as db:
            db.executemany("INSERT INTO blocks (bucket, hour, events, body) VALUES (?, ?, ?, ?)", rows)
        self._trim()

    def close(self) -> None:
        self._file.close()

    def _trim(self) -> None:
        now = self._clock()
        if now - self._trimmed_at < TRIMMED_EVERY:
            return
        self._trimmed_at = now
        until = (now - self._keep) // HOUR
        with self._file.transaction() as db:
            self._drop(until)
            while self._file.bytes_used() > self._bytes_max:
                oldest = db.execute("SELECT min(hour) FROM blocks").fetchone()[0]
                if oldest is None:
                    return
                self._drop(oldest + 1)

    def _drop(self, until: int) -> None:
        db = self._file.db
        if db.execute("DELETE FROM blocks WHERE hour < ?", (until,)).rowcount:
            db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'since'", (until * HOUR,))


class LedgerReader:
    """Reads the ledger from any process. Raises LedgerError, also where there is no ledger yet."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._file = open_file(self._path, SCHEMA, "ro")

    def since(self) -> int:
        """Events of this time (µs) or later are here, once they are acknowledged and no longer in the outbox."""
        return int(self._file.value(_SINCE))

    def events(self, customer: str, start: int, end: int) -> Iterator[Kept]:
        """Return the customer's events in [start, end) by their own time; some may come twice."""
        query = "SELECT body FROM blocks WHERE bucket = ? AND hour BETWEEN ? AND ?"
        given = shard_of(customer, BUCKETS), start // HOUR, (end - 1) // HOUR
        with self._file.reading() as db:
            for (body,) in db.execute(query, given):
                for event in self._decode(body):
                    if event.customer == customer and start <= event.at < end:
                        yield event

    def sizes(self) -> tuple[int, int]:
        """How many events it holds, and its bytes."""
        return int(self._file.value("SELECT coalesce(sum(events), 0) FROM blocks")), self._file.bytes_used()

    def close(self) -> None:
        self._file.close()

    def _decode(self, body: bytes) -> list[Kept]:
        try:
            return _BLOCK.decode(zlib.decompress(body))
        except (zlib.error, msgspec.MsgspecError) as error:
            raise SCHEMA.problem(self._path, f"a block is damaged ({error}); {SCHEMA.if_damaged}") from error


def ledger_path(outbox: Path) -> Path:
    """Return the ledger's file beside an outbox."""
    return outbox.with_name(f"{outbox.stem}-ledger.db")
