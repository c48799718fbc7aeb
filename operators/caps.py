"""May this request pass? A pure function of limit, total and quantity: nothing sticky, nothing baked in.

So raising a cap lets the very next request pass, and any two readers of the same total decide alike.
"""

from decimal import Decimal
from typing import Literal, NamedTuple

from operators.catalog import Limit
from operators.quantity import SCALE, decimal, scaled

Reason = Literal["no_cap", "within", "overage", "warn", "grace", "cap_reached"]


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


def decide(limit: Limit, total: Decimal, quantity: Decimal | int = 1) -> Decision:
    """Whether `quantity` more may be used on top of `total`.

    Up to the cap all pass; past it `allow` and `warn` let pass, and `block` denies once the cap and its grace
    would be exceeded. ValueError where a number has more than 24 decimal places.
    """
    if limit.cap is None:
        return Decision(True, "no_cap", total, None, None, False)
    cap, used = scaled(limit.cap), scaled(total)
    after = used + scaled(quantity)
    remaining = decimal(max(cap - used, 0))
    if after <= cap:
        return Decision(True, "within", total, limit.cap, remaining, False)
    if limit.on_cap != "block":
        reason: Reason = "overage" if limit.on_cap == "allow" else "warn"
        return Decision(True, reason, total, limit.cap, remaining, False)
    # Both sides times 100·10²⁴, so that a percentage costs no rounding.
    if after * 100 * SCALE <= cap * (100 * SCALE + scaled(limit.grace_pct)):
        return Decision(True, "grace", total, limit.cap, remaining, False)
    return Decision(limit.shadow, "cap_reached", total, limit.cap, remaining, limit.shadow)
