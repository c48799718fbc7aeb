"""May this request pass, under all caps that apply to it? Pure: catalog, account and request in, decision out.

A request brings each meter that it names to a total: for `count`, `sum` and `unique` what is used, held and asked
for, added up (of `unique`, who asks says how many values are new); for `max` and `last` the level asked for. The
spend cap looks at what all meters' totals would cost together, and stops only what costs more. Of all caps that
apply the most restrictive one is told.
"""

from collections.abc import Iterable
from decimal import Decimal
from functools import cached_property
from typing import Final, Literal, NamedTuple

import msgspec

from tidegate.operators.columns.quantity import decimal
from tidegate.operators.gate.caps import Reason, reason_of
from tidegate.operators.gate.customer_limits import Asked, Own
from tidegate.operators.gate.overage import EXACT, live_bill
from tidegate.operators.model.aggregates import LEVELS
from tidegate.operators.model.catalog import Fail, OnCap
from tidegate.operators.model.periods import NEVER_END
from tidegate.operators.model.ports import Account

Why = Literal[Reason, "held", "settled", "conflict", "unknown_meter", "unavailable", "stale"]

# How much worse one answer is than another; of equally bad ones the cap with the smaller part left is told.
WORSE: Final[dict[Why, int]] = {"within": 1, "overage": 2, "warn": 2, "grace": 3, "cap_reached": 4}
PARTS: Final = 10**6
HUNDRED: Final = Decimal(100)


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to one request, and what it rests on: of all caps that apply, the most restrictive one.

    - `allowed` and `reason`; `denied_in_shadow` marks what would have been denied but for `shadow`.
    - `scope` says whether the numbers are those of `meter`, or `spend`: the money of all meters.
    - `used` before the request, `reserved` by open holds, `limit` the cap, `remaining` what is left of it, 0 at
      least; None where there is no cap, or it is not known. On a meter that is a level (`max`, `last`) holds do not
      count, and all of the cap remains.
    - `resets_at`: when the period ends, µs since the epoch; None where it never does.
    - `retry_at`: of a denial, when the first hold ends, if holds alone are in the way; else None.
    - `as_of`: the latest event time counted (µs), None without a total. `lag`: how old the totals may be, as the flow
      that counts this customer reports it (µs); None where it has not.
    - `catalog`: the number of the catalog version that was asked, 0 for one that is not the store's.
    - `degraded`: the store did not answer in time, or not sensibly, or the flow is behind (`stale`). `detail` says why,
      or what else is wrong.
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
    """What became of a hold that was committed or released.

    - `committed`: it counts until its event comes; `settled`: its event has come; `released`: it no longer counts.
    - `unknown`: no such hold is remembered. `conflict`: it was committed before with other quantities, which stand,
      or the meters are not those that were reserved. `unavailable`: the store did not answer (`degraded`).
    - `exceeded`: by how much more than reserved was committed, per meter; it counts all the same.
    - `expired`: the commit came after the hold's time, so others may have taken its room; it counts again.
    """

    customer: str
    id: str
    state: Literal["committed", "settled", "released", "unknown", "conflict", "unavailable"]
    exceeded: dict[str, Decimal] = {}
    expired: bool = False
    degraded: bool = False
    detail: str = ""


class _Line(NamedTuple):
    """One cap's side of an account, whatever is asked. `base` is what a request adds to, times 10²⁴."""

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
    line: _Line
    scope: Literal["meter", "spend"] = "meter"


class View:
    """A customer's account under one catalog in one period: all that decisions need, worked out once.

    It is right for instants from `start` until `until` (µs), for as long as nothing is written of the customer and
    no catalog is applied.
    """

    __slots__ = ("__dict__", "account", "end", "own", "start", "until")

    def __init__(self, own: Own, account: Account, start: int, end: int) -> None:
        self.own = own
        self.account = account
        self.start = start
        self.end = end
        self.until = end if account.next_expiry is None else min(end, account.next_expiry)
        self._lines: dict[str, _Line] = {}

    def decide(self, asked: Asked) -> Decision:
        """The decision on a request of these quantities, of which none is held yet."""
        decision = self._told(self._worst(asked))
        if decision.allowed or self.account.next_expiry is None:
            return decision
        without_holds = View(self.own, self.account._replace(held={}), self.start, self.end)
        if not without_holds._told(without_holds._worst(asked)).allowed:
            return decision
        return msgspec.structs.replace(decision, retry_at=self.until)

    def decide_taken(self, asked: Asked) -> Decision:
        """The decision on a request that has just been held, its hold among what is reserved."""
        held = dict(self.account.held)
        for meter, quantity in asked.items():
            held[meter] = held.get(meter, 0) - quantity
        before = View(self.own, self.account._replace(held=held), self.start, self.end)
        answer = before._worst(asked)
        line = self._money if answer.scope == "spend" else self._of_meter(answer.line.meter, 0).line
        return self._told(answer._replace(line=line))

    def decide_known(self, asked: Asked, why: Literal["held", "settled", "conflict"]) -> Decision:
        """The decision on a reserve whose hold, or whose event, was there before."""
        standing = self.decide(dict.fromkeys(asked, 0))
        detail = ""
        if why == "conflict":
            detail = "this id is held for other quantities; give each request an id of its own"
        return msgspec.structs.replace(
            standing, allowed=why != "conflict", reason=why, denied_in_shadow=False, detail=detail
        )

    def _worst(self, asked: Asked) -> _Answer:
        answers = [self._of_meter(meter, quantity) for meter, quantity in asked.items()]
        if self.own.spend is not None:
            answers.append(self._of_money(asked))
        return answers[0] if len(answers) == 1 else max(answers, key=_badness)

    def _told(self, answer: _Answer) -> Decision:
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

    def _of_meter(self, meter: str, quantity: int) -> _Answer:
        line = self._lines.get(meter)
        if line is None:
            line = self._lines[meter] = self._line(meter)
        why = line.why or reason_of(line.base + quantity, line.cap, line.edge, line.on_cap)
        return _Answer(why, line)

    def _line(self, meter: str) -> _Line:
        own = self.own
        stored, held = self.account.used.get(meter), self.account.held.get(meter, 0)
        used = stored.total if stored else 0
        as_of = stored.as_of if stored else None
        bound = own.bounds.get(meter)
        if bound is None:
            why: Why = "no_cap" if meter in own.kinds else "unknown_meter"
            counts = meter in own.kinds
            known = decimal(used) if counts else None, decimal(held) if counts else None
            return _Line(why, meter, 0, 0, 0, "allow", False, *known, None, None, as_of, PARTS)
        base = 0 if own.kinds[meter] in LEVELS else used + held
        left = max(bound.cap - base, 0)
        return _Line(
            None,
            meter,
            base,
            bound.cap,
            bound.edge,
            bound.limit.on_cap,
            bound.limit.shadow,
            decimal(used),
            decimal(held),
            bound.limit.cap,
            decimal(left),
            as_of,
            left * PARTS // bound.cap if bound.cap else 0,
        )

    def _of_money(self, asked: Asked) -> _Answer:
        line, spend = self._money, self.own.spend
        assert spend is not None and spend.cap is not None
        before = after = EXACT.subtract(spend.cap, self._left)
        for meter, quantity in asked.items():
            more = EXACT.subtract(self._cost(meter, quantity), self._cost(meter, 0))
            after = EXACT.add(after, more)
        if after <= before:
            return _Answer("within", line, "spend")
        # A hundred times all of it, so that a percentage costs no rounding.
        edge = EXACT.multiply(spend.cap, EXACT.add(HUNDRED, spend.grace_pct))
        cap, after = EXACT.multiply(spend.cap, HUNDRED), EXACT.multiply(after, HUNDRED)
        return _Answer(reason_of(after, cap, edge, spend.on_cap), line, "spend")

    def _cost(self, meter: str, more: int, *, with_held: bool = True) -> Decimal:
        """What a meter's total costs with what is held, and with `more` on top."""
        limit = self.own.limits.get(meter)
        if limit is None or not limit.tiers:
            return Decimal(0)
        stored = self.account.used.get(meter)
        total = stored.total if stored else 0
        if self.own.kinds[meter] in LEVELS:
            total = max(total, more)
        else:
            total += more + (self.account.held.get(meter, 0) if with_held else 0)
        return live_bill(limit, decimal(total))

    @cached_property
    def _bills(self) -> tuple[Decimal, Decimal]:
        """What all meters cost by now, without and with what is held."""
        used = held = Decimal(0)
        for meter in self.own.meters:
            used = EXACT.add(used, self._cost(meter, 0, with_held=False))
            held = EXACT.add(held, self._cost(meter, 0))
        return used, held

    @cached_property
    def _left(self) -> Decimal:
        """What is left of the spend cap, less than 0 where it is passed."""
        assert self.own.spend is not None and self.own.spend.cap is not None
        return EXACT.subtract(self.own.spend.cap, self._bills[1])

    @cached_property
    def _money(self) -> _Line:
        spend, (used, with_held) = self.own.spend, self._bills
        assert spend is not None and spend.cap is not None
        stored = self.account.used.values()
        as_of = max((one.as_of for one in stored), default=None)
        left = max(self._left, Decimal(0))
        return _Line(
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
    """Return the decision where totals are older than the caps in `outdated` (`Own.outdated`) trust.

    What is used can only be more than the totals say, so a denial stands; else each cap does what its `fail` says.
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
    own: Own | None, customer: str, asked: Iterable[str], otherwise: Fail, detail: str
) -> Decision:
    """The decision where the account cannot be known: each cap that may deny does what its `fail` says.

    Where not even the catalog is known, `own` is None and `otherwise` decides.
    """
    meters = list(asked)
    fails = [("", otherwise)] if own is None else own.fails(meters)
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


def _badness(answer: _Answer) -> tuple[bool, int, int]:
    denied = answer.why == "cap_reached" and not answer.line.shadow
    return denied, WORSE.get(answer.why, 0), -answer.line.part_left
