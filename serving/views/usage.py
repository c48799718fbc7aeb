"""Everybody's usage by now: a store followed through its change feed, and files through their tails."""

from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidegate.operators.model.ports import Held, StoredTotal, StoreReader
from tidegate.operators.model.records import Total
from tidegate.serving.views.balance import summed

# Counters come once a second and shard, so less would flicker.
RATE_OVER_US = 3_000_000
RECENT = 50


class Moment(NamedTuple):
    """How many events there were at a time (µs since the epoch)."""

    at: int
    events: int


class Tail:
    """The lines that a file has gained, and whole ones only; from the start again where it was cut back.

    A flow that goes on after a kill cuts its files back, and may have written more again by the next look. So the last
    line that was read has to be where it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last, self._last_at = b"", 0

    def lines(self) -> list[bytes]:
        """Return what is new since the last call; all of it where the file is another one than it was."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._last_at)
                if file.read(len(self._last)) != self._last:
                    self._last, self._last_at = b"", file.seek(0)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        if not end:
            return []
        lines = whole.split(b"\n")
        self._last_at += len(self._last) + len(whole) - len(lines[-1])
        self._last = lines[-1] + b"\n"
        return lines


@dataclass
class Usage:
    """Totals of the period that holds now, or else of the latest, holds, counters, alerts and dead letters.

    All are as of `refresh`.

    Totals come as they change, counters about once a second: events in totals may not be counted yet.
    """

    reader: StoreReader
    alerts_file: Path
    dead_letters_file: Path
    totals: dict[str, dict[str, Total]] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=lambda: summed(()))
    alerts: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECENT))
    alert_kinds: Tally[str] = field(default_factory=Tally)
    dead: Tally[str] = field(default_factory=Tally)
    late: int = 0
    as_of: int = 0

    def __post_init__(self) -> None:
        self._seq = 0
        self._alerts = Tail(self.alerts_file)
        self._dead = Tail(self.dead_letters_file)
        self._seen: set[str] = set()
        self._moments: deque[Moment] = deque()

    def refresh(self, now: int) -> None:
        """Read what has changed by `now` (µs since the epoch)."""
        changes = self.reader.changes(self._seq)
        # Before the totals, so that no usage is in neither.
        self.held = self.reader.read_held(now)
        if changes.complete:
            self._take(
                (stored for customer in changes.customers for stored in self.reader.read(customer)), now
            )
        else:
            self._take(self.reader.totals(), now)
        self._seq = changes.seq
        counters = list(self.reader.counters())
        self.sums = summed(counters)
        self._moments.append(Moment(now, self.sums["events"]))
        while self._moments[0].at < now - RATE_OVER_US:
            self._moments.popleft()
        for alert in self._new(self._alerts.lines()):
            self.alerts.append(alert)
            self.alert_kinds[alert["kind"]] += alert["state"] != "resolved"
        self.dead.update(letter["reason"] for letter in self._new(self._dead.lines()))

    def rate(self) -> float:
        """Events per second over the last three seconds or so."""
        first, last = (self._moments[0], self._moments[-1]) if self._moments else (Moment(0, 0), Moment(0, 0))
        return (last.events - first.events) * 1e6 / (last.at - first.at) if last.at > first.at else 0.0

    def total(self, customer: str, meter: str) -> Decimal:
        """Return the quantity of that period; 0 where there is none."""
        total = self.totals.get(customer, {}).get(meter)
        return Decimal(total.total) if total else Decimal(0)

    def _take(self, stored: Iterable[StoredTotal], now: int) -> None:
        for total, _ in stored:
            if total.window != "period":
                continue
            meters = self.totals.setdefault(total.customer, {})
            shown = meters.get(total.meter)
            # They come by start, and one of a wrong clock may begin years later.
            if shown is None or total.start <= now < total.end or not shown.start <= now < shown.end:
                meters[total.meter] = total
            self.as_of = max(self.as_of, total.as_of)
        self.late = sum(total.late for meters in self.totals.values() for total in meters.values())

    def _new(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """Return the records of the lines, without those that a replay repeats."""
        for line in lines:
            record = msgspec.json.decode(line, type=dict[str, Any])
            if record["id"] not in self._seen:
                self._seen.add(record["id"])
                yield record
