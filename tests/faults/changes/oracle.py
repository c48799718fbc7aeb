"""What the flow must have made of the lines that were put before it, whatever changed meanwhile.

Written from docs/semantics.md alone, with fractions and dictionaries. What depends on clocks (too late, ahead of time)
it takes from the dead letters, within bounds of its own. The rest it knows exactly: repeats by identity, refused
quantities, what each meter read, and that the windows of a kind together hold each reading once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

MINUTE = 60 * 1_000_000
HOUR = 60 * MINUTE
NUMERIC = ("sum", "max", "min", "last")
LARGEST = Fraction(10**15)

Value = Fraction | str | bool | None
Identity = tuple[str, str, str]
Key = tuple[str, str]
"""A customer and a meter."""


class Meter(NamedTuple):
    """A meter of the catalog; `key` is empty for counts."""

    name: str
    event_name: str
    kind: str
    key: str = ""
    paid_only: bool = False


class Sent(NamedTuple):
    """An element of a payload: an event, or with `reason` what is refused whatever the catalog says.

    `data` is its JSON text, `values` its properties: numbers exactly, texts, booleans, None where it is something else.
    """

    raw: bytes
    reason: str = ""
    identity: Identity = ("", "", "")
    name: str = ""
    at: int = 0
    data: str = ""
    values: tuple[tuple[str, Value], ...] = ()

    @property
    def customer(self) -> str:
        return self.identity[0]


@dataclass
class Bounds:
    """The settings that were in force so far, at their extremes."""

    lateness_min: int
    future_max: int
    wall_max: int = 0
    wall_min: int = 1 << 62


@dataclass
class Oracle:
    """All that was taken, and what is wrong with what was found."""

    bounds: Bounds
    counters: Counter[str] = field(default_factory=Counter)
    sums: dict[Key, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    greatest: dict[Key, Fraction] = field(default_factory=dict)
    seen: dict[Identity, tuple[str, str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    _letters: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    _now: dict[tuple[str, str], int] = field(default_factory=dict)
    _before: dict[tuple[str, str], int] = field(default_factory=dict)

    def take(
        self, stream: str, sent: Iterable[Sent], meters: list[Meter], dead: Counter[tuple[str, bytes]]
    ) -> None:
        """Account for what was read of a stream, given all dead letters so far."""
        sent = list(sent)
        new = dead - self._letters
        self.wrong += [f"dead letter is gone: {letter}" for letter in self._letters - dead]
        left = Counter(each.raw for each in sent)
        for each in sent:
            left[each.raw] -= 1
            self.counters["events"] += 1
            end = self._end(each, meters, new, left[each.raw], stream)
            if end in ("too_late", "duplicates", "conflicts", "accepted"):
                self.counters[end] += 1
            else:
                self.counters["rejects"] += 1
            reason = {"conflicts": "conflict", "duplicates": "", "accepted": ""}.get(end, end)
            if reason:
                self._lack(each, reason, new)
        # Those of streams that are taken next stay new.
        self._letters = dead - +new

    def finish(self, dead: Counter[tuple[str, bytes]]) -> None:
        """Complain of dead letters that nothing accounts for, once all streams were taken."""
        self.wrong += [f"a dead letter too many: {letter}" for letter in dead - self._letters]

    def _lack(self, sent: Sent, reason: str, new: Counter[tuple[str, bytes]]) -> None:
        if new[reason, sent.raw] < 1:
            self.wrong.append(f"no dead letter {reason} of {sent.raw[:300]!r}")
        new[reason, sent.raw] -= 1

    def _end(
        self, sent: Sent, meters: list[Meter], new: Counter[tuple[str, bytes]], same_left: int, stream: str
    ) -> str:
        if sent.reason:
            return sent.reason
        values = dict(sent.values)
        readings = [meter for meter in meters if _takes(meter, sent.name, values)]
        for meter in readings:
            value = values.get(meter.key)
            if meter.kind in NUMERIC and isinstance(value, Fraction) and not _fits(value):
                return "quantity_out_of_range"
        # Of equal lines the earlier are ahead of time, and the later too late.
        if new["future", sent.raw] > 0:
            if sent.at <= self.bounds.wall_min:
                self.wrong.append(f"future, though it is not: {sent.raw[:300]!r}")
            return "future"
        self._move(sent, stream)
        if new["too_late", sent.raw] > same_left:
            if sent.at >= self._latest(sent.customer) - self.bounds.lateness_min:
                self.wrong.append(f"too late, though it is not: {sent.raw[:300]!r}")
            return "too_late"
        known = self.seen.get(sent.identity)
        if known is not None:
            if self._may_be_forgotten(sent, known[2]):
                self.unsure.add(sent.customer)
                return "conflicts" if new["conflict", sent.raw] > 0 else "accepted"
            return "duplicates" if known[:2] == (sent.name, sent.data) else "conflicts"
        self.seen[sent.identity] = sent.name, sent.data, sent.at
        self._meter(sent, readings, values)
        return "accepted"

    def _may_be_forgotten(self, sent: Sent, seen_at: int) -> bool:
        return seen_at < self._latest(sent.customer) - self.bounds.lateness_min

    def _latest(self, customer: str) -> int:
        """The latest that a customer's now may be; once both clocks were used, floors may be those of others."""
        both = self.bounds.wall_max > 0
        return max(
            [self.bounds.wall_max, *(at for (who, _), at in self._now.items() if both or who == customer)]
        )

    def _move(self, sent: Sent, stream: str) -> None:
        """The latest that now may be: an event moves it by the tolerance beyond the one before, not alone."""
        key = sent.customer, stream
        before = self._before.get(key)
        if before is not None:
            self._now[key] = max(self._now.get(key, 0), min(sent.at, before + self.bounds.future_max))
        self._before[key] = sent.at

    def _meter(self, sent: Sent, readings: list[Meter], values: dict[str, Value]) -> None:
        read = 0
        for meter in readings:
            value = Fraction(1) if meter.kind == "count" else values.get(meter.key)
            if value is None or (meter.kind in NUMERIC and not isinstance(value, Fraction)):
                continue
            read += 1
            self.counters[f"matching:{meter.name}"] += 1
            if isinstance(value, Fraction) and meter.kind != "unique":
                key = sent.customer, meter.name
                self.sums[key] += value
                self.greatest[key] = max(value, self.greatest.get(key, value))
        self.counters["metered" if read else "unmetered"] += 1


def _takes(meter: Meter, name: str, values: dict[str, Value]) -> bool:
    return meter.event_name == name and (not meter.paid_only or values.get("paid") is True)


def _fits(value: Fraction) -> bool:
    return 0 <= value <= LARGEST and (value * 10**24).denominator == 1
