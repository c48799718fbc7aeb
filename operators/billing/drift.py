"""Drift: by how much our total and the billing provider's total differ, and what causes each part of the difference.

Neither side can state its total as of an instant. The comparison therefore starts with a bracket: the range of totals
that the provider may correctly report between two instants, given what waits in the outbox and what was acknowledged
too recently to be visible. Only a total outside its bracket is examined event by event: the ids of both sides are
compared, and each difference gets a cause. Quantities are integers times 10²⁴, so nothing is rounded; drift is our
total minus the provider's.
Source: Dodo Payments' reads have no as-of parameter, see docs/semantics.md, "Drift".
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from tidegate.operators.model.aggregates import ADDITIVE, AGGREGATES, Kind, fold_readings

Cause = Literal[
    "in_flight",
    "too_old",
    "rejected",
    "missing_there",
    "missing_here",
    "extra_there",
    "doubled_there",
    "differs_there",
    "skewed_there",
    "boundary",
    "billed_elsewhere",
    "second_subscription",
    "billed_twice",
    "meter_archived",
    "meter_differs",
    "not_on_plan",
    "gap",
    "no_subscription",
    "late_after_close",
    "adjusted_here",
    "unexplained",
]
Fate = Literal["waiting", "acknowledged", "parked", "refused", "dropped"]
# How far the provider's clock may differ from ours, in µs.
CLOCK_SKEW_MAX = 300_000_000
# The detail of an event that the provider lists outside the period.
IN_ANOTHER_PERIOD = "the provider has it in another period"
# The detail of an event that our total includes although it belongs to another of our periods.
OF_ANOTHER_PERIOD = "counted here, of another period"
# The outbox's reasons for holding an event back, as causes; every other reason is `rejected`.
HELD_BACK_CAUSES: dict[str, Cause] = {
    "too_old": "too_old",
    "last_value": "too_old",
    "period_closed": "late_after_close",
}


class Span(NamedTuple):
    """A half-open period [start, end) in µs since the epoch."""

    start: int
    end: int

    def __contains__(self, at: object) -> bool:
        return isinstance(at, int) and self.start <= at < self.end


class InFlight(NamedTuple):
    """A quantity in flight: when the event entered the outbox, and when a request first carried it."""

    quantity: int
    queued_at: int
    sent_at: int | None


class Bracket(NamedTuple):
    """The range of totals that the provider may correctly report, both ends included."""

    low: int
    high: int

    def distance_to(self, total: int) -> int:
        """Return how far a total lies outside: positive if the provider has too little, negative if it has too much."""
        return max(self.low - total, 0) + min(self.high - total, 0)


def compute_bracket(
    kind: Kind, before: int, after: int, flights: Iterable[InFlight], answered_at: int, lag: int
) -> Bracket | None:
    """Return the bracket of a total that was `before` when the provider was asked and `after` when it had answered.

    `flights` are all events that waited or were acknowledged too recently to be visible, as read after the answer;
    `lag` is how long the store may take to show what the outbox has. Returns None if nothing can be said because the
    total is changing.
    """
    flights = list(flights)
    # An event queued recently may already be at the provider and enter our total only later.
    lately = [one for one in flights if one.queued_at > answered_at - lag]
    sent_lately = [one.quantity for one in lately if one.sent_at is not None and one.sent_at <= answered_at]
    if kind in ADDITIVE:
        low = before - sum(one.quantity for one in flights)
        unsent = sum(
            one.quantity
            for one in flights
            if (one.sent_at is None or one.sent_at > answered_at) and one.queued_at <= answered_at - lag
        )
        return Bracket(low, max(after - unsent + sum(sent_lately), low))
    if AGGREGATES[kind].fold == "greatest":
        # The greatest value has arrived unless it is in flight; then the provider may have nothing at all.
        arrived = all(one.quantity < before for one in flights)
        return Bracket(before if arrived else 0, max([after, *sent_lately]))
    return Bracket(after, after) if before == after and not flights else None


class OwnEvent(NamedTuple):
    """An event as our billing records have it.

    `provider_at` is the event's time at the provider, which differs from `at` if it was sent late without its own time.
    `quantity` is what the meter reads from it, None if it reads nothing or the event's bytes are gone.
    """

    id: str
    at: int
    provider_at: int
    fate: Fate
    reason: str
    quantity: int | None
    queued_at: int
    sent_at: int | None = None
    settled_at: int | None = None


class ProviderEvent(NamedTuple):
    """An event as the provider lists it. `fingerprint` is equal for events of equal name, time and properties."""

    id: str
    at: int
    quantity: int | None
    fingerprint: bytes


class Evidence(NamedTuple):
    """All that is known about a total of a customer, meter and period.

    It is read in the order `before`, `provider_total`, `provider_events`, `own_events`, `after`.

    - `own_period`, `provider_period`: the period on both sides, which should be the same.
    - `before`, `after`: our total including adjustments of `adjusted` in all, `adopted` of them by reconciliation.
    - `provider_total`: the provider's total; `provider_events`: its events in and around its period, with copies.
    - `own_events`: our events in and around both periods; complete for events of `records_since` or later.
    - `pending_rollup`: the quantity that is being rolled up and has no event yet.
    - `shown_until`: events acknowledged later than this may not be visible yet.
    - `store_lag`: the `lag` of the bracket; `read_at`: when `own_events` was read.
    - `meter_created_at`: the provider's meter counts nothing that arrived earlier; `is_archived`: it no longer counts.
    """

    kind: Kind
    own_period: Span
    provider_period: Span
    before: int
    after: int
    adjusted: int
    adopted: int
    provider_total: int
    provider_events: Sequence[ProviderEvent]
    own_events: Sequence[OwnEvent]
    records_since: int
    shown_until: int
    read_at: int
    store_lag: int = 0
    pending_rollup: int = 0
    meter_created_at: int = 0
    is_archived: bool = False


class Finding(NamedTuple):
    """One cause of drift, its part of the quantity (None if unknown), and the events that show it."""

    cause: Cause
    quantity: int | None
    ids: tuple[str, ...] = ()
    detail: str = ""


def explain(evidence: Evidence) -> list[Finding]:
    """Return the causes of the drift of one total; their quantities add up to the drift as far as they are known.

    `unexplained` is the remainder; `in_flight` covers 0 or more if something is in flight. For `max` and `last`, which
    do not add up, only the events that differ are named.
    """
    found = _FindingsBuilder()
    events = _EventIndex(evidence)
    _compare_ids(evidence, events, found)
    if evidence.kind in ADDITIVE:
        _compare_history(evidence, events, found)
        _compare_store(evidence, events, found)
        if evidence.adjusted:
            found.add("adjusted_here", evidence.adjusted)
        _explain_rest(evidence, events, found)
    else:
        _compare_extremes(evidence, events, found)
    return found.build()


def name_gaps(
    findings: Iterable[Finding], own: Mapping[str, OwnEvent], billed: Collection[Span]
) -> list[Finding]:
    """Return the findings, with events that lie in none of the provider's `billed` periods split off as `gap`."""
    found: list[Finding] = []
    for one in findings:
        lost = [id for id in one.ids if id in own and not any(own[id].provider_at in span for span in billed)]
        if one.detail != IN_ANOTHER_PERIOD or not lost:
            found.append(one)
            continue
        quantity = None if one.quantity is None else sum(own[id].quantity or 0 for id in lost)
        if kept := tuple(id for id in one.ids if id not in lost):
            rest = None if one.quantity is None or quantity is None else one.quantity - quantity
            found.append(one._replace(quantity=rest, ids=kept))
        found.append(Finding("gap", quantity, tuple(lost), "the provider has it in none of its periods"))
    return found


class _FindingsBuilder:
    """Collects findings by cause and detail."""

    def __init__(self) -> None:
        self._ids: dict[tuple[Cause, str], list[str]] = {}
        self._sums: dict[tuple[Cause, str], int | None] = {}

    def add(self, cause: Cause, quantity: int | None, ids: Iterable[str] = (), detail: str = "") -> None:
        """Add a quantity and events to the finding of this cause and detail; None makes the quantity unknown."""
        key = cause, detail
        known = self._sums.setdefault(key, 0)
        self._sums[key] = None if known is None or quantity is None else known + quantity
        self._ids.setdefault(key, []).extend(ids)

    def sum_explained(self) -> int:
        """Return the quantity that is explained so far."""
        return sum(quantity for quantity in self._sums.values() if quantity is not None)

    def list_unquantified(self) -> list[tuple[Cause, str]]:
        """Return the findings whose quantity does not follow from their events."""
        return [key for key, quantity in self._sums.items() if quantity is None]

    def set_quantity(self, key: tuple[Cause, str], quantity: int) -> None:
        """Set the quantity of one finding."""
        self._sums[key] = quantity

    def build(self) -> list[Finding]:
        """Return the findings that have a quantity or events."""
        return [
            Finding(cause, quantity, tuple(self._ids[cause, detail]), detail)
            for (cause, detail), quantity in self._sums.items()
            if quantity != 0 or self._ids[cause, detail]
        ]

    def keep_events(self, matters: Callable[[str], bool]) -> None:
        """Drop the events that do not matter, and all quantities, because they do not add up."""
        for key, ids in list(self._ids.items()):
            self._sums[key], self._ids[key] = None, [id for id in ids if matters(id)]
            if not self._ids[key]:
                del self._sums[key], self._ids[key]

    def __bool__(self) -> bool:
        return bool(self._sums)


class _EventIndex:
    """The events of both sides by id, and those in flight."""

    def __init__(self, evidence: Evidence) -> None:
        self.own_by_id = {event.id: event for event in evidence.own_events}
        self.own_inside = [event for event in self.own_by_id.values() if event.at in evidence.own_period]
        self.provider_by_id: dict[str, ProviderEvent] = {}
        for event in evidence.provider_events:
            self.provider_by_id.setdefault(event.id, event)
        self.provider_inside = [
            event for event in evidence.provider_events if event.at in evidence.provider_period
        ]
        self.copies = Counter(event.id for event in self.provider_inside)
        self.in_flight = [
            event for event in self.own_inside if self._is_in_flight(event, evidence.shown_until)
        ]
        self.in_flight_ids = {event.id for event in self.in_flight}
        # Before our billing records begin, an event whose id looks like ours counts as ours.
        self.unrecorded = [
            event
            for event in self.list_distinct_inside()
            if event.id not in self.own_by_id and event.at < evidence.records_since and is_own_id(event.id)
        ]
        self.unrecorded_ids = {event.id for event in self.unrecorded}

    @staticmethod
    def _is_in_flight(event: OwnEvent, quiet: int) -> bool:
        if event.fate == "waiting":
            return True
        return event.fate == "acknowledged" and event.settled_at is not None and event.settled_at > quiet

    def list_distinct_inside(self) -> Iterator[ProviderEvent]:
        """Return the provider's events in the period, copies once."""
        return iter({event.id: event for event in self.provider_inside}.values())

    def list_unknown(self) -> list[ProviderEvent]:
        """Return the provider's events in the period that our billing records do not have, copies once."""
        known = self.own_by_id.keys() | self.unrecorded_ids
        return [event for event in self.list_distinct_inside() if event.id not in known]


def is_own_id(id: str) -> bool:
    """Return whether an id looks like one that we assign: 32 hex digits, then the hour or a revision."""
    digest, dash, rest = id.partition("-")
    return len(digest) == 32 and bool(dash and rest) and all(c in "0123456789abcdef" for c in digest)


def _compare_ids(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Find the events that only one side has, or that the sides have differently."""
    _compare_own(evidence, events, found)
    _compare_known(evidence, events, found)
    _find_unknown(events, found)


def _compare_own(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Compare each of our events in the period with what the provider has of it."""
    for event in events.own_inside:
        listed = events.provider_by_id.get(event.id)
        if listed is not None and listed.at in evidence.provider_period:
            if None not in (listed.quantity, event.quantity) and listed.quantity != event.quantity:
                found.add("differs_there", (event.quantity or 0) - (listed.quantity or 0), [event.id])
        elif event.fate in ("parked", "refused", "dropped"):
            _find_held_back(evidence, event, found)
        elif event.id in events.in_flight_ids or event.quantity is None:
            continue
        elif listed is not None or event.provider_at not in evidence.provider_period:
            is_same = listed is None or listed.at == event.at
            found.add(
                "boundary" if is_same else "billed_elsewhere", event.quantity, [event.id], IN_ANOTHER_PERIOD
            )
        else:
            found.add("missing_there", event.quantity, [event.id])


def _find_held_back(evidence: Evidence, event: OwnEvent, found: _FindingsBuilder) -> None:
    """Name an event of ours that was not sent, by the reason why."""
    if event.quantity is None and event.fate != "dropped":
        return
    cause = HELD_BACK_CAUSES.get(event.reason, "rejected")
    if cause == "too_old" and event.queued_at >= evidence.provider_period.end:
        cause = "late_after_close"
    found.add(cause, event.quantity, [event.id], event.reason)


def _compare_known(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Find the provider's events that it has more than once, or counts in another period than we do."""
    for there in events.list_distinct_inside():
        if there.quantity is None:
            continue
        if (more := events.copies[there.id] - 1) > 0:
            # The id is repeated for each surplus copy, because each copy is settled separately.
            found.add("doubled_there", -there.quantity * more, [there.id] * more, "twice under one id")
        known = events.own_by_id.get(there.id)
        if known is not None and known.at not in evidence.own_period:
            cause: Cause = "boundary" if known.at == there.at else "billed_elsewhere"
            found.add(cause, -there.quantity, [there.id], "counted here in another period")


def _find_unknown(events: _EventIndex, found: _FindingsBuilder) -> None:
    """Find the provider's events that we do not know, and of these the copies of those that we do."""
    marks = {
        there.fingerprint
        for there in events.provider_inside
        if there.id in events.own_by_id or there.id in events.unrecorded_ids
    }
    for there in events.list_unknown():
        if there.quantity is not None:
            is_twin = there.fingerprint in marks
            words = "the same event under another id" if is_twin else ""
            found.add("doubled_there" if is_twin else "extra_there", -there.quantity, [there.id], words)


def _compare_history(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Compare the provider's total with the events that it lists."""
    listed = sum(event.quantity or 0 for event in events.provider_inside)
    settled = sum(
        event.quantity or 0 for event in events.provider_inside if event.id not in events.in_flight_ids
    )
    if evidence.provider_total > listed:
        found.add(
            "skewed_there",
            listed - evidence.provider_total,
            (),
            "its total is greater than the sum of its events",
        )
    lacking = settled - evidence.provider_total
    if lacking <= 0:
        return
    counted = [event for event in events.provider_inside if event.quantity]
    late = [
        event
        for event in counted
        if _is_late_arrival(events.own_by_id.get(event.id), evidence.provider_period)
    ]
    early = [event for event in counted if event.at < evidence.meter_created_at]
    if evidence.is_archived and (ids := _find_last_settled(counted, events.own_by_id, lacking)):
        found.add("meter_archived", lacking, ids, "they arrived after its meter was archived")
    elif evidence.is_archived:
        found.add("meter_archived", lacking, (), "its meter is archived and no longer counts")
    elif late and (ids := _find_last_settled(late, events.own_by_id, lacking)):
        found.add("late_after_close", lacking, ids, "it lists them but no longer counts them")
    elif early and sum(event.quantity or 0 for event in early) == lacking:
        ids = [event.id for event in early]
        found.add("skewed_there", lacking, ids, "it lists them but created the meter later")
    else:
        found.add("skewed_there", lacking, (), "its total is less than the sum of its events")


def _find_last_settled(
    counted: Iterable[ProviderEvent], own: Mapping[str, OwnEvent], quantity: int
) -> list[str]:
    """Return the events that arrived last and add up to exactly this quantity, none if there are no such events."""
    known = [(own[one.id].settled_at or 0, one) for one in counted if one.id in own]
    known.sort(key=lambda pair: pair[0], reverse=True)
    totals = accumulate(one.quantity or 0 for _, one in known)
    for count, total in enumerate(totals, 1):
        if total == quantity:
            return [one.id for _, one in known[:count]]
    return []


def _is_late_arrival(event: OwnEvent | None, theirs: Span) -> bool:
    # The period ends by the provider's clock, so the last minutes before its end by our clock count too.
    return (
        event is not None and event.settled_at is not None and event.settled_at >= theirs.end - CLOCK_SKEW_MAX
    )


def _compare_store(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Compare our total with our events."""
    counted = [event for event in events.own_inside if event.quantity is not None]
    booked = sum(event.quantity or 0 for event in counted) + evidence.pending_rollup
    booked += sum(event.quantity or 0 for event in events.unrecorded)
    # Events queued within the store's lag need not be in the store yet.
    fresh = sum(
        event.quantity or 0 for event in counted if event.queued_at > evidence.read_at - evidence.store_lag
    )
    before, after = evidence.before - evidence.adjusted, evidence.after - evidence.adjusted
    if booked - fresh > after:
        lacking = booked - after
        moved = _find_moved(evidence, events.own_by_id.values(), lacking, inside=True)
        words = "counted here in another period" if moved else ""
        found.add("boundary" if moved else "missing_here", -lacking, moved, words)
    elif booked < before and not any(event.fate == "dropped" for event in events.own_inside):
        beyond = before - booked
        moved = _find_moved(evidence, events.own_by_id.values(), beyond, inside=False)
        if moved:
            found.add("boundary", beyond, moved, OF_ANOTHER_PERIOD)
        elif evidence.own_period.start >= evidence.records_since:
            found.add("unexplained", beyond, (), "our total is greater than our billing records")


def _find_moved(evidence: Evidence, own: Iterable[OwnEvent], quantity: int, *, inside: bool) -> list[str]:
    """Return the events next to a boundary that add up to exactly this quantity, none if there are no such events.

    They were counted before the boundary moved to its present place.
    """
    own = [event for event in own if event.quantity]
    if inside:
        beside = [event for event in own if event.at in evidence.own_period]
        if not any(event.at < evidence.own_period.start for event in own):
            # No period before the boundary can have counted them.
            return []
    else:
        beside = [event for event in own if event.at >= evidence.own_period.end]
    beside.sort(key=lambda event: event.queued_at)
    for count, total in enumerate(accumulate(event.quantity or 0 for event in beside), 1):
        if total == quantity:
            return [event.id for event in beside[:count]]
    return []


def _explain_rest(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Attribute what is left: to events in flight, to the only finding of unknown quantity, or to `unexplained`."""
    low, high = (
        evidence.before - evidence.provider_total - found.sum_explained(),
        evidence.after - evidence.provider_total - found.sum_explained(),
    )
    flying = sum(event.quantity or 0 for event in events.in_flight) + evidence.pending_rollup
    ids = [event.id for event in events.in_flight if event.quantity]
    if len(open := found.list_unquantified()) == 1:
        found.set_quantity(open[0], low if flying == 0 else low - min(max(low, 0), flying))
        return
    if flying > 0:
        found.add("in_flight", min(max(high, 0), flying), ids)
        low, high = low - min(max(low, 0), flying), high - min(max(high, 0), flying)
    if low > 0 or high < 0:
        found.add("unexplained", low if low > 0 else high)


def _compare_extremes(evidence: Evidence, events: _EventIndex, found: _FindingsBuilder) -> None:
    """Compare totals that do not add up with the events of either side.

    The side whose total does not match its own events is named.
    """
    values = {there.id: there.quantity or 0 for there in evidence.provider_events}
    values |= {own.id: own.quantity or 0 for own in evidence.own_events}
    # Values below the greatest value of either side cannot change a total.
    least = (
        min(evidence.provider_total, evidence.after) if AGGREGATES[evidence.kind].fold == "greatest" else -1
    )
    found.keep_events(lambda id: values[id] > least)
    theirs = fold_readings(
        evidence.kind, [(e.at, e.quantity) for e in events.provider_inside if e.quantity is not None]
    )
    ours = fold_readings(
        evidence.kind, [(e.at, e.quantity) for e in events.own_inside if e.quantity is not None]
    )
    if theirs != evidence.provider_total:
        found.add("skewed_there", theirs - evidence.provider_total, (), "its total does not match its events")
    if ours != evidence.after and evidence.own_period.start >= evidence.records_since:
        found.add("missing_here", evidence.after - ours, (), "our total does not match our events")
    if events.in_flight and not found:
        found.add("in_flight", None, [event.id for event in events.in_flight])
    if not found:
        found.add("unexplained", evidence.after - evidence.provider_total)
