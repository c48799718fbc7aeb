"""Which drift an operator has acknowledged: known, accepted, and no alarm until it grows.

An acknowledgement is of one finding, a customer's total of one period and meter, or of a cause with a meter, such as
`not_on_plan` for a meter that is measured for ourselves alone. A later one of the same replaces it, or withdraws it.
"""

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from tidegate.operators.billing.outgoing import instant
from tidegate.operators.columns.quantity import rounded, text
from tidegate.operators.events.rfc3339 import parse
from tidegate.operators.model.ports import Acknowledgement

OPEN = ("suspect", "drift", "acknowledged", "conflict")
CONFIRMED = ("drift", "acknowledged", "conflict")
# A customer's subscriptions contradict each other, which has an alert of its own; so this raises none.
CONFLICTING = ("second_subscription",)
Key = tuple[str, str, int | None, str]


class Found(NamedTuple):
    """A finding, as an acknowledgement is compared with it.

    `off` (×10²⁴) is ours minus the provider's beyond what is in flight; `start` is when the period begins (µs).
    """

    customer: str
    meter: str
    start: int
    causes: Collection[str]
    off: int
    tolerance: int = 0


class Acknowledgements:
    """The acknowledgements in force, as records of the control log come in."""

    def __init__(self) -> None:
        self._known: dict[Key, Acknowledgement] = {}

    def take(self, one: Acknowledgement) -> None:
        """Add, replace or withdraw an acknowledgement."""
        if one.is_withdrawn:
            self._known.pop(key_of(one), None)
        else:
            self._known[key_of(one)] = one

    def in_force(self) -> list[Acknowledgement]:
        """Return all that are in force, the oldest first."""
        return sorted(self._known.values(), key=lambda one: one.at)

    def get(self, key: Key) -> Acknowledgement | None:
        """Return the one in force for a finding or a cause."""
        return self._known.get(key)

    def covering(self, found: Found) -> Acknowledgement | None:
        """Return what acknowledges a finding: its own, else one for each of its causes; None where it is too large."""
        own = self._known.get((found.customer, found.meter, found.start, ""))
        if own is not None and _is_within(own, found):
            return own
        rules = [self._rule(found, cause) for cause in found.causes]
        return next(iter(rules), None) if all(rules) else None

    def _rule(self, found: Found, cause: str) -> Acknowledgement | None:
        for customer in (found.customer, ""):
            rule = self._known.get((customer, found.meter, None, cause))
            if rule is not None and _is_within(rule, found):
                return rule
        return None


def key_of(one: Acknowledgement) -> Key:
    """Return what an acknowledgement is of."""
    return one.customer, one.meter, one.start, one.cause


def found_in(fields: Mapping[str, Any]) -> Found | None:
    """Return the finding that a JSON object of reconciliation describes; None where it is none, or has no amount."""
    if fields.get("status") not in OPEN or "period_start" not in fields:
        return None
    amount = fields.get("off")
    if amount is None:
        return None
    tolerance = rounded(Decimal(fields.get("tolerance", "0")))
    start = parse(fields["period_start"])
    return Found(
        fields["customer"], fields["meter"], start, causes_in(fields), rounded(Decimal(amount)), tolerance
    )


def causes_in(fields: Mapping[str, Any]) -> list[str]:
    """Return the causes of a finding: why nothing bills it, else what its events say."""
    if fields.get("uncovered"):
        return [fields["uncovered"]]
    causes = (one["cause"] for one in fields.get("findings", ()))
    return list(dict.fromkeys(cause for cause in causes if cause != "in_flight"))


def acknowledge(fields: dict[str, Any], known: Acknowledgements) -> dict[str, Any]:
    """Return a finding with the status that it has under these acknowledgements: any of `CONFIRMED`."""
    if fields.get("status") not in CONFIRMED or (found := found_in(fields)) is None:
        return fields
    by = known.covering(found)
    if by is None:
        is_conflict = bool(found.causes) and all(one in CONFLICTING for one in found.causes)
        return fields | {"status": "conflict" if is_conflict else "drift", "acknowledged": None}
    return fields | {"status": "acknowledged", "acknowledged": shown(by)}


def shown(one: Acknowledgement) -> dict[str, Any]:
    """Return an acknowledgement for JSON."""
    return {
        "id": one.id,
        "customer": one.customer,
        "meter": one.meter,
        "period_start": None if one.start is None else instant(one.start),
        "cause": one.cause,
        "up_to": one.up_to,
        "reason": one.reason,
        "by": one.by,
        "at": instant(one.at),
    }


def amount_of(found: Found) -> str:
    """Return the amount of a finding as decimal text, with its sign."""
    return text(found.off)


def _is_within(one: Acknowledgement, found: Found) -> bool:
    if one.up_to is None:
        return True
    most = rounded(Decimal(one.up_to))
    # Of one finding the amount has a sign: usage that is not billed is not usage that is billed too much.
    has_turned = one.start is not None and most * found.off < 0
    return not has_turned and abs(found.off) <= abs(most) + found.tolerance
