"""Looking at one subscription from both sides: totals first, events only for what turns out to be off."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple

import msgspec

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.dodo.reads import DodoReads, Unauthorized
from tidegate.connectors.outbox.billing_records import BillingRecords, Way
from tidegate.connectors.reconciliation.conflicts import conflict_of
from tidegate.connectors.reconciliation.findings import Task
from tidegate.operators.billing.coverage import BilledCycle, Charge, Gap, Price, mark_repeated, sum_units
from tidegate.operators.billing.drift import (
    HELD_BACK_CAUSES,
    IN_ANOTHER_PERIOD,
    Bracket,
    Evidence,
    Finding,
    OwnEvent,
    ProviderEvent,
    Span,
    compute_bracket,
    explain,
    is_own_id,
    name_gaps,
)
from tidegate.operators.billing.provider import (
    Cycle,
    ListedEvent,
    MatchedMeter,
    MeterReader,
    MeterUsage,
    Subscription,
    UnmatchedMeter,
    to_exact,
    to_micros,
)
from tidegate.operators.columns.quantity import scale, scale_rounded
from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.aggregates import fold_readings
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.periods import MAX_AT, MIN_AT, Billing, find_exact_period
from tidegate.operators.model.ports import StoredTotal, StoreReader
from tidegate.operators.model.wire import format_instant

SECOND = 1_000_000
# How long the flow may take to the store for what it has put into the outbox, in a backlog.
LAG = 60 * SECOND
# Older periods are settled; nobody acts on them by machine.
LOOKED_BACK = 35 * 24 * 3600 * SECOND
# The provider takes events that are as much ahead.
AHEAD = 300 * SECOND
# Clocks may be five minutes apart, and a request takes its time.
BESIDE = 360 * SECOND
NOTES_LOOKED_AT = 10_000
# Usage goes on to be billed also where the last payment failed.
ACCRUING = ("active", "past_due")
BY = "reconciliation"


class Terms(NamedTuple):
    """How to compare: `settle` is how long the provider may take to show what it acknowledged."""

    settle: timedelta
    lag: int = LAG
    looked_back: int = LOOKED_BACK

    @property
    def settle_us(self) -> int:
        return self.settle // timedelta(microseconds=1)


class Uncovered(NamedTuple):
    """Why nothing there bills a total, in words too; None of a cause where that is over."""

    cause: Gap | None
    detail: str


class BilledBy(NamedTuple):
    """A line that bills: a subscription's, of a meter there."""

    subscription_id: str
    meter_id: str

    def __str__(self) -> str:
        return f"{self.meter_id} of {self.subscription_id}"


class Comparison(NamedTuple):
    """One total, seen from both sides. `off` is how far the provider's lies outside of the bracket, None if undecided.

    `customer` is ours, `billed_as` the provider's. `is_listed` says that the total was added up from events, as the
    usage history has no item for the period. Where several lines bill it, of one product or of subscriptions of equal
    dates, `twice` has them all, and the total is their sum. `charges` are these lines with their prices.
    `uncovered` says why no subscription bills it at all.
    """

    subscription_id: str
    customer: str
    billed_as: str
    meter: MatchedMeter
    own_period: Span
    provider_period: Span
    total: int
    before: int
    after: int
    bracket: Bracket | None
    off: int | None
    is_listed: bool
    price: Price | None = None
    twice: tuple[BilledBy, ...] = ()
    uncovered: Uncovered | None = None
    charges: tuple[Charge, ...] = ()


class Seen(NamedTuple):
    """What was found of a subscription: its totals and cycles, or why it could not be read."""

    task: Task
    comparisons: tuple[Comparison, ...]
    problem: str = ""
    cycles: tuple[BilledCycle, ...] = ()


class Explained(NamedTuple):
    """Why a total is off, and what the explanation rests on.

    `own` and `listed` are our events by id, and what the meter reads of the provider's. `is_calm` says that nothing
    came meanwhile, `adopted` what adjustments of reconciliation come to in our total, `applied` which adjustments of
    the customer were applied, `rewritten_at` when the flow last wrote its totals again. `has_arrived` says that what
    our total has of other periods is in their totals too.
    """

    comparison: Comparison
    findings: tuple[Finding, ...]
    own: Mapping[str, OwnEvent]
    listed: Mapping[str, int]
    is_calm: bool
    adopted: int
    applied: frozenset[str]
    rewritten_at: int
    has_arrived: bool = True


class _Answered(NamedTuple):
    """A total as the provider said it, with ours of before and after; µs when it was asked and answered."""

    meter: MatchedMeter
    provider_period: Span
    total: int
    before: int
    after: int
    asked_at: int
    answered_at: int
    is_listed: bool
    charges: tuple[Charge, ...] = ()
    twice: tuple[BilledBy, ...] = ()


class _Answers(NamedTuple):
    """What the provider said of a subscription: totals that both sides count, and its cycles whole."""

    totals: list[_Answered]
    cycles: list[BilledCycle]


class ProviderMeters(NamedTuple):
    """The provider's meters, by their ids: which of ours each is, and those that are none.

    `siblings` are, by id, the customer's other subscriptions whose period begins with that one's.
    """

    matched: Mapping[str, MatchedMeter]
    others: Mapping[str, UnmatchedMeter]
    siblings: Mapping[str, tuple[str, ...]] = {}


class Comparer:
    """Looks at subscriptions; one thread at a time. `catalog` gives the one in force."""

    def __init__(
        self,
        reads: DodoReads,
        store: StoreReader,
        open_books: Callable[[], BillingRecords],
        catalog: Callable[[], Catalog],
        terms: Terms,
        clock: Callable[[], int],
        shards: int,
    ) -> None:
        self.reads, self._store, self._open_records, self._shards = reads, store, open_books, shards
        self._catalog, self._terms, self._clock = catalog, terms, clock
        self._named_in: Catalog | None = None
        self._customers: dict[str, list[str]] = {}

    def compare(self, tasks: Sequence[Task], provider_meters: ProviderMeters) -> list[Seen]:
        """Ask the provider about each, then the billing records about all that differ."""
        asked = [
            (task, task.subscription, self._read_totals(task.subscription, provider_meters))
            for task in tasks
            if task.subscription is not None
        ]
        answers = [(sub, found) for _, sub, found in asked if not isinstance(found, str)]
        off = {
            self.customer_of(subscription)
            for subscription, found in answers
            if any(a.total != a.before or a.total != a.after for a in found.totals)
        }
        first = min((a.asked_at for _, found in answers for a in found.totals), default=0)
        with closing(self._open_records()) as records:
            ways = records.on_their_way(off, first - self._terms.settle_us)
        return [self._seen(task, subscription, found, ways) for task, subscription, found in asked]

    def explain(self, comparison: Comparison) -> Explained:
        """List both sides' events and return the causes of the drift. DodoError, TooMany if they cannot be read."""
        if comparison.uncovered is not None:
            return self._explain_uncovered(comparison, comparison.uncovered)
        if known_by(comparison.own_period) != known_by(comparison.provider_period):
            return Explained(comparison, (self._elsewhere(comparison),), {}, {}, False, 0, frozenset(), 0)
        before = self._total(
            comparison.customer, comparison.meter.own_meter.name, known_by(comparison.own_period)
        )
        asked_at = self._clock()
        total = self._read_total_again(comparison)
        listed = self._listed(comparison.billed_as, comparison.meter, comparison.provider_period)
        with closing(self._open_records()) as records:
            own, pending = records.events(comparison.customer, comparison.meter, comparison.own_period)
            now = self._clock()
            own += self._moved_far(records, comparison, listed, own, now)
            since = records.since(now)
        after = self._total(
            comparison.customer, comparison.meter.own_meter.name, known_by(comparison.own_period)
        )
        adopted, applied = self._sum_adjustments(comparison)
        sight = Evidence(
            kind=comparison.meter.kind,
            own_period=comparison.own_period,
            provider_period=comparison.provider_period,
            before=before[0],
            after=after[0],
            adjusted=after[1],
            adopted=adopted,
            provider_total=_fold_events(comparison.meter, comparison.provider_period, listed)
            if comparison.is_listed
            else total,
            provider_events=listed,
            own_events=own,
            records_since=since,
            shown_until=asked_at - self._terms.settle_us,
            read_at=now,
            store_lag=self._terms.lag,
            pending_rollup=pending,
            meter_created_at=comparison.meter.created_at,
            is_archived=comparison.meter.is_archived,
        )
        is_calm = before == after and not any(event.queued_at > asked_at - self._terms.lag for event in own)
        comparison = comparison._replace(total=sight.provider_total, before=sight.before, after=sight.after)
        own_by_id = {event.id: event for event in own}
        is_twice = bool(comparison.twice) and comparison.total > comparison.after
        findings = _billed_twice(comparison, listed) if is_twice else tuple(explain(sight))
        if any(one.detail == IN_ANOTHER_PERIOD for one in findings):
            spans = [span for _, span in self._billed_spans(comparison.billed_as)]
            findings = tuple(name_gaps(findings, own_by_id, spans))
        if comparison.total > comparison.after and any(_is_more_there(one) for one in findings):
            findings = tuple(self._named_twice(comparison, findings))
        return Explained(
            comparison,
            findings,
            own_by_id,
            {event.id: event.quantity or 0 for event in listed},
            is_calm,
            adopted,
            applied,
            self._rewritten_at(comparison.customer),
            self._has_arrived(comparison, findings, own_by_id),
        )

    def _has_arrived(
        self, comparison: Comparison, findings: Sequence[Finding], own: Mapping[str, OwnEvent]
    ) -> bool:
        """Return whether all that our total has of other periods is in their totals, so that it may leave this one."""
        more = [one for one in findings if one.cause == "boundary" and one.quantity and one.quantity > 0]
        moved = [own[id] for one in more for id in one.ids if id in own]
        places = {one.provider_at if one.at in comparison.own_period else one.at for one in moved}
        spans = {self._find_own_period(comparison.customer, Span(at, at + 1)) for at in places} - {
            comparison.own_period
        }
        return all(self._has_its_events(comparison, span) for span in spans)

    def _has_its_events(self, comparison: Comparison, span: Span) -> bool:
        with closing(self._open_records()) as records:
            own, _ = records.events(comparison.customer, comparison.meter, span)
        booked = sum(one.quantity or 0 for one in own if one.at in span)
        return self._total(comparison.customer, comparison.meter.own_meter.name, known_by(span))[0] >= booked

    def _elsewhere(self, comparison: Comparison) -> Finding:
        """Name what a cycle bills that begins where none of our periods does; what is used here is named beside it."""
        quantity = comparison.after - comparison.total
        if why := conflict_of(self._store, comparison.customer):
            return Finding("second_subscription", quantity, (), why)
        own_start, provider_start = (
            format_instant(comparison.own_period.start),
            format_instant(comparison.provider_period.start),
        )
        begins = f"our period starts at {own_start}, the provider's at {provider_start}"
        return Finding("boundary", quantity, (), begins)

    def _named_twice(self, comparison: Comparison, findings: Sequence[Finding]) -> Iterator[Finding]:
        """Yield the findings, of which those are billed twice that are more there while another subscription bills.

        Our total is of the other's period then, so there is nothing to add here.
        """
        spans = self._billed_spans(comparison.billed_as)
        beside = {
            id
            for id, span in spans
            if id != comparison.subscription_id
            and span.start < comparison.provider_period.end
            and comparison.provider_period.start < span.end
        }
        words = f"{', '.join(sorted(beside))} bills the same time"
        for one in findings:
            twice = bool(beside) and _is_more_there(one)
            yield one._replace(cause="billed_twice", detail=words) if twice else one

    def _billed_spans(self, billed_as: str) -> list[tuple[str, Span]]:
        """Return all billing periods of a customer there, with the ids of their subscriptions."""
        whose = self.reads.subscriptions(billed_as)
        # The usage history need not have the open one.
        current = [(one.subscription_id, current_of(one)) for one in whose if one.status in ACCRUING]
        ids = [one.subscription_id for one in whose]
        return [
            *current,
            *((id, span_of(cycle)) for id in ids for cycle in self.reads.history(id) if cycle.meters),
        ]

    def _moved_far(
        self,
        records: BillingRecords,
        comparison: Comparison,
        listed: Sequence[ProviderEvent],
        own: Sequence[OwnEvent],
        now: int,
    ) -> list[OwnEvent]:
        """Return our events of another time that the provider lists in this period: it moved them, not we."""
        known = {event.id for event in own}
        unknown = {event.id for event in listed if event.id not in known and is_own_id(event.id)}
        if not unknown:
            return []
        everything = Span(now - self._terms.looked_back, now + AHEAD)
        found, _ = records.events(comparison.customer, comparison.meter, everything)
        return [event for event in found if event.id in unknown]

    def _explain_uncovered(self, comparison: Comparison, why: Uncovered) -> Explained:
        """Name our events of a total that nothing there bills; what is held back is named as such."""
        assert why.cause is not None
        words = why.detail
        if (
            why.cause == "no_subscription"
            and comparison.billed_as
            and not self.reads.has_customer(comparison.billed_as)
        ):
            words = f"{words}, and the provider has no such customer"
        with closing(self._open_records()) as records:
            own, _ = records.events(comparison.customer, comparison.meter, comparison.own_period)
        inside = [event for event in own if event.at in comparison.own_period and event.quantity is not None]
        held = [event for event in inside if event.fate in ("parked", "refused", "dropped")]
        findings = [Finding(why.cause, comparison.off, tuple(e.id for e in inside if e not in held), words)]
        for reason in sorted({event.reason for event in held}):
            some = [event for event in held if event.reason == reason]
            quantity = sum(event.quantity or 0 for event in some)
            cause = HELD_BACK_CAUSES.get(reason, "rejected")
            findings.append(Finding(cause, quantity, tuple(e.id for e in some), reason))
        return Explained(comparison, tuple(findings), {e.id: e for e in own}, {}, False, 0, frozenset(), 0)

    def _read_totals(self, subscription: Subscription, provider_meters: ProviderMeters) -> _Answers | str:
        """Read the provider's total of each meter and period that both sides count, or why it cannot be read."""
        customer = self.customer_of(subscription)
        if (shared := self._shared(subscription)) is not None:
            return shared
        before = self._totals(customer)
        asked_at = self._clock()
        try:
            cycles = self.reads.history(subscription.subscription_id)
            beside = self._beside(subscription, provider_meters)
            answered_at = self._clock()
            after = self._totals(customer)
            answered, kept = [], []
            for cycle in cycles:
                span = span_of(cycle)
                if span.end <= asked_at - self._terms.looked_back or not MIN_AT <= span.start < MAX_AT:
                    continue
                start = self._start(customer, span)
                charges = charges_of(cycle, provider_meters)
                kept.append(self._cycle(subscription, customer, span, start, charges))
                own = [(subscription.subscription_id, one) for one in charges]
                for name, lines in _by_meter(own, beside.get(known_by(span), ())).items():
                    some = tuple(one for _, one in lines)
                    # Where an archived meter and its successor share a cycle, the one that counts is compared.
                    meter = min(
                        (provider_meters.matched[c.meter_id] for c in some), key=lambda one: one.is_archived
                    )
                    ours = before.get((name, start), 0), after.get((name, start), 0)
                    billing = dict.fromkeys(BilledBy(id, c.meter_id) for id, c in lines)
                    twice = tuple(billing) if len(billing) > 1 else ()
                    times = asked_at, answered_at
                    total = sum_units(some)
                    answered.append(_Answered(meter, span, total, *ours, *times, False, some, twice))
            listed, open_cycles = self._add_up_open_period(subscription, customer, cycles, provider_meters)
            return _Answers(answered + listed, kept + open_cycles)
        except Unauthorized:
            raise
        except DodoError as error:
            return str(error)

    def _beside(
        self, subscription: Subscription, provider_meters: ProviderMeters
    ) -> dict[int, list[tuple[str, Charge]]]:
        """Return what siblings bill, by the second in which a cycle begins, with the ids of their subscriptions."""
        found: dict[int, list[tuple[str, Charge]]] = {}
        for id in provider_meters.siblings.get(subscription.subscription_id, ()):
            for cycle in self.reads.history(id):
                lines = [(id, one) for one in charges_of(cycle, provider_meters)]
                found.setdefault(known_by(span_of(cycle)), []).extend(lines)
        return found

    def _cycle(
        self,
        subscription: Subscription,
        customer: str,
        span: Span,
        start: int,
        charges: tuple[Charge, ...],
    ) -> BilledCycle:
        id, status, product = subscription.subscription_id, subscription.status, subscription.product_id
        return BilledCycle(id, customer, status, product, span, start, charges)

    def _add_up_open_period(
        self,
        subscription: Subscription,
        customer: str,
        cycles: Sequence[Cycle],
        provider_meters: ProviderMeters,
    ) -> tuple[list[_Answered], list[BilledCycle]]:
        """Add up the open period from events, where the history has no item for it."""
        current, now = current_of(subscription), self._clock()
        if (
            subscription.status not in ACCRUING
            or now not in current
            or any(now in span_of(cycle) for cycle in cycles)
        ):
            return [], []
        answered, charges = [], []
        whole = self.reads.subscription(subscription.subscription_id)
        start = self._start(customer, current)
        for priced in whole.meters:
            usage = MeterUsage(id=priced.meter_id, consumed_units="0", name=priced.name)
            charges.append(charge_of(usage, provider_meters))
            meter = provider_meters.matched.get(priced.meter_id)
            if meter is None:
                continue
            before = self._total(customer, meter.own_meter.name, start)[0]
            asked_at = self._clock()
            total = _fold_events(
                meter, current, self._listed(subscription.customer.customer_id, meter, current)
            )
            answered_at = self._clock()
            after = self._total(customer, meter.own_meter.name, start)[0]
            charges[-1] = charges[-1]._replace(quantity=total)
            answered.append(_Answered(meter, current, total, before, after, asked_at, answered_at, True))
        return answered, [self._cycle(subscription, customer, current, start, tuple(charges))]

    def _seen(
        self, task: Task, subscription: Subscription, found: _Answers | str, ways: Mapping[str, Way]
    ) -> Seen:
        if isinstance(found, str):
            return Seen(task, (), found)
        customer = self.customer_of(subscription)
        way = ways.get(customer)
        comparisons = tuple(self._compared(customer, subscription, one, way) for one in found.totals)
        return Seen(task, comparisons, "", tuple(found.cycles))

    def _compared(
        self, customer: str, subscription: Subscription, one: _Answered, way: Way | None
    ) -> Comparison:
        own_period = self._find_own_period(customer, one.provider_period)
        found: Bracket | None = Bracket(one.total, one.total)
        if one.total != one.before or one.total != one.after:
            flights = way.flights(one.meter, own_period) if way else []
            found = compute_bracket(
                one.meter.kind, one.before, one.after, flights, one.answered_at, self._terms.lag
            )
        return Comparison(
            subscription_id=subscription.subscription_id,
            customer=customer,
            billed_as=subscription.customer.customer_id,
            meter=one.meter,
            own_period=own_period,
            provider_period=one.provider_period,
            total=one.total,
            before=one.before,
            after=one.after,
            bracket=found,
            off=None if found is None else found.distance_to(one.total),
            is_listed=one.is_listed,
            price=one.charges[0].price if one.charges else None,
            twice=one.twice,
            charges=one.charges,
        )

    def customer_of(self, subscription: Subscription) -> str:
        """Return whom we know the subscription's customer as."""
        id = subscription.customer.customer_id
        return self._billed().get(id, [id])[0]

    def _shared(self, subscription: Subscription) -> str | None:
        """Return why a customer there cannot be compared that is several of ours; an older catalog allowed it."""
        id = subscription.customer.customer_id
        names = self._billed().get(id, [id])
        if id not in names and id in self._catalog().customers:
            names = [*names, id]
        if len(names) == 1:
            return None
        whose = ", ".join(names)
        return f"{whose} are all billed as {id}, so their usage cannot be distinguished; give each its own billing_id"

    def _billed(self) -> Mapping[str, list[str]]:
        catalog = self._catalog()
        if catalog is not self._named_in:
            billed: dict[str, list[str]] = {}
            for name, customer in catalog.customers.items():
                if customer.billing_id:
                    billed.setdefault(customer.billing_id, []).append(name)
            self._named_in, self._customers = catalog, billed
        return self._customers

    def _find_own_period(self, customer: str, provider_period: Span) -> Span:
        """Return our period that holds the start of the provider's."""
        catalog = self._catalog()
        return Span(
            *find_exact_period(catalog.period_of(customer), catalog.zone_of(customer), provider_period.start)
        )

    def _start(self, customer: str, provider_period: Span) -> int:
        """Return what our total of a cycle is known by: its own start where the catalog's periods are the provider's.

        A second cycle within one of our periods has no total here, so that no usage is compared twice. Periods of
        another kind begin elsewhere anyway, so there it is the one that holds the cycle's start.
        """
        is_theirs = isinstance(self._catalog().period_of(customer), Billing)
        if is_theirs or conflict_of(self._store, customer):
            return known_by(provider_period)
        return known_by(self._find_own_period(customer, provider_period))

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

    def _read_total_again(self, comparison: Comparison) -> int:
        """Read the provider's total again, so that all that is compared is of about one time."""
        if comparison.is_listed:
            return comparison.total
        lines = comparison.twice or (BilledBy(comparison.subscription_id, comparison.meter.id),)
        found: list[int] = []
        for id in dict.fromkeys(one.subscription_id for one in lines):
            for cycle in self.reads.history(id):
                if known_by(span_of(cycle)) == known_by(comparison.provider_period):
                    units = [(one.id, quantity_of(one.consumed_units)) for one in cycle.meters]
                    # Lines of one meter with equal units price the same usage.
                    found += [many for meter, many in dict.fromkeys(units) if BilledBy(id, meter) in lines]
        return sum(found) if found else comparison.total

    def _listed(self, billed_as: str, meter: MatchedMeter, provider_period: Span) -> list[ProviderEvent]:
        now = self._clock()
        reading = MeterReader(meter.provider_meter, is_foreign=True)
        name = meter.provider_meter.event_name
        # Beyond the edges too: what was restamped there or moved is billed in the period beside this one.
        start, end = provider_period.start - BESIDE, min(provider_period.end + BESIDE, now + AHEAD)
        events = self.reads.events(billed_as, name, start, end, now)
        properties = [{key: to_exact(value) for key, value in (e.metadata or {}).items()} for e in events]
        quantities = reading.read(properties)
        return [
            ProviderEvent(e.event_id, to_micros(e.timestamp), quantity, _mark(e))
            for e, quantity in zip(events, quantities, strict=True)
        ]

    def _sum_adjustments(self, comparison: Comparison) -> tuple[int, frozenset[str]]:
        """Return the sum of reconciliation's adjustments in this total, and the ids of all that were applied."""
        adopted = 0
        applied = set()
        for note in self._store.notes("adjustment", comparison.customer, NOTES_LOOKED_AT):
            made = json.loads(note.body)
            applied.add(note.id)
            is_of_this = (
                made["meter"] == comparison.meter.own_meter.name and made["at"] in comparison.own_period
            )
            if made["by"] == BY and made["refused"] is None and is_of_this:
                adopted += scale(Decimal(made["quantity"]))
        return adopted, frozenset(applied)

    def _rewritten_at(self, customer: str) -> int:
        """When the customer's shard was last asked for its totals again, and began to write them; 0 for never."""
        shard = str(shard_of(customer, self._shards))
        notes = self._store.notes("resend", None, NOTES_LOOKED_AT)
        return max((note.at for note in notes if note.id.rpartition("/")[2] == shard), default=0)


def charge_of(usage: MeterUsage, provider_meters: ProviderMeters) -> Charge:
    """Return a meter's part of a cycle, as ours where it counts the same."""
    price = None
    if usage.price_per_unit is not None:
        free = scale(usage.free_threshold or 0)
        price = Price(usage.currency, _decimal(usage.price_per_unit), free)
    quantity = quantity_of(usage.consumed_units)
    meter, other = provider_meters.matched.get(usage.id), provider_meters.others.get(usage.id)
    return Charge(
        usage.id,
        meter.own_meter.name if meter else "",
        usage.name or (other.name if other else ""),
        quantity,
        price,
        other.why if other else "",
        bool(meter and meter.is_archived),
        usage.total_price,
    )


def charges_of(cycle: Cycle, provider_meters: ProviderMeters) -> tuple[Charge, ...]:
    """Return what a cycle bills, line by line."""
    return mark_repeated(charge_of(usage, provider_meters) for usage in cycle.meters)


def _by_meter(
    own: Iterable[tuple[str, Charge]], beside: Iterable[tuple[str, Charge]]
) -> dict[str, list[tuple[str, Charge]]]:
    """Return a cycle's charges by our meter, with what siblings charge for the same ones."""
    found: dict[str, list[tuple[str, Charge]]] = {}
    for id, charge in own:
        if charge.meter:
            found.setdefault(charge.meter, []).append((id, charge))
    for id, charge in beside:
        if charge.meter in found:
            found[charge.meter].append((id, charge))
    return found


def _is_more_there(one: Finding) -> bool:
    """Return whether a cycle bills what is not in its total here."""
    return one.cause in ("missing_here", "boundary") and one.quantity is not None and one.quantity < 0


def _billed_twice(comparison: Comparison, listed: Sequence[ProviderEvent]) -> tuple[Finding, ...]:
    words = f"{len(comparison.twice)} lines bill it: {', '.join(map(str, comparison.twice))}"
    ids = tuple(dict.fromkeys(event.id for event in listed if event.quantity is not None))
    return (Finding("billed_twice", comparison.after - comparison.total, ids, words),)


def span_of(cycle: Cycle) -> Span:
    """Return the period of an item of the usage history, to the microsecond."""
    return Span(to_micros(cycle.start_date), to_micros(cycle.end_date))


def current_of(subscription: Subscription) -> Span:
    """Return the period that a subscription is in."""
    return Span(to_micros(subscription.previous_billing_date), to_micros(subscription.next_billing_date))


def known_by(span: Span) -> int:
    """Return the second that our totals of a period are known by."""
    return span.start - span.start % SECOND


def quantity_of(text: int | str) -> int:
    """Return a quantity as JSON has it, times 10²⁴ and rounded there. DodoError for what is no number."""
    try:
        return scale_rounded(Decimal(text))
    except (ValueError, ArithmeticError) as error:
        raise DodoError(f"dodo: needs a number of units, got {str(text)[:40]!r} ({error})") from None


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise DodoError(f"dodo: needs a price, got {text[:40]!r}") from error


def _fold_events(meter: MatchedMeter, provider_period: Span, listed: Sequence[ProviderEvent]) -> int:
    """Return the total of the provider's events."""
    values = [
        (event.at, event.quantity)
        for event in listed
        if event.at in provider_period and event.quantity is not None
    ]
    return fold_readings(meter.kind, values)


def _mark(event: ListedEvent) -> bytes:
    """Equal for events of equal name, time and properties."""
    properties = sorted((event.metadata or {}).items())
    return msgspec.json.encode([event.event_name, to_micros(event.timestamp), properties])
