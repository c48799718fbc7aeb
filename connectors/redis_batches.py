"""What each script of a write is to do: totals by bucket and customer, and the holds that end with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from connectors.redis_rows import Keys, bucket_of, field_of, row_of
from operators.ports import Settled
from operators.records import Total

# Rows a script writes: a server does nothing else meanwhile, for a few milliseconds.
SCRIPT_ROWS: Final = 500
# Holds that came to nothing are forgotten by reading anew, so often (µs), which ones still wait.
READ_ANEW_US: Final = 3_600_000_000


class Rows:
    """A customer's rows by field, and when (µs) the last of the periods ends."""

    __slots__ = ("charts", "ends", "periods")

    def __init__(self) -> None:
        self.periods: dict[str, bytes] = {}
        self.charts: dict[str, bytes] = {}
        self.ends = 0

    def __len__(self) -> int:
        return len(self.periods) + len(self.charts)

    def words(self, name: str, now: int, kept: int, ended: Sequence[bytes]) -> list[Any]:
        """As the script takes them. Periods are kept for `kept` (µs) after the last of them, or after now."""
        periods, charts = self.periods, self.charts
        counts = (max(self.ends, now) + kept) // 1_000, len(periods), len(charts), len(ended)
        return [name, *counts, *periods, *periods.values(), *charts, *charts.values(), *ended]


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


def batches_of(totals: Sequence[Total], told: Sequence[str], now: int) -> list[Batch]:
    """All that there is of a customer in one batch, if that is not too much.

    `told` are customers to name in the feed.
    """
    customers: dict[str, Rows] = {name: Rows() for name in told}
    overflow: list[Batch] = []
    for total in totals:
        name, window, meter, start, end = total[:5]
        rows = customers.get(name)
        if rows is None:
            rows = customers[name] = Rows()
        at = field_of(window, start, meter)
        if at in rows.periods or at in rows.charts or len(rows.charts) + len(rows.periods) >= SCRIPT_ROWS:
            # A second reading of the same total is to be judged against the first.
            overflow.append(Batch(bucket_of(name), {name: rows}))
            rows = customers[name] = Rows()
        if window == "period":
            rows.periods[at] = row_of(total, now)
            if end > rows.ends:
                rows.ends = end
        else:
            rows.charts[at] = row_of(total, now)
    return overflow + _grouped(customers)


def _grouped(customers: dict[str, Rows]) -> list[Batch]:
    batches: list[Batch] = []
    latest: dict[int, tuple[Batch, int]] = {}
    for name, rows in customers.items():
        bucket = bucket_of(name)
        batch, size = latest.get(bucket, (None, 0))
        if batch is None or size >= SCRIPT_ROWS:
            batch, size = Batch(bucket), 0
            batches.append(batch)
        batch.customers[name] = rows
        latest[bucket] = batch, size + len(rows) + 1
    return batches


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
        """Holds, as identity and customer in one, and their numbers, by turns."""
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
