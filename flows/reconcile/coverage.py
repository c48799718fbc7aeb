"""The proof that each unit is billed once: our totals that no subscription bills, and all lines at a run's end.

It starts from what the store has, not from what the provider lists: an unknown customer, a lapsed subscription, a
product without the meter or a gap between two periods leave nothing there that could be compared.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import msgspec

from tidegate.connectors.outbox.billing_records import BillingRecords, Way
from tidegate.connectors.reconciliation.conflicts import conflict_of
from tidegate.connectors.reconciliation.findings import PROOF, Book, Task
from tidegate.flows.reconcile.compare import (
    LAG,
    Comparison,
    ProviderMeters,
    Seen,
    Terms,
    Uncovered,
    known_by,
    quantity_of,
)
from tidegate.operators.billing.acknowledgements import OPEN
from tidegate.operators.billing.coverage import (
    BilledCycle,
    CoverageLine,
    Price,
    compute_undercharge,
    explain_gap,
    find_price,
    select_charges,
    sum_units,
)
from tidegate.operators.billing.drift import Bracket, Span
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.billing.outgoing import BillingRules
from tidegate.operators.billing.provider import MatchedMeter, UnmatchedMeter
from tidegate.operators.model.aggregates import ADDITIVE, AT_PROVIDER
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.periods import MIN_AT, SECOND, find_exact_period
from tidegate.operators.model.ports import StoredTotal, StoreReader
from tidegate.operators.model.records import Total


class Own(NamedTuple):
    """A total of ours, with what of it is in flight and held back."""

    customer: str
    meter: Meter
    span: Span
    quantity: int
    in_flight: int
    held_back: int
    is_settled: bool

    @property
    def unbilled(self) -> int:
        if self.meter.kind in ADDITIVE:
            return self.quantity - self.in_flight - self.held_back
        # A level that waits or is held back may be all there is.
        return 0 if max(self.in_flight, self.held_back) >= self.quantity else self.quantity


class Prover:
    """Finds what nobody bills; one thread at a time. `is_skipping` leaves out customers without a billing id."""

    def __init__(
        self,
        store: StoreReader,
        open_books: Callable[[], BillingRecords],
        catalog: Callable[[], Catalog],
        book: Book,
        terms: Terms,
        clock: Callable[[], int],
        *,
        is_skipping: bool,
    ) -> None:
        self._store, self._open_records, self._catalog, self._book = store, open_books, catalog, book
        self._terms, self._clock, self._is_skipping = terms, clock, is_skipping

    def prove(self, task: Task, provider_meters: ProviderMeters) -> Seen:
        """Look for totals that no cycle of this run bills, and for such findings of before that are over."""
        cycles, unread = self._book.cycles(task.number), self._unread(task.number)
        left = [
            stored
            for stored in self._totals(provider_meters)
            if stored.total.customer not in unread and not self._is_billed(cycles, stored)
        ]
        comparisons = [self._compare(own, cycles, provider_meters) for own in self._weighed(left)]
        comparisons += self._over(
            cycles,
            unread,
            {
                (comparison.customer, comparison.meter.own_meter.name, comparison.own_period.start)
                for comparison in comparisons
            },
        )
        return Seen(task, tuple(comparisons))

    def lines(self, number: int, provider_meters: ProviderMeters) -> Iterator[CoverageLine]:
        """Yield the proof line by line, with what the comparisons of this run found."""
        cycles, unread = self._book.cycles(number), self._unread(number)
        differing: list[StoredTotal] = []
        used: set[tuple[str, str, int]] = set()
        for stored in self._totals(provider_meters):
            total = stored.total
            used.add((total.customer, total.meter, total.start))
            billed = self._billed(cycles, stored)
            if billed != quantity_of(total.total):
                differing.append(stored)
                continue
            price = self._price(cycles, total.customer, total.meter)
            yield _line(total.customer, total.meter, Span(total.start, total.end), billed, billed, price)
        weighed = [*self._weighed(differing), *self._unused(cycles, used)]
        for own in weighed:
            yield self._differing_line(own, cycles, unread)

    def _unused(
        self, cycles: Mapping[str, Sequence[BilledCycle]], used: set[tuple[str, str, int]]
    ) -> Iterator[Own]:
        """Yield, as totals of nothing, what cycles bill that have no total here."""
        meters = {meter.name: meter for meter in self._catalog().meters}
        for cycle in (one for some in cycles.values() for one in some):
            for charge in cycle.charges:
                key = cycle.customer, charge.meter, cycle.ours
                if charge.quantity and charge.meter in meters and key not in used:
                    used.add(key)
                    yield Own(cycle.customer, meters[charge.meter], cycle.span, 0, 0, 0, True)

    def _differing_line(
        self, own: Own, cycles: Mapping[str, Sequence[BilledCycle]], unread: set[str]
    ) -> CoverageLine:
        whose = cycles.get(own.customer, ())
        charges = select_charges(whose, own.meter.name, known_by(own.span))
        starts = {c.span.start for c in whose if c.ours == known_by(own.span)} | {own.span.start}
        drift_status = self._find_open_status(own, starts)
        billed = sum_units(charges)
        price = self._price(cycles, own.customer, own.meter.name)
        line = _line(own.customer, own.meter.name, own.span, own.quantity, billed, price)
        if own.customer in unread:
            return line._replace(cause="unread")
        if drift_status is None or drift_status.status not in OPEN:
            # The comparison allows for it: it waits, was just acknowledged, or came meanwhile.
            return line._replace(in_flight=own.quantity - billed - own.held_back, held_back=own.held_back)
        line = line._replace(in_flight=own.in_flight, held_back=own.held_back, cause=_causes(drift_status))
        worth = compute_undercharge(charges, line.unbilled)
        if worth is None and price is not None:
            worth = price.compute_worth(billed, line.unbilled)
        return line._replace(worth=worth, is_acknowledged=drift_status.status == "acknowledged")

    def _find_open_status(self, own: Own, starts: Iterable[int]) -> DriftStatus | None:
        found = [self._book.read_status(own.customer, own.meter.name, start) for start in sorted(starts)]
        return next((one for one in found if one and one.status != "ok"), None)

    def _totals(self, provider_meters: ProviderMeters) -> Iterator[StoredTotal]:
        """Yield our totals of periods that may still be looked into, of meters that the provider has or had."""
        catalog, since = self._catalog(), self._clock() - self._terms.looked_back
        billable = _billable(catalog, provider_meters)
        rules = BillingRules(catalog)
        for stored in self._store.totals():
            total = stored.total
            if total.window != "period" or total.end <= since or total.meter not in billable:
                continue
            if self._is_skipping and rules.find_billing_id(total.customer) is None:
                continue
            if quantity_of(total.total):
                yield stored

    def _weighed(self, stored: Sequence[StoredTotal]) -> list[Own]:
        """Return these totals with what of them is in flight and held back."""
        now = self._clock()
        meters = {meter.name: meter for meter in self._catalog().meters}
        customers = {one.total.customer for one in stored}
        with closing(self._open_records()) as records:
            ways = records.on_their_way(customers, now - self._terms.settle_us)
            held = records.held_back(customers)
        return [
            self._own(one, meters[one.total.meter], ways[one.total.customer], held[one.total.customer], now)
            for one in stored
        ]

    def _own(self, stored: StoredTotal, meter: Meter, way: Way, held: Way, now: int) -> Own:
        total = stored.total
        span, same = self._span(total), _ours_alone(meter)
        fold = sum if meter.kind in ADDITIVE else lambda values: max(values, default=0)
        in_flight = fold(flight.quantity for flight in way.flights(same, span))
        held_back = fold(flight.quantity for flight in held.flights(same, span))
        is_settled = stored.written_at <= now - LAG
        return Own(total.customer, meter, span, quantity_of(total.total), in_flight, held_back, is_settled)

    def _span(self, total: Total) -> Span:
        """Return the period of a total to the microsecond, as the catalog has it."""
        catalog = self._catalog()
        policy, zone = catalog.period_of(total.customer), catalog.zone_of(total.customer)
        exact = Span(*find_exact_period(policy, zone, max(total.start, MIN_AT) + SECOND))
        return exact if known_by(exact) == total.start else Span(total.start, total.end)

    def _compare(
        self, own: Own, cycles: Mapping[str, Sequence[BilledCycle]], provider_meters: ProviderMeters
    ) -> Comparison:
        whose = cycles.get(own.customer, ())
        likes = {one.id: one.why for one in provider_meters.others.values() if own.meter.name in one.like}
        cause, words = explain_gap(whose, own.span, own.meter.name, likes)
        if cause == "boundary" and (conflict := conflict_of(self._store, own.customer)):
            cause, words = "second_subscription", conflict
        billed_as = BillingRules(self._catalog()).find_billing_id(own.customer)
        if cause == "no_subscription":
            words = f"{words}; it is billed as {billed_as}" if billed_as else f"{words}, and no billing_id"
        off: int | None = own.unbilled
        if not own.is_settled and own.unbilled != own.quantity:
            # Store and outbox are read one after the other, so a part of a total that moves decides nothing.
            off = None if own.unbilled else 0
        price = self._price(cycles, own.customer, own.meter.name)
        return _compare_uncovered(
            own.customer,
            billed_as or "",
            own.meter,
            own.span,
            own.quantity,
            off,
            price,
            Uncovered(cause, words),
        )

    def _over(
        self, cycles: Mapping[str, Sequence[BilledCycle]], unread: set[str], found: set[tuple[str, str, int]]
    ) -> list[Comparison]:
        """Return a comparison that resolves each open finding that this run neither compared nor found again."""
        compared = {
            (one.customer, charge.meter, one.span.start)
            for some in cycles.values()
            for one in some
            for charge in one.charges
        }
        meters = {meter.name: meter for meter in self._catalog().meters}
        return [
            _compare_uncovered(
                one.customer, "", meters.get(one.meter, Meter(one.meter, "", "count")), one.span, 0, 0, None,
                Uncovered(None, "no longer found"),
            )
            for one in self._book.open()
            if (key := (one.customer, one.meter, one.span.start)) not in compared
            and key not in found
            and one.customer not in unread
        ]  # fmt: skip

    def _unread(self, number: int) -> set[str]:
        """Return our customers of whom a subscription could not be read."""
        catalog = self._catalog()
        billed = {c.billing_id: name for name, c in catalog.customers.items() if c.billing_id}
        return {name for id in self._book.unread(number) for name in (id, billed.get(id, id))}

    def _is_billed(self, cycles: Mapping[str, Sequence[BilledCycle]], stored: StoredTotal) -> bool:
        total = stored.total
        return bool(select_charges(cycles.get(total.customer, ()), total.meter, total.start))

    def _billed(self, cycles: Mapping[str, Sequence[BilledCycle]], stored: StoredTotal) -> int:
        total = stored.total
        charges = select_charges(cycles.get(total.customer, ()), total.meter, total.start)
        return sum_units(charges)

    def _price(self, cycles: Mapping[str, Sequence[BilledCycle]], customer: str, meter: str) -> Price | None:
        """Return the customer's own price of a meter, else that of any other: an estimate."""
        own = find_price(cycles.get(customer, ()), meter)
        if own is not None:
            return own
        return next((price for some in cycles.values() if (price := find_price(some, meter))), None)


def _compare_uncovered(
    customer: str,
    billed_as: str,
    meter: Meter,
    span: Span,
    quantity: int,
    off: int | None,
    price: Price | None,
    why: Uncovered,
) -> Comparison:
    return Comparison(
        subscription_id=PROOF,
        customer=customer,
        billed_as=billed_as,
        meter=_ours_alone(meter),
        own_period=span,
        provider_period=span,
        total=0,
        before=quantity,
        after=quantity,
        bracket=None if off is None else Bracket(off, off),
        off=off,
        is_listed=False,
        price=price,
        uncovered=why,
    )


def _ours_alone(meter: Meter) -> MatchedMeter:
    return MatchedMeter("", meter, meter, meter.kind, 0)


def _billable(catalog: Catalog, provider_meters: ProviderMeters) -> set[str]:
    """Return our meters that the provider counts, counted, or counts otherwise; the others are ours alone."""
    like: Iterator[UnmatchedMeter] = (one for one in provider_meters.others.values() if not one.is_archived)
    known = {one.own_meter.name for one in provider_meters.matched.values()} | {
        name for one in like for name in one.like
    }
    return {meter.name for meter in catalog.meters if meter.kind in AT_PROVIDER and meter.name in known}


def _line(customer: str, meter: str, span: Span, ours: int, billed: int, price: Price | None) -> CoverageLine:
    return CoverageLine(
        customer,
        meter,
        span,
        ours,
        billed,
        0,
        0,
        "",
        price.currency if price else "",
        price and price.compute_worth(0, 0),
    )


def _causes(drift_status: DriftStatus) -> str:
    found = msgspec.json.decode(drift_status.findings)
    causes = [one["cause"] for one in found.get("findings", ()) if one["cause"] != "in_flight"]
    return ", ".join(dict.fromkeys(causes)) or str(found.get("uncovered") or "") or "to be looked at again"
