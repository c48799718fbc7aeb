"""May this request pass? A pure function of limit, total and quantity: nothing sticky, nothing baked in.

So raising a cap lets the very next request pass, and any two readers of the same total decide alike.
"""

from decimal import Decimal
from typing import Literal, NamedTuple, TypeVar

from tidegate.operators.columns.quantity import SCALE, decimal, scaled
from tidegate.operators.model.catalog import Limit, OnCap

Passing = Literal["within", "overage", "warn", "grace", "cap_reached"]
Reason = Literal["no_cap", Passing]
Amount = TypeVar("Amount", int, Decimal)


class Decision(NamedTuple):
    """The answer, and what it rests on. `denied_in_shadow` marks what would have been denied but for `shadow`.

    `used` is the total before the request, `limit` the cap, `remaining` what is left of it, 0 at least; both
    None without a cap.
    """

    allowed: bool
    reason: Reason
    used: Decimal
    limit: Decimal | None
    remaining: Decimal | None
    denied_in_shadow: bool


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


def decide(limit: Limit, total: Decimal, quantity: Decimal | int = 1) -> Decision:
    """Whether `quantity` more may be used on top of `total`.

    ValueError where a number has more than 24 decimal places.
    """
    if limit.cap is None:
        return Decision(True, "no_cap", total, None, None, False)
    cap, used = scaled(limit.cap), scaled(total)
    reason = reason_of(used + scaled(quantity), cap, edge_of(cap, limit.grace_pct), limit.on_cap)
    denied = reason == "cap_reached"
    remaining = decimal(max(cap - used, 0))
    return Decision(not denied or limit.shadow, reason, total, limit.cap, remaining, denied and limit.shadow)
