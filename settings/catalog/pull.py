"""What the provider has of meters, plans and periods, written into a catalog's text; all else in it stays as it is.

- A meter that counts what none of ours does is added, under the provider's name as far as it may be one here.
- A customer (by `billing_id`, else by the provider's own id) gets its metered subscription's edges as its period. Edges
  of before are kept, so that old periods stay comparable; edges to come that no longer hold are replaced. Customers
  that are new are added. Which subscription decides, and what is a conflict, says operators/billing/subscriptions.py.
- A customer whose product changed there gets the plan that stands for it: the one with its `billing_id`, or its name,
  else a new one. So the old plan's caps no longer hold; limits of the customer's own stay.
- What is free there is `included` here: in the plan of a product that is new here, else in the customer's own limits,
  where it differs. Prices are not taken over: theirs are in cents, ours in whatever the catalog counts in.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tidegate.operators.billing.provider import (
    ProviderMeter,
    Subscription,
    convert_meter,
    is_same_meter,
    match_meters,
)
from tidegate.operators.billing.rollup import SUFFIX
from tidegate.operators.billing.subscriptions import (
    Basis,
    Conflict,
    choose_basis,
    find_plan,
    group_metered,
    has_changed_product,
    read_free_quantities,
)
from tidegate.operators.model.catalog import NO_LIMIT, BilledBy, Catalog, Condition, Filter, Meter
from tidegate.operators.model.periods import Billing
from tidegate.operators.model.ports import CatalogConflict, ControlLog
from tidegate.settings.catalog.file import CatalogError, Problem, parse_catalog
from tidegate.settings.catalog.versions import apply_text
from tidegate.settings.catalog.yaml_edit import Into, YamlEdit

# The last twenty years of months.
EDGES_KEPT = 240
ATTEMPTS_MAX = 5
NOTE_MAX = 500
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


class Pulled(NamedTuple):
    """The catalog's new text, what changed in it, what to look at, and whose subscriptions could not be applied."""

    text: str
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    conflicts: tuple[Conflict, ...] = ()


def pull_catalog(
    text: str,
    meters: Iterable[ProviderMeter],
    subscriptions: Iterable[Subscription],
    *,
    is_complete: bool = True,
    adds_meters: bool = True,
) -> Pulled:
    """Return the catalog `text` with what the provider has.

    Meters of subscriptions in the list's short form are not looked at. `is_complete` says that these are all
    subscriptions there are, so that one that is not among them has ended.
    Raises: CatalogError where the text is no catalog, before or after.
    """
    catalog = parse_catalog(text) if text.strip() else Catalog()
    meters, subscriptions = list(meters), list(subscriptions)
    new = _new_meters(catalog, meters) if adds_meters else []
    edit = YamlEdit(text)
    edit.append("meters", [_entry(meter) for meter in new])
    changes = [f"meter {meter.name}: new, reads {meter.event_name}" for meter in new]
    known = None if is_complete else {one.subscription_id for one in subscriptions}
    following = _Following(catalog, _names(catalog, new, meters), known)
    for billed_as, metered in group_metered(subscriptions).items():
        following.follow(billed_as, metered)
    edit.put(following.edits())
    changes += following.changes
    made = edit.text() if changes else text
    parse_catalog(made, "pulled catalog")
    return Pulled(made, tuple(changes), tuple(following.warnings), tuple(following.conflicts))


def apply_periods(
    control: ControlLog,
    subscriptions: Sequence[Subscription],
    by: str,
    *,
    meters: Sequence[ProviderMeter] = (),
    is_complete: bool = True,
) -> Pulled:
    """Write the subscriptions' periods and plans into the newest catalog, also where others change it at the same time.

    Raises: CatalogError where there is no catalog yet or it cannot be used, CatalogConflict where it changes all the
    time.
    """
    for attempt in range(ATTEMPTS_MAX):
        newest = control.catalog()
        if newest is None:
            raise CatalogError(
                [Problem("catalog", 0, 0, "", "there is none yet; start the flow, or pull one")]
            )
        made = pull_catalog(newest.text, meters, subscriptions, is_complete=is_complete, adds_meters=False)
        if not made.changes:
            return made
        note = "; ".join(made.changes)[:NOTE_MAX]
        try:
            apply_text(control, made.text, origin="platform", by=by, note=note, expected=newest.number)
        except CatalogConflict:
            if attempt == ATTEMPTS_MAX - 1:
                raise
        else:
            break
    return made


class _Following:
    """Customers that follow their subscriptions: the edits, and what is to be said of them.

    `names` are our meters by the provider's ids, `known` the ids of subscriptions whose state is known.
    """

    def __init__(self, catalog: Catalog, names: Mapping[str, str], known: set[str] | None) -> None:
        self._catalog, self._names, self._known_ids = catalog, names, known
        self._ours = {one.billing_id: name for name, one in catalog.customers.items() if one.billing_id}
        self._plans, self._customers = Into(), Into()
        self.changes: list[str] = []
        self.warnings: list[str] = []
        self.conflicts: list[Conflict] = []

    def follow(self, billed_as: str, metered: Sequence[Subscription]) -> None:
        """Give a customer what its metered subscriptions say, or name why not."""
        name = self._ours.get(billed_as, billed_as)
        basis = choose_basis(self._catalog, name, metered, self._known_ids)
        if isinstance(basis, Conflict):
            self.conflicts.append(basis)
            return
        free, warnings = read_free_quantities(basis, self._names)
        self.warnings += warnings
        by = BilledBy(basis.main.subscription_id, basis.main.product_id)
        self._warn_of_change(name, basis.main)
        if name in self._catalog.customers:
            self._follow_known(name, basis, free, by)
        else:
            plan, period = self._plan(basis, free), _written(_period(self._catalog, name, basis.main))
            self._customers[name] = {"plan": plan, "period": period, "billed_by": _by_entry(by)}
            self.changes.append(f"customer {name}: new, on {plan}")

    def edits(self) -> Into:
        """Return all that changes in plans and customers."""
        parts = (("plans", self._plans), ("customers", self._customers))
        return Into({name: part for name, part in parts if part})

    def _follow_known(self, name: str, basis: Basis, free: Mapping[str, int], by: BilledBy) -> None:
        customer, own = self._catalog.customers[name], Into()
        period = _period(self._catalog, name, basis.main)
        if period != self._catalog.period_of(name):
            own["period"] = _written(period)
            self._say(name, f"period {_edge(period.edges[-2])} to {_edge(period.edges[-1])}")
        if has_changed_product(self._catalog, name, by.product):
            self._move(name, own, basis, free)
        elif not basis.main.is_short:
            for meter, included in self._included(name, free).items():
                own.setdefault("limits", Into())[meter] = Into(included=included)
                self._say(name, f"{included} {meter} included")
        if customer.billed_by != by and not basis.main.is_short:
            own["billed_by"] = _by_entry(by)
            self._say(name, f"billed by {by.subscription}, product {by.product}")
        if own:
            self._customers[name] = own

    def _warn_of_change(self, name: str, main: Subscription) -> None:
        """Announce a change of plan that is scheduled there; it is taken over once it has taken place."""
        change = main.scheduled_change
        if change is None or change.effective_at is None:
            return
        plan = find_plan(self._catalog, change.product_id)
        words = f"its plan becomes {plan.name}" if plan else "no plan has that billing_id yet"
        at = f"{change.effective_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        self.warnings.append(f"customer {name}: its product becomes {change.product_id} at {at}; {words}")

    def _move(self, name: str, own: Into, basis: Basis, free: Mapping[str, int]) -> None:
        """Put a customer on the plan of its new product; caps of its own are the operator's, so they stay."""
        customer = self._catalog.customers[name]
        own["plan"] = plan = self._plan(basis, free)
        self._say(name, f"plan {customer.plan} to {plan}, as its product is {basis.main.product_id}")
        old, new = self._catalog.plans[customer.plan], self._catalog.plans.get(plan)
        for meter, units in free.items():
            limit = new.limits.get(meter, NO_LIMIT) if new else None
            if meter in customer.limits or (limit and (limit.included or 0) != units):
                own.setdefault("limits", Into())[meter] = Into(included=units)
        for meter, limit in customer.limits.items():
            if limit.cap != old.limits.get(meter, NO_LIMIT).cap:
                self.warnings.append(f"customer {name}: its own cap on {meter} stays, whatever its plan says")

    def _plan(self, basis: Basis, free: Mapping[str, int]) -> str:
        """Return the name of the product's plan, which is made where there is none."""
        product = basis.main.product_id
        if (known := find_plan(self._catalog, product)) is not None:
            return known.name
        if product not in self._plans:
            limits = {meter: {"included": units, "on_cap": "allow"} for meter, units in free.items() if units}
            self._plans[product] = {"limits": limits} if limits else {}
            title = f", {basis.main.product_name}" if basis.main.product_name else ""
            self.changes.append(f"plan {product}: new{title}")
            if any(one.meter_id not in self._names for one in basis.main.meters):
                words = "its included quantities are not known here; `tidegate catalog pull` reads them"
                self.warnings.append(f"plan {product}: {words}")
        return product

    def _included(self, name: str, free: Mapping[str, int]) -> dict[str, int]:
        """Return what is free there and included otherwise here."""
        ours = {meter: self._catalog.limit_of(name, meter).included for meter in free}
        return {meter: units for meter, units in free.items() if (ours[meter] or Decimal(0)) != units}

    def _say(self, name: str, words: str) -> None:
        self.changes.append(f"customer {name}: {words}")


def boundaries_of(known: Sequence[datetime], start: datetime, end: datetime) -> tuple[datetime, ...]:
    """Return the boundaries before this period, and its own, in UTC to the microsecond, ascending by whole seconds."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    # An edge of the same second is this one, as an older version wrote it.
    before = (edge for edge in known if edge < start.replace(microsecond=0))
    return (*before, start, end)[-EDGES_KEPT:]


def _new_meters(catalog: Catalog, meters: Iterable[ProviderMeter]) -> list[Meter]:
    taken = {meter.name for meter in catalog.meters}
    found: list[Meter] = []
    for theirs in meters:
        meter = convert_meter(theirs)
        is_rolled_up = theirs.event_name.endswith(SUFFIX)
        if (
            meter is None
            or is_rolled_up
            or any(is_same_meter(own, meter) for own in (*catalog.meters, *found))
        ):
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


def _names(catalog: Catalog, new: Sequence[Meter], meters: Iterable[ProviderMeter]) -> dict[str, str]:
    """Our names of the provider's meters, by their ids."""
    whole = Catalog((*catalog.meters, *new))
    return {id: found.own_meter.name for id, found in match_meters(whole, meters)[0].items()}


def _period(catalog: Catalog, name: str, found: Subscription) -> Billing:
    known = catalog.customers.get(name)
    policy = known.period if known else None
    edges = policy.edges if isinstance(policy, Billing) else ()
    return Billing(boundaries_of(edges, found.previous_billing_date, found.next_billing_date))


def _by_entry(by: BilledBy) -> dict[str, str]:
    """Return what a customer's period is of, as the catalog's file has it."""
    return {"subscription": by.subscription, "product": by.product}


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
