"""Looking at one subscription from both sides: totals first, events only for what turns out to be off."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple

import msgspec

from connectors.books import Books, Way
from connectors.dodo import DodoError
from connectors.dodo_reads import DodoReads, Unauthorized
from connectors.drift_book import Task
from operators.biller import Cycle, ListedEvent, Matched, Reading, Subscription, exact, micros
from operators.billing import instant
from operators.catalog import Catalog
from operators.drift import Bracket, Finding, Own, Sight, Span, There, bracket, explain
from operators.keys import shard_of
from operators.periods import MAX_AT, MIN_AT, period_of
from operators.ports import StoredTotal, StoreReader
from operators.quantity import rounded, scaled

SECOND = 1_000_000
# How long the flow may take to the store for what it has put into the outbox, in a backlog.
LAG = 60 * SECOND
# Older periods are settled; nobody acts on them by machine.
LOOKED_BACK = 35 * 24 * 3600 * SECOND
# The platform takes events that are as much ahead.
AHEAD = 300 * SECOND
NOTES_LOOKED_AT = 10_000
BY = "reconciliation"


class Terms(NamedTuple):
    """How to look: `settle` is how long the platform may take to show what it acknowledged."""

    settle: timedelta
    lag: int = LAG
    looked_back: int = LOOKED_BACK

    @property
    def settle_us(self) -> int:
        return self.settle // timedelta(microseconds=1)


class Look(NamedTuple):
    """One total, seen from both sides. `off` is how far the platform's lies outside of the bracket, None if undecided.

    `customer` is ours, `billed_as` the platform's. `is_listed` says that the total was added up from events, as the
    usage history has no item for the period.
    """

    subscription_id: str
    customer: str
    billed_as: str
    meter: Matched
    ours: Span
    theirs: Span
    total: int
    before: int
    after: int
    bracket: Bracket | None
    off: int | None
    is_listed: bool


class Seen(NamedTuple):
    """What came of looking at a subscription: its totals, or why it could not be read."""

    task: Task
    looks: tuple[Look, ...]
    problem: str = ""


class Explained(NamedTuple):
    """Why a total is off, and what the explanation rests on.

    `own` and `listed` are our events by id, and what the meter reads of the provider's. `is_calm` says that nothing
    came meanwhile, `adopted` what adjustments of reconciliation come to in our total, `applied` which adjustments of
    the customer were applied, `rewritten_at` when the flow last wrote its totals again.
    """

    look: Look
    findings: tuple[Finding, ...]
    own: Mapping[str, Own]
    listed: Mapping[str, int]
    is_calm: bool
    adopted: int
    applied: frozenset[str]
    rewritten_at: int


class _Answered(NamedTuple):
    """A total as the platform said it, with ours of before and after; µs when it was asked and answered."""

    meter: Matched
    theirs: Span
    total: int
    before: int
    after: int
    asked_at: int
    answered_at: int
    is_listed: bool


class Looker:
    """Looks at subscriptions; one thread at a time. `catalog` gives the one in force."""

    def __init__(
        self,
        reads: DodoReads,
        store: StoreReader,
        open_books: Callable[[], Books],
        catalog: Callable[[], Catalog],
        terms: Terms,
        clock: Callable[[], int],
        shards: int,
    ) -> None:
        self.reads, self._store, self._open_books, self._shards = reads, store, open_books, shards
        self._catalog, self._terms, self._clock = catalog, terms, clock
        self._named_in: Catalog | None = None
        self._customers: dict[str, str] = {}

    def look(self, tasks: Sequence[Task], meters: Mapping[str, Matched]) -> list[Seen]:
        """Asks the platform about each, then the books about all that differ."""
        answers = [self._ask(task, meters) for task in tasks]
        off = {
            self._customer(task.subscription)
            for task, answered in zip(tasks, answers, strict=True)
            if not isinstance(answered, str)
            and any(a.total != a.before or a.total != a.after for a in answered)
        }
        first = min((a.asked_at for found in answers if not isinstance(found, str) for a in found), default=0)
        with closing(self._open_books()) as books:
            ways = books.on_their_way(off, first - self._terms.settle_us)
        return [self._seen(task, answered, ways) for task, answered in zip(tasks, answers, strict=True)]

    def explain(self, look: Look) -> Explained:
        """Lists both sides' events and says what the drift comes of. DodoError, TooMany where that cannot be read."""
        if look.ours.start != look.theirs.start:
            words = f"our period begins at {instant(look.ours.start)}, the biller's at {instant(look.theirs.start)}"
            finding = Finding("boundary", look.after - look.total, (), words)
            return Explained(look, (finding,), {}, {}, False, 0, frozenset(), 0)
        before = self._total(look.customer, look.meter.ours.name, look.ours.start)
        asked_at = self._clock()
        total = self._told_again(look)
        listed = self._listed(look.billed_as, look.meter, look.theirs)
        with closing(self._open_books()) as books:
            own, pending = books.events(look.customer, look.meter, look.ours)
            now = self._clock()
            since = books.since(now)
        after = self._total(look.customer, look.meter.ours.name, look.ours.start)
        adopted, applied = self._adjustments(look)
        sight = Sight(
            kind=look.meter.kind,
            ours=look.ours,
            theirs=look.theirs,
            before=before[0],
            after=after[0],
            adjusted=after[1],
            adopted=adopted,
            total=_folded(look.meter, look.theirs, listed) if look.is_listed else total,
            there=listed,
            own=own,
            since=since,
            quiet=asked_at - self._terms.settle_us,
            now=now,
            lag=self._terms.lag,
            pending=pending,
            met=look.meter.created_at,
        )
        is_calm = before == after and not any(event.came_at > asked_at - self._terms.lag for event in own)
        look = look._replace(total=sight.total, before=sight.before, after=sight.after)
        own_by_id = {event.id: event for event in own}
        findings = tuple(explain(sight))
        return Explained(
            look,
            findings,
            own_by_id,
            {event.id: event.quantity or 0 for event in listed},
            is_calm,
            adopted,
            applied,
            self._rewritten_at(look.customer),
        )

    def _ask(self, task: Task, meters: Mapping[str, Matched]) -> list[_Answered] | str:
        """What the platform says of each meter and period that both sides count; why not, if it cannot be read."""
        subscription = task.subscription
        customer = self._customer(subscription)
        before = self._totals(customer)
        asked_at = self._clock()
        try:
            cycles = self.reads.history(subscription.subscription_id)
            answered_at = self._clock()
            after = self._totals(customer)
            answered = []
            for cycle in cycles:
                theirs = span_of(cycle)
                if theirs.end <= asked_at - self._terms.looked_back or not MIN_AT <= theirs.start < MAX_AT:
                    continue
                for usage in cycle.meters:
                    if (meter := meters.get(usage.id)) is None:
                        continue
                    name, start = meter.ours.name, self._ours(customer, theirs).start
                    total = quantity_of(usage.consumed_units)
                    ours = before.get((name, start), 0), after.get((name, start), 0)
                    answered.append(_Answered(meter, theirs, total, *ours, asked_at, answered_at, False))
            return answered + self._unlisted(task, customer, cycles, meters)
        except Unauthorized:
            raise
        except DodoError as error:
            return str(error)

    def _unlisted(
        self, task: Task, customer: str, cycles: Sequence[Cycle], meters: Mapping[str, Matched]
    ) -> list[_Answered]:
        """The open period, added up from events, where the history has no item for now."""
        subscription = task.subscription
        current = Span(
            _whole(micros(subscription.previous_billing_date)), _whole(micros(subscription.next_billing_date))
        )
        now = self._clock()
        if (
            subscription.status != "active"
            or now not in current
            or any(now in span_of(cycle) for cycle in cycles)
        ):
            return []
        answered = []
        whole = self.reads.subscription(subscription.subscription_id)
        for priced in whole.meters:
            meter = meters.get(priced.meter_id)
            if meter is None:
                continue
            start = self._ours(customer, current).start
            before = self._total(customer, meter.ours.name, start)[0]
            asked_at = self._clock()
            total = _folded(meter, current, self._listed(subscription.customer.customer_id, meter, current))
            answered_at = self._clock()
            after = self._total(customer, meter.ours.name, start)[0]
            answered.append(_Answered(meter, current, total, before, after, asked_at, answered_at, True))
        return answered

    def _seen(self, task: Task, answered: list[_Answered] | str, ways: Mapping[str, Way]) -> Seen:
        if isinstance(answered, str):
            return Seen(task, (), answered)
        customer = self._customer(task.subscription)
        return Seen(task, tuple(self._compared(customer, task, one, ways.get(customer)) for one in answered))

    def _compared(self, customer: str, task: Task, one: _Answered, way: Way | None) -> Look:
        ours = self._ours(customer, one.theirs)
        found: Bracket | None = Bracket(one.total, one.total)
        if one.total != one.before or one.total != one.after:
            flights = way.flights(one.meter, ours) if way else []
            found = bracket(one.meter.kind, one.before, one.after, flights, one.answered_at, self._terms.lag)
        return Look(
            subscription_id=task.subscription.subscription_id,
            customer=customer,
            billed_as=task.subscription.customer.customer_id,
            meter=one.meter,
            ours=ours,
            theirs=one.theirs,
            total=one.total,
            before=one.before,
            after=one.after,
            bracket=found,
            off=None if found is None else found.off(one.total),
            is_listed=one.is_listed,
        )

    def _customer(self, subscription: Subscription) -> str:
        """Whom we know the subscription's customer as."""
        catalog = self._catalog()
        if catalog is not self._named_in:
            billed = {c.billing_id: name for name, c in catalog.customers.items() if c.billing_id}
            self._named_in, self._customers = catalog, billed
        id = subscription.customer.customer_id
        return self._customers.get(id, id)

    def _ours(self, customer: str, theirs: Span) -> Span:
        """Our period that holds the start of theirs."""
        catalog = self._catalog()
        return Span(*period_of(catalog.period_of(customer), catalog.zone_of(customer), theirs.start))

    def _totals(self, customer: str) -> dict[tuple[str, int], int]:
        found = (stored.total for stored in self._store.read(customer))
        return {(t.meter, t.start): quantity_of(t.total) for t in found if t.window == "period"}

    def _total(self, customer: str, meter: str, start: int) -> tuple[int, int]:
        """Our total of a period, and what of it are adjustments."""
        found: list[StoredTotal] = self._store.read(customer)
        for total, _ in found:
            if (total.window, total.meter, total.start) == ("period", meter, start):
                return quantity_of(total.total), quantity_of(total.adjustment)
        return 0, 0

    def _told_again(self, look: Look) -> int:
        """The platform's total once more, so that all that is compared is of about one time."""
        cycles = [] if look.is_listed else self.reads.history(look.subscription_id)
        for cycle in cycles:
            for usage in cycle.meters:
                if usage.id == look.meter.id and span_of(cycle).start == look.theirs.start:
                    return quantity_of(usage.consumed_units)
        return look.total

    def _listed(self, billed_as: str, meter: Matched, theirs: Span) -> list[There]:
        now = self._clock()
        reading = Reading(meter.theirs, is_foreign=True)
        name = meter.theirs.event_name
        events = self.reads.events(billed_as, name, theirs.start, min(theirs.end, now + AHEAD), now)
        properties = [{key: exact(value) for key, value in (e.metadata or {}).items()} for e in events]
        quantities = reading.of(properties)
        return [
            There(e.event_id, micros(e.timestamp), quantity, _mark(e))
            for e, quantity in zip(events, quantities, strict=True)
        ]

    def _adjustments(self, look: Look) -> tuple[int, frozenset[str]]:
        """What adjustments of reconciliation come to in this total; and the ids of all that were applied."""
        adopted = 0
        applied = set()
        for note in self._store.notes("adjustment", look.customer, NOTES_LOOKED_AT):
            made = json.loads(note.body)
            applied.add(note.id)
            is_of_this = made["meter"] == look.meter.ours.name and made["at"] in look.ours
            if made["by"] == BY and made["refused"] is None and is_of_this:
                adopted += scaled(Decimal(made["quantity"]))
        return adopted, frozenset(applied)

    def _rewritten_at(self, customer: str) -> int:
        """When the customer's shard was last asked for its totals again, and began to write them; 0 for never."""
        shard = str(shard_of(customer, self._shards))
        notes = self._store.notes("resend", None, NOTES_LOOKED_AT)
        return max((note.at for note in notes if note.id.rpartition("/")[2] == shard), default=0)


def span_of(cycle: Cycle) -> Span:
    """The period of an item of the usage history, in whole seconds, as ours are."""
    return Span(_whole(micros(cycle.start_date)), _whole(micros(cycle.end_date)))


def _whole(at: int) -> int:
    return at // SECOND * SECOND


def quantity_of(text: int | str) -> int:
    """A quantity as JSON has it, times 10²⁴ and rounded there. DodoError for what is no number."""
    try:
        return rounded(Decimal(text))
    except (ValueError, ArithmeticError) as error:
        raise DodoError(f"dodo: needs a number of units, got {str(text)[:40]!r} ({error})") from None


def _folded(meter: Matched, theirs: Span, listed: Sequence[There]) -> int:
    """What the platform's events come to."""
    values = [
        (event.at, event.quantity) for event in listed if event.at in theirs and event.quantity is not None
    ]
    match meter.kind:
        case "max":
            return max((value for _, value in values), default=0)
        case "last":
            return max(values)[1] if values else 0
        case _:
            return sum(value for _, value in values)


def _mark(event: ListedEvent) -> bytes:
    """Equal for events of equal name, time and properties."""
    properties = sorted((event.metadata or {}).items())
    return msgspec.json.encode([event.event_name, micros(event.timestamp), properties])
