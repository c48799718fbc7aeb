"""Meters, customers, products and subscriptions: `/meters`, `/customers`, `/products`, `/subscriptions`."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta

from simulator.http import views
from simulator.http.calls import Answer, Call, render_page
from simulator.state.filters import check_filter
from simulator.state.platform import Platform
from simulator.state.problems import INVALID_PARAMETERS, Problem, malformed
from simulator.state.records import (
    Aggregation,
    AttachedCredit,
    Customer,
    Metadata,
    Meter,
    PricedMeter,
    Product,
    Status,
    UsagePrice,
)

METERS_MAX: Final = 10
OTHER_METADATA_KEY_MAX: Final = 40


class NewMeter(msgspec.Struct, kw_only=True):
    name: str
    event_name: str
    aggregation: Aggregation
    measurement_unit: str
    filter: dict[str, Any] | None = None
    description: str | None = None


class MeterChange(msgspec.Struct, kw_only=True):
    name: str | None = None
    description: str | None = None
    measurement_unit: str | None = None


class NewCustomer(msgspec.Struct, kw_only=True):
    email: Annotated[str, Meta(pattern="^[^@]+@[^@]+$")]
    name: str
    metadata: Metadata = {}
    phone_number: str | None = None


class CustomerChange(msgspec.Struct, kw_only=True):
    email: Annotated[str, Meta(pattern="^[^@]+@[^@]+$")] | None = None
    name: str | None = None
    metadata: Metadata | None = None
    phone_number: str | None = None


class NewProduct(msgspec.Struct, kw_only=True):
    name: str
    price: UsagePrice
    tax_category: str
    credit_entitlements: list[AttachedCredit] | None = None
    metadata: Metadata = {}
    description: str | None = None


def create_meter(platform: Platform, call: Call) -> Answer:
    new = call.read_body(NewMeter)
    if new.filter is not None:
        check_filter(new.filter, may_mix=False)
    return Answer(201, views.render_meter(platform, add_meter(platform, new)))


def add_meter(platform: Platform, new: NewMeter, id: str | None = None) -> Meter:
    if new.aggregation.type != "count" and not new.aggregation.key:
        raise malformed(f"aggregation: {new.aggregation.type} needs a key")
    if new.filter is not None:
        check_filter(new.filter, may_mix=True)
    now, id = platform.now, id or platform.new_id("mtr")
    meter = Meter(
        id=id,
        name=new.name,
        event_name=new.event_name,
        aggregation=new.aggregation,
        measurement_unit=new.measurement_unit,
        filter=new.filter,
        description=new.description,
        created_at=now,
        updated_at=now,
    )
    platform.meters.put(id, meter)
    platform.note_change()
    return meter


def list_meters(platform: Platform, call: Call) -> Answer:
    archived = call.read_flag("archived") or False
    found = (meter for meter in platform.meters if meter.is_archived == archived)
    return render_page(platform, call, found, lambda meter: views.render_meter(platform, meter))


def get_meter(platform: Platform, call: Call) -> Answer:
    return Answer(200, views.render_meter(platform, platform.meters.get(call.params["id"])))


def change_meter(platform: Platform, call: Call) -> Answer:
    meter, change = platform.meters.get(call.params["id"]), call.read_body(MeterChange)
    for field in MeterChange.__struct_fields__:
        if (value := getattr(change, field)) is not None:
            setattr(meter, field, value)
    meter.updated_at = platform.now
    return Answer(200, views.render_meter(platform, platform.meters.put(meter.id, meter)))


def archive_meter(platform: Platform, call: Call) -> Answer:
    meter = platform.meters.get(call.params["id"])
    if meter.is_archived:
        raise Problem(410, "METER_IS_DELETED", f"meter {meter.id!r} is archived already")
    meter.archived = [*meter.archived, (platform.now, None)]
    platform.meters.put(meter.id, meter)
    platform.note_change()
    return Answer(204)


def unarchive_meter(platform: Platform, call: Call) -> Answer:
    meter = platform.meters.get(call.params["id"])
    if meter.is_archived:
        meter.archived[-1] = (meter.archived[-1][0], platform.now)
        platform.meters.put(meter.id, meter)
        platform.note_change()
    return Answer(200, views.render_meter(platform, meter))


def create_customer(platform: Platform, call: Call) -> Answer:
    return Answer(200, views.render_customer(platform, add_customer(platform, call.read_body(NewCustomer))))


def add_customer(platform: Platform, new: NewCustomer, id: str | None = None) -> Customer:
    if any(len(key) > OTHER_METADATA_KEY_MAX for key in new.metadata):
        raise malformed(f"metadata: a key needs {OTHER_METADATA_KEY_MAX} characters or less")
    id = id or platform.new_id("cus")
    customer = Customer(
        customer_id=id,
        email=new.email,
        name=new.name,
        metadata=new.metadata,
        phone_number=new.phone_number,
        created_at=platform.now,
    )
    return platform.customers.put(id, customer)


def list_customers(platform: Platform, call: Call) -> Answer:
    email, name = call.read_text("email"), call.read_text("name")
    since, until = call.read_instant("created_at_gte"), call.read_instant("created_at_lte")

    def is_wanted(customer: Customer) -> bool:
        return (
            email in (None, customer.email)
            and (name is None or name.lower() in customer.name.lower())
            and (since is None or customer.created_at >= since)
            and (until is None or customer.created_at <= until)
        )

    found = filter(is_wanted, platform.customers)
    return render_page(platform, call, found, lambda customer: views.render_customer(platform, customer))


def get_customer(platform: Platform, call: Call) -> Answer:
    return Answer(200, views.render_customer(platform, platform.customers.get(call.params["customer_id"])))


def change_customer(platform: Platform, call: Call) -> Answer:
    customer, change = platform.customers.get(call.params["customer_id"]), call.read_body(CustomerChange)
    for field in CustomerChange.__struct_fields__:
        if (value := getattr(change, field)) is not None:
            setattr(customer, field, value)
    return Answer(
        200, views.render_customer(platform, platform.customers.put(customer.customer_id, customer))
    )


def list_products(platform: Platform, call: Call) -> Answer:
    """Return all products: none is archived, all recur."""
    is_none = call.read_flag("archived") is True or call.read_flag("recurring") is False
    found = () if is_none else platform.products
    return render_page(platform, call, found, lambda product: views.render_listed_product(platform, product))


def create_product(platform: Platform, call: Call) -> Answer:
    return Answer(200, views.render_product(platform, add_product(platform, call.read_body(NewProduct))))


def add_product(platform: Platform, new: NewProduct, id: str | None = None) -> Product:
    meters = new.price.meters or []
    if len(meters) > METERS_MAX:
        raise Problem(400, INVALID_PARAMETERS, f"price: needs {METERS_MAX} meters or less, got {len(meters)}")
    if len({priced.meter_id for priced in meters}) < len(meters):
        raise Problem(400, "DUPLICATE_METER_IDS_IN_REQUEST", "price: each meter once")
    for priced in meters:
        _check_priced(platform, priced)
    for attached in new.credit_entitlements or []:
        platform.entitlements.get(attached.credit_entitlement_id)
    id = id or platform.new_id("pdt")
    product = Product(
        product_id=id,
        name=new.name,
        price=new.price,
        tax_category=new.tax_category,
        credit_entitlements=new.credit_entitlements or [],
        metadata=new.metadata,
        description=new.description,
        created_at=platform.now,
    )
    return platform.products.put(id, product)


def get_product(platform: Platform, call: Call) -> Answer:
    return Answer(200, views.render_product(platform, platform.products.get(call.params["product_id"])))


def list_subscriptions(platform: Platform, call: Call) -> Answer:
    customer, product = call.read_text("customer_id"), call.read_text("product_id")
    status = call.read_choice("status", get_args(Status))
    ending = call.read_flag("cancel_at_next_billing_date")
    since, until = call.read_instant("created_at_gte"), call.read_instant("created_at_lte")
    found = (
        subscription
        for subscription in platform.subscriptions
        if customer in (None, subscription.customer_id)
        and product in (None, subscription.product_id)
        and status in (None, subscription.status)
        and ending in (None, subscription.cancel_at_next_billing_date)
        and (since is None or subscription.created_at >= since)
        and (until is None or subscription.created_at <= until)
    )
    return render_page(platform, call, found, lambda one: views.render_listed_subscription(platform, one))


def get_subscription(platform: Platform, call: Call) -> Answer:
    found = platform.subscriptions.get(call.params["subscription_id"])
    return Answer(200, views.render_subscription(platform, found))


def _check_priced(platform: Platform, priced: PricedMeter) -> None:
    if platform.meters.get(priced.meter_id).is_archived:
        raise Problem(400, "METER_IS_DELETED", f"meter {priced.meter_id!r} is archived")
    if (priced.credit_entitlement_id is None) != (priced.meter_units_per_credit is None):
        raise malformed("credit_entitlement_id and meter_units_per_credit go together")
    if priced.credit_entitlement_id is not None:
        platform.entitlements.get(priced.credit_entitlement_id)
        _check_decimal("meter_units_per_credit", priced.meter_units_per_credit or "")
    if priced.price_per_unit is not None:
        _check_decimal("price_per_unit", priced.price_per_unit)


def _check_decimal(name: str, text: str) -> None:
    """Check that the text is a positive number of at most 5 digits before and 12 after the point."""
    try:
        value = Decimal(text)
        fits = value.is_finite() and 0 < value < 10**5 and int(value.as_tuple().exponent) >= -12
    except InvalidOperation:
        fits = False
    if not fits:
        raise malformed(
            f"{name}: needs a positive number, 5 digits before and 12 after the point, got {text!r}"
        )
