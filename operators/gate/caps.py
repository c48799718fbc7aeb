"""How one cap judges what a total would come to. `operators/gate/decision.py` decides, under all caps that apply.

Pure: nothing sticky, nothing baked in. So raising a cap lets the very next request pass.
"""

from decimal import Decimal
from typing import Literal, TypeVar

from tidegate.operators.columns.quantity import SCALE, scaled
from tidegate.operators.model.catalog import OnCap

Passing = Literal["within", "overage", "warn", "grace", "cap_reached"]
Reason = Literal["no_cap", Passing]
Amount = TypeVar("Amount", int, Decimal)


def edge_of(cap: int, grace_pct: Decimal) -> int:
    """The most that may be reached of a cap with its grace; all times 10²⁴, cut off to a whole number."""
    return cap * (100 * SCALE + scaled(grace_pct)) // (100 * SCALE)


def reason_of(after: Amount, cap: Amount, edge: Amount, on_cap: OnCap) -> Passing:
    """How a request stands that would bring the total to `after`; all three in one unit.

    Up to the cap all pass; past it `allow` and `warn` let pass, and `block` denies past `edge`.
    """
    if after <= cap:
        return "within"
    if on_cap != "block":
        return "overage" if on_cap == "allow" else "warn"
    return "grace" if after <= edge else "cap_reached"
