"""Totals in Redis: the store for many machines, many gates, and more than one server can hold.

What lies where is told by connectors/redis/key_layout.py; what is lost and found, by connectors/redis/rebuild.py.
Counters and notes belong to no customer and lie in a slot of their own, with the control log.

Guarantees: what a `write` says of one customer is one script, seen whole or not at all; over several customers a
write is no transaction, as they may live on several servers. A total replaces a stored one only if its version is
newer and it is not a steady total that would go back, digit by digit; a counter only grows; so a replay changes
nothing, nor does the order of writes. One round trip per server. The feed names everybody who was ever
written, each once, by the number of the last write: a time of the server's clock that only grows, past all numbers the
writer has seen. A reader that follows it misses nothing, unless a server's clock is set back while nobody writes.

Limits: 64 buckets, so 64 cluster nodes at most. A server must keep what it is given (`maxmemory-policy noeviction`)
and be of version 7.0 at least. It acknowledges what its replicas and its disk may not have yet; what is lost with it
is noticed at the next write there and asked for again. A row of a chart goes when it began `hours` or `days` before the
customer's newest one of its kind, in groups of 16; a period's when it ended `periods` before the newest began; a newest
one in the future of the server's clock does not count. All of a customer goes when as much time has passed since the
last write (charts), or the end of the last period. A writer or reader is used by one thread at a time.

Source: https://redis.io/docs/latest/develop/programmability/eval-intro/
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.redis import heartbeats as heartbeat_hash
from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.key_layout import BUCKETS, Keys, bucket_of, slot_of
from tidegate.connectors.redis.notes import Notes
from tidegate.connectors.redis.rebuild import Rebuilds
from tidegate.connectors.redis.scripts.write import COUNT, WRITE
from tidegate.connectors.redis.servers import Servers
from tidegate.connectors.redis.write_batches import Batch, Rows, Waiting, batches_of
from tidegate.connectors.redis.write_numbers import Numbers
from tidegate.operators.metering.republish import REPUBLISH_KIND
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Note, Settled, StoreError
from tidegate.operators.model.records import Counter, Total

LOSSES_MAX: Final = 5
FELL_BACK: Final = "fell back behind what it acknowledged"
ROUNDS_MAX: Final = 50
MICROSECOND: Final = timedelta(microseconds=1)
_LOG = logging.getLogger(__name__)

HOURS, DAYS, PERIODS = timedelta(days=8), timedelta(days=92), timedelta(days=400)


class RedisWriter:
    """Writes totals, counters and notes under `prefix`, and keeps charts and periods for these times.

    `resumed` is for the flow to say whether it has totals from before: then a store without any has lost them, else it
    is a new one. Others leave it out, and begin no store. `numbers` is a file of this worker's, in a folder of such
    files, that says at the next start what the store acknowledged. `servers` are the fields of Servers. Raises
    StoreError, after which a part of that write may be stored; writing it again is safe.
    """

    def __init__(
        self,
        *,
        prefix: str = "tidegate",
        hours: timedelta = HOURS,
        days: timedelta = DAYS,
        periods: timedelta = PERIODS,
        resumed: bool | None = None,
        numbers: Path | None = None,
        clock: Callable[[], int] = wall_clock,
        sleep: Callable[[float], None] = time.sleep,
        **servers: Any,
    ) -> None:
        self._redis, self._keys = Redis(Servers(**servers), sleep=sleep), Keys(prefix)
        self._notes, self._rebuilds = Notes(self._redis, self._keys), Rebuilds(self._redis, self._keys)
        self._clock = clock
        self._keep = [kept // MICROSECOND for kept in (hours, days, periods)]
        # Of the last write to each bucket, which it can't fall behind.
        self._numbers = Numbers(numbers, known=bool(resumed))
        self._highest = max(self._numbers.last)
        self._waiting = Waiting(BUCKETS)
        self._redis.check()
        self._take_over(resumed)

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None:
        """Store what is newer. Best in few large calls, of one or few shards each."""
        now = self._clock()
        told = (
            [note.customer for note in self._notes.write(notes, now) if note.kind != REPUBLISH_KIND]
            if notes
            else []
        )
        # Where there are no totals to tell whose events they are, all buckets are asked for holds.
        everywhere = [Batch(bucket) for bucket in range(BUCKETS)] if settled and not totals else []
        self._fly(chain(batches_of(totals, told, now), everywhere), settled, now)
        if counters:
            given = [word for shard, name, value in counters for word in (f"{shard} {name}", value)]
            self._redis.run([COUNT.call(self._keys.control_slot, [self._keys.control("counters")], *given)])
        if heartbeats:
            heartbeat_hash.write(self._redis, self._keys, heartbeats)
        # Only now, as it may end a rebuild that these totals belong to.
        self._rebuilds.report(notes)

    def close(self) -> None:
        self._redis.close()
        self._numbers.close()

    def _fly(self, batches: Iterable[Batch], settled: Sequence[Settled], now: int) -> None:
        """Write batches; repeat those whose bucket has lost something, or has holds that are not known yet."""
        batches = self._place_ended(batches, settled)
        losses = rounds = 0
        while rounds == 0 or batches:
            rounds += 1
            # Where holds come faster than they can be looked at, one made in this moment waits for its own end.
            settles = bool(settled) and rounds < ROUNDS_MAX
            flown: list[Batch] = []
            replies = self._redis.run(self._commands(batches, flown, now, settles))
            lost: dict[int, bytes] = {}
            again: list[Batch] = []
            for batch, reply in zip(flown, replies, strict=True):
                if isinstance(reply, int):
                    self._numbers.last[batch.bucket] = reply
                    self._highest = max(self._highest, reply)
                    self._waiting.forget(chain.from_iterable(batch.ended.values()))
                    continue
                if isinstance(reply, list):
                    self._waiting.learn(batch.bucket, reply)
                elif any(batch.customers.values()):
                    lost[batch.bucket] = reply
                else:
                    # Nobody is told of what happened in a bucket that has nothing.
                    continue
                again.append(batch)
            if lost:
                losses += 1
                self._recover(lost, losses)
            batches = self._place_ended(again, settled)
        self._numbers.keep()

    def _place_ended(self, batches: Iterable[Batch], settled: Sequence[Settled]) -> Iterable[Batch]:
        """Add the holds that these events end to their customers' batches, or to one of the bucket without totals."""
        ended = self._waiting.ended(settled)
        if not ended:
            return batches
        batches = list(batches)
        for customer, identities in ended.items():
            own = [batch for batch in batches if customer in batch.customers]
            of_bucket = [batch for batch in batches if batch.bucket == bucket_of(customer)]
            for batch in own[-1:] or of_bucket[-1:]:
                batch.customers.setdefault(customer, Rows())
                batch.ended[customer] = identities
        return batches

    def _recover(self, lost: dict[int, bytes], losses: int) -> None:
        if losses > LOSSES_MAX:
            raise StoreError(
                f"store {self._redis.servers}: loses what is written, {LOSSES_MAX} times in one write; "
                "see that nothing empties it, and that only one of its servers takes writes"
            )
        gone = {bucket for bucket, word in lost.items() if word == b"lost"}
        # With those that nothing is written to just now, or ever.
        gone |= set(self._rebuilds.unmarked() if gone else ())
        rebuild = self._rebuilds.fill(gone, max(self._numbers.last[bucket] for bucket in lost))
        self._tell(f"is empty in {len(gone)} of {BUCKETS} parts" if gone else FELL_BACK, rebuild)

    def _take_over(self, resumed: bool | None) -> None:
        """Mark unmarked buckets: as empty in a new store, as incomplete in one that existed before."""
        unmarked = self._rebuilds.unmarked()
        if len(unmarked) < BUCKETS:
            # Says what is there of another schema too.
            self._rebuilds.mark(set(range(BUCKETS)) - set(unmarked))
        if resumed is False:
            # Also where some are marked: by another worker that begins the same store just now.
            self._rebuilds.mark(unmarked)
        elif unmarked and resumed:
            self._tell("has lost totals", self._rebuilds.fill(unmarked))
        elif resumed:
            known = list(zip(self._numbers.last, self._rebuilds.newest(), strict=True))
            # What was marked since is filled by whoever marked it.
            self._numbers.last = [0 if born > number else number for number, (born, _) in known]
            if any(max(newest) < number for number, newest in known):
                self._tell(FELL_BACK, self._rebuilds.fill((), self._highest))

    def _tell(self, what: str, rebuild: str) -> None:
        _LOG.warning("store %s: %s; rebuild %s fills it again", self._redis.servers, what, rebuild)
        # All of them, as other buckets will have fallen back too, and are taken care of.
        self._numbers.last = [0] * BUCKETS
        self._numbers.keep()

    def _commands(
        self, batches: Iterable[Batch], flown: list[Batch], now: int, settles: bool
    ) -> Iterator[Command]:
        """Yield a script call for each batch, and note the batch in `flown`."""
        charts_end = (now + max(self._keep[:2])) // 1_000
        for batch in batches:
            bucket = batch.bucket
            last = self._waiting.last(bucket, now) if settles else ""
            given = (self._numbers.last[bucket], self._highest, *self._keep, charts_end, last)
            flown.append(batch)
            yield WRITE.call(
                slot_of(bucket), batch.keys(self._keys), *given, *batch.words(now, self._keep[2])
            )
