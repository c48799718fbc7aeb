"""Reads the outbox from any process: how it stands in plain numbers, what is held back, what is on its way."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tidegate.connectors.outbox.schema import HELD_BACK, SCHEMA, State
from tidegate.connectors.sqlite.files import open_file

_ENTRY = """SELECT id, customer, at, state, reason, detail, body, came_at, sent_at, restamped_at, settled_at
    FROM events"""
IDS_AT_ONCE = 500


class Entry(NamedTuple):
    """An event in the outbox. Times are µs since the epoch; `body` is its own bytes, None once they are let go."""

    id: str
    customer: str
    at: int
    state: State
    reason: str
    detail: str
    body: bytes | None
    came_at: int
    sent_at: int | None
    restamped_at: int | None
    settled_at: int | None


class Rolling(NamedTuple):
    """What a window holds that no event says yet: a quantity times 10²⁴, of so many events. `at` is µs."""

    customer: str
    meter: str
    at: int
    quantity: int
    events: int


class AlertRecord(NamedTuple):
    """A change of an alert of the outbox. `seq` orders them and is what to ask on from."""

    seq: int
    kind: str
    state: str
    at: int
    text: str


class ActRecord(NamedTuple):
    """What somebody did about an event, `retry` or `drop`; `at` is µs since the epoch."""

    id: str
    at: int
    by: str
    act: str
    why: str


class QueueStatistics(NamedTuple):
    """How the outbox stands: what waits, since when (event time, µs), and what became of all the rest.

    `counts` grow for ever: `came`, `replayed`, `requests`, `sent`, `retried`, `acknowledged`, `restamped`, `parked`,
    `refused`, `skipped`, `folded`, `trimmed`, `released`, `answers_KIND` per kind of answer. `alerts` are raised now.
    `open_windows` are those of a rollup with something in them that was not yet made an event.
    """

    waiting: int
    oldest_at: int | None
    parked: int
    refused: int
    bytes: int
    counts: dict[str, int]
    alerts: dict[str, str]
    open_windows: int


class OutboxReader:
    """Sees each change as soon as it is committed. Raises OutboxError, also where there is no outbox yet."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._file = open_file(self._path, SCHEMA, "ro")

    def read_statistics(self) -> QueueStatistics:
        """As it is now. Quick whatever the depth."""
        with self._file.snapshot() as db:
            counts: dict[str, int] = dict(db.execute("SELECT name, value FROM counts"))
            # What waits, whether to be sent or to be rolled up first.
            oldest = [
                db.execute(
                    f"SELECT at FROM events WHERE state = {state} ORDER BY {column} LIMIT 1"
                ).fetchone()
                for state, column in ((0, "at"), (6, "seq"))
            ]
            alerts: dict[str, str] = dict(db.execute("SELECT kind, text FROM standing ORDER BY kind"))
            size = self._file.bytes_used()
            (windows,) = db.execute("SELECT count(*) FROM rollups WHERE due_at IS NOT NULL").fetchone()
        now = {state: counts.pop(f"now_{state.name}", 0) for state in State}
        return QueueStatistics(
            waiting=now[State.waiting] + now[State.unfolded],
            oldest_at=min((found[0] for found in oldest if found), default=None),
            parked=now[State.parked],
            refused=now[State.refused],
            bytes=size,
            counts=dict(sorted(counts.items())),
            alerts=alerts,
            open_windows=windows,
        )

    def held_back_of(self, customers: Iterable[str]) -> list[Entry]:
        """Return what is held back or refused of these customers."""
        whose = json.dumps(sorted(customers))
        return self._entries(
            "WHERE state IN (2, 3) AND customer IN (SELECT value FROM json_each(?)) ORDER BY seq", whose
        )

    def held_back(
        self, state: State | None = None, reason: str | None = None, limit: int = 1000
    ) -> list[Entry]:
        """Return what is parked or refused, or either, the first that came first, for one reason or for any."""
        assert state is None or state in HELD_BACK
        # The index is named, or all that is settled would be passed over in the order of `seq`.
        query = """INDEXED BY kept_back WHERE state IN (2, 3) AND state = coalesce(?, state)
            AND reason = coalesce(?, reason) ORDER BY seq LIMIT ?"""
        return self._entries(query, None if state is None else int(state), reason, limit)

    def held_back_as(self, ids: Sequence[str]) -> list[Entry]:
        """Return what is held back or refused under an id that begins with one of these."""
        query = """INDEXED BY kept_back WHERE state IN (2, 3)
            AND EXISTS (SELECT 1 FROM json_each(?) WHERE substr(events.id, 1, length(value)) = value) ORDER BY seq"""
        return self._entries(query, json.dumps(list(ids)))

    def dealt_with(self, limit: int, reason: str | None = None) -> list[tuple[ActRecord, Entry | None]]:
        """Return the last acts by which something was sent again or given up, the first of them first.

        With the event as it was left, as long as it is remembered. What is held back again is left out.
        """
        query = """SELECT id, at, by, act, reason FROM acts WHERE act IN ('retry', 'drop')
            AND seq IN (SELECT max(seq) FROM acts WHERE act IN ('retry', 'drop') GROUP BY id) ORDER BY seq LIMIT ?"""
        with self._file.snapshot() as db:
            acts = [ActRecord._make(row) for row in db.execute(query, (limit,))]
            left = self.find(act.id for act in acts)
        return [
            (act, entry)
            for act, entry in ((act, left.get(act.id)) for act in acts)
            if (entry is None or entry.state not in HELD_BACK)
            and reason in (None, entry.reason if entry else "")
        ]

    def reasons(self) -> dict[tuple[State, str], int]:
        """How many events are held back for which reason."""
        query = "SELECT state, reason, count(*) FROM events WHERE state IN (2, 3) GROUP BY state, reason"
        return {(State(state), reason): count for state, reason, count in self._file.rows(query)}

    def restamped(self, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Return what went out without its own time, after then (µs), the first that went first. Kept for 400 days."""
        return self._entries("WHERE restamped_at > ? ORDER BY restamped_at LIMIT ?", after, limit)

    def find(self, ids: Iterable[str]) -> dict[str, Entry]:
        """Return what is known of these events. One that was acknowledged is forgotten after some hours."""
        wanted, found = list(ids), {}
        for start in range(0, len(wanted), IDS_AT_ONCE):
            some = wanted[start : start + IDS_AT_ONCE]
            for entry in self._entries(f"WHERE id IN ({','.join('?' * len(some))})", *some):
                found[entry.id] = entry
        return found

    def restored(self, ids: Sequence[str], by: str) -> set[str]:
        """Return those of these events that `by` had sent again, as the record of acts has it."""
        query = """SELECT DISTINCT id FROM acts
            WHERE act = 'restore' AND by = ? AND id IN (SELECT value FROM json_each(?))"""
        return {id for (id,) in self._file.rows(query, (by, json.dumps(list(ids))))}

    def on_its_way(self, acknowledged_after: int, customers: Iterable[str] | None = None) -> Iterator[Entry]:
        """Return what waits, and what was acknowledged after then (µs): what the provider need not show yet.

        Of these customers, or of all. One cut in time, however long it takes to read.
        """
        whose = "" if customers is None else " AND customer IN (SELECT value FROM json_each(?))"
        named = () if customers is None else (json.dumps(sorted(customers)),)
        # On a connection of its own: an open query would hold back what others see.
        with closing(open_file(self._path, SCHEMA, "ro")) as file, file.snapshot() as db:
            queries = ("state = 0", "state = 6", "state = 1 AND body IS NOT NULL AND settled_at > ?")
            for place, query in enumerate(queries):
                given = (acknowledged_after,) if place == 2 else ()
                yield from map(_entry, db.execute(f"{_ENTRY} WHERE {query}{whose}", (*given, *named)))

    def of(self, customer: str, start: int, end: int) -> list[Entry]:
        """All that is known of a customer's events in [start, end) by their own time. Looks at every row there is."""
        return self._entries("WHERE customer = ? AND at >= ? AND at < ?", customer, start, end)

    def rolling_up(self, customers: Iterable[str]) -> list[Rolling]:
        """Return what these customers used in windows that are not, or not wholly, made into events yet."""
        query = """SELECT customer, meter, at, total, billed, events - billed_events FROM rollups
            WHERE due_at IS NOT NULL AND customer IN (SELECT value FROM json_each(?))"""
        return [
            Rolling(customer, meter, at, int(total) - int(billed), events)
            for customer, meter, at, total, billed, events in self._file.rows(
                query, (json.dumps(sorted(customers)),)
            )
        ]

    def alerts(self, after: int = 0, limit: int = 1000) -> list[AlertRecord]:
        """Alerts as they were raised and resolved, from behind the one numbered `after`."""
        query = "SELECT seq, kind, state, at, text FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?"
        return list(map(AlertRecord._make, self._file.rows(query, (after, limit))))

    def close(self) -> None:
        self._file.close()

    def _entries(self, condition: str, *given: object) -> list[Entry]:
        return list(map(_entry, self._file.rows(f"{_ENTRY} {condition}", given)))


def _entry(row: tuple[object, ...]) -> Entry:
    entry = Entry._make(row)
    return entry._replace(state=State(entry.state))
