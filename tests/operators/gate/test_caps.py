"""Caps decide from totals alone, and to the last digit."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.columns.quantity import scale
from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.gate.decision import AccountView, Decision
from tidegate.operators.model.catalog import Catalog, Limit, Meter, Plan
from tidegate.operators.model.periods import NEVER_END
from tidegate.operators.model.ports import Account, Used

QUANTITIES = st.decimals(0, 10**12, places=6)


def decide(limit: Limit, total: Decimal, quantity: Decimal | int = 1) -> Decision:
    """The gate's decision where this is the only limit, and nothing is held."""
    plan = Plan("p", limits={"tokens": limit})
    own = CatalogLimits(Catalog((Meter("tokens", "t", "sum", "n"),), {"p": plan}, {}, "p"), 1).find("acme")
    account = Account({"tokens": Used(scale(total), 0, 0)}, {}, None, 1, 0)
    return AccountView(own, account, 0, NEVER_END).decide({"tokens": scale(quantity)})


@pytest.mark.parametrize(
    ("limit", "total", "quantity", "allowed", "reason"),
    [
        (Limit(), "5", 1, True, "no_cap"),
        (Limit(cap=Decimal(10)), "9", 1, True, "within"),
        (Limit(cap=Decimal(10)), "10", 1, False, "cap_reached"),
        (Limit(cap=Decimal(10)), "10", 0, True, "within"),
        (Limit(cap=Decimal(10)), "9.5", 1, False, "cap_reached"),
        (Limit(cap=Decimal("0.3")), "0.2", Decimal("0.1"), True, "within"),
        (Limit(cap=Decimal(0)), "0", 1, False, "cap_reached"),
        (Limit(cap=Decimal(10), on_cap="allow"), "10", 1, True, "overage"),
        (Limit(cap=Decimal(10), on_cap="warn"), "10", 1, True, "warn"),
        (Limit(cap=Decimal(10), grace_pct=Decimal(10)), "10", 1, True, "grace"),
        (Limit(cap=Decimal(10), grace_pct=Decimal(10)), "11", 1, False, "cap_reached"),
        (Limit(cap=Decimal(3), grace_pct=Decimal("33.333333")), "3", Decimal("0.99999999"), True, "grace"),
        (Limit(cap=Decimal(3), grace_pct=Decimal("33.333333")), "3", 1, False, "cap_reached"),
    ],
)
def test_a_request_passes_or_not(
    limit: Limit, total: str, quantity: int | Decimal, allowed: bool, reason: str
) -> None:
    decision = decide(limit, Decimal(total), quantity)
    assert (decision.allowed, decision.reason, decision.denied_in_shadow) == (allowed, reason, False)


def test_a_cap_in_shadow_denies_nobody_but_says_what_it_would_have_done() -> None:
    """So that a cap can be watched for a week before it is switched on."""
    decision = decide(Limit(cap=Decimal(10), shadow=True), Decimal(10))
    assert (decision.allowed, decision.reason, decision.denied_in_shadow) == (True, "cap_reached", True)


@given(st.decimals(1, 10**9, places=3), QUANTITIES, QUANTITIES)
def test_raising_the_cap_lets_the_next_request_pass(cap: Decimal, total: Decimal, quantity: Decimal) -> None:
    """Nothing sticky: a customer who pays for more is served at once."""
    if not decide(Limit(cap=cap), total, quantity).allowed:
        assert decide(Limit(cap=total + quantity), total, quantity).allowed


@given(QUANTITIES, QUANTITIES, QUANTITIES, st.decimals(0, 100, places=4))
def test_block_is_exactly_past_cap_and_grace(
    cap: Decimal, total: Decimal, quantity: Decimal, grace: Decimal
) -> None:
    decision = decide(Limit(cap=cap, grace_pct=grace), total, quantity)
    edge = Fraction(cap) * (1 + Fraction(grace) / 100)
    assert decision.allowed == (Fraction(total) + Fraction(quantity) <= edge)
    assert decision.remaining == max(cap - total, 0)
