"""Seeding the provider: keys, meters, credits, products, customers and their subscriptions."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from simulator.billing.periods import NewSubscription, subscribe
from simulator.routes.catalog import (
    NewCustomer,
    NewMeter,
    NewProduct,
    add_customer,
    add_meter,
    add_product,
)
from simulator.state.instants import from_datetime
from simulator.state.platform import Platform
from simulator.state.records import Metadata, Status

Instant = Annotated[datetime, Meta(tz=True)]


class SeedMeter(NewMeter, kw_only=True):
    measurement_unit: str = "units"
    id: str | None = None


class SeedCustomer(NewCustomer, kw_only=True):
    email: str = "someone@example.com"
    name: str = "Someone"
    id: str | None = None


class SeedProduct(NewProduct, kw_only=True):
    name: str = "Metered"
    tax_category: str = "saas"
    id: str | None = None


class SeedSubscription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A subscription with its periods; `past` are [start, end) pairs before the current one."""

    customer_id: str
    product_id: str
    id: str | None = None
    start: Instant | None = None
    end: Instant | None = None
    past: list[tuple[Instant, Instant]] = []
    status: Status = "active"
    quantity: int = 1
    cancel_at_next_billing_date: bool = False
    expires_at: Instant | None = None
    trial_period_days: int = 0
    metadata: Metadata = {}


class Seeds(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to create, in this order. Ids that are not given are drawn by the provider's seed."""

    meters: list[SeedMeter] = []
    products: list[SeedProduct] = []
    customers: list[SeedCustomer] = []
    subscriptions: list[SeedSubscription] = []


def create_seeds(platform: Platform, seeds: Seeds) -> dict[str, list[str]]:
    """Create all of them; return the ids in the order of the request."""
    made: dict[str, list[str]] = {}
    made["meters"] = [add_meter(platform, meter, meter.id).id for meter in seeds.meters]
    made["products"] = [add_product(platform, product, product.id).product_id for product in seeds.products]
    made["customers"] = [add_customer(platform, one, one.id).customer_id for one in seeds.customers]
    made["subscriptions"] = [_subscribe(platform, one) for one in seeds.subscriptions]
    return made


def _subscribe(platform: Platform, seed: SeedSubscription) -> str:
    new = NewSubscription(
        customer_id=seed.customer_id,
        product_id=seed.product_id,
        start=_micro(seed.start),
        end=_micro(seed.end),
        past=[(from_datetime(start), from_datetime(end)) for start, end in seed.past],
        status=seed.status,
        quantity=seed.quantity,
        cancel_at_next_billing_date=seed.cancel_at_next_billing_date,
        expires_at=_micro(seed.expires_at),
        trial_period_days=seed.trial_period_days,
        metadata=seed.metadata,
    )
    return subscribe(platform, new, seed.id).subscription_id


def _micro(at: datetime | None) -> int | None:
    return None if at is None else from_datetime(at)
