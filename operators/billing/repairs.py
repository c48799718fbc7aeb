"""What may be done about drift: for each finding the one act that is allowed, or none and what a person should do.

Never is usage invented: what is sent again was accepted here and goes out under its own id; what is adopted is on the
biller's books. An event at the biller cannot be changed or taken back, so what is too much there is settled in credits
or by hand. Source: Dodo Payments, events (no update, no delete) and credit ledgers.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from tidegate.operators.billing.drift import OF_ANOTHER, Cause, Finding, Own, Span
from tidegate.operators.billing.outgoing import AGE_MAX, PERIOD_MARGIN
from tidegate.operators.model.aggregates import ADDITIVE, ORDERED, Kind

Act = Literal["resend", "late", "rewrite", "adjust", "credit", "debit"]
# Causes that our own total is to be set right for, as it differs from both sides' events.
OURS: tuple[Cause, ...] = ("missing_here", "extra_there", "boundary")
ADVICE: dict[Cause, str] = {
    "in_flight": "wait; it is on its way",
    "too_old": "kept back by late=park: tidegate dead-letters retry, or settle by hand",
    "rejected": "look at the reason: tidegate dead-letters show; mend it and retry, or drop it",
    "missing_there": "send it again under the same id; after the period by hand",
    "missing_here": "have the flow write its totals again, then adjust ours",
    "extra_there": "another producer, or books that were lost: adopt it into ours",
    "doubled_there": "credit or refund it; the biller cannot take it back",
    "differs_there": "another payload went out under the id first; settle by hand",
    "skewed_there": "the biller's total is not what its events come to: ask the biller",
    "boundary": "refresh the periods: tidegate catalog pull",
    "billed_elsewhere": "nothing: it is billed once, in the period that the detail names",
    "second_subscription": "end one of the two or give both the same dates, and refund what both bill",
    "billed_twice": "take one of the meters off the product, and refund what was billed twice",
    "meter_archived": "unarchive the meter there, or give the product one that counts; bill the rest by hand",
    "meter_differs": "make a meter there that counts as ours does, or change ours under another name",
    "not_on_plan": "give the product a meter for it, or acknowledge that it is not billed",
    "gap": "bill it by hand: no period of the provider holds it",
    "no_subscription": "check the customer's billing_id and subscription; bill it by hand",
    "late_after_close": "it came after the period was billed: bill it by hand, or not",
    "adjusted_here": "an operator's adjustment, which the biller does not know of",
    "unexplained": "look at both sides' events by hand",
}


class Circumstances(NamedTuple):
    """What decides besides the findings. Times are µs since the epoch.

    - `ours`, `theirs`: the period here and there; `own`: our events by id.
    - `is_calm`: nothing came in the last seconds, so that our total and our events are of one moment.
    - `rewritten`: the flow has written its totals again since the drift was first seen.
    - `listed`: what the meter reads of the biller's events, by id.
    - `resent`: ids that were sent again before; `adopted`: what adjustments of reconciliation come to.
    - `is_adjusting`: an adjustment is under way and not yet applied.
    - `in_credits`: the meter is paid in credits, and entries in their ledger are allowed.
    - `has_arrived`: what our total has of other periods is in their totals too.
    """

    kind: Kind
    now: int
    ours: Span
    theirs: Span
    own: Mapping[str, Own]
    listed: Mapping[str, int]
    is_calm: bool
    rewritten: bool
    resent: frozenset[str]
    adopted: int
    is_adjusting: bool
    in_credits: bool
    has_arrived: bool = True


class Repair(NamedTuple):
    """One act: events to send, or a quantity (×10²⁴) to add here, or to credit or debit there.

    `amounts` are the quantities of the single `ids`, where each is credited or debited by itself. `base` is what
    reconciliation had added here before.
    """

    act: Act
    why: str
    quantity: int = 0
    ids: tuple[str, ...] = ()
    amounts: tuple[int, ...] = ()
    base: int = 0


def repairs(findings: Iterable[Finding], where: Circumstances) -> list[Repair]:
    """The acts that are allowed for these findings of one total."""
    findings = list(findings)
    acts: dict[Act, Repair] = {}
    for repair in (repair for finding in findings for repair in _there(finding, where)):
        known = acts.get(repair.act, Repair(repair.act, repair.why))
        acts[repair.act] = known._replace(
            quantity=known.quantity + repair.quantity,
            ids=known.ids + repair.ids,
            amounts=known.amounts + repair.amounts,
        )
    return [*acts.values(), *_here(findings, where)]


def _there(finding: Finding, where: Circumstances) -> list[Repair]:
    """What sets the biller right."""
    if finding.cause == "missing_there":
        return _send_again(finding, where)
    if finding.quantity and where.in_credits and where.kind in ADDITIVE:
        if finding.cause == "doubled_there":
            amounts = tuple(where.listed.get(id, 0) for id in finding.ids)
            words = "doubled there, and paid in credits"
            return [Repair("credit", words, -finding.quantity, finding.ids, amounts)]
        if finding.cause == "late_after_close":
            amounts = _own_amounts(finding.ids, where)
            words = "came after the period closed, and paid in credits"
            return [Repair("debit", words, finding.quantity, finding.ids, amounts)]
    return []


def _own_amounts(ids: Iterable[str], where: Circumstances) -> tuple[int, ...]:
    return tuple(where.own[id].quantity or 0 if id in where.own else 0 for id in ids)


def _send_again(finding: Finding, where: Circumstances) -> list[Repair]:
    ids = [id for id in finding.ids if id not in where.resent]
    young = [id for id in ids if where.now - where.own[id].at <= AGE_MAX]
    old = [id for id in ids if where.now - where.own[id].at > AGE_MAX]
    acts = []
    if young:
        acts.append(
            Repair("resend", "missing there, and young enough to go at its own time", ids=tuple(young))
        )
    may_restamp = where.kind not in ORDERED and where.now < where.theirs.end - PERIOD_MARGIN
    if old and may_restamp:
        acts.append(
            Repair("late", "missing there, too old for its own time, its period open", ids=tuple(old))
        )
    elif old and where.in_credits and where.kind in ADDITIVE and not where.resent.intersection(finding.ids):
        amounts = _own_amounts(old, where)
        words = "missing there, its period closed, paid in credits"
        acts.append(Repair("debit", words, sum(amounts), tuple(old), amounts))
    return acts


def _here(findings: list[Finding], where: Circumstances) -> list[Repair]:
    """What sets our total right: first have it written again, then an adjustment for what still differs."""
    if where.kind not in ADDITIVE or where.is_adjusting:
        return []
    wrong = [finding for finding in findings if finding.cause in OURS and finding.quantity]
    if where.ours != where.theirs:
        # Where the ends differ, only our own events say what our total has too much.
        wrong = [one for one in wrong if one.detail == OF_ANOTHER and where.ours.start == where.theirs.start]
        if where.adopted not in (0, -sum(one.quantity or 0 for one in wrong)):
            return []
    if not where.has_arrived and any(one.cause == "boundary" and (one.quantity or 0) > 0 for one in wrong):
        # Usage leaves a period only for one that has it, or it would be in none.
        return []
    amount = -sum(finding.quantity or 0 for finding in wrong) - where.adopted
    if not wrong or not amount:
        return []
    if not where.rewritten and any(finding.cause != "extra_there" for finding in wrong):
        return [Repair("rewrite", "our total differs from our events")]
    if not where.is_calm and any(finding.cause != "extra_there" for finding in wrong):
        # Our total moves while our events are read, so nobody can tell by how much it is off.
        return []
    ids = tuple(id for finding in wrong for id in finding.ids)
    causes = ", ".join(sorted({finding.cause for finding in wrong}))
    words = f"our total is set to what both sides' events come to: {causes}"
    return [Repair("adjust", words, amount, ids, base=where.adopted)]
