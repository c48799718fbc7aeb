"""Subscriptions changed over the API: another plan, with a preview of its charge, pause, resume, cancel."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from simulator.billing import periods
from simulator.http import views
from simulator.http.calls import Answer, Call
from simulator.routes.payments import iterate_payments
from simulator.routes.reading import cycle_usage
from simulator.routes.seeding import Instant
from simulator.state.instants import from_datetime, write_instant
from simulator.state.platform import Platform
from simulator.state.problems import INVALID_PARAMETERS, Problem, malformed
from simulator.state.records import Cycle, Metadata, PlanCharge, Product, ScheduledChange, Subscription

Proration = Literal[
    "prorated_immediately",
    "full_immediately",
    "difference_immediately",
    "do_not_bill",
    "prorated_immediately_keep_cycle",
]
KEEPS_CYCLE = ("do_not_bill", "prorated_immediately_keep_cycle")


class PlanChange(msgspec.Struct, kw_only=True):
    product_id: str
    proration_billing_mode: Proration
    quantity: Annotated[int, Meta(ge=1)]
    effective_at: Literal["immediately", "next_billing_date"] = "immediately"
    cancel_scheduled_change_plan: bool = False
    metadata: Metadata | None = None


class Update(msgspec.Struct, kw_only=True):
    """Changes of a subscription. Fields that are not given stay; `pause` was removed from the API and is refused."""

    status: Literal["active", "paused", "cancelled"] | UnsetType | None = UNSET
    cancel_at_next_billing_date: bool | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET
    next_billing_date: Instant | UnsetType | None = UNSET
    pause: Any = UNSET


def change_plan(platform: Platform, call: Call) -> Answer:
    subscription, change = _asked(platform, call)
    product = platform.products.get(change.product_id)
    subscription.scheduled = None
    if change.metadata is not None:
        subscription.metadata = change.metadata
    if change.effective_at == "next_billing_date":
        return _schedule(platform, subscription, change)
    amount, factor = _plan_amount(platform, subscription, product, change)
    subscription.quantity = change.quantity
    if change.proration_billing_mode in KEEPS_CYCLE:
        if change.proration_billing_mode != "do_not_bill":
            charge = PlanCharge(at=platform.now, end=subscription.current.end, amount=amount, factor=factor)
            subscription.plan_charges = [*subscription.plan_charges, charge]
        periods.change(platform, subscription, {"product_id": change.product_id})
    else:
        periods.restart(platform, subscription, change.product_id, "plan_change", amount)
    last = list(iterate_payments(platform, subscription))[-1]
    return _paid(None if change.proration_billing_mode == "do_not_bill" else last.id)


def cancel_scheduled(platform: Platform, call: Call) -> Answer:
    """Cancel a change of plan that has not taken place yet."""
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    if subscription.scheduled is None:
        raise Problem(404, "NOT_FOUND", "no change of plan is scheduled")
    subscription.scheduled = None
    periods.change(platform, subscription, {})
    return Answer(204)


def preview(platform: Platform, call: Call) -> Answer:
    """Return what the change would charge now: the plan, and the usage so far if its cycle ends with it.

    A scheduled change charges nothing now.
    """
    subscription, change = _asked(platform, call)
    product = platform.products.get(change.product_id)
    is_now, items = change.effective_at == "immediately", []
    amount, factor = _plan_amount(platform, subscription, product, change) if is_now else (0, "1")
    currency = product.price.currency
    if is_now:
        items.append(_plan_item(product, change, amount, factor))
    if is_now and change.proration_billing_mode not in KEEPS_CYCLE:
        until = platform.find_visible_since(platform.switches.usage_visibility_lag_s)
        used = cycle_usage(platform, subscription, subscription.current, until)["meters"]
        items += [_meter_item(one) for one in used]
    total = amount + sum(item.get("subtotal", 0) for item in items)
    summary = {
        "currency": currency,
        "customer_credits": 0,
        "customer_credits_currency": currency,
        "settlement_amount": total,
        "settlement_currency": currency,
        "total_amount": total,
        "settlement_tax": 0,
        "tax": 0,
    }
    opened = Cycle(start=platform.now, end=subscription.current.end, meters=list(product.price.meters or []))
    changed = msgspec.structs.replace(subscription, product_id=product.product_id, cycles=[opened])
    new_plan = views.render_subscription(platform, changed)
    at = platform.now if is_now else subscription.current.end
    charge = {"effective_at": write_instant(at), "line_items": items, "summary": summary}
    return Answer(200, {"immediate_charge": charge, "new_plan": new_plan})


def update(platform: Platform, call: Call) -> Answer:
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    wanted = call.read_body(Update)
    if wanted.pause is not UNSET:
        raise malformed("pause: was removed; use status paused and status active")
    given = {
        n: v for n in wanted.__struct_fields__ if (v := getattr(wanted, n)) is not UNSET and v is not None
    }
    status = given.pop("status", None)
    if status in ("active", "paused"):
        if given:
            raise malformed(f"status: {status} is to be sent alone")
        (_pause if status == "paused" else _resume)(platform, subscription)
    else:
        if "next_billing_date" in given:
            given["end"] = from_datetime(given.pop("next_billing_date"))
        if status:
            given["status"] = status
        periods.change(platform, subscription, given)
    return Answer(200, views.render_subscription(platform, subscription))


def _asked(platform: Platform, call: Call) -> tuple[Subscription, PlanChange]:
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    change = call.read_body(PlanChange)
    if change.quantity > 1 and platform.products.get(change.product_id).price.meters:
        raise Problem(400, "INVALID_QUANTITY", "quantity: usage-priced products allow 1 only")
    if subscription.status != "active":
        raise Problem(409, "UNSUPPORTED_ACTION", f"the subscription is {subscription.status}")
    if subscription.scheduled is not None and not change.cancel_scheduled_change_plan:
        raise Problem(409, "UNSUPPORTED_ACTION", "a change of plan is scheduled already")
    return subscription, change


def _schedule(platform: Platform, subscription: Subscription, change: PlanChange) -> Answer:
    """Store a change for the end of the current cycle, replacing one that was scheduled before."""
    id, product = platform.new_id("spc"), change.product_id
    subscription.scheduled = ScheduledChange(
        id=id, product_id=product, quantity=change.quantity, created_at=platform.now
    )
    periods.change(platform, subscription, {})
    return _paid(None)


def _paid(payment: str | None) -> Answer:
    return Answer(
        200, {"payment_id": payment, "payment_link": None, "client_secret": None, "expires_on": None}
    )


def _pause(platform: Platform, subscription: Subscription) -> None:
    """Bill the usage so far immediately, unless switched off; the rest of the period waits."""
    if subscription.status != "active":
        raise Problem(
            400, INVALID_PARAMETERS, f"only active subscriptions pause, this is {subscription.status}"
        )
    if platform.switches.bill_usage_at_pause and platform.now > subscription.current.start:
        end = subscription.current.end
        periods.restart(platform, subscription, subscription.product_id, "pause", 0, end)
    periods.change(platform, subscription, {"status": "paused"})


def _resume(platform: Platform, subscription: Subscription) -> None:
    """Move the period's end by the length of the pause."""
    if subscription.status not in ("paused", "on_hold"):
        raise Problem(
            400, INVALID_PARAMETERS, f"nothing to resume, the subscription is {subscription.status}"
        )
    paused = platform.now - (subscription.paused_at or platform.now)
    changes = {"status": "active", "end": subscription.current.end + paused}
    periods.change(platform, subscription, changes)


def _plan_amount(
    platform: Platform, subscription: Subscription, product: Product, change: PlanChange
) -> tuple[int, str]:
    """Return what the plan costs at the change, in the smallest unit, and the part of a period that it pays for."""
    current = subscription.current
    old = platform.products.get(subscription.product_id).price.fixed_price * subscription.quantity
    new = product.price.fixed_price * change.quantity
    left = max(current.end - platform.now, 0) / (current.end - current.start)
    match change.proration_billing_mode:
        case "full_immediately":
            return new, "1"
        case "difference_immediately":
            return max(new - old, 0), "1"
        case "prorated_immediately":
            return max(new - round(old * left), 0), "1"
        case "prorated_immediately_keep_cycle":
            return max(round((new - old) * left), 0), f"{left:.6f}"
        case "do_not_bill":
            return 0, "1"


def _plan_item(product: Product, change: PlanChange, amount: int, factor: str) -> dict[str, Any]:
    return {
        "type": "subscription",
        "id": product.product_id,
        "product_id": product.product_id,
        "name": product.name,
        "currency": product.price.currency,
        "quantity": change.quantity,
        "unit_price": amount,
        "proration_factor": float(factor),
        "tax_inclusive": False,
        "tax": 0,
        "tax_rate": 0.0,
    }


def _meter_item(used: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "meter",
        "id": used["id"],
        "name": used["name"],
        "currency": used["currency"],
        "units_consumed": used["consumed_units"],
        "free_threshold": used["free_threshold"],
        "chargeable_units": used["chargeable_units"],
        "price_per_unit": used["price_per_unit"],
        "subtotal": used["total_price"],
        "tax_inclusive": False,
        "tax_rate": 0.0,
        "tax": 0,
    }
