"""All customers at a glance: who sends most, who is near a limit, how fast, and how it stands with the books.

It is brought up to date when somebody looks, at most once a second, from the store's feed: what has not changed is not
read again, unless a hold has expired or a period has ended. Of each customer a row is kept, of the newest period that
has begun; of CUSTOMERS_MAX of them.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from heapq import nlargest
from itertools import groupby
from typing import Final, NamedTuple

from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.model.catalog import Catalog, VersionedCatalog
from tidegate.operators.model.ports import Held, StoredTotal, StoreReader
from tidegate.operators.model.records import Total
from tidegate.serving.gate.freshness import Freshness
from tidegate.serving.http.readers.outbox_status import outbox_of
from tidegate.serving.http.readers.processes import Processes
from tidegate.serving.http.readers.store_executor import Desk
from tidegate.serving.http.readers.store_follower import Live
from tidegate.serving.http.readers.unmetered import read_unmetered
from tidegate.serving.http.readers.usage import LEVELS
from tidegate.serving.http.schemas import FlowBody, OverviewBody, ProcessBody, Standing, UnmeteredBody, exact
from tidegate.serving.http.serialization import bodies, flow_body, maybe, when
from tidegate.serving.views.balance import summed, unbalanced
from tidegate.serving.views.dead_letters import count_by_reason, open_places
from tidegate.serving.views.formatting import US, instant
from tidegate.serving.views.limit_status import Level, bill, view_of, worst_status
from tidegate.settings.serving import ServingSettings

CUSTOMERS_MAX: Final = 200_000
SHOWN: Final = 20
NOTES_SHOWN: Final = 20
CAUSES_SHOWN: Final = 20
EVERY_S: Final = 1.0
# More than so many customers to read are read by one pass over all.
SINGLY_MAX: Final = 5_000
RATE_OVER_US: Final = 10 * US


class Row(NamedTuple):
    """A customer as of `at` (µs); it is right until `until` (µs). `events` are those in the present period.

    `marks` are two earlier readings, times and events, the first about RATE_OVER_US ago: the rate is from there on.
    """

    customer: str
    plan: str
    meter: str
    total: Decimal
    share: Decimal | None
    level: Level
    words: str
    events: int
    bill: Decimal
    at: int
    until: int
    marks: tuple[tuple[int, int], tuple[int, int]]


class Board:
    """One reader's: each `refresh` reads what has changed since the one before. One thread at a time."""

    def __init__(
        self,
        settings: ServingSettings,
        clock: Callable[[], int],
        decided: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """`decided` are a gate's counters."""
        self._settings, self._clock, self._decided = settings, clock, decided
        self._letters = open_places(settings)
        self._rows: dict[str, Row] = {}
        self._seq, self._bounds = 0, CatalogLimits(Catalog(), -1)
        self._moments: deque[tuple[int, int]] = deque()
        self._as_of = self._written_at = self._wrote_at = 0
        self._unmetered: list[UnmeteredBody] = []
        self._freshness = Freshness(clock)

    def refresh(
        self, reader: StoreReader, version: VersionedCatalog, processes: Sequence[ProcessBody] = ()
    ) -> OverviewBody:
        """As of now, under this catalog."""
        now, number, catalog = self._clock(), version.number, version.catalog
        changes = reader.changes(self._seq)
        is_all = not (changes.complete and number == self._bounds.number and self._seq)
        if number != self._bounds.number:
            self._bounds = CatalogLimits(catalog, number)
        whose = {row.customer for row in self._rows.values() if row.until <= now} | changes.customers - {""}
        if is_all or len(whose) > SINGLY_MAX:
            held = reader.read_held(now)
            for customer, stored in groupby(reader.totals(), lambda one: one.total.customer):
                self._take(catalog, customer, stored, held.get(customer), now)
        else:
            held = reader.read_held(now, whose) if whose else {}
            for customer in whose:
                self._take(catalog, customer, reader.read(customer, now), held.get(customer), now)
        # Notes that are nobody's announce themselves under the empty name.
        if not changes.complete or "" in changes.customers or not self._seq:
            self._unmetered = read_unmetered(reader, None, CAUSES_SHOWN)
        self._seq = changes.seq
        sums = summed(reader.counters())
        flow = self._flow(reader)
        rate = self._rate(now, sums["events"])
        rows = self._rows.values()
        top = nlargest(SHOWN, rows, key=lambda row: (_rate_now(row, now), row.events))
        near = nlargest(SHOWN, rows, key=lambda row: (row.level, row.share or Decimal(0)))
        return OverviewBody(
            instant(now),
            number,
            len(self._rows),
            rate,
            sums,
            not unbalanced(sums),
            self._unmetered,
            when(self._as_of or None),
            when(self._wrote_at or None),
            max(self._written_at - self._as_of, 0) / US if self._as_of else None,
            flow,
            [_standing(row, now) for row in top],
            [_standing(row, now) for row in near if row.level > Level.FREE or row.share],
            bodies(reader.notes("alert", None, NOTES_SHOWN)),
            bodies(reader.notes("drift", None, NOTES_SHOWN)),
            outbox_of(self._settings, now),
            count_by_reason(self._letters),
            self._decided(),
            next(iter(bodies(reader.notes("reconciliation", None, 1))), None),
            list(processes),
        )

    def _flow(self, reader: StoreReader) -> FlowBody:
        """Return how the flow is doing, by the heartbeats in the store."""
        now = time.monotonic()
        self._freshness.take(reader.heartbeats(), now)
        most = self._settings.max_lag // timedelta(microseconds=1)
        return flow_body(self._freshness.state(now, most))

    def _take(
        self, catalog: Catalog, customer: str, stored: Iterable[StoredTotal], held: Held | None, now: int
    ) -> None:
        before = self._rows.get(customer)
        if before is None and len(self._rows) >= CUSTOMERS_MAX:
            return
        own = self._bounds.find(customer)
        start, _ = own.find_period(now)
        current = {}
        for one in stored:
            self._wrote_at = max(self._wrote_at, one.written_at)
            if one.total.as_of >= self._as_of:
                self._as_of, self._written_at = one.total.as_of, one.written_at
            if one.total.window == "period" and one.total.start == start:
                current[one.total.meter] = one.total
        view = view_of(own, current, held, now)
        events = _events(catalog, current)
        status = worst_status(view)
        self._rows[customer] = Row(
            customer,
            catalog.plan_of(customer).name,
            status.meter,
            status.total,
            status.share,
            status.level,
            status.words,
            events,
            bill(view),
            now,
            view.until,
            _marks(before, now, events),
        )

    def _rate(self, now: int, events: int) -> float:
        """Events per second over the last ten seconds or so."""
        moments = self._moments
        moments.append((now, events))
        while len(moments) > 2 and moments[1][0] <= now - RATE_OVER_US:
            moments.popleft()
        (first_at, first), (last_at, last) = moments[0], moments[-1]
        return round((last - first) * US / (last_at - first_at), 1) if last_at > first_at else 0.0


def _events(catalog: Catalog, current: Mapping[str, Total]) -> int:
    """How many events these totals are of: one that feeds several meters is one, as far as the totals can tell."""
    most: dict[str, int] = {}
    for meter in catalog.meters:
        if meter.name in current:
            most[meter.event_name] = max(most.get(meter.event_name, 0), current[meter.name].events)
    return sum(most.values())


def _marks(before: Row | None, now: int, events: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the readings to count from; the second takes the first's place when that has grown old."""
    if before is None or events < before.events:
        return (now, events), (now, events)
    first, second = before.marks
    if now - second[0] < RATE_OVER_US / 2:
        return first, second
    return (second if now - first[0] >= RATE_OVER_US else first), (before.at, before.events)


class SharedBoard:
    """A board for one event loop, read on a desk's thread, for everybody who looks."""

    def __init__(
        self,
        settings: ServingSettings,
        live: Live,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        decided: Callable[[], dict[str, int]],
    ) -> None:
        self._live, self._monotonic = live, monotonic
        self._board = Board(settings, clock, decided)
        self._processes = Processes(settings, monotonic)
        self._desk: Desk[StoreReader] = Desk("board", settings.store.open_reader)
        self._lock = asyncio.Lock()
        self._told: OverviewBody | None = None
        self._told_at = float("-inf")

    async def overview(self) -> OverviewBody:
        """As of a second ago at most. A Problem of status 503 where the store does not answer."""
        async with self._lock:
            if self._told is None or self._monotonic() - self._told_at >= EVERY_S:
                version = self._live.version
                processes = await self._processes.states()
                self._told = await self._desk.ask(
                    lambda reader: self._board.refresh(reader, version, processes)
                )
                self._told_at = self._monotonic()
            return self._told

    def close(self) -> None:
        self._desk.close()


def _rate_now(row: Row, now: int) -> float:
    """Events per second. A row that no longer changes has come to rest."""
    at, events = row.marks[0]
    return (row.events - events) * US / (now - at) if now > at and now - row.at < RATE_OVER_US else 0.0


def _standing(row: Row, now: int) -> Standing:
    return Standing(
        row.customer,
        row.plan,
        row.meter,
        exact(row.total),
        maybe(row.share),
        LEVELS[row.level],
        row.words,
        row.events,
        round(_rate_now(row, now), 1),
        exact(row.bill),
    )
