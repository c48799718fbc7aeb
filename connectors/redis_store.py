"""Totals in Redis: the store for many machines, many gates, and more than one server can hold.

What lies where is told by connectors/redis_rows.py; what is lost and found, by connectors/redis_rebuild.py. Counters
and notes belong to no customer and lie in a slot of their own, with the control log.

Guarantees: what a `write` says of one customer is one script, seen whole or not at all; over several customers a
write is no transaction, as they may live on several servers. A total replaces a stored one only if its version is
newer and it is not a steady total that would go back, digit by digit; a counter only grows; so a replay changes
nothing, nor does the order of writes. One round trip per server and FLIGHT rows. The feed names everybody who was ever
written, each once, by the number of the last write: a time of the server's clock that only grows, past all numbers the
writer has seen. A reader that follows it misses nothing, unless a server's clock is set back while nobody writes.

Limits: 64 buckets, so 64 cluster nodes at most. A server must keep what it is given (`maxmemory-policy noeviction`)
and be of version 7.0 at least. It acknowledges what its replicas and its disk may not have yet; what is lost with it
is noticed at the next write there and asked for again. A row of a chart goes when it began `hours` or `days` before the
customer's newest one of its kind, in groups of 16; a period's when it ended `periods` before the newest began; all of
a customer when as much time has passed since the last write (charts), or the end of the last period. A writer or
reader is used by one thread at a time.

Source: https://redis.io/docs/latest/develop/programmability/eval-intro/
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from connectors.clock import wall_clock
from connectors.redis_client import Command, Redis
from connectors.redis_notes import Notes
from connectors.redis_rebuild import Rebuilds
from connectors.redis_rows import BUCKETS, Keys, bucket_of, field_of, row_of, slot_of
from connectors.redis_scripts import COUNT, WRITE
from connectors.redis_servers import Servers
from operators.ports import Note, Settled, StoreError
from operators.records import Counter, Total
from operators.resends import RESEND

# Rows a script writes: a server does nothing else meanwhile, for a few milliseconds.
SCRIPT_ROWS: Final = 500
FLIGHT_SCRIPTS: Final = 64
LOSSES_MAX: Final = 5
MICROSECOND: Final = timedelta(microseconds=1)
HOURS, DAYS, PERIODS = timedelta(days=8), timedelta(days=92), timedelta(days=400)


class RedisWriter:
    """Writes totals, counters and notes under `prefix`, and keeps charts and periods for these times.

    `resumed` says that the flow has totals from before, so that a store without any has lost them. `servers` are the
    fields of Servers. Raises StoreError, after which a part of that write may be stored; writing it again is safe.
    """

    def __init__(
        self,
        *,
        prefix: str = "tidegate",
        hours: timedelta = HOURS,
        days: timedelta = DAYS,
        periods: timedelta = PERIODS,
        resumed: bool = False,
        clock: Callable[[], int] = wall_clock,
        sleep: Callable[[float], None] = time.sleep,
        **servers: Any,
    ) -> None:
        self._redis, self._keys = Redis(Servers(**servers), sleep=sleep), Keys(prefix)
        self._notes, self._rebuilds = Notes(self._redis, self._keys), Rebuilds(self._redis, self._keys)
        self._clock = clock
        self._keep = [kept // MICROSECOND for kept in (hours, days, periods)]
        # The number of this writer's last write to each bucket, which the bucket can't fall behind; the highest of all.
        self._written = [0] * BUCKETS
        self._highest = 0
        self._redis.check()
        self._take_over(resumed)

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
    ) -> None:
        """Stores what is newer. Best in few large calls, of one or few shards each."""
        now = self._clock()
        told = (
            [note.customer for note in self._notes.write(notes, now) if note.kind != RESEND] if notes else []
        )
        batches = batches_of(totals, told, now, self._keep[2])
        for at in range(0, len(batches), FLIGHT_SCRIPTS):
            self._fly(batches[at : at + FLIGHT_SCRIPTS], now)
        if counters:
            given = [word for shard, name, value in counters for word in (f"{shard} {name}", value)]
            self._redis.run([COUNT.call(self._keys.control_slot, [self._keys.control("counters")], *given)])
        # Only now, as it may end a rebuild that these totals belong to.
        self._rebuilds.report(notes)

    def close(self) -> None:
        self._redis.close()

    def _fly(self, batches: "list[Batch]", now: int) -> None:
        """Writes them, those to a bucket that turns out to have lost something once more."""
        for _ in range(LOSSES_MAX):
            replies = self._redis.run([self._command(batch, now) for batch in batches])
            lost: dict[int, bytes] = {}
            for (bucket, _), reply in zip(batches, replies, strict=True):
                if isinstance(reply, bytes):
                    lost[bucket] = reply
                else:
                    self._written[bucket] = reply
                    self._highest = max(self._highest, reply)
            if not lost:
                return
            self._recover(lost)
            batches = [batch for batch in batches if batch[0] in lost]
        raise StoreError(
            f"store {self._redis.servers}: loses what is written, {LOSSES_MAX} times in one write; "
            "see that nothing empties it, and that only one of its servers takes writes"
        )

    def _recover(self, lost: dict[int, bytes]) -> None:
        gone = [bucket for bucket, word in lost.items() if word == b"lost"]
        self._rebuilds.fill(gone, max(self._written[bucket] for bucket in lost))
        # All of them, as the others will have fallen back too, and are taken care of.
        self._written = [0] * BUCKETS

    def _take_over(self, resumed: bool) -> None:
        """Marks what has no mark: as empty in a new store, as incomplete in one that there was before."""
        unmarked = self._rebuilds.unmarked()
        if (resumed and unmarked) or 0 < len(unmarked) < BUCKETS:
            self._rebuilds.fill(unmarked)
        self._rebuilds.mark(range(BUCKETS))

    def _command(self, batch: "Batch", now: int) -> Command:
        bucket, customers = batch
        keys = [self._keys.state(bucket), self._keys.index(bucket)]
        given: list[Any] = [
            self._written[bucket],
            self._highest,
            *self._keep,
            (now + max(self._keep[:2])) // 1_000,
        ]
        for name, words in customers:
            keys += self._keys.periods(bucket, name), self._keys.charts(bucket, name)
            given.append(name)
            given += words
        return WRITE.call(slot_of(bucket), keys, *given)


Batch = tuple[int, list[tuple[str, list[Any]]]]
"""A bucket and some of its customers, with what the script is to write of each."""


def batches_of(totals: Sequence[Total], told: Sequence[str], now: int, kept: int) -> list[Batch]:
    """What one script each writes: of one bucket, with all that there is of a customer, if that is not too much.

    `told` are customers to name in the feed. Periods are `kept` (µs) after their end, or after `now`.
    """
    customers: dict[str, _Rows] = {name: _Rows() for name in told}
    overflow: list[Batch] = []
    for total in totals:
        rows = customers.get(total[0])
        if rows is None:
            rows = customers[total[0]] = _Rows()
        field = field_of(total[1], total[3], total[2])
        into = rows.periods if total[1] == "period" else rows.charts
        if field in into or len(into) == SCRIPT_ROWS:
            # A second reading of the same total is to be judged against the first.
            overflow.append((bucket_of(total[0]), [(total[0], rows.words(kept))]))
            rows = customers[total[0]] = _Rows()
            into = rows.periods if total[1] == "period" else rows.charts
        into[field] = row_of(total, now)
        if into is rows.periods:
            rows.ends = max(rows.ends, total[4], now)
    return overflow + _grouped(customers, kept)


class _Rows:
    """A customer's rows by field, and when (µs) the last of the periods ends."""

    __slots__ = ("charts", "ends", "periods")

    def __init__(self) -> None:
        self.periods: dict[str, bytes] = {}
        self.charts: dict[str, bytes] = {}
        self.ends = 0

    def words(self, kept: int) -> list[Any]:
        """As the script takes them, behind the customer's name."""
        periods, charts = self.periods, self.charts
        counts = (self.ends + kept) // 1_000, len(periods), len(charts)
        return [*counts, *periods, *periods.values(), *charts, *charts.values()]


def _grouped(customers: dict[str, _Rows], kept: int) -> list[Batch]:
    batches: list[Batch] = []
    latest: dict[int, tuple[list[tuple[str, list[Any]]], int]] = {}
    for name, rows in customers.items():
        bucket = bucket_of(name)
        group, size = latest.get(bucket, ([], SCRIPT_ROWS))
        if size >= SCRIPT_ROWS:
            group, size = [], 0
            batches.append((bucket, group))
        group.append((name, rows.words(kept)))
        latest[bucket] = group, size + len(rows.periods) + len(rows.charts) + 1
    return batches
