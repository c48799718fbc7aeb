"""Credits over the API: `/credit-entitlements`, balances, grants, ledgers, and who holds what."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from serving.simulator.balances import Book, left
from serving.simulator.calls import Answer, Call, page
from serving.simulator.crediting import balance_key, keep, open_balance, terms
from serving.simulator.instants import Interval, from_datetime, maybe_written, written
from serving.simulator.platform import Platform
from serving.simulator.problems import INVALID_PARAMETERS, Problem, malformed, missing
from serving.simulator.records import Balance, Entitlement, Entry, Grant, Metadata, Overage
from serving.simulator.seeding import Instant
from serving.simulator.usage import EXACT, ZERO, plain

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


class NewEntry(msgspec.Struct, kw_only=True):
    entry_type: Literal["credit", "debit"]
    amount: str
    reason: str | None = None
    idempotency_key: str | None = None
    expires_at: Instant | None = None
    metadata: Metadata | None = None


def create(platform: Platform, call: Call) -> Answer:
    new = call.read(NewEntitlement)
    if any(kind.name == new.name and not kind.deleted for kind in platform.entitlements):
        raise Problem(409, "CREDIT_ENTITLEMENT_NAME_ALREADY_EXISTS", f"{new.name!r} exists")
    fields = {name: getattr(new, name) for name in new.__struct_fields__ if getattr(new, name) is not None}
    now, id = platform.now, platform.new_id("cde")
    kind = Entitlement(id=id, created_at=now, updated_at=now, **fields)
    return Answer(201, kind_view(platform, platform.entitlements.put(id, kind)))


def list_kinds(platform: Platform, call: Call) -> Answer:
    deleted = call.flag("deleted") or False
    found = (kind for kind in platform.entitlements if kind.deleted == deleted)
    return page(platform, call, found, lambda kind: kind_view(platform, kind))


def get(platform: Platform, call: Call) -> Answer:
    return Answer(200, kind_view(platform, platform.entitlements.get(call.params["id"])))


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
    return Answer(200, balance_view(_found(platform, call)))


def list_balances(platform: Platform, call: Call) -> Answer:
    kind = platform.entitlements.get(call.params["entitlement_id"])
    customer = call.text("customer_id")
    found = (
        balance
        for balance in platform.balances
        if balance.entitlement_id == kind.id and customer in (None, balance.customer_id)
    )
    return page(platform, call, found, balance_view)


def list_grants(platform: Platform, call: Call) -> Answer:
    balance, status = _found(platform, call), call.choice("status", ("active", "expired", "depleted"))
    found = (grant for grant in balance.grants if status in (None, _status(grant)))
    return page(platform, call, found, lambda grant: _grant(balance, grant))


def list_ledger(platform: Platform, call: Call) -> Answer:
    balance, kind = _found(platform, call), call.text("transaction_type")
    start, end = call.instant("start_date"), call.instant("end_date")
    found = (
        entry
        for entry in reversed(balance.entries)
        if kind in (None, entry.transaction_type)
        and (start is None or entry.created_at >= start)
        and (end is None or entry.created_at <= end)
    )
    return page(platform, call, found, lambda entry: ledger_entry(platform, balance, entry))


def create_entry(platform: Platform, call: Call) -> Answer:
    """A credit or debit by hand, once per idempotency key; that a key was used is a 409."""
    kind = platform.entitlements.get(call.params["entitlement_id"])
    customer = platform.customers.get(call.params["customer_id"])
    new = call.read(NewEntry)
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
    keep(platform, balance, already)
    entry = balance.entries[-1]
    document = _common(balance, entry) | {"entry_type": new.entry_type, "reason": new.reason}
    return Answer(201, document)


def credit_usage(platform: Platform, call: Call) -> Answer:
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    items = []
    for attached in platform.products.get(subscription.product_id).credit_entitlements:
        kind = platform.entitlements.get(attached.credit_entitlement_id)
        balance = platform.balances.find(balance_key(kind.id, subscription.customer_id))
        items.append(_holding(kind, balance, terms(kind, attached).overage_max))
    return Answer(200, {"subscription_id": subscription.subscription_id, "items": items})


def customer_credits(platform: Platform, call: Call) -> Answer:
    customer = platform.customers.get(call.params["customer_id"])
    items = []
    for balance in platform.balances:
        if balance.customer_id == customer.customer_id:
            kind = platform.entitlements.get(balance.entitlement_id)
            holding = _holding(kind, balance, terms(kind, None).overage_max)
            items.append(holding | {"name": kind.name, "description": kind.description})
    return Answer(200, {"items": items})


def ledger_entry(platform: Platform, balance: Balance, entry: Entry) -> dict[str, Any]:
    return _common(balance, entry) | {
        "brand_id": platform.memory.business_id.replace("bus_", "brnd_"),
        "business_id": platform.memory.business_id,
        "transaction_type": entry.transaction_type,
        "description": entry.reason,
        "reference_id": None,
        "reference_type": None,
    }


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
    most = terms(kind, None).overage_max
    room = (
        None
        if most is None
        else EXACT.add(left(balance), max(ZERO, EXACT.subtract(most, Decimal(balance.overage))))
    )
    if room is not None and amount > room:
        code = "OVERAGE_LIMIT_EXCEEDED" if most else INVALID_PARAMETERS
        raise Problem(400, code, f"amount: needs {plain(room)} or less, got {plain(amount)}")
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


def kind_view(platform: Platform, kind: Entitlement) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(kind)
    del fields["deleted"]
    return fields | {
        "business_id": platform.memory.business_id,
        "created_at": written(kind.created_at),
        "updated_at": written(kind.updated_at),
    }


def balance_view(balance: Balance) -> dict[str, Any]:
    return {
        "id": balance.id,
        "balance": plain(left(balance)),
        "overage": balance.overage,
        "credit_entitlement_id": balance.entitlement_id,
        "customer_id": balance.customer_id,
        "created_at": written(balance.created_at),
        "updated_at": written(balance.updated_at),
        "last_transaction_at": written(balance.entries[-1].created_at) if balance.entries else None,
    }


def _holding(kind: Entitlement, balance: Balance | None, most: Decimal | None) -> dict[str, Any]:
    """A customer's credits of one kind; `most` is how far they may be overdrawn, None for any."""
    held, overage = (left(balance), Decimal(balance.overage)) if balance else (ZERO, ZERO)
    room = None if most is None else max(ZERO, EXACT.subtract(most, overage))
    return {
        "credit_entitlement_id": kind.id,
        "credit_entitlement_name": kind.name,
        "unit": kind.unit,
        "balance": plain(held),
        "overage": plain(overage),
        "overage_enabled": most != ZERO,
        "overage_limit": plain(most) if most else None,
        "remaining_headroom": plain(room) if most and room is not None else None,
        "limit_reached": room == ZERO and held == ZERO,
    }


def _status(grant: Grant) -> str:
    if grant.expired:
        return "expired"
    return "active" if Decimal(grant.remaining) > 0 else "depleted"


def _grant(balance: Balance, grant: Grant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "credit_entitlement_id": balance.entitlement_id,
        "customer_id": balance.customer_id,
        "initial_amount": grant.initial,
        "remaining_amount": grant.remaining,
        "is_expired": grant.expired,
        "is_rolled_over": False,
        "rollover_count": 0,
        "source_type": grant.source_type,
        "source_id": grant.source_id,
        "parent_grant_id": None,
        "metadata": grant.metadata,
        "created_at": written(grant.created_at),
        "updated_at": written(grant.updated_at),
        "expires_at": maybe_written(grant.expires_at),
    }


def _common(balance: Balance, entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "amount": entry.amount,
        "balance_before": entry.balance_before,
        "balance_after": entry.balance_after,
        "overage_before": entry.overage_before,
        "overage_after": entry.overage_after,
        "created_at": written(entry.created_at),
        "credit_entitlement_id": balance.entitlement_id,
        "customer_id": balance.customer_id,
        "is_credit": entry.is_credit,
        "metadata": entry.metadata,
        "grant_id": entry.grant_id,
    }
