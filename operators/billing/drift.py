"""Drift: what our total and the biller's differ by, allowing for what is on its way; and what each part comes of.

Neither side has a total as of an instant. So first a bracket: whatever the biller may rightly say between the two
instants around the question, given what waits here and what was acknowledged too lately to show there. Only what lies
outside is looked into, event by event: both sides' ids are compared, and each difference gets a cause. Quantities are
integers, times 10²⁴, so nothing rounds; drift is ours minus the biller's.
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
# How far the biller's clock may be apart from ours, in µs.
CLOCKS_APART = 300_000_000
# In words, of an event that the biller lists beyond the period.
IN_ANOTHER = "the biller has it in another period"
# Of an event that our total has, and that is of another of our periods.
OF_ANOTHER = "counted here, of another period"
# Why the outbox keeps an event back, and what that is called here; all else is `rejected`.
KEPT_BACK: dict[str, Cause] = {
    "too_old": "too_old",
    "last_value": "too_old",
    "period_closed": "late_after_close",
}


class Span(NamedTuple):
    """[start, end) in µs since the epoch."""

    start: int
    end: int

    def __contains__(self, at: object) -> bool:
        return isinstance(at, int) and self.start <= at < self.end


class Flight(NamedTuple):
    """A quantity that is on its way: when it came into the outbox, and when it was first given to a request."""

    quantity: int
    came_at: int
    sent_at: int | None


class Bracket(NamedTuple):
    """What the biller may rightly say, both ends included."""

    low: int
    high: int

    def off(self, total: int) -> int:
        """How far a total lies outside: above 0 where the biller has too little, below where too much."""
        return max(self.low - total, 0) + min(self.high - total, 0)


def bracket(
    kind: Kind, before: int, after: int, flights: Iterable[Flight], answered_at: int, lag: int
) -> Bracket | None:
    """The bracket of a total that was `before` when the biller was asked and `after` when it had answered.

    `flights` are all that waited or was acknowledged too lately to be shown, as read after the answer; `lag` is how
    long the store may take to show what the outbox has. None where nothing can be said, as the total moves.
    """
    flights = list(flights)
    # What came lately may be at the biller already, and in our total only later.
    lately = [one for one in flights if one.came_at > answered_at - lag]
    sent_lately = [one.quantity for one in lately if one.sent_at is not None and one.sent_at <= answered_at]
    if kind in ADDITIVE:
        low = before - sum(one.quantity for one in flights)
        unsent = sum(
            one.quantity
            for one in flights
            if (one.sent_at is None or one.sent_at > answered_at) and one.came_at <= answered_at - lag
        )
        return Bracket(low, max(after - unsent + sum(sent_lately), low))
    if AGGREGATES[kind].fold == "greatest":
        # A greatest value that is not on its way has arrived; one that is may be all there is.
        arrived = all(one.quantity < before for one in flights)
        return Bracket(before if arrived else 0, max([after, *sent_lately]))
    return Bracket(after, after) if before == after and not flights else None


class Own(NamedTuple):
    """An event as our books know it.

    `there_at` is where in time the biller has it, which differs from `at` if it went out late without its own time.
    `quantity` is what the meter reads of it, None for nothing or if its bytes are gone.
    """

    id: str
    at: int
    there_at: int
    fate: Fate
    reason: str
    quantity: int | None
    came_at: int
    sent_at: int | None = None
    settled_at: int | None = None


class There(NamedTuple):
    """An event as the biller lists it. `mark` is equal for events of equal name, time and properties."""

    id: str
    at: int
    quantity: int | None
    mark: bytes


class Sight(NamedTuple):
    """All that is known of a customer, meter and period, read in the order `before`, `total`, `there`, `own`, `after`.

    - `ours`, `theirs`: the period here and there, which should be the same.
    - `before`, `after`: our total, adjustments included, which come to `adjusted`, by reconciliation `adopted` of it.
    - `total`: the biller's; `there`: its events in `theirs` and somewhat beyond, doubles and all.
    - `own`: our events in `ours` and `theirs` and somewhat beyond; whole for events of `since` or later.
    - `pending`: what is being rolled up and has no event yet.
    - `quiet`: what was acknowledged after this may not show yet; `lag` as for the bracket, `now` when `own` was read.
    - `met`: when the biller made the meter: it counts nothing that came before; `is_archived`: it counts no more.
    """

    kind: Kind
    ours: Span
    theirs: Span
    before: int
    after: int
    adjusted: int
    adopted: int
    total: int
    there: Sequence[There]
    own: Sequence[Own]
    since: int
    quiet: int
    now: int
    lag: int = 0
    pending: int = 0
    met: int = 0
    is_archived: bool = False


class Finding(NamedTuple):
    """One cause: the part of the drift that comes of it, None where it cannot be told, and the events that show it."""

    cause: Cause
    quantity: int | None
    ids: tuple[str, ...] = ()
    detail: str = ""


def explain(sight: Sight) -> list[Finding]:
    """The causes of the drift of one total; their quantities add up to it, as far as they can be told.

    `unexplained` is what is left, with 0 or more `in_flight` where something is on its way. For `max` and `last`,
    which do not add up, only the events that differ are named.
    """
    found = _Found()
    events = _Events(sight)
    _compare(sight, events, found)
    if sight.kind in ADDITIVE:
        _compare_history(sight, events, found)
        _compare_store(sight, events, found)
        if sight.adjusted:
            found.add("adjusted_here", sight.adjusted)
        _settle_rest(sight, events, found)
    else:
        _compare_extremes(sight, events, found)
    return found.findings()


def name_gaps(findings: Iterable[Finding], own: Mapping[str, Own], billed: Collection[Span]) -> list[Finding]:
    """Return the findings with those events as a `gap` that the biller has in none of its `billed` periods."""
    found: list[Finding] = []
    for one in findings:
        lost = [id for id in one.ids if id in own and not any(own[id].there_at in span for span in billed)]
        if one.detail != IN_ANOTHER or not lost:
            found.append(one)
            continue
        quantity = None if one.quantity is None else sum(own[id].quantity or 0 for id in lost)
        if kept := tuple(id for id in one.ids if id not in lost):
            rest = None if one.quantity is None or quantity is None else one.quantity - quantity
            found.append(one._replace(quantity=rest, ids=kept))
        found.append(Finding("gap", quantity, tuple(lost), "the biller has it in none of its periods"))
    return found


class _Found:
    """Findings as they are gathered, by cause and detail."""

    def __init__(self) -> None:
        self._ids: dict[tuple[Cause, str], list[str]] = {}
        self._sums: dict[tuple[Cause, str], int | None] = {}

    def add(self, cause: Cause, quantity: int | None, ids: Iterable[str] = (), detail: str = "") -> None:
        key = cause, detail
        known = self._sums.setdefault(key, 0)
        self._sums[key] = None if known is None or quantity is None else known + quantity
        self._ids.setdefault(key, []).extend(ids)

    def told(self) -> int:
        """What is explained so far."""
        return sum(quantity for quantity in self._sums.values() if quantity is not None)

    def open(self) -> list[tuple[Cause, str]]:
        """Those whose quantity cannot be told from their events."""
        return [key for key, quantity in self._sums.items() if quantity is None]

    def close(self, key: tuple[Cause, str], quantity: int) -> None:
        self._sums[key] = quantity

    def findings(self) -> list[Finding]:
        return [
            Finding(cause, quantity, tuple(self._ids[cause, detail]), detail)
            for (cause, detail), quantity in self._sums.items()
            if quantity != 0 or self._ids[cause, detail]
        ]

    def keep(self, matters: Callable[[str], bool]) -> None:
        """Drops the events that do not matter, and all quantities, as they do not add up."""
        for key, ids in list(self._ids.items()):
            self._sums[key], self._ids[key] = None, [id for id in ids if matters(id)]
            if not self._ids[key]:
                del self._sums[key], self._ids[key]

    def __bool__(self) -> bool:
        return bool(self._sums)


class _Events:
    """Both sides' events by id, and what may be on its way."""

    def __init__(self, sight: Sight) -> None:
        self.own = {event.id: event for event in sight.own}
        self.here = [event for event in self.own.values() if event.at in sight.ours]
        self.listed: dict[str, There] = {}
        for event in sight.there:
            self.listed.setdefault(event.id, event)
        self.inside = [event for event in sight.there if event.at in sight.theirs]
        self.times = Counter(event.id for event in self.inside)
        self.flying = [event for event in self.here if self._flies(event, sight.quiet)]
        self.flying_ids = {event.id for event in self.flying}
        # Of before our books begin, what looks like ours is taken for ours.
        self.unbooked = [
            event
            for event in self.once_inside()
            if event.id not in self.own and event.at < sight.since and is_ours(event.id)
        ]
        self.unbooked_ids = {event.id for event in self.unbooked}

    @staticmethod
    def _flies(event: Own, quiet: int) -> bool:
        if event.fate == "waiting":
            return True
        return event.fate == "acknowledged" and event.settled_at is not None and event.settled_at > quiet

    def once_inside(self) -> Iterator[There]:
        """What the biller has in the period, doubles once."""
        return iter({event.id: event for event in self.inside}.values())

    def strangers(self) -> list[There]:
        """What the biller has in the period, each once, that is on none of our books."""
        known = self.own.keys() | self.unbooked_ids
        return [event for event in self.once_inside() if event.id not in known]


def is_ours(id: str) -> bool:
    """Whether an id looks like one that we make: 32 hex digits, and the hour or a revision."""
    digest, dash, rest = id.partition("-")
    return len(digest) == 32 and bool(dash and rest) and all(c in "0123456789abcdef" for c in digest)


def _compare(sight: Sight, events: _Events, found: _Found) -> None:
    """Ids against ids."""
    for event in events.here:
        listed = events.listed.get(event.id)
        if listed is not None and listed.at in sight.theirs:
            if None not in (listed.quantity, event.quantity) and listed.quantity != event.quantity:
                found.add("differs_there", (event.quantity or 0) - (listed.quantity or 0), [event.id])
        elif event.fate in ("parked", "refused", "dropped"):
            if event.quantity is not None or event.fate == "dropped":
                kept = KEPT_BACK.get(event.reason, "rejected")
                if kept == "too_old" and event.came_at >= sight.theirs.end:
                    kept = "late_after_close"
                found.add(kept, event.quantity, [event.id], event.reason)
        elif event.id in events.flying_ids or event.quantity is None:
            continue
        elif listed is not None or event.there_at not in sight.theirs:
            is_same = listed is None or listed.at == event.at
            found.add("boundary" if is_same else "billed_elsewhere", event.quantity, [event.id], IN_ANOTHER)
        else:
            found.add("missing_there", event.quantity, [event.id])
    for there in events.once_inside():
        if there.quantity is None:
            continue
        if (more := events.times[there.id] - 1) > 0:
            # The id once for each copy too many, as each is settled by itself.
            found.add("doubled_there", -there.quantity * more, [there.id] * more, "twice under one id")
        known = events.own.get(there.id)
        if known is not None and known.at not in sight.ours:
            cause: Cause = "boundary" if known.at == there.at else "billed_elsewhere"
            found.add(cause, -there.quantity, [there.id], "counted here in another period")
    marks = {
        there.mark for there in events.inside if there.id in events.own or there.id in events.unbooked_ids
    }
    for there in events.strangers():
        if there.quantity is not None:
            is_twin = there.mark in marks
            words = "the same event under another id" if is_twin else ""
            found.add("doubled_there" if is_twin else "extra_there", -there.quantity, [there.id], words)


def _compare_history(sight: Sight, events: _Events, found: _Found) -> None:
    """The biller's total against the events that it lists."""
    listed = sum(event.quantity or 0 for event in events.inside)
    settled = sum(event.quantity or 0 for event in events.inside if event.id not in events.flying_ids)
    if sight.total > listed:
        found.add("skewed_there", listed - sight.total, (), "its total is more than its events come to")
    lacking = settled - sight.total
    if lacking <= 0:
        return
    counted = [event for event in events.inside if event.quantity]
    late = [event for event in counted if _came_late(events.own.get(event.id), sight.theirs)]
    early = [event for event in counted if event.at < sight.met]
    if sight.is_archived and (ids := _last_settled(counted, events.own, lacking)):
        found.add("meter_archived", lacking, ids, "they came after its meter was archived")
    elif sight.is_archived:
        found.add("meter_archived", lacking, (), "its meter is archived, and counts no more")
    elif late and (ids := _last_settled(late, events.own, lacking)):
        found.add("late_after_close", lacking, ids, "it lists them, and does not count them any more")
    elif early and sum(event.quantity or 0 for event in early) == lacking:
        ids = [event.id for event in early]
        found.add("skewed_there", lacking, ids, "it lists them, and made the meter only later")
    else:
        found.add("skewed_there", lacking, (), "its total is less than its events come to")


def _last_settled(counted: Iterable[There], own: Mapping[str, Own], quantity: int) -> list[str]:
    """Return the events that arrived last and come to just this quantity."""
    known = [(own[one.id].settled_at or 0, one) for one in counted if one.id in own]
    known.sort(key=lambda pair: pair[0], reverse=True)
    totals = accumulate(one.quantity or 0 for _, one in known)
    for count, total in enumerate(totals, 1):
        if total == quantity:
            return [one.id for _, one in known[:count]]
    return []


def _came_late(event: Own | None, theirs: Span) -> bool:
    # The period ended by the biller's clock, so the last minutes before its end by ours count too.
    return (
        event is not None and event.settled_at is not None and event.settled_at >= theirs.end - CLOCKS_APART
    )


def _compare_store(sight: Sight, events: _Events, found: _Found) -> None:
    """Our total against our events."""
    counted = [event for event in events.here if event.quantity is not None]
    booked = sum(event.quantity or 0 for event in counted) + sight.pending
    booked += sum(event.quantity or 0 for event in events.unbooked)
    # What just came need not be in the store.
    fresh = sum(event.quantity or 0 for event in counted if event.came_at > sight.now - sight.lag)
    before, after = sight.before - sight.adjusted, sight.after - sight.adjusted
    if booked - fresh > after:
        lacking = booked - after
        moved = _moved(sight, events.own.values(), lacking, inside=True)
        words = "counted here in another period" if moved else ""
        found.add("boundary" if moved else "missing_here", -lacking, moved, words)
    elif booked < before and not any(event.fate == "dropped" for event in events.here):
        beyond = before - booked
        moved = _moved(sight, events.own.values(), beyond, inside=False)
        if moved:
            found.add("boundary", beyond, moved, OF_ANOTHER)
        elif sight.ours.start >= sight.since:
            found.add("unexplained", beyond, (), "our total has more than our books")


def _moved(sight: Sight, own: Iterable[Own], quantity: int, *, inside: bool) -> list[str]:
    """The events next to an edge that come to just this quantity: those that came before the edge was moved there."""
    own = [event for event in own if event.quantity]
    if inside:
        beside = [event for event in own if event.at in sight.ours]
        if not any(event.at < sight.ours.start for event in own):
            # There was no period before the edge to count them.
            return []
    else:
        beside = [event for event in own if event.at >= sight.ours.end]
    beside.sort(key=lambda event: event.came_at)
    for count, total in enumerate(accumulate(event.quantity or 0 for event in beside), 1):
        if total == quantity:
            return [event.id for event in beside[:count]]
    return []


def _settle_rest(sight: Sight, events: _Events, found: _Found) -> None:
    """What is left is on its way, or of the one cause whose events no longer tell their quantity, or unexplained."""
    low, high = sight.before - sight.total - found.told(), sight.after - sight.total - found.told()
    flying = sum(event.quantity or 0 for event in events.flying) + sight.pending
    ids = [event.id for event in events.flying if event.quantity]
    if len(open := found.open()) == 1:
        found.close(open[0], low if flying == 0 else low - min(max(low, 0), flying))
        return
    if flying > 0:
        found.add("in_flight", min(max(high, 0), flying), ids)
        low, high = low - min(max(low, 0), flying), high - min(max(high, 0), flying)
    if low > 0 or high < 0:
        found.add("unexplained", low if low > 0 else high)


def _compare_extremes(sight: Sight, events: _Events, found: _Found) -> None:
    """For totals that do not add up: what the events of either side come to, and who disagrees with them."""
    values = {there.id: there.quantity or 0 for there in sight.there}
    values |= {own.id: own.quantity or 0 for own in sight.own}
    # Below either side's greatest value nothing changes anything.
    least = min(sight.total, sight.after) if AGGREGATES[sight.kind].fold == "greatest" else -1
    found.keep(lambda id: values[id] > least)
    theirs = fold_readings(sight.kind, [(e.at, e.quantity) for e in events.inside if e.quantity is not None])
    ours = fold_readings(sight.kind, [(e.at, e.quantity) for e in events.here if e.quantity is not None])
    if theirs != sight.total:
        found.add("skewed_there", theirs - sight.total, (), "its total is not what its events come to")
    if ours != sight.after and sight.ours.start >= sight.since:
        found.add("missing_here", sight.after - ours, (), "our total is not what our events come to")
    if events.flying and not found:
        found.add("in_flight", None, [event.id for event in events.flying])
    if not found:
        found.add("unexplained", sight.after - sight.total)
