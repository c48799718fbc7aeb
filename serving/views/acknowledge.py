"""Acknowledging drift, as the command and the service do it: what is meant, and the record of it."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from tidegate.operators.billing.acknowledgements import (
    Acknowledgements,
    OpenDrift,
    acknowledge,
    acknowledgement_key,
    format_amount,
    read_open_drift,
)
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.ports import Acknowledgement
from tidegate.operators.model.wire import format_instant


class Unfit(TidegateError):
    """Nothing can be acknowledged, or withdrawn, by what was given; says why."""


class Asked(NamedTuple):
    """What somebody wants to acknowledge. `start` is when the period begins (µs), None for the only one or a cause."""

    customer: str
    meter: str
    start: int | None
    cause: str
    up_to: str | None
    is_withdrawn: bool = False


def record_of(
    asked: Asked,
    findings: Iterable[Mapping[str, Any]],
    known: Acknowledgements,
    *,
    id: str,
    reason: str,
    by: str,
    at: int,
) -> Acknowledgement:
    """Return the record for the control log; of one finding, up to its present amount unless another is given.

    Raises:
        Unfit: no finding, several, or no such acknowledgement.
    """
    if asked.cause and asked.start is not None:
        raise Unfit(
            "cause and period: an acknowledgement is of one finding or of a cause, so give one of the two"
        )
    start, up_to = asked.start, asked.up_to
    if not asked.cause and not asked.is_withdrawn:
        found = _the_one(asked, findings)
        start, up_to = found.start, _signed(up_to, found)
    elif not asked.cause:
        start = _withdrawn_start(asked, known)
    one = Acknowledgement(
        id=id,
        customer=asked.customer,
        meter=asked.meter,
        start=start,
        cause=asked.cause,
        up_to=None if asked.is_withdrawn else up_to,
        reason=reason,
        by=by,
        at=at,
        is_withdrawn=asked.is_withdrawn,
    )
    if one.is_withdrawn and known.get(acknowledgement_key(one)) is None:
        raise Unfit("none is in force for it")
    return one


def as_acknowledged(findings: Iterable[dict[str, Any]], known: Acknowledgements) -> list[dict[str, Any]]:
    """Return findings with the status that they have under these acknowledgements."""
    return [acknowledge(one, known) for one in findings]


def _the_one(asked: Asked, findings: Iterable[Mapping[str, Any]]) -> OpenDrift:
    known = [found for one in findings if (found := read_open_drift(one)) is not None]
    known = [one for one in known if (one.customer, one.meter) == (asked.customer, asked.meter)]
    if asked.start is not None:
        known = [one for one in known if one.start == asked.start]
    whose = f"customer {asked.customer!r}, meter {asked.meter!r}"
    if not known:
        raise Unfit(f"{whose}: reconciliation has found no drift there; `tidegate reconcile --show` lists it")
    if len(known) > 1:
        starts = ", ".join(format_instant(one.start) for one in known)
        raise Unfit(f"{whose}: has drift in {len(known)} periods, so name one by its start: {starts}")
    return known[0]


def _signed(up_to: str | None, found: OpenDrift) -> str:
    """Return the amount with the sign of the drift."""
    if up_to is None:
        return format_amount(found)
    amount = Decimal(up_to).copy_abs()
    return f"{-amount if found.off < 0 else amount:f}"


def _withdrawn_start(asked: Asked, known: Acknowledgements) -> int:
    starts = [
        one.start
        for one in known.list_in_force()
        if (one.customer, one.meter) == (asked.customer, asked.meter)
        and one.start is not None
        and asked.start in (None, one.start)
    ]
    if len(starts) != 1:
        raise Unfit(
            f"customer {asked.customer!r}, meter {asked.meter!r}: {len(starts)} findings are acknowledged; "
            "name one by its period's start"
        )
    return starts[0]


def words_of(one: Acknowledgement) -> str:
    """Return a line for people about an acknowledgement."""
    whose = f"customer {one.customer}" if one.customer else "all customers"
    what = f"cause {one.cause}" if one.start is None else f"period from {format_instant(one.start)}"
    line = f"{one.meter}, {whose}, {what}"
    if one.is_withdrawn:
        return f"withdrawn: {line}"
    amount = "any amount" if one.up_to is None else f"up to {one.up_to}"
    return f"acknowledged: {line}, {amount}"
