"""What each script of a write is to do: totals by bucket and customer, and the holds that end with them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, Final

import numpy as np

from tidegate.connectors.redis.key_layout import Keys, bucket_of, field_of, fields_of, row_of, rows_of
from tidegate.operators.metering.totals import ShardTotals, Totals
from tidegate.operators.metering.windows import PERIOD_WINDOW, key_of, window_of
from tidegate.operators.model.ports import Settled
from tidegate.operators.model.records import Total

# Rows a script writes: a server does nothing else meanwhile, for a few milliseconds.
SCRIPT_ROWS: Final = 500
# Holds that came to nothing are forgotten by reading anew, so often (µs), which ones still wait.
READ_ANEW_US: Final = 3_600_000_000


@dataclass(slots=True)
class Rows:
    """Rows of one customer, names and contents, and when (µs) the last of the periods ends."""

    chart_fields: Sequence[str] = ()
    charts: Sequence[bytes] = ()
    period_fields: Sequence[str] = ()
    periods: Sequence[bytes] = ()
    ends: int = 0

    def __len__(self) -> int:
        return len(self.periods) + len(self.charts)

    def words(self, name: str, now: int, kept: int, ended: Sequence[bytes]) -> list[Any]:
        """As the script takes them. Periods are kept for `kept` (µs) after the last of them, or after now."""
        counts = (max(self.ends, now) + kept) // 1_000, len(self.periods), len(self.charts), len(ended)
        return [
            name, *counts, *self.period_fields, *self.periods, *self.chart_fields, *self.charts, *ended
        ]  # fmt: skip


@dataclass
class Batch:
    """What one script writes: some customers of a bucket, by name; and the holds that end, by customer."""

    bucket: int
    customers: dict[str, Rows] = field(default_factory=dict)
    ended: dict[str, list[bytes]] = field(default_factory=dict)

    def keys(self, keys: Keys) -> list[str]:
        names = [keys.state(self.bucket), keys.index(self.bucket), keys.waiting(self.bucket)]
        for name in self.customers:
            names += keys.periods(self.bucket, name), keys.charts(self.bucket, name)
            if name in self.ended:
                names += keys.holds(self.bucket, name)
        return names

    def words(self, now: int, kept: int) -> list[Any]:
        words: list[Any] = []
        for name, rows in self.customers.items():
            words += rows.words(name, now, kept, self.ended.get(name, ()))
        return words


def batches_of(totals: Sequence[Total], told: Iterable[str], now: int) -> Iterator[Batch]:
    """All that one part has of a customer in one batch, if that is not too much. `told` are more to name in the feed.

    They are made while they are asked for, so that a server may work on the first while the last is made.
    """
    if isinstance(totals, Totals):
        for part in totals.parts:
            yield from _grouped(_of_part(part, now))
    else:
        for layer in _layers(totals):
            yield from _grouped(_one_by_one(layer, now))
    yield from _grouped((name, Rows()) for name in told)


def _of_part(part: ShardTotals, now: int) -> Iterator[tuple[str, Rows]]:
    """Return a part's rows by customer. Those of a customer stand side by side, the periods behind the charts."""
    customer = key_of(part.place)
    is_period = window_of(part.place) == PERIOD_WINDOW
    first = np.flatnonzero(np.concatenate(([True], customer[1:] != customer[:-1])))
    cuts = _cut(np.append(first, len(customer)))
    periods = np.add.reduceat(is_period, cuts[:-1], dtype=np.int64).tolist()
    ends = np.maximum.reduceat(np.where(is_period, part.end, 0), cuts[:-1]).tolist()
    names = [part.names[each] for each in customer[cuts[:-1]].tolist()]
    fields, rows = fields_of(part), rows_of(part, now)
    for (begin, end), name, count, last in zip(pairwise(cuts.tolist()), names, periods, ends, strict=True):
        middle = end - count
        yield name, Rows(fields[begin:middle], rows[begin:middle], fields[middle:end], rows[middle:end], last)


def _cut(cuts: Any) -> Any:
    """Return the cuts, with more of them where a customer has more rows than a script writes."""
    wide = np.flatnonzero(np.diff(cuts) > SCRIPT_ROWS).tolist()
    more = [np.arange(cuts[at] + SCRIPT_ROWS, cuts[at + 1], SCRIPT_ROWS) for at in wide]
    return np.sort(np.concatenate([cuts, *more])) if more else cuts


def _layers(totals: Iterable[Total]) -> Iterable[list[Total]]:
    """Split the totals into layers without repeats: a second reading of one is compared with the first."""
    turns: dict[tuple[object, ...], int] = {}
    layers: dict[int, list[Total]] = {}
    for total in totals:
        turn = turns[total[:4]] = turns.get(total[:4], -1) + 1
        layers.setdefault(turn, []).append(total)
    return layers.values()


def _one_by_one(totals: list[Total], now: int) -> Iterator[tuple[str, Rows]]:
    """Return the rows by customer, of totals in any order."""
    for name, own in groupby(sorted(totals, key=itemgetter(0)), itemgetter(0)):
        all_own = list(own)
        for begin in range(0, len(all_own), SCRIPT_ROWS):
            some = all_own[begin : begin + SCRIPT_ROWS]
            charts = [total for total in some if total.window != "period"]
            periods = [total for total in some if total.window == "period"]
            yield (
                name,
                Rows(
                    [field_of(total.window, total.start, total.meter) for total in charts],
                    [row_of(total, now) for total in charts],
                    [field_of(total.window, total.start, total.meter) for total in periods],
                    [row_of(total, now) for total in periods],
                    max((total.end for total in periods), default=0),
                ),
            )


def _grouped(customers: Iterable[tuple[str, Rows]]) -> Iterator[Batch]:
    """By bucket, as many as a script writes at once, or a little more; a customer at most once in a batch."""
    open_batches: dict[int, tuple[Batch, int]] = {}
    for name, rows in customers:
        bucket = bucket_of(name)
        batch, size = open_batches.get(bucket) or (Batch(bucket), 0)
        if name in batch.customers or size >= SCRIPT_ROWS:
            yield batch
            batch, size = Batch(bucket), 0
        batch.customers[name] = rows
        open_batches[bucket] = batch, size + len(rows) + 1
    yield from (batch for batch, _ in open_batches.values())


class Waiting:
    """The holds that wait for their events, as far as a writer knows; and the number of the last one, per bucket.

    A write costs next to nothing while there are none, and a set look-up per event while there are.
    """

    def __init__(self, buckets: int) -> None:
        self._last = ["0"] * buckets
        self._by_word: dict[int, dict[bytes, str]] = {}
        self._since = 0

    def last(self, bucket: int, now: int) -> str:
        if now > self._since + READ_ANEW_US:
            self._last, self._by_word, self._since = ["0"] * len(self._last), {}, now
        return self._last[bucket]

    def learn(self, bucket: int, holds: Sequence[bytes]) -> None:
        """Remember holds, given as identity with customer and number by turns."""
        for hold in holds[::2]:
            self._by_word.setdefault(int.from_bytes(hold[:8], "little"), {})[hold[:16]] = hold[16:].decode()
        self._last[bucket] = holds[-1].decode()

    def ended(self, settled: Iterable[Settled]) -> dict[str, list[bytes]]:
        """Those whose events these are, by customer."""
        found: dict[str, list[bytes]] = {}
        if not self._by_word:
            return found
        for events in settled:
            words = events.lo.tolist()
            hits = self._by_word.keys() & set(words)
            for place, lo in enumerate(words) if hits else ():
                if lo in hits:
                    identity = lo.to_bytes(8, "little") + int(events.hi[place]).to_bytes(8, "little")
                    if (customer := self._by_word[lo].get(identity)) is not None:
                        found.setdefault(customer, []).append(identity)
        return found

    def forget(self, identities: Iterable[bytes]) -> None:
        for identity in identities:
            word = int.from_bytes(identity[:8], "little")
            self._by_word.get(word, {}).pop(identity, None)
            if not self._by_word.get(word, True):
                del self._by_word[word]
