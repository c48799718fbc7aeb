"""Subscriptions over time: created, renewed, closed early, cancelled; each change emits webhooks."""

from itertools import pairwise
from typing import Any, Final, get_args

import msgspec

from simulator.billing.crediting import grant_cycle
from simulator.state.instants import shift_instant
from simulator.state.platform import Platform
from simulator.state.records import Charge, Cycle, Metadata, PricedMeter, Product, Status, Subscription

CYCLES_MAX: Final = 10_000

_TOLD: Final[dict[str, str]] = {
    "active": "subscription.active",
    "on_hold": "subscription.on_hold",
    "past_due": "subscription.past_due",
    "paused": "subscription.paused",
    "cancelled": "subscription.cancelled",
    "expired": "subscription.expired",
    "failed": "subscription.failed",
    "pending": "subscription.updated",
}


class NewSubscription(msgspec.Struct, kw_only=True):
    """A subscription to create. `start` is where its current cycle begins, now by default, `end` where it ends.

    Without `end` the price determines it. `past` cycles, as pairs of µs, lie before it, oldest first.
    """

    customer_id: str
    product_id: str
    start: int | None = None
    end: int | None = None
    past: list[tuple[int, int]] = []
    status: Status = "active"
    quantity: int = 1
    cancel_at_next_billing_date: bool = False
    expires_at: int | None = None
    trial_period_days: int = 0
    metadata: Metadata = {}


def subscribe(platform: Platform, new: NewSubscription, id: str | None = None) -> Subscription:
    """Create a subscription as seeded and return it.

    Raises:
        ValueError: its cycles are not consecutive.
    """
    platform.customers.get(new.customer_id)
    product = platform.products.get(new.product_id)
    start = platform.now if new.start is None else new.start
    end = find_next_edge(product, start, start) if new.end is None else new.end
    edges = [*new.past, (start, end)]
    if any(begin >= finish for begin, finish in edges) or any(
        before[1] > after[0] for before, after in pairwise(edges)
    ):
        raise ValueError(f"cycles: each needs to end after it starts and before the next, got {edges}")
    cycles = [_cycle(product, begin, finish) for begin, finish in edges]
    cycles[0].charge = "new"
    for cycle in cycles[:-1]:
        cycle.closed_at = cycle.end
    id = id or platform.new_id("sub")
    subscription = Subscription(
        subscription_id=id,
        customer_id=new.customer_id,
        product_id=new.product_id,
        status=new.status,
        created_at=edges[0][0],
        anchor=start,
        cycles=cycles,
        quantity=new.quantity,
        cancel_at_next_billing_date=new.cancel_at_next_billing_date,
        expires_at=new.expires_at,
        trial_period_days=new.trial_period_days,
        metadata=new.metadata,
    )
    _keep(platform, subscription)
    platform.emit(_TOLD[new.status], id)
    if subscription.status == "active":
        grant_cycle(platform, subscription)
    return subscription


def find_next_edge(product: Product, anchor: int, after: int) -> int:
    """Return the first boundary after `after`, counted from `anchor` so that a clamped month's end does not persist."""
    price, count = product.price, 0
    edge = anchor
    while edge <= after:
        count += 1
        edge = shift_instant(anchor, count * price.payment_frequency_count, price.payment_frequency_interval)
    return edge


def roll(
    platform: Platform,
    subscription: Subscription,
    *,
    at: int | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Cycle:
    """Close the current cycle, at `at` if given, and open the next one, of the scheduled product if there is one.

    The next one is from `start` to `end` if given.
    """
    scheduled, current = subscription.scheduled, subscription.current
    product = platform.products.get(scheduled.product_id if scheduled else subscription.product_id)
    if at is not None:
        if at <= current.start:
            raise ValueError("at: needs to be after the cycle's start")
        current.end = at
    current.closed_at = platform.now
    begin = current.end if start is None else start
    finish = find_next_edge(product, subscription.anchor, begin) if end is None else end
    if not current.end <= begin < finish:
        raise ValueError("start, end: the next cycle needs to follow the current one")
    cycle = _cycle(product, begin, finish)
    if scheduled is not None:
        cycle.charge = "plan_change"
        subscription.product_id, subscription.quantity = product.product_id, scheduled.quantity
        subscription.scheduled = None
    # The oldest cycles leave, so that a platform hurried through years stays of a size.
    subscription.cycles = [*subscription.cycles, cycle][-CYCLES_MAX:]
    _keep(platform, subscription)
    platform.emit("subscription.renewed", subscription.subscription_id)
    if scheduled is not None:
        platform.emit("subscription.plan_changed", subscription.subscription_id)
    grant_cycle(platform, subscription)
    return cycle


def restart(
    platform: Platform,
    subscription: Subscription,
    product_id: str,
    charge: Charge,
    amount: int,
    end: int | None = None,
) -> None:
    """End the current cycle now, bill its usage, and open one of this product, until `end` if given."""
    product, now = platform.products.get(product_id), platform.now
    current = subscription.current
    if now > current.start:
        current.end, current.closed_at = now, now
    else:
        subscription.cycles.pop()
    if end is None:
        subscription.anchor = now
    cycle = _cycle(product, now, find_next_edge(product, now, now) if end is None else end)
    cycle.charge, cycle.amount = charge, amount
    subscription.cycles = [*subscription.cycles, cycle][-CYCLES_MAX:]
    is_other = subscription.product_id != product_id
    subscription.product_id = product_id
    _keep(platform, subscription)
    platform.emit(
        "subscription.plan_changed" if is_other else "subscription.updated", subscription.subscription_id
    )


def renew_due(platform: Platform, now: int) -> None:
    """Renew, or end, the subscriptions that have reached their next billing date."""
    if now < platform.next_edge or not platform.switches.auto_renew:
        return
    for subscription in platform.subscriptions:
        while subscription.status == "active" and subscription.current.end <= now:
            _at_edge(platform, subscription)


def change(platform: Platform, subscription: Subscription, changes: dict[str, Any]) -> None:
    """Set fields by hand: a status, a product (which is a change of plan), the end of the current cycle."""
    before = subscription.status
    unknown = set(changes) - {
        "status",
        "product_id",
        "end",
        "cancel_at_next_billing_date",
        "expires_at",
        "metadata",
    }
    if unknown:
        raise ValueError(f"subscription: cannot set {', '.join(sorted(unknown))}")
    if changes.get("status", before) not in get_args(Status):
        raise ValueError(f"status: needs one of {', '.join(get_args(Status))}")
    event = "subscription.updated"
    for field in set(changes) - {"product_id", "end"}:
        setattr(subscription, field, changes[field])
    if "end" in changes:
        subscription.current.end = changes["end"]
    if "product_id" in changes:
        subscription.current.meters = _meters(platform.products.get(changes["product_id"]))
        subscription.product_id, event = changes["product_id"], "subscription.plan_changed"
    if subscription.status != before:
        _stamp(platform, subscription)
        event = "subscription.unpaused" if before == "paused" else _TOLD[subscription.status]
    _keep(platform, subscription)
    platform.emit(event, subscription.subscription_id)


def _at_edge(platform: Platform, subscription: Subscription) -> None:
    expires = subscription.expires_at
    if subscription.cancel_at_next_billing_date:
        change(platform, subscription, {"status": "cancelled"})
    elif expires is not None and expires <= subscription.current.end:
        change(platform, subscription, {"status": "expired"})
    else:
        roll(platform, subscription)


def _stamp(platform: Platform, subscription: Subscription) -> None:
    subscription.paused_at = platform.now if subscription.status == "paused" else None
    if subscription.status == "cancelled":
        subscription.cancelled_at = platform.now


def _cycle(product: Product, start: int, end: int) -> Cycle:
    return Cycle(start=start, end=end, meters=_meters(product), product_id=product.product_id)


def _meters(product: Product) -> list[PricedMeter]:
    return list(product.price.meters or [])


def _keep(platform: Platform, subscription: Subscription) -> None:
    platform.subscriptions.put(subscription.subscription_id, subscription)
    platform.note_change()
