"""Payments over the API: one per cycle, with the usage of the cycle before, and one per change of plan within it."""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from xxhash import xxh3_64_intdigest

from simulator.http import views
from simulator.http.calls import Answer, Call, render_page
from simulator.routes.reading import cycle_usage
from simulator.state.identifiers import make_identifier
from simulator.state.instants import write_instant
from simulator.state.platform import Platform
from simulator.state.problems import missing
from simulator.state.records import Charge, Cycle, PaymentStatus, Subscription


class Payment(NamedTuple):
    """What was charged at `at`: the plan for [start, end), and the usage of `used`, as currently counted."""

    id: str
    at: int
    subscription: Subscription
    kind: Charge
    amount: int
    factor: str
    start: int
    end: int
    used: Cycle | None


def iterate_payments(platform: Platform, subscription: Subscription) -> Iterator[Payment]:
    """Yield a subscription's payments, oldest first."""
    before: Cycle | None = None
    found = []
    for cycle in subscription.cycles:
        id = _id(platform, subscription, cycle.start, cycle.charge)
        amount = _plan_price(platform, subscription, cycle) if cycle.amount is None else cycle.amount
        paid = id, cycle.start, subscription, cycle.charge, amount, "1", cycle.start, cycle.end
        found.append(Payment(*paid, before if before and before.meters else None))
        before = cycle
    for one in subscription.plan_charges:
        id = _id(platform, subscription, one.at, "plan_change")
        paid = id, one.at, subscription, "plan_change", one.amount, one.factor, one.at, one.end
        found.append(Payment(*paid, None))
    yield from sorted(found, key=lambda one: one.at)


def list_payments(platform: Platform, call: Call) -> Answer:
    """Return the payments, newest first."""
    customer, wanted = call.read_text("customer_id"), call.read_text("subscription_id")
    product, status = call.read_text("product_id"), call.read_choice("status", get_args(PaymentStatus))
    since, until = call.read_instant("created_at_gte"), call.read_instant("created_at_lte")
    found = [
        payment
        for subscription in platform.subscriptions
        if customer in (None, subscription.customer_id)
        and wanted in (None, subscription.subscription_id)
        and product in (None, subscription.product_id)
        and status in (None, "succeeded")
        for payment in iterate_payments(platform, subscription)
        if (since is None or payment.at >= since) and (until is None or payment.at <= until)
    ]
    found.sort(key=lambda one: one.at, reverse=True)
    return render_page(platform, call, found, lambda payment: view(platform, payment))


def get_payment(platform: Platform, call: Call) -> Answer:
    return Answer(200, view(platform, _found(platform, call.params["payment_id"])))


def list_line_items(platform: Platform, call: Call) -> Answer:
    """Return the plan's line, and one for each meter whose usage was billed."""
    payment = _found(platform, call.params["payment_id"])
    product = platform.products.get(payment.subscription.product_id)
    lines = [(payment.subscription.subscription_id, product.name, payment.amount)]
    lines += [(one["id"], one["name"], one["total_price"]) for one in usage(platform, payment)]
    items = [
        {"items_id": id, "name": name, "description": None, "amount": amount, "refundable_amount": amount, "tax": 0}
        for id, name, amount in lines
    ]  # fmt: skip
    document = {"currency": product.price.currency, "items": items, "partial_refund_allowed": True}
    return Answer(200, document)


def usage(platform: Platform, payment: Payment) -> list[dict[str, Any]]:
    """Return the meters whose usage a payment bills."""
    if payment.used is None:
        return []
    meters: list[dict[str, Any]] = cycle_usage(platform, payment.subscription, payment.used, None)["meters"]
    return meters


def view(platform: Platform, payment: Payment) -> dict[str, Any]:
    subscription = payment.subscription
    currency = platform.products.get(subscription.product_id).price.currency
    total = payment.amount + sum(one["total_price"] for one in usage(platform, payment))
    period = {
        "subscription_id": subscription.subscription_id,
        "starts_at": write_instant(payment.start),
        "ends_at": write_instant(payment.end),
        "proration_factor": payment.factor,
    }
    return {
        "payment_id": payment.id,
        "invoice_id": payment.id.replace("pay_", "inv_"),
        "business_id": platform.memory.business_id,
        "brand_id": views.render_brand(platform),
        "customer": views.render_limited_customer(platform.customers.get(subscription.customer_id)),
        "billing": {"country": "US"},
        "created_at": write_instant(payment.at),
        "updated_at": write_instant(payment.at),
        "currency": currency,
        "total_amount": total,
        "settlement_amount": total,
        "settlement_currency": currency,
        "tax": 0,
        "settlement_tax": 0,
        "status": "succeeded",
        "charge_type": None if payment.kind == "pause" else payment.kind,
        "includes_usage": payment.used is not None and payment.kind != "pause",
        "service_periods": [period],
        "subscription_id": subscription.subscription_id,
        "subscription_ids": [subscription.subscription_id],
        "is_multi_subscription": False,
        "is_update_payment_method": False,
        "digital_products_delivered": False,
        "has_license_key": False,
        "disputes": [],
        "refunds": [],
        "retry_attempt": 0,
        "payment_provider": "dodo",
        "metadata": subscription.metadata,
    }


def _plan_price(platform: Platform, subscription: Subscription, cycle: Cycle) -> int:
    product = platform.products.get(cycle.product_id or subscription.product_id)
    return product.price.fixed_price * subscription.quantity


def _found(platform: Platform, id: str) -> Payment:
    for subscription in platform.subscriptions:
        for payment in iterate_payments(platform, subscription):
            if payment.id == id:
                return payment
    raise missing("payment", id)


def _id(platform: Platform, subscription: Subscription, at: int, kind: str) -> str:
    number = xxh3_64_intdigest(f"{subscription.subscription_id}/{at}/{kind}".encode())
    return make_identifier("pay", platform.memory.seed, number)
