"""Caps: whether a request passes, as a pure function of limit, total and quantity, without any stored state.

Raising a cap therefore lets the very next request pass, and any two readers of the same total decide alike.
"""

from decimal import Decimal
from typing import Literal, TypeVar

from tidegate.operators.columns.quantity import SCALE, scale
from tidegate.operators.model.catalog import OnCap

Passing = Literal["within", "overage", "warn", "grace", "cap_reached"]
Reason = Literal["no_cap", Passing]
Amount = TypeVar("Amount", int, Decimal)


def compute_edge(cap: int, grace_pct: Decimal) -> int:
    """Return the highest total that a cap with its grace allows; all times 10²⁴, cut off to a whole number."""
    return cap * (100 * SCALE + scale(grace_pct)) // (100 * SCALE)


def find_reason(after: Amount, cap: Amount, edge: Amount, on_cap: OnCap) -> Passing:
    """Return the reason for a request that would bring the total to `after`; all three amounts in one unit.

    Up to the cap every request passes; beyond it `allow` and `warn` let requests pass, and `block` denies beyond
    `edge`.
    """
    if after <= cap:
        return "within"
    if on_cap != "block":
        return "overage" if on_cap == "allow" else "warn"
    return "grace" if after <= edge else "cap_reached"
