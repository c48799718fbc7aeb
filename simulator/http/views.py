"""Records in the form of the API."""

from typing import Any

import msgspec

from simulator.billing.balances import compute_left
from simulator.state.instants import write_instant, write_optional_instant
from simulator.state.platform import Platform
from simulator.state.records import (
    AttachedCredit,
    Customer,
    Meter,
    PricedMeter,
    Product,
    StoredEvent,
    Subscription,
)
from simulator.state.usage import format_plain


def render_event(platform: Platform, event: StoredEvent) -> dict[str, Any]:
    return {
        "business_id": platform.memory.business_id,
        "customer_id": event.customer_id,
        "event_id": event.event_id,
        "event_name": event.event_name,
        "metadata": event.metadata,
        "timestamp": write_instant(event.at),
    }


def render_meter(platform: Platform, meter: Meter) -> dict[str, Any]:
    return {
        "id": meter.id,
        "business_id": platform.memory.business_id,
        "name": meter.name,
        "description": meter.description,
        "event_name": meter.event_name,
        "measurement_unit": meter.measurement_unit,
        "aggregation": msgspec.to_builtins(meter.aggregation),
        "filter": meter.filter,
        "created_at": write_instant(meter.created_at),
        "updated_at": write_instant(meter.updated_at),
    }


def render_customer(platform: Platform, customer: Customer) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(customer)
    return fields | {
        "business_id": platform.memory.business_id,
        "created_at": write_instant(customer.created_at),
    }


def render_product(platform: Platform, product: Product) -> dict[str, Any]:
    return {
        "product_id": product.product_id,
        "business_id": platform.memory.business_id,
        "brand_id": render_brand(platform),
        "name": product.name,
        "description": product.description,
        "price": msgspec.to_builtins(product.price),
        "tax_category": product.tax_category,
        "is_recurring": True,
        "license_key_enabled": False,
        "credit_entitlements": [
            _attached(platform, attached, number)
            for number, attached in enumerate(product.credit_entitlements)
        ],
        "entitlements": [],
        "metadata": product.metadata,
        "created_at": write_instant(product.created_at),
        "updated_at": write_instant(product.created_at),
    }


def render_subscription(platform: Platform, subscription: Subscription) -> dict[str, Any]:
    """Return the full form, which alone has the meters."""
    product = platform.products.get(subscription.product_id)
    meters = subscription.current.meters
    return _common(platform, subscription, product) | {
        "brand_id": render_brand(platform),
        "addons": [],
        "expires_at": write_optional_instant(subscription.expires_at),
        "meters": [_cart_meter(platform, priced, product.price.currency) for priced in meters],
        "meter_credit_entitlement_cart": [
            {
                "credit_entitlement_id": priced.credit_entitlement_id,
                "meter_id": priced.meter_id,
                "meter_name": platform.meters.get(priced.meter_id).name,
                "meter_units_per_credit": priced.meter_units_per_credit,
                "product_id": product.product_id,
            }
            for priced in meters
            if priced.credit_entitlement_id is not None
        ],
        "credit_entitlement_cart": _credit_cart(platform, subscription, product),
    }


def render_listed_subscription(platform: Platform, subscription: Subscription) -> dict[str, Any]:
    product = platform.products.get(subscription.product_id)
    return _common(platform, subscription, product) | {"discounts": [], "product_name": product.name}


def render_limited_customer(customer: Customer) -> dict[str, Any]:
    """Return a customer in the form in which other records have it."""
    return {
        "customer_id": customer.customer_id,
        "email": customer.email,
        "name": customer.name,
        "metadata": customer.metadata,
        "phone_number": customer.phone_number,
    }


def render_listed_product(platform: Platform, one: Product) -> dict[str, Any]:
    """Return the list's form: the price as a number, with its details beside it."""
    fields = render_product(platform, one)
    price = {"price": one.price.fixed_price, "price_detail": fields["price"], "currency": one.price.currency}
    return fields | price | {"tax_inclusive": bool(one.price.tax_inclusive)}


def render_brand(platform: Platform) -> str:
    return platform.memory.business_id.replace("bus_", "brnd_")


def _common(platform: Platform, subscription: Subscription, product: Product) -> dict[str, Any]:
    customer, price, cycle = (
        platform.customers.get(subscription.customer_id),
        product.price,
        subscription.current,
    )
    return {
        "subscription_id": subscription.subscription_id,
        "product_id": product.product_id,
        "quantity": subscription.quantity,
        "status": subscription.status,
        "currency": price.currency,
        "customer": render_limited_customer(customer),
        "billing": {"country": "US"},
        "created_at": write_instant(subscription.created_at),
        "previous_billing_date": write_instant(cycle.start),
        "next_billing_date": write_instant(cycle.end),
        "payment_frequency_count": price.payment_frequency_count,
        "payment_frequency_interval": price.payment_frequency_interval,
        "subscription_period_count": price.subscription_period_count,
        "subscription_period_interval": price.subscription_period_interval,
        "recurring_pre_tax_amount": price.fixed_price,
        "tax_inclusive": bool(price.tax_inclusive),
        "trial_period_days": subscription.trial_period_days,
        "on_demand": False,
        "has_payment_method": True,
        "metadata": subscription.metadata,
        "cancel_at_next_billing_date": subscription.cancel_at_next_billing_date,
        "cancelled_at": write_optional_instant(subscription.cancelled_at),
        "paused_at": write_optional_instant(subscription.paused_at),
        "scheduled_change": _scheduled(platform, subscription),
    }


def _scheduled(platform: Platform, subscription: Subscription) -> dict[str, Any] | None:
    change = subscription.scheduled
    if change is None:
        return None
    product = platform.products.get(change.product_id)
    return {
        "id": change.id,
        "product_id": change.product_id,
        "product_name": product.name,
        "product_description": product.description,
        "quantity": change.quantity,
        "addons": [],
        "created_at": write_instant(change.created_at),
        "effective_at": write_instant(subscription.current.end),
    }


def _cart_meter(platform: Platform, priced: PricedMeter, currency: str) -> dict[str, Any]:
    meter = platform.meters.get(priced.meter_id)
    return {
        "meter_id": meter.id,
        "name": meter.name,
        "description": meter.description,
        "measurement_unit": meter.measurement_unit,
        "free_threshold": priced.free_threshold or 0,
        "price_per_unit": priced.price_per_unit,
        "currency": currency,
    }


def _attached(platform: Platform, attached: AttachedCredit, number: int) -> dict[str, Any]:
    kind = platform.entitlements.get(attached.credit_entitlement_id)
    fields: dict[str, Any] = msgspec.to_builtins(attached)
    return fields | {
        "id": f"{kind.id}_{number}",
        "credit_entitlement_name": kind.name,
        "credit_entitlement_unit": kind.unit,
        "overage_behavior": attached.overage_behavior or kind.overage_behavior,
        "overage_enabled": kind.overage_enabled
        if attached.overage_enabled is None
        else attached.overage_enabled,
        "proration_behavior": "no_prorate",
        "rollover_enabled": kind.rollover_enabled,
        "trial_credits_expire_after_trial": False,
    }


def _credit_cart(platform: Platform, subscription: Subscription, product: Product) -> list[dict[str, Any]]:
    cart = []
    for attached in product.credit_entitlements:
        kind = platform.entitlements.get(attached.credit_entitlement_id)
        balance = platform.balances.find(f"{kind.id}/{subscription.customer_id}")
        cart.append(
            {
                "credit_entitlement_id": kind.id,
                "credit_entitlement_name": kind.name,
                "credits_amount": attached.credits_amount,
                "overage_balance": balance.overage if balance else "0",
                "overage_behavior": attached.overage_behavior or kind.overage_behavior,
                "overage_enabled": kind.overage_enabled
                if attached.overage_enabled is None
                else attached.overage_enabled,
                "overage_limit": attached.overage_limit,
                "product_id": product.product_id,
                "remaining_balance": format_plain(compute_left(balance)) if balance else "0",
                "rollover_enabled": kind.rollover_enabled,
                "unit": kind.unit,
                "expires_after_days": attached.expires_after_days,
                "low_balance_threshold_percent": attached.low_balance_threshold_percent,
            }
        )
    return cart
