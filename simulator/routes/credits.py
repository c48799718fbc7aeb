"""Credits over the API: `/credit-entitlements`, balances, grants, ledgers, and the customers that have them."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from simulator.billing.balances import Book, compute_left
from simulator.billing.crediting import balance_key, find_terms, open_balance, store_balance
from simulator.http.calls import Answer, Call, render_page
from simulator.http.credit_views import (
    entry_fields,
    find_grant_status,
    render_balance,
    render_entry,
    render_grant,
    render_holding,
    render_kind,
)
from simulator.routes.seeding import Instant
from simulator.state.instants import Interval, from_datetime
from simulator.state.platform import Platform
from simulator.state.problems import INVALID_PARAMETERS, Problem, malformed, missing
from simulator.state.records import Balance, Entitlement, Metadata, Overage
from simulator.state.usage import EXACT, ZERO, format_plain

AMOUNT_MAX: Final = Decimal(10**10)
METADATA_KEY_MAX: Final = 40


class NewEntitlement(msgspec.Struct, kw_only=True):
    name: str
    unit: str
    precision: Annotated[int, Meta(ge=0, le=10)]
    overage_enabled: bool
    rollover_enabled: bool
    currency: str | None = None
    description: str | None = None
    expires_after_days: int | None = None
    max_rollover_count: int | None = None
    overage_behavior: Overage | None = None
    overage_limit: int | None = None
    price_per_unit: str | None = None
    rollover_percentage: int | None = None
    rollover_timeframe_count: int | None = None
    rollover_timeframe_interval: Interval | None = None


class EntitlementChange(msgspec.Struct, kw_only=True):
    """Changes of an entitlement. Its precision is fixed once it is created."""

    name: str | None = None
    unit: str | None = None
    overage_enabled: bool | None = None
    rollover_enabled: bool | None = None
    currency: str | None = None
    description: str | None = None
    expires_after_days: int | None = None
    max_rollover_count: int | None = None
    overage_behavior: Overage | None = None
    overage_limit: int | None = None
    price_per_unit: str | None = None
    rollover_percentage: int | None = None
    rollover_timeframe_count: int | None = None
    rollover_timeframe_interval: Interval | None = None


class NewEntry(msgspec.Struct, kw_only=True):
    entry_type: Literal["credit", "debit"]
    amount: str
    reason: str | None = None
    idempotency_key: str | None = None
    expires_at: Instant | None = None
    metadata: Metadata | None = None


def create(platform: Platform, call: Call) -> Answer:
    new = call.read_body(NewEntitlement)
    if any(kind.name == new.name and not kind.deleted for kind in platform.entitlements):
        raise Problem(409, "CREDIT_ENTITLEMENT_NAME_ALREADY_EXISTS", f"{new.name!r} exists")
    fields = {name: getattr(new, name) for name in new.__struct_fields__ if getattr(new, name) is not None}
    now, id = platform.now, platform.new_id("cde")
    kind = Entitlement(id=id, created_at=now, updated_at=now, **fields)
    return Answer(201, render_kind(platform, platform.entitlements.put(id, kind)))


def change(platform: Platform, call: Call) -> Answer:
    kind, wanted = platform.entitlements.get(call.params["id"]), call.read_body(EntitlementChange)
    if kind.deleted:
        raise Problem(410, "CREDIT_ENTITLEMENT_IS_DELETED", f"{kind.id!r} is deleted")
    for field in EntitlementChange.__struct_fields__:
        if (value := getattr(wanted, field)) is not None:
            setattr(kind, field, value)
    kind.updated_at = platform.now
    platform.entitlements.put(kind.id, kind)
    return Answer(200)


def list_kinds(platform: Platform, call: Call) -> Answer:
    deleted = call.read_flag("deleted") or False
    found = (kind for kind in platform.entitlements if kind.deleted == deleted)
    return render_page(platform, call, found, lambda kind: render_kind(platform, kind))


def get(platform: Platform, call: Call) -> Answer:
    return Answer(200, render_kind(platform, platform.entitlements.get(call.params["id"])))


def delete(platform: Platform, call: Call) -> Answer:
    kind = platform.entitlements.get(call.params["id"])
    if kind.deleted:
        raise Problem(410, "CREDIT_ENTITLEMENT_IS_DELETED", f"{kind.id!r} is deleted already")
    kind.deleted, kind.updated_at = True, platform.now
    platform.entitlements.put(kind.id, kind)
    return Answer(200)


def undelete(platform: Platform, call: Call) -> Answer:
    kind = platform.entitlements.get(call.params["id"])
    kind.deleted, kind.updated_at = False, platform.now
    platform.entitlements.put(kind.id, kind)
    return Answer(200)


def get_balance(platform: Platform, call: Call) -> Answer:
    return Answer(200, render_balance(_found(platform, call)))


def list_balances(platform: Platform, call: Call) -> Answer:
    kind = platform.entitlements.get(call.params["entitlement_id"])
    customer = call.read_text("customer_id")
    found = (
        balance
        for balance in platform.balances
        if balance.entitlement_id == kind.id and customer in (None, balance.customer_id)
    )
    return render_page(platform, call, found, render_balance)


def list_grants(platform: Platform, call: Call) -> Answer:
    balance, status = _found(platform, call), call.read_choice("status", ("active", "expired", "depleted"))
    found = (grant for grant in balance.grants if status in (None, find_grant_status(grant)))
    return render_page(platform, call, found, lambda grant: render_grant(balance, grant))


def list_ledger(platform: Platform, call: Call) -> Answer:
    balance, kind = _found(platform, call), call.read_text("transaction_type")
    start, end = call.read_instant("start_date"), call.read_instant("end_date")
    found = (
        entry
        for entry in reversed(balance.entries)
        if kind in (None, entry.transaction_type)
        and (start is None or entry.created_at >= start)
        and (end is None or entry.created_at <= end)
    )
    return render_page(platform, call, found, lambda entry: render_entry(platform, balance, entry))


def create_entry(platform: Platform, call: Call) -> Answer:
    """Credit or debit by hand, once per idempotency key; a used key is a 409."""
    kind = platform.entitlements.get(call.params["entitlement_id"])
    customer = platform.customers.get(call.params["customer_id"])
    new = call.read_body(NewEntry)
    amount = _amount(new.amount, kind)
    if any(len(key) > METADATA_KEY_MAX for key in new.metadata or {}):
        raise malformed(f"metadata: a key needs {METADATA_KEY_MAX} characters or less")
    if kind.deleted:
        raise Problem(410, "CREDIT_ENTITLEMENT_IS_DELETED", f"{kind.id!r} is deleted")
    if new.idempotency_key is not None and _is_used(platform, new.idempotency_key):
        raise Problem(409, "CONFLICT", "this idempotency_key was used before")
    balance = open_balance(platform, kind, customer.customer_id)
    already = len(balance.entries)
    _write(platform, kind, balance, new, amount)
    if new.idempotency_key is not None:
        balance.idempotency_keys = [*balance.idempotency_keys, new.idempotency_key]
    store_balance(platform, balance, already)
    entry = balance.entries[-1]
    document = entry_fields(balance, entry) | {"entry_type": new.entry_type, "reason": new.reason}
    return Answer(201, document)


def credit_usage(platform: Platform, call: Call) -> Answer:
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    items = []
    for attached in platform.products.get(subscription.product_id).credit_entitlements:
        kind = platform.entitlements.get(attached.credit_entitlement_id)
        balance = platform.balances.find(balance_key(kind.id, subscription.customer_id))
        items.append(render_holding(kind, balance, find_terms(kind, attached).overage_max))
    return Answer(200, {"subscription_id": subscription.subscription_id, "items": items})


def customer_credits(platform: Platform, call: Call) -> Answer:
    customer = platform.customers.get(call.params["customer_id"])
    items = []
    for balance in platform.balances:
        if balance.customer_id == customer.customer_id:
            kind = platform.entitlements.get(balance.entitlement_id)
            view = render_holding(kind, balance, find_terms(kind, None).overage_max)
            items.append(view | {"name": kind.name, "description": kind.description})
    return Answer(200, {"items": items})


def _write(platform: Platform, kind: Entitlement, balance: Balance, new: NewEntry, amount: Decimal) -> None:
    book = Book(balance, platform.now, platform.new_id)
    metadata = new.metadata or {}
    if new.entry_type == "credit":
        expires = None if new.expires_at is None else from_datetime(new.expires_at)
        book.grant(
            amount,
            "manual_adjustment",
            source_type="api",
            expires_at=expires,
            reason=new.reason,
            metadata=metadata,
        )
        return
    most = find_terms(kind, None).overage_max
    room = (
        None
        if most is None
        else EXACT.add(compute_left(balance), max(ZERO, EXACT.subtract(most, Decimal(balance.overage))))
    )
    if room is not None and amount > room:
        code = "OVERAGE_LIMIT_EXCEEDED" if most else INVALID_PARAMETERS
        raise Problem(400, code, f"amount: needs {format_plain(room)} or less, got {format_plain(amount)}")
    book.take(amount, "manual_adjustment", overage_max=most, reason=new.reason, metadata=metadata)


def _amount(text: str, kind: Entitlement) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise malformed(f"amount: needs a decimal number, got {text!r}") from None
    if not amount.is_finite() or not 0 < amount < AMOUNT_MAX:
        raise Problem(400, INVALID_PARAMETERS, f"amount: needs more than 0 and less than 10^10, got {text!r}")
    if -int(amount.as_tuple().exponent) > kind.precision:
        raise Problem(
            400, INVALID_PARAMETERS, f"amount: needs {kind.precision} decimals or less, got {text!r}"
        )
    return amount


def _is_used(platform: Platform, key: str) -> bool:
    return any(key in balance.idempotency_keys for balance in platform.balances)


def _found(platform: Platform, call: Call) -> Balance:
    kind = platform.entitlements.get(call.params["entitlement_id"])
    customer_id = call.params["customer_id"]
    if (balance := platform.balances.find(balance_key(kind.id, customer_id))) is None:
        raise missing("balance of customer", customer_id)
    return balance
