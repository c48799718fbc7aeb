"""Acknowledgements of drift: which differences an operator has accepted, so that they raise no alarm until they grow.

An acknowledgement covers either one finding (a customer, a meter and a period) or one cause of a meter, such as
`not_on_plan` for a meter that is only measured internally. A later acknowledgement of the same finding or cause
replaces or withdraws the earlier one.
"""

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from tidegate.operators.columns.quantity import format_quantity, scale_rounded
from tidegate.operators.events.rfc3339 import parse
from tidegate.operators.model.ports import Acknowledgement
from tidegate.operators.model.wire import format_instant

OPEN = ("suspect", "drift", "acknowledged", "conflict")
CONFIRMED = ("drift", "acknowledged", "conflict")
# Contradicting subscriptions have an alert of their own, so drift with only these causes raises no second one.
CONFLICTING = ("second_subscription",)
Key = tuple[str, str, int | None, str]


class OpenDrift(NamedTuple):
    """The drift of one total, in the form that acknowledgements are compared with.

    `off` (×10²⁴) is our total minus the provider's, beyond what is in flight; `start` is the start of the period (µs).
    """

    customer: str
    meter: str
    start: int
    causes: Collection[str]
    off: int
    tolerance: int = 0


class Acknowledgements:
    """The acknowledgements that are in force, built up from the records of the control log."""

    def __init__(self) -> None:
        self._known: dict[Key, Acknowledgement] = {}

    def apply(self, one: Acknowledgement) -> None:
        """Add, replace or withdraw an acknowledgement."""
        if one.is_withdrawn:
            self._known.pop(acknowledgement_key(one), None)
        else:
            self._known[acknowledgement_key(one)] = one

    def list_in_force(self) -> list[Acknowledgement]:
        """Return all acknowledgements that are in force, oldest first."""
        return sorted(self._known.values(), key=lambda one: one.at)

    def get(self, key: Key) -> Acknowledgement | None:
        """Return the acknowledgement in force for this finding or cause."""
        return self._known.get(key)

    def find_covering(self, found: OpenDrift) -> Acknowledgement | None:
        """Return the acknowledgement that covers this drift, None if there is none or the drift exceeds it.

        The finding's own acknowledgement comes first; otherwise every one of its causes needs one.
        """
        own = self._known.get((found.customer, found.meter, found.start, ""))
        if own is not None and _is_within(own, found):
            return own
        rules = [self._find_rule(found, cause) for cause in found.causes]
        return next(iter(rules), None) if all(rules) else None

    def _find_rule(self, found: OpenDrift, cause: str) -> Acknowledgement | None:
        for customer in (found.customer, ""):
            rule = self._known.get((customer, found.meter, None, cause))
            if rule is not None and _is_within(rule, found):
                return rule
        return None


def acknowledgement_key(one: Acknowledgement) -> Key:
    """Return the key of the finding or cause that an acknowledgement covers."""
    return one.customer, one.meter, one.start, one.cause


def read_open_drift(fields: Mapping[str, Any]) -> OpenDrift | None:
    """Read the drift from a JSON object of reconciliation; return None if it reports no drift or has no amount."""
    if fields.get("status") not in OPEN or "period_start" not in fields:
        return None
    amount = fields.get("off")
    if amount is None:
        return None
    tolerance = scale_rounded(Decimal(fields.get("tolerance", "0")))
    start = parse(fields["period_start"])
    return OpenDrift(
        fields["customer"],
        fields["meter"],
        start,
        list_causes(fields),
        scale_rounded(Decimal(amount)),
        tolerance,
    )


def list_causes(fields: Mapping[str, Any]) -> list[str]:
    """Return the causes of a finding: the reason why nothing bills the total, otherwise the causes of its events."""
    if fields.get("uncovered"):
        return [fields["uncovered"]]
    causes = (one["cause"] for one in fields.get("findings", ()))
    return list(dict.fromkeys(cause for cause in causes if cause != "in_flight"))


def acknowledge(fields: dict[str, Any], known: Acknowledgements) -> dict[str, Any]:
    """Return a finding with its status under these acknowledgements, if its status is one of `CONFIRMED`."""
    if fields.get("status") not in CONFIRMED or (found := read_open_drift(fields)) is None:
        return fields
    by = known.find_covering(found)
    if by is None:
        is_conflict = bool(found.causes) and all(one in CONFLICTING for one in found.causes)
        return fields | {"status": "conflict" if is_conflict else "drift", "acknowledged": None}
    return fields | {"status": "acknowledged", "acknowledged": render_acknowledgement(by)}


def render_acknowledgement(one: Acknowledgement) -> dict[str, Any]:
    """Return an acknowledgement as a JSON object."""
    return {
        "id": one.id,
        "customer": one.customer,
        "meter": one.meter,
        "period_start": None if one.start is None else format_instant(one.start),
        "cause": one.cause,
        "up_to": one.up_to,
        "reason": one.reason,
        "by": one.by,
        "at": format_instant(one.at),
    }


def format_amount(found: OpenDrift) -> str:
    """Return the amount of a drift as signed decimal text."""
    return format_quantity(found.off)


def _is_within(one: Acknowledgement, found: OpenDrift) -> bool:
    if one.up_to is None:
        return True
    most = scale_rounded(Decimal(one.up_to))
    # The sign counts for a single finding: an accepted underbilling does not cover an overbilling.
    has_turned = one.start is not None and most * found.off < 0
    return not has_turned and abs(found.off) <= abs(most) + found.tolerance
