"""From what was seen of a subscription to what is said and done about it: standings, causes, repairs."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

import msgspec
from xxhash import xxh3_128_hexdigest

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.reconciliation.credit_entries import (
    CreditTerms,
    deductions,
    given_back,
    keys_of,
    refills,
)
from tidegate.connectors.reconciliation.findings import Book, Outcome, Task
from tidegate.connectors.reconciliation.repairer import Repairer, Subject
from tidegate.flows.reconcile.compare import Comparer, Comparison, Explained, Seen, quantity_of, span_of
from tidegate.operators.billing.acknowledgements import (
    CONFIRMED,
    OPEN,
    Acknowledgements,
    OpenDrift,
    acknowledge,
)
from tidegate.operators.billing.coverage import BilledCycle, compute_undercharge, format_money
from tidegate.operators.billing.credit_excess import AMOUNTS, add_amounts, compute_excess
from tidegate.operators.billing.drift_status import DriftStatus, update_status
from tidegate.operators.billing.provider import LedgerEntry
from tidegate.operators.billing.repairs import ADVICE, Circumstances, Repair, plan_repairs
from tidegate.operators.columns.quantity import format_quantity, scale
from tidegate.operators.model.ports import Note, StoreWriter
from tidegate.operators.model.wire import format_instant

SECOND = 1_000_000
# Of one finding in notes and lines; the journal has all that were acted on.
IDS_SHOWN = 100
# An explanation costs listings, so it holds for a while: longer if nothing moved.
HOLDS_FOR, HOLDS_AT_LEAST = 6 * 3600 * SECOND, 1800 * SECOND
# What the flow was asked to write again is in the store by then, and so is what it replayed after a start.
REWRITTEN_AFTER = 180 * SECOND


class StatusChange(NamedTuple):
    """A total after a comparison: its drift status before and now, why it is off, what may be done."""

    comparison: Comparison
    before: DriftStatus | None
    drift_status: DriftStatus
    explained: Explained | None = None
    problem: str = ""
    acts: tuple[Repair, ...] = ()
    credit: CreditTerms | None = None


class Judged(NamedTuple):
    """What came of a task: how many totals were compared, and those of which there is something to say."""

    task: Task
    problem: str
    compared: int
    changes: tuple[StatusChange, ...]
    cycles: tuple[BilledCycle, ...] = ()


class AlertOut(Protocol):
    """Takes `(id, kind, customer, line)` of an alert; on return it is not lost."""

    def __call__(self, id: str, kind: str, customer: str, line: bytes) -> None: ...


class Lines(Protocol):
    def write(self, lines: Sequence[bytes]) -> None: ...


class Judge:
    """Compares with what was known: off twice in a row is drift. Up to `tolerance` (×10²⁴) is not off."""

    def __init__(self, book: Book, apart: int, clock: Callable[[], int], tolerance: int = 0) -> None:
        self._book, self._apart, self._clock, self._tolerance = book, apart, clock, tolerance

    def judge(self, seen: Seen) -> Judged:
        now = self._clock()
        changes = []
        for unrounded in seen.comparisons:
            is_tolerated = unrounded.off is not None and abs(unrounded.off) <= self._tolerance
            comparison = unrounded._replace(off=0) if is_tolerated else unrounded
            name = comparison.meter.own_meter.name
            before = self._book.read_status(comparison.customer, name, comparison.provider_period.start)
            if before is None and comparison.off == 0:
                continue
            drift_status = update_status(
                before,
                comparison.customer,
                name,
                comparison.provider_period,
                comparison.off,
                now,
                self._apart,
            )
            changes.append(StatusChange(comparison, before, drift_status))
        compared = sum(comparison.uncovered is None for comparison in seen.comparisons)
        return Judged(seen.task, seen.problem, compared, tuple(changes), seen.cycles)


class Explainer:
    """Looks into what has drifted, event by event, and decides what may be done about it."""

    def __init__(
        self,
        comparer: Comparer,
        reads: DodoReads,
        repairer: Repairer,
        acknowledged: Callable[[], Acknowledgements],
        clock: Callable[[], int],
        *,
        in_credits: bool,
        repair: bool,
        tolerance: int = 0,
    ) -> None:
        self._comparer, self._reads, self._repairer = comparer, reads, repairer
        self._acknowledged, self._tolerance = acknowledged, tolerance
        self._clock, self._in_credits, self._repair = clock, in_credits, repair

    def explain(self, found: Judged) -> Judged:
        return found._replace(changes=tuple(map(self._explained, found.changes)))

    def _explained(self, change: StatusChange) -> StatusChange:
        comparison = change.comparison
        if change.drift_status.status != "drift" or not comparison.off or self._holds(change):
            return change
        try:
            explained = self._comparer.explain(comparison)
        except DodoError as error:
            return change._replace(problem=str(error))
        if all(one.cause == "in_flight" for one in explained.findings):
            # It came right while it was looked into, or is about to.
            drift_status = change.drift_status._replace(status="ok", misses=0, first_at=None)
            return change._replace(comparison=explained.comparison, drift_status=drift_status)
        if self._is_acknowledged(explained):
            # Who accepted it has settled it some other way, or wants it so.
            return change._replace(comparison=explained.comparison, explained=explained)
        if comparison.uncovered is not None:
            # Nothing bills it, so there is nothing that our total could be set to.
            return change._replace(comparison=explained.comparison, explained=explained)
        credit = self._credit_terms(explained)
        acts = plan_repairs(explained.findings, self._circumstances(change.drift_status, explained, credit))
        return change._replace(
            comparison=explained.comparison, explained=explained, acts=tuple(acts), credit=credit
        )

    def _holds(self, change: StatusChange) -> bool:
        """Whether what was found before still says it all."""
        before, comparison = change.before, change.comparison
        if before is None or before.status not in CONFIRMED:
            return False
        if self._repair and before.status == "drift":
            return False
        known = _findings(before)
        is_same = (known.get("ours"), known.get("billers")) == (
            format_quantity(comparison.after),
            format_quantity(comparison.total),
        )
        explained_at: int = known.get("explained_at", 0)
        return self._clock() - explained_at < (HOLDS_FOR if is_same else HOLDS_AT_LEAST)

    def _is_acknowledged(self, explained: Explained) -> bool:
        comparison = explained.comparison
        causes = dict.fromkeys(one.cause for one in explained.findings if one.cause != "in_flight")
        if comparison.uncovered is not None and comparison.uncovered.cause is not None:
            causes = {comparison.uncovered.cause: None}
        name, off = comparison.meter.own_meter.name, comparison.off or 0
        found = OpenDrift(
            comparison.customer, name, comparison.provider_period.start, list(causes), off, self._tolerance
        )
        return self._acknowledged().find_covering(found) is not None

    def _circumstances(
        self, drift_status: DriftStatus, explained: Explained, credit: CreditTerms | None
    ) -> Circumstances:
        comparison, now = explained.comparison, self._clock()
        done = self._repairer.journal.of(
            comparison.customer, comparison.meter.own_meter.name, format_instant(comparison.own_period.start)
        )
        resent = {id for entry in done if entry.act in ("resend", "late", "debit") for id in entry.ids}
        missing = [id for one in explained.findings if one.cause == "missing_there" for id in one.ids]
        resent |= self._repairer.sent_again(missing)
        adjusting = [
            e for e in done if e.act == "adjust" and e.state != "refused" and e.id not in explained.applied
        ]
        return Circumstances(
            kind=comparison.meter.kind,
            now=now,
            own_period=comparison.own_period,
            provider_period=comparison.provider_period,
            own_events=explained.own,
            provider_quantities=explained.listed,
            is_calm=explained.is_calm,
            is_republished=(drift_status.first_at or now) < explained.rewritten_at < now - REWRITTEN_AFTER,
            resent_ids=frozenset(resent),
            adopted=explained.adopted,
            is_adjusting=bool(adjusting),
            in_credits=credit is not None,
            has_arrived=explained.has_arrived,
        )

    def _credit_terms(self, explained: Explained) -> CreditTerms | None:
        """How the meter is paid in credits, where it is and entries are allowed."""
        causes = {finding.cause for finding in explained.findings}
        if not self._in_credits or not causes & {"doubled_there", "late_after_close", "missing_there"}:
            return None
        try:
            return credit_terms(self._reads, explained)
        except DodoError:
            return None


def credit_terms(reads: DodoReads, explained: Explained) -> CreditTerms | None:
    """Return how a meter of a subscription is paid in credits; None where it is not."""
    comparison = explained.comparison
    whole = reads.subscription(comparison.subscription_id)
    paid = {one.meter_id: one for one in whole.meter_credit_entitlement_cart}
    if (own := paid.get(comparison.meter.id)) is None:
        return None
    places = reads.credit_places(own.credit_entitlement_id)
    free = {one.meter_id: scale(one.free_threshold) for one in whole.meters}
    terms = {
        id: CreditTerms(
            id, one.credit_entitlement_id, free.get(id, 0), Decimal(one.meter_units_per_credit), places
        )
        for id, one in paid.items()
        if one.credit_entitlement_id == own.credit_entitlement_id
    }
    mine = terms.pop(comparison.meter.id)
    ledger = reads.ledger(mine.entitlement_id, comparison.billed_as, comparison.provider_period.start)
    over = (
        _over_of_several(reads, explained, mine, terms, ledger)
        if terms
        else _over_of_one(explained, mine, ledger)
    )
    return mine._replace(excess=AMOUNTS.subtract(over, given_back(ledger)), entered=keys_of(ledger))


def _over_of_one(explained: Explained, terms: CreditTerms, ledger: Sequence[LedgerEntry]) -> Decimal:
    """Return how much of the deductions is too much, where the credits pay for this meter alone."""
    period = explained.comparison.provider_period
    arrived = [
        (own.settled_at or own.at, own.quantity or 0)
        for own in explained.own.values()
        if own.at in period and own.id in explained.listed
    ]
    return compute_excess(deductions(ledger, period.end), refills(ledger), arrived, terms.credits)


def _over_of_several(
    reads: DodoReads,
    explained: Explained,
    terms: CreditTerms,
    others: Mapping[str, CreditTerms],
    ledger: Sequence[LedgerEntry],
) -> Decimal:
    """Do the same where they pay for several meters: only what is beyond all that is due is too much."""
    comparison = explained.comparison
    doubled = sum(one.quantity or 0 for one in explained.findings if one.cause == "doubled_there")
    own = terms.credits(comparison.total + doubled)
    shared = [
        others[usage.id].credits(quantity_of(usage.consumed_units))
        for cycle in reads.history(comparison.subscription_id)
        for usage in cycle.meters
        if span_of(cycle).start == comparison.provider_period.start and usage.id in others
    ]
    deducted = add_amounts(amount for _, amount in deductions(ledger, comparison.provider_period.end))
    return AMOUNTS.subtract(deducted, add_amounts([own, *shared]))


class Settler:
    """Makes the repairs, tells of it everywhere, and only then has the book say that the task is done."""

    def __init__(
        self,
        book: Book,
        repairer: Repairer,
        store: StoreWriter,
        alert: AlertOut,
        report: Lines | None,
        reads: DodoReads,
        acknowledged: Callable[[], Acknowledgements],
        clock: Callable[[], int],
        *,
        repair: bool,
        tolerance: int = 0,
    ) -> None:
        self._acknowledged, self._tolerance = acknowledged, tolerance
        self._book, self._repairer, self._store, self._alert = book, repairer, store, alert
        self._report, self._reads, self._clock, self._repair = report, reads, clock, repair
        self._counted = reads.requests

    def settle(self, found: Judged) -> None:
        now = self._clock()
        drift_statuses, notes, lines, alerts = [], [], [], []
        figures = {"unread": int(bool(found.problem))}
        if found.task.round == 1 and found.task.subscription is not None:
            figures |= {"subscriptions": 1, "totals": found.compared}
        for unwritten in found.changes:
            made = self._make_repairs(found.task, unwritten)
            drift_status = self._write_status(found.task, unwritten, made, now)
            change = unwritten._replace(drift_status=drift_status)
            drift_statuses.append(drift_status)
            for name in (f"made_{act.act}" for act, state in made if state in ("made", "done")):
                figures[name] = figures.get(name, 0) + 1
            if is_news(change):
                line = drift_status.findings
                id = f"{drift_status.customer}/{drift_status.meter}/{drift_status.span.start}"
                # What is resolved leaves the list that the API and the dashboard show.
                is_open = drift_status.status in OPEN
                notes.append(Note("drift", id, drift_status.customer, now, line if is_open else b""))
                lines.append(line)
            if state := change_of(change):
                alerts.append(alert_of(drift_status, state, now))
        if found.problem:
            lines.append(_unread(found, now))
        notes += [Note("alert", id, customer, now, line) for id, customer, line in alerts]
        self._store.write([], [], notes)
        if self._report is not None:
            self._report.write(lines)
        for id, customer, line in alerts:
            self._alert(id, "drift", customer, line)
        asked, self._counted = self._reads.requests - self._counted, self._reads.requests
        outcome: Outcome = "unread" if found.problem else "compared" if found.compared else "nothing"
        figures["requests"] = asked
        self._book.settle(found.task, outcome, drift_statuses, figures, found.problem, found.cycles)

    def _make_repairs(self, task: Task, change: StatusChange) -> list[tuple[Repair, str]]:
        """Make the repairs that are allowed; return each with its outcome, made or only named."""
        comparison = change.comparison
        subject = Subject(
            comparison.customer,
            comparison.billed_as,
            comparison.meter.own_meter.name,
            comparison.own_period,
            comparison.after,
            comparison.total,
        )
        made = []
        for act in change.acts:
            if not self._repair:
                made.append((act, self._repairer.state_of(act, subject, change.credit)))
                continue
            made.append((act, self._repairer.repair(act, subject, change.credit)))
        return made

    def _write_status(
        self, task: Task, change: StatusChange, made: list[tuple[Repair, str]], now: int
    ) -> DriftStatus:
        """Write the drift status with its findings, new or unchanged, and return it."""
        comparison, drift_status = change.comparison, change.drift_status
        known = _findings(change.before) if change.before else {}
        kept = {name: known[name] for name in ("findings", "repairs", "explained_at") if name in known}
        if change.explained is not None:
            kept = {
                "findings": [_finding(one) for one in change.explained.findings],
                "repairs": [_repair(act, state) for act, state in made],
                "explained_at": now,
            }
        elif drift_status.status not in CONFIRMED:
            kept = {}
        fields = {
            "pass": task.number,
            "status": drift_status.status,
            "customer": comparison.customer,
            "billed_as": comparison.billed_as,
            "subscription": comparison.subscription_id,
            "meter": drift_status.meter,
            "period_start": format_instant(drift_status.span.start),
            "period_end": format_instant(drift_status.span.end),
            "ours": format_quantity(comparison.after),
            "billers": format_quantity(comparison.total),
            "drift": format_quantity(comparison.after - comparison.total),
            "uncovered": comparison.uncovered.cause if comparison.uncovered else None,
            **_worth(comparison),
            "low": None if comparison.bracket is None else format_quantity(comparison.bracket.low),
            "high": None if comparison.bracket is None else format_quantity(comparison.bracket.high),
            "misses": drift_status.misses,
            "first_at": None if drift_status.first_at is None else format_instant(drift_status.first_at),
            "looked_at": format_instant(now),
            "problem": change.problem,
        }
        off = known.get("off") if comparison.off is None else format_quantity(comparison.off)
        fields |= {"off": off, "tolerance": format_quantity(self._tolerance)} | kept
        return _acknowledged(drift_status, change.before, acknowledge(fields, self._acknowledged()))


def _acknowledged(
    drift_status: DriftStatus, before: DriftStatus | None, fields: dict[str, Any]
) -> DriftStatus:
    """Return a standing with the status that its acknowledgements give it; it is raised again once it is too large."""
    turn = drift_status.turn
    if before is not None and drift_status.status in CONFIRMED:
        turn = before.turn + (fields["status"] == "drift" != before.status)
    return drift_status._replace(status=fields["status"], turn=turn, findings=msgspec.json.encode(fields))


def _worth(comparison: Comparison) -> dict[str, str]:
    """Return what the drift is worth, in the currency's smallest unit, where the price is known."""
    if comparison.price is None or comparison.off is None:
        return {}
    worth = (
        compute_undercharge(comparison.charges, comparison.off)
        if comparison.charges
        else comparison.price.compute_worth(comparison.total, comparison.off)
    )
    if worth is None:
        return {}
    return {
        "currency": comparison.price.currency,
        "worth": f"{worth:f}",
        "money": format_money(worth, comparison.price.currency),
    }


def is_news(change: StatusChange) -> bool:
    """Whether anybody should hear of it: it is off, or no longer is."""
    was = change.before.status if change.before else "ok"
    return change.drift_status.status in OPEN or was in OPEN


def change_of(change: StatusChange) -> str | None:
    """Return `raised` if a total became drift, `resolved` if it was one or was acknowledged, else None."""
    was = change.before.status == "drift" if change.before else False
    is_drift = change.drift_status.status == "drift"
    return None if was == is_drift else "raised" if is_drift else "resolved"


def alert_of(drift_status: DriftStatus, state: str, now: int) -> tuple[str, str, bytes]:
    """Return an alert as id, customer and line of JSON; the same change has the same id."""
    parts = [
        "drift",
        drift_status.customer,
        drift_status.meter,
        drift_status.span.start,
        state,
        drift_status.turn,
    ]
    id = xxh3_128_hexdigest(msgspec.json.encode(parts))
    found = _findings(drift_status)
    causes = ", ".join(
        finding["cause"] for finding in found.get("findings", ()) if finding["cause"] != "in_flight"
    )
    words = f"differs from the provider's total by {found['drift']}" + (f" ({causes})" if causes else "")
    line = {
        "id": id,
        "kind": "drift",
        "state": state,
        "customer": drift_status.customer,
        "meter": drift_status.meter,
        "period_start": format_instant(drift_status.span.start),
        "period_end": format_instant(drift_status.span.end),
        "level": causes or "unexplained",
        "limit": found["billers"],
        "total": found["ours"],
        "at": format_instant(now),
        "limit_version": "",
        "turn": drift_status.turn,
        "text": words if state == "raised" else _over(found),
    }
    return id, drift_status.customer, msgspec.json.encode(line)


def _over(found: Mapping[str, Any]) -> str:
    if said := found.get("acknowledged"):
        return f"is acknowledged by {said['by']}: {said['reason']}"
    return "agrees with the provider's total again"


def _findings(drift_status: DriftStatus) -> Mapping[str, Any]:
    found: Mapping[str, Any] = msgspec.json.decode(drift_status.findings)
    return found


def _finding(one: Any) -> dict[str, Any]:
    return {
        "cause": one.cause,
        "quantity": None if one.quantity is None else format_quantity(one.quantity),
        "events": len(one.ids),
        "ids": list(one.ids[:IDS_SHOWN]),
        "detail": one.detail,
        "advice": ADVICE[one.cause],
    }


def _repair(act: Repair, state: str) -> dict[str, Any]:
    return {
        "act": act.act,
        "state": state,
        "why": act.why,
        "quantity": format_quantity(act.quantity),
        "events": len(act.ids),
    }


def _unread(found: Judged, now: int) -> bytes:
    fields = {
        "pass": found.task.number,
        "status": "unread",
        "subscription": found.task.id,
        "customer": found.task.subscription.customer.customer_id if found.task.subscription else "",
        "looked_at": format_instant(now),
        "problem": found.problem,
    }
    return msgspec.json.encode(fields)
