"""Subscriptions: which one sets a customer's period, plan and free quantities, and where subscriptions contradict.

A subscription without meters bills no usage, so it decides nothing. A customer has one billing period here, so metered
subscriptions with different periods are a conflict: it is reported, and the customer stays unchanged.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tidegate.operators.billing.provider import SubscribedMeter, Subscription
from tidegate.operators.model.catalog import Catalog, Plan
from tidegate.operators.model.periods import Billing

LIVE = ("active", "on_hold", "past_due", "paused")
# Free thresholds above this limit wrapped around at the provider until August 2026.
THRESHOLD_MAX = 2**31 - 1
PRODUCT_PREFIX = "pdt_"


class Conflict(NamedTuple):
    """Subscriptions of one customer that contradict each other or the catalog. `customer` is our name."""

    customer: str
    billed_as: str
    subscriptions: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"customer {self.customer}: {self.why}; nothing of it is applied"


class Basis(NamedTuple):
    """What a customer is billed by: the subscription that sets period and product, and all that bill usage."""

    main: Subscription
    all: tuple[Subscription, ...]


def group_metered(subscriptions: Iterable[Subscription]) -> dict[str, list[Subscription]]:
    """Return the live subscriptions that bill usage, by the provider's customer, the latest period last."""
    found: dict[str, list[Subscription]] = {}
    for one in sorted(subscriptions, key=lambda one: (one.previous_billing_date, one.subscription_id)):
        is_period = one.previous_billing_date < one.next_billing_date
        if one.status in LIVE and is_period and one.is_metered:
            found.setdefault(one.customer.customer_id, []).append(one)
    return dict(sorted(found.items()))


def find_siblings(subscriptions: Iterable[Subscription]) -> dict[str, tuple[str, ...]]:
    """Return, by id, the customer's other subscriptions whose current or last period starts with this one's."""
    together: dict[tuple[str, datetime], list[str]] = {}
    for one in subscriptions:
        together.setdefault((one.customer.customer_id, _read_period(one)[0]), []).append(one.subscription_id)
    return {
        id: tuple(other for other in ids if other != id)
        for ids in together.values()
        if len(ids) > 1
        for id in ids
    }


def choose_basis(
    catalog: Catalog, name: str, metered: Sequence[Subscription], known: Iterable[str] | None = None
) -> Basis | Conflict:
    """Return which of the customer's metered subscriptions decide, or the conflict between them.

    `known` are the ids of all subscriptions whose state is known, None if that is every existing one.
    """
    billed_as, ids = metered[0].customer.customer_id, tuple(one.subscription_id for one in metered)
    if len({_read_period(one) for one in metered}) > 1:
        words = ", ".join(f"{one.subscription_id} from {_format_period(one)}" for one in metered)
        return Conflict(name, billed_as, ids, f"its metered subscriptions have different periods: {words}")
    recorded = catalog.customers[name].billed_by if name in catalog.customers else None
    main = next((o for o in metered if recorded and o.subscription_id == recorded.subscription), metered[-1])
    if known is not None and (why := _find_overlap(catalog, name, main, set(known))):
        return Conflict(name, billed_as, ids, why)
    return Basis(main, tuple(metered))


def is_recorded(catalog: Catalog, name: str, one: Subscription) -> bool:
    """Return whether the catalog already has this subscription's period and product, or may take it unread."""
    customer = catalog.customers.get(name)
    if customer is None:
        return False
    recorded = customer.billed_by
    if recorded is not None:
        return (recorded.subscription, recorded.product) == (one.subscription_id, one.product_id)
    edges = customer.period.edges if isinstance(customer.period, Billing) else ()
    return [edge.replace(microsecond=0) for edge in edges[-2:]] == list(_read_period(one))


def find_plan(catalog: Catalog, product: str) -> Plan | None:
    """Return the plan of a product: the one with its billing id, otherwise the one of its name."""
    linked = (plan for plan in catalog.plans.values() if plan.billing_id == product)
    return next(linked, None) or catalog.plans.get(product)


def has_changed_product(catalog: Catalog, name: str, product: str) -> bool:
    """Return whether a known customer's product has changed, so that its plan must follow.

    A plan that an operator chose for the current product stays. Without a recorded product, a plan of another product
    is a change.
    """
    customer = catalog.customers[name]
    if (target := find_plan(catalog, product)) is not None and target.name == customer.plan:
        return False
    if customer.billed_by is not None:
        return customer.billed_by.product != product
    return catalog.plans[customer.plan].billing_id is not None or customer.plan.startswith(PRODUCT_PREFIX)


def read_free_quantities(basis: Basis, names: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """Return the free quantity of each of our meters, and warnings for an operator."""
    lines: dict[str, list[SubscribedMeter]] = {}
    for one in (one for subscription in basis.all for one in subscription.meters):
        if one.meter_id in names:
            lines.setdefault(names[one.meter_id], []).append(one)
    who = basis.main.customer.customer_id
    warnings = []
    for meter, priced in lines.items():
        if len(priced) > 1:
            warnings.append(
                f"customer {who}: {meter} is priced on {len(priced)} lines; its free quantity stays"
            )
        elif priced[0].free_threshold > THRESHOLD_MAX:
            many = f"{priced[0].free_threshold:,} {meter} free"
            warnings.append(f"customer {who}: {many}; thresholds above 2.1 billion wrapped until August 2026")
    return {meter: priced[0].free_threshold for meter, priced in lines.items() if len(priced) == 1}, warnings


def _find_overlap(catalog: Catalog, name: str, main: Subscription, known: set[str]) -> str:
    """Return why a subscription cannot follow the catalog's period, "" if it can.

    Another subscription may still be in force in that period.
    """
    customer = catalog.customers.get(name)
    if customer is None or not isinstance(customer.period, Billing) or len(customer.period.edges) < 2:
        return ""
    recorded = customer.billed_by
    if recorded is not None and recorded.subscription in known:
        return ""
    begin, end = (edge.replace(microsecond=0) for edge in customer.period.edges[-2:])
    start, finish = _read_period(main)
    is_same = start == begin and (finish == end or recorded is None)
    if is_same or start >= end:
        return ""
    of = f"subscription {recorded.subscription}" if recorded else "another source"
    ours = f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
    words = f"{main.subscription_id} has the period {_format_period(main)}, within {ours}"
    return f"{words}, which the catalog has of {of}; `tidegate catalog pull` reads all subscriptions"


def _read_period(one: Subscription) -> tuple[datetime, datetime]:
    start, end = (at.astimezone(UTC) for at in (one.previous_billing_date, one.next_billing_date))
    return start.replace(microsecond=0), end.replace(microsecond=0)


def _format_period(one: Subscription) -> str:
    start, end = _read_period(one)
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
