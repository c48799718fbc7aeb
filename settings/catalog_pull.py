"""What the biller says of meters, plans and periods, written into a catalog's text; all else in it stays as it is.

- A meter that counts what none of ours does is added, under the biller's name as far as it may be one here.
- A customer (by `billing_id`, else by the biller's own id) gets the subscription's edges as its period. Edges of before
  are kept, so that old periods stay comparable; edges to come that no longer hold are replaced. Strangers are added.
- What is free at the biller is `included` here: in the plan of a product that is new here, else in the customer's own
  limits, where it differs. Prices are not taken over: theirs are in cents, ours in whatever the catalog counts in.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from operators.biller import BillerMeter, Subscription, is_same, matched, meter_of
from operators.catalog import Catalog, Condition, Filter, Meter
from operators.periods import Billing
from operators.ports import CatalogConflict, ControlLog
from operators.rollup import SUFFIX
from settings.catalog import CatalogError, Problem, parse_catalog
from settings.catalogs import apply_text
from settings.yaml_edit import Into, YamlEdit

LIVE = ("active", "on_hold", "past_due", "paused")
# The last twenty years of months.
EDGES_KEPT = 240
ATTEMPTS_MAX = 5
NOTE_MAX = 500
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


class Pulled(NamedTuple):
    """The catalog's new text, what changed in it, and what somebody should look at."""

    text: str
    changes: tuple[str, ...]
    warnings: tuple[str, ...]


def pulled(text: str, meters: Iterable[BillerMeter], subscriptions: Iterable[Subscription]) -> Pulled:
    """The catalog `text` with what the biller says. Meters of subscriptions in the list's short form are not looked at.

    CatalogError where the text is no catalog, before or after.
    """
    catalog = parse_catalog(text) if text.strip() else Catalog()
    changes: list[str] = []
    warnings: list[str] = []
    edit = YamlEdit(text)
    meters = list(meters)
    new = _new_meters(catalog, meters)
    edit.append("meters", [_entry(meter) for meter in new])
    changes += [f"meter {meter.name}: new, reads {meter.event_name}" for meter in new]
    names = _names(catalog, new, meters)
    known = {customer.billing_id: name for name, customer in catalog.customers.items() if customer.billing_id}
    told, plans = Into(), Into()
    for billed_as, found in _by_customer(subscriptions, warnings).items():
        name = known.get(billed_as, billed_as)
        period = _period(catalog, name, found)
        if name not in catalog.customers:
            plan = found.product_id
            if plan not in catalog.plans and plan not in plans:
                plans[plan] = _plan(found, names)
                changes.append(f"plan {plan}: new{f', {found.product_name}' if found.product_name else ''}")
            told[name] = {"plan": plan, "period": _written(period)}
            changes.append(f"customer {name}: new, on {plan}")
            continue
        own = Into()
        if period != catalog.period_of(name):
            own["period"] = _written(period)
            changes.append(f"customer {name}: period {_edge(period.edges[-2])} to {_edge(period.edges[-1])}")
        for meter, included in _included(catalog, name, found, names).items():
            own.setdefault("limits", Into())[meter] = Into(included=included)
            changes.append(f"customer {name}: {included} {meter} included")
        if own:
            told[name] = own
    edit.put(Into({name: part for name, part in (("plans", plans), ("customers", told)) if part}))
    made = edit.text() if changes else text
    parse_catalog(made, "pulled catalog")
    return Pulled(made, tuple(changes), tuple(warnings))


def apply_periods(control: ControlLog, subscriptions: Sequence[Subscription], by: str) -> tuple[str, ...]:
    """Writes the subscriptions' periods into the newest catalog, whoever else changes it meanwhile; what was warned of.

    CatalogError where there is no catalog yet or it cannot be used, CatalogConflict where it changes all the time.
    """
    for attempt in range(ATTEMPTS_MAX):
        newest = control.catalog()
        if newest is None:
            raise CatalogError(
                [Problem("catalog", 0, 0, "", "there is none yet; start the flow, or pull one")]
            )
        made = pulled(newest.text, (), subscriptions)
        if not made.changes:
            return made.warnings
        note = "; ".join(made.changes)[:NOTE_MAX]
        try:
            apply_text(control, made.text, origin="platform", by=by, note=note, expected=newest.number)
        except CatalogConflict:
            if attempt == ATTEMPTS_MAX - 1:
                raise
        else:
            break
    return made.warnings


def edges_of(known: Sequence[datetime], start: datetime, end: datetime) -> tuple[datetime, ...]:
    """The edges of before this period, and its own, to the microsecond; in UTC, ascending by whole seconds."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    # An edge of the same second is this one, as an older version wrote it.
    before = (edge for edge in known if edge < start.replace(microsecond=0))
    return (*before, start, end)[-EDGES_KEPT:]


def _new_meters(catalog: Catalog, meters: Iterable[BillerMeter]) -> list[Meter]:
    taken = {meter.name for meter in catalog.meters}
    found: list[Meter] = []
    for theirs in meters:
        meter = meter_of(theirs)
        is_rolled_up = theirs.event_name.endswith(SUFFIX)
        if meter is None or is_rolled_up or any(is_same(own, meter) for own in (*catalog.meters, *found)):
            continue
        base = UNSAFE.sub("_", theirs.name).strip("_")[:90] or "meter"
        name = next(name for name in _numbered(base) if name not in taken)
        taken.add(name)
        found.append(Meter(name, meter.event_name, meter.kind, meter.key, meter.filter, meter.unit))
    return found


def _numbered(base: str) -> Iterable[str]:
    yield base
    number = 2
    while True:
        yield f"{base}_{number}"
        number += 1


def _names(catalog: Catalog, new: Sequence[Meter], meters: Iterable[BillerMeter]) -> dict[str, str]:
    """Our names of the biller's meters, by their ids."""
    whole = Catalog((*catalog.meters, *new))
    return {id: found.ours.name for id, found in matched(whole, meters)[0].items()}


def _by_customer(subscriptions: Iterable[Subscription], warnings: list[str]) -> dict[str, Subscription]:
    """One live subscription of each customer: the one whose period began last."""
    found: dict[str, Subscription] = {}
    for one in sorted(subscriptions, key=lambda one: one.previous_billing_date):
        if one.status not in LIVE or one.next_billing_date <= one.previous_billing_date:
            continue
        who = one.customer.customer_id
        if who in found:
            ids = f"{found[who].subscription_id} and {one.subscription_id}"
            warnings.append(
                f"customer {who} has several subscriptions, {ids}; periods of the later one are taken"
            )
        found[who] = one
    return dict(sorted(found.items()))


def _period(catalog: Catalog, name: str, found: Subscription) -> Billing:
    known = catalog.customers.get(name)
    policy = known.period if known else None
    edges = policy.edges if isinstance(policy, Billing) else ()
    return Billing(edges_of(edges, found.previous_billing_date, found.next_billing_date))


def _plan(found: Subscription, names: Mapping[str, str]) -> dict[str, Any]:
    free = {names[one.meter_id]: one.free_threshold for one in found.meters if one.meter_id in names}
    limits = {meter: {"included": units, "on_cap": "allow"} for meter, units in free.items() if units}
    return {"limits": limits} if limits else {}


def _included(catalog: Catalog, name: str, found: Subscription, names: Mapping[str, str]) -> dict[str, int]:
    """What is free there and included otherwise here."""
    differing = {}
    for one in found.meters:
        if (meter := names.get(one.meter_id)) is None:
            continue
        ours = catalog.limit_of(name, meter).included
        if (ours or Decimal(0)) != one.free_threshold:
            differing[meter] = one.free_threshold
    return differing


def _entry(meter: Meter) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": meter.name, "event_name": meter.event_name}
    entry["aggregation"] = {"type": meter.kind} | ({"key": meter.key} if meter.key else {})
    if meter.filter:
        entry["filter"] = _clause(meter.filter)
    if meter.unit:
        entry["unit"] = meter.unit
    return entry


def _clause(clause: Condition | Filter) -> dict[str, Any]:
    if isinstance(clause, Filter):
        return {"conjunction": clause.conjunction, "clauses": [_clause(one) for one in clause.clauses]}
    return {"key": clause.key, "operator": clause.operator, "value": clause.value}


def _written(period: Billing) -> dict[str, Any]:
    return {"type": "billing", "edges": [_edge(edge) for edge in period.edges]}


def _edge(at: datetime) -> str:
    fraction = f".{at.microsecond:06d}" if at.microsecond else ""
    return f"{at:%Y-%m-%dT%H:%M:%S}{fraction}Z"
