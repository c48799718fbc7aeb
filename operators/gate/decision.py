"""Decisions: whether a request passes all caps that apply to it. Pure: catalog, account and request in, decision out.

A request brings each meter that it names to a total: for `count`, `sum` and `unique` the sum of what is used, held and
requested (for `unique`, the caller says how many values are new); for `max`, `min` and `last` the requested level. The
spend cap compares what all meters' totals would cost together, and stops only a request that costs more. The most
restrictive of all caps that apply is reported.
"""

from collections.abc import Iterable
from decimal import Decimal
from functools import cached_property
from typing import Final, Literal, NamedTuple

import msgspec

from tidegate.operators.columns.quantity import to_decimal
from tidegate.operators.gate.caps import Reason, find_reason
from tidegate.operators.gate.customer_limits import Asked, CustomerLimits
from tidegate.operators.gate.overage import EXACT, compute_live_bill
from tidegate.operators.model.aggregates import LEVELS
from tidegate.operators.model.catalog import Fail, OnCap
from tidegate.operators.model.periods import NEVER_END
from tidegate.operators.model.ports import Account

Why = Literal[Reason, "held", "settled", "conflict", "unknown_meter", "unavailable", "stale"]

# How restrictive an answer is; of equally restrictive ones, the cap with the smaller part left is reported.
WORSE: Final[dict[Why, int]] = {"within": 1, "overage": 2, "warn": 2, "grace": 3, "cap_reached": 4}
PARTS: Final = 10**6
HUNDRED: Final = Decimal(100)


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to one request and the numbers behind it: of all caps that apply, the most restrictive one.

    - `allowed` and `reason`; `denied_in_shadow` marks what would have been denied but for `shadow`.
    - `scope` says whether the numbers are those of `meter`, or `spend`: the money of all meters.
    - `used` before the request, `reserved` by open holds, `limit` the cap, `remaining` the rest of it, 0 at least; None
      if there is no cap, or it is unknown. On a meter that is a level (`max`, `min`, `last`) holds do not count, and
      the whole cap remains.
    - `resets_at`: when the period ends, µs since the epoch; None if it never does.
    - `retry_at`: of a denial, when the first hold ends, if only holds are in the way; else None.
    - `as_of`: the latest event time counted (µs), None without a total. `lag`: how old the totals may be, as reported
      by the flow that counts this customer (µs); None if it has not reported.
    - `catalog`: the number of the catalog version that was applied, 0 for one that is not in the store.
    - `degraded`: the store did not answer in time, or not correctly, or the flow is behind (`stale`). `detail` says
      why, or what else is wrong.
    """

    customer: str
    meter: str
    scope: Literal["meter", "spend"] = "meter"
    allowed: bool
    reason: Why
    used: Decimal | None = None
    reserved: Decimal | None = None
    limit: Decimal | None = None
    remaining: Decimal | None = None
    resets_at: int | None = None
    retry_at: int | None = None
    as_of: int | None = None
    lag: int | None = None
    catalog: int = 0
    denied_in_shadow: bool = False
    degraded: bool = False
    detail: str = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of committing or releasing a hold.

    - `committed`: it counts until its event arrives; `settled`: its event has arrived; `released`: it no longer counts.
    - `unknown`: no such hold is remembered. `conflict`: it was committed before with other quantities, which stand, or
      the meters are not those that were reserved. `unavailable`: the store did not answer (`degraded`).
    - `exceeded`: by how much more than reserved was committed, per meter; it counts nevertheless.
    - `expired`: the commit came after the hold's expiry, so others may have taken its room; it counts again.
    """

    customer: str
    id: str
    state: Literal["committed", "settled", "released", "unknown", "conflict", "unavailable"]
    exceeded: dict[str, Decimal] = {}
    expired: bool = False
    degraded: bool = False
    detail: str = ""


class _CapLine(NamedTuple):
    """One cap's part of an account, whatever is requested. `base` is the amount that a request adds to, times 10²⁴."""

    why: Why | None
    meter: str
    base: int
    cap: int
    edge: int
    on_cap: OnCap
    shadow: bool
    used: Decimal | None
    reserved: Decimal | None
    limit: Decimal | None
    remaining: Decimal | None
    as_of: int | None
    part_left: int


class _Answer(NamedTuple):
    why: Why
    line: _CapLine
    scope: Literal["meter", "spend"] = "meter"


class AccountView:
    """A customer's account under one catalog in one period, with everything that decisions need computed once.

    It is valid for instants from `start` until `until` (µs), as long as nothing is written for the customer and no
    catalog is applied.
    """

    __slots__ = ("__dict__", "account", "end", "own", "start", "until")

    def __init__(self, own: CustomerLimits, account: Account, start: int, end: int) -> None:
        self.own = own
        self.account = account
        self.start = start
        self.end = end
        self.until = end if account.next_expiry is None else min(end, account.next_expiry)
        self._lines: dict[str, _CapLine] = {}

    def decide(self, asked: Asked) -> Decision:
        """Return the decision on a request for these quantities, none of which is held yet."""
        decision = self._build_decision(self._find_worst(asked))
        if decision.allowed or self.account.next_expiry is None:
            return decision
        without_holds = AccountView(self.own, self.account._replace(held={}), self.start, self.end)
        if not without_holds._build_decision(without_holds._find_worst(asked)).allowed:
            return decision
        return msgspec.structs.replace(decision, retry_at=self.until)

    def decide_reserved(self, asked: Asked) -> Decision:
        """Return the decision on a request that has just been held, its hold among the reserved quantity."""
        held = dict(self.account.held)
        for meter, quantity in asked.items():
            held[meter] = held.get(meter, 0) - quantity
        before = AccountView(self.own, self.account._replace(held=held), self.start, self.end)
        answer = before._find_worst(asked)
        line = self._money if answer.scope == "spend" else self._answer_for_meter(answer.line.meter, 0).line
        return self._build_decision(answer._replace(line=line))

    def decide_known(self, asked: Asked, why: Literal["held", "settled", "conflict"]) -> Decision:
        """Return the decision on a reserve whose hold, or whose event, already existed."""
        standing = self.decide(dict.fromkeys(asked, 0))
        detail = ""
        if why == "conflict":
            detail = "this id is already held for other quantities; use a new id for each request"
        return msgspec.structs.replace(
            standing, allowed=why != "conflict", reason=why, denied_in_shadow=False, detail=detail
        )

    def _find_worst(self, asked: Asked) -> _Answer:
        answers = [self._answer_for_meter(meter, quantity) for meter, quantity in asked.items()]
        if self.own.spend is not None:
            answers.append(self._answer_for_spend(asked))
        return answers[0] if len(answers) == 1 else max(answers, key=_rank)

    def _build_decision(self, answer: _Answer) -> Decision:
        why, line = answer.why, answer.line
        denied = why == "cap_reached"
        return Decision(
            customer=self.own.customer,
            meter=line.meter,
            scope=answer.scope,
            allowed=not denied or line.shadow,
            reason=why,
            used=line.used,
            reserved=line.reserved,
            limit=line.limit,
            remaining=line.remaining,
            resets_at=None if self.end == NEVER_END else self.end,
            as_of=line.as_of,
            catalog=self.own.number,
            denied_in_shadow=denied and line.shadow,
        )

    def _answer_for_meter(self, meter: str, quantity: int) -> _Answer:
        line = self._lines.get(meter)
        if line is None:
            line = self._lines[meter] = self._build_line(meter)
        why = line.why or find_reason(line.base + quantity, line.cap, line.edge, line.on_cap)
        return _Answer(why, line)

    def _build_line(self, meter: str) -> _CapLine:
        own = self.own
        stored, held = self.account.used.get(meter), self.account.held.get(meter, 0)
        used = stored.total if stored else 0
        as_of = stored.as_of if stored else None
        bound = own.bounds.get(meter)
        if bound is None:
            why: Why = "no_cap" if meter in own.kinds else "unknown_meter"
            counts = meter in own.kinds
            known = to_decimal(used) if counts else None, to_decimal(held) if counts else None
            return _CapLine(why, meter, 0, 0, 0, "allow", False, *known, None, None, as_of, PARTS)
        base = 0 if own.kinds[meter] in LEVELS else used + held
        left = max(bound.cap - base, 0)
        return _CapLine(
            None,
            meter,
            base,
            bound.cap,
            bound.edge,
            bound.limit.on_cap,
            bound.limit.shadow,
            to_decimal(used),
            to_decimal(held),
            bound.limit.cap,
            to_decimal(left),
            as_of,
            left * PARTS // bound.cap if bound.cap else 0,
        )

    def _answer_for_spend(self, asked: Asked) -> _Answer:
        line, spend = self._money, self.own.spend
        assert spend is not None and spend.cap is not None
        before = after = EXACT.subtract(spend.cap, self._left)
        for meter, quantity in asked.items():
            more = EXACT.subtract(self._compute_cost(meter, quantity), self._compute_cost(meter, 0))
            after = EXACT.add(after, more)
        if after <= before:
            return _Answer("within", line, "spend")
        # All amounts are times 100, so that a percentage needs no rounding.
        edge = EXACT.multiply(spend.cap, EXACT.add(HUNDRED, spend.grace_pct))
        cap, after = EXACT.multiply(spend.cap, HUNDRED), EXACT.multiply(after, HUNDRED)
        return _Answer(find_reason(after, cap, edge, spend.on_cap), line, "spend")

    def _compute_cost(self, meter: str, more: int, *, with_held: bool = True) -> Decimal:
        """Return what a meter's total costs with what is held, and with `more` on top."""
        limit = self.own.limits.get(meter)
        if limit is None or not limit.tiers:
            return Decimal(0)
        stored = self.account.used.get(meter)
        total = stored.total if stored else 0
        if self.own.kinds[meter] in LEVELS:
            total = max(total, more)
        else:
            total += more + (self.account.held.get(meter, 0) if with_held else 0)
        return compute_live_bill(limit, to_decimal(total))

    @cached_property
    def _bills(self) -> tuple[Decimal, Decimal]:
        """What all meters cost at present, without and with what is held."""
        used = held = Decimal(0)
        for meter in self.own.meters:
            used = EXACT.add(used, self._compute_cost(meter, 0, with_held=False))
            held = EXACT.add(held, self._compute_cost(meter, 0))
        return used, held

    @cached_property
    def _left(self) -> Decimal:
        """The rest of the spend cap, negative if it is exceeded."""
        assert self.own.spend is not None and self.own.spend.cap is not None
        return EXACT.subtract(self.own.spend.cap, self._bills[1])

    @cached_property
    def _money(self) -> _CapLine:
        spend, (used, with_held) = self.own.spend, self._bills
        assert spend is not None and spend.cap is not None
        stored = self.account.used.values()
        as_of = max((one.as_of for one in stored), default=None)
        left = max(self._left, Decimal(0))
        return _CapLine(
            None,
            "",
            0,
            0,
            0,
            spend.on_cap,
            spend.shadow,
            used,
            EXACT.subtract(with_held, used),
            spend.cap,
            left,
            as_of,
            int(EXACT.divide_int(EXACT.multiply(left, Decimal(PARTS)), spend.cap)) if spend.cap else 0,
        )


def decide_stale(
    decision: Decision, outdated: list[tuple[str, Fail]], lag: int | None, detail: str
) -> Decision:
    """Return the decision if totals are older than the caps in `outdated` (`CustomerLimits.list_outdated`) trust.

    The true usage can only be higher than the totals say, so a denial stands; otherwise each cap's `fail` decides.
    """
    if not decision.allowed:
        return msgspec.structs.replace(decision, degraded=True, lag=lag, detail=detail)
    closed = any(fail == "closed" for _, fail in outdated)
    return msgspec.structs.replace(
        decision,
        allowed=not closed,
        reason="stale",
        denied_in_shadow=False,
        degraded=True,
        lag=lag,
        detail=detail,
    )


def decide_blind(
    own: CustomerLimits | None, customer: str, asked: Iterable[str], otherwise: Fail, detail: str
) -> Decision:
    """Return the decision if the account is unavailable: each cap's `fail` decides, of those that may deny.

    If not even the catalog is known, `own` is None and `otherwise` decides.
    """
    meters = list(asked)
    fails = [("", otherwise)] if own is None else own.list_fails(meters)
    closed = [meter for meter, fail in fails if fail == "closed"]
    by_money = own is not None and bool(closed) and not closed[0]
    return Decision(
        customer=customer,
        meter="" if by_money else (closed and closed[0]) or meters[0],
        scope="spend" if by_money else "meter",
        allowed=not closed,
        reason="unavailable",
        catalog=own.number if own is not None else 0,
        degraded=True,
        detail=detail,
    )


def _rank(answer: _Answer) -> tuple[bool, int, int]:
    denied = answer.why == "cap_reached" and not answer.line.shadow
    return denied, WORSE.get(answer.why, 0), -answer.line.part_left
