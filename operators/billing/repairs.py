"""Repairs of drift: for each finding the action that is allowed, or advice on what a person should do.

Repairs never invent usage: an event sent again was accepted here and keeps its id; an adopted quantity is in the
provider's records. An event at the provider cannot be changed or withdrawn, so a surplus there is settled in credits
or by hand.
Source: Dodo Payments, events (no update, no delete) and credit ledgers.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from tidegate.operators.billing.drift import OF_ANOTHER_PERIOD, Cause, Finding, OwnEvent, Span
from tidegate.operators.billing.outgoing import AGE_MAX, PERIOD_MARGIN
from tidegate.operators.model.aggregates import ADDITIVE, ORDERED, Kind

Act = Literal["resend", "late", "rewrite", "adjust", "credit", "debit"]
# Causes that are corrected in our own total, because it differs from the events of both sides.
OWN_TOTAL_CAUSES: tuple[Cause, ...] = ("missing_here", "extra_there", "boundary")
ADVICE: dict[Cause, str] = {
    "in_flight": "wait: it is in flight",
    "too_old": "held back by late=park: run tidegate dead-letters retry, or settle it by hand",
    "rejected": "see the reason with tidegate dead-letters show; fix it and retry, or drop the event",
    "missing_there": "send it again under the same id; after the period has ended, bill it by hand",
    "missing_here": "have the flow republish its totals, then adjust our total",
    "extra_there": "it comes from another producer, or our billing records were lost: adopt it into our total",
    "doubled_there": "credit or refund it: the provider cannot withdraw an event",
    "differs_there": "another payload was sent under this id first: settle the difference by hand",
    "skewed_there": "the provider's total does not match its own events: ask the provider",
    "boundary": "refresh the billing periods with tidegate catalog pull",
    "billed_elsewhere": "nothing to do: it is billed once, in the period that the detail names",
    "second_subscription": "end one of the two subscriptions or give both the same dates; refund what both bill",
    "billed_twice": "remove one of the two meters from the product, and refund what was billed twice",
    "meter_archived": "unarchive the provider's meter, or give the product an active one; bill the rest by hand",
    "meter_differs": "create a meter at the provider that counts as ours does, or add a changed one here by a new name",
    "not_on_plan": "add a meter for it to the product, or acknowledge that it is not billed",
    "gap": "bill it by hand: no billing period of the provider contains it",
    "no_subscription": "check the customer's billing_id and subscription; bill it by hand",
    "late_after_close": "it arrived after the period was billed: bill it by hand, or waive it",
    "adjusted_here": "an operator adjusted our total, and the provider does not know it: settle it by hand",
    "unexplained": "compare the events of both sides by hand",
}


class Circumstances(NamedTuple):
    """The facts besides the findings that decide which repairs are allowed. Times are µs since the epoch.

    - `own_period`, `provider_period`: the period on both sides; `own_events`: our events by id.
    - `is_calm`: nothing arrived in the last seconds, so our total and our events are of one moment.
    - `is_republished`: the flow has written all totals again since the drift was first seen.
    - `provider_quantities`: what the meter reads from the provider's events, by id.
    - `resent_ids`: events that were sent again before; `adopted`: the sum of adjustments by reconciliation.
    - `is_adjusting`: an adjustment was requested and is not applied yet.
    - `in_credits`: the meter is paid in credits, and entries in the credit ledger are allowed.
    - `has_arrived`: usage of other periods in our total is also in the totals of those periods.
    """

    kind: Kind
    now: int
    own_period: Span
    provider_period: Span
    own_events: Mapping[str, OwnEvent]
    provider_quantities: Mapping[str, int]
    is_calm: bool
    is_republished: bool
    resent_ids: frozenset[str]
    adopted: int
    is_adjusting: bool
    in_credits: bool
    has_arrived: bool = True


class Repair(NamedTuple):
    """One action: events to send, or a quantity (×10²⁴) to add to our total, or to credit or debit at the provider.

    `amounts` are the quantities of the single `ids`, if each is credited or debited separately. `base` is what
    reconciliation had added to our total before.
    """

    act: Act
    why: str
    quantity: int = 0
    ids: tuple[str, ...] = ()
    amounts: tuple[int, ...] = ()
    base: int = 0


def plan_repairs(findings: Iterable[Finding], where: Circumstances) -> list[Repair]:
    """Return the actions that are allowed for these findings of one total."""
    findings = list(findings)
    acts: dict[Act, Repair] = {}
    for repair in (repair for finding in findings for repair in _plan_at_provider(finding, where)):
        known = acts.get(repair.act, Repair(repair.act, repair.why))
        acts[repair.act] = known._replace(
            quantity=known.quantity + repair.quantity,
            ids=known.ids + repair.ids,
            amounts=known.amounts + repair.amounts,
        )
    return [*acts.values(), *_plan_own_total(findings, where)]


def _plan_at_provider(finding: Finding, where: Circumstances) -> list[Repair]:
    """Return the actions that correct the provider's total."""
    if finding.cause == "missing_there":
        return _plan_missing(finding, where)
    if finding.quantity and where.in_credits and where.kind in ADDITIVE:
        if finding.cause == "doubled_there":
            amounts = tuple(where.provider_quantities.get(id, 0) for id in finding.ids)
            words = "billed twice at the provider, and paid in credits"
            return [Repair("credit", words, -finding.quantity, finding.ids, amounts)]
        if finding.cause == "late_after_close":
            amounts = _list_own_amounts(finding.ids, where)
            words = "arrived after the period closed, and paid in credits"
            return [Repair("debit", words, finding.quantity, finding.ids, amounts)]
    return []


def _list_own_amounts(ids: Iterable[str], where: Circumstances) -> tuple[int, ...]:
    return tuple(where.own_events[id].quantity or 0 if id in where.own_events else 0 for id in ids)


def _plan_missing(finding: Finding, where: Circumstances) -> list[Repair]:
    """Return the actions for events that the provider lacks: send them again, or debit credits."""
    ids = [id for id in finding.ids if id not in where.resent_ids]
    young = [id for id in ids if where.now - where.own_events[id].at <= AGE_MAX]
    old = [id for id in ids if where.now - where.own_events[id].at > AGE_MAX]
    acts = []
    if young:
        acts.append(
            Repair(
                "resend",
                "missing at the provider, and recent enough to be sent with its own time",
                ids=tuple(young),
            )
        )
    may_restamp = where.kind not in ORDERED and where.now < where.provider_period.end - PERIOD_MARGIN
    if old and may_restamp:
        acts.append(
            Repair(
                "late",
                "missing at the provider, too old for its own time, its period still open",
                ids=tuple(old),
            )
        )
    elif (
        old and where.in_credits and where.kind in ADDITIVE and not where.resent_ids.intersection(finding.ids)
    ):
        amounts = _list_own_amounts(old, where)
        words = "missing at the provider, its period closed, paid in credits"
        acts.append(Repair("debit", words, sum(amounts), tuple(old), amounts))
    return acts


def _plan_own_total(findings: list[Finding], where: Circumstances) -> list[Repair]:
    """Return the action that corrects our total: republish it first, then adjust what still differs."""
    if where.kind not in ADDITIVE or where.is_adjusting:
        return []
    wrong = [finding for finding in findings if finding.cause in OWN_TOTAL_CAUSES and finding.quantity]
    if where.own_period != where.provider_period:
        # If the periods differ, only our own events show a surplus in our total.
        wrong = [
            one
            for one in wrong
            if one.detail == OF_ANOTHER_PERIOD and where.own_period.start == where.provider_period.start
        ]
        if where.adopted not in (0, -sum(one.quantity or 0 for one in wrong)):
            return []
    if not where.has_arrived and any(one.cause == "boundary" and (one.quantity or 0) > 0 for one in wrong):
        # Usage must be in its new period before it leaves the old one, or it would be in none.
        return []
    amount = -sum(finding.quantity or 0 for finding in wrong) - where.adopted
    if not wrong or not amount:
        return []
    if not where.is_republished and any(finding.cause != "extra_there" for finding in wrong):
        return [Repair("rewrite", "our total differs from our events")]
    if not where.is_calm and any(finding.cause != "extra_there" for finding in wrong):
        # Our total changes while our events are read, so the difference is unknown.
        return []
    ids = tuple(id for finding in wrong for id in finding.ids)
    causes = ", ".join(sorted({finding.cause for finding in wrong}))
    words = f"our total is set to the sum of both sides' events: {causes}"
    return [Repair("adjust", words, amount, ids, base=where.adopted)]
