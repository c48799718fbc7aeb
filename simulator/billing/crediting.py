"""Credits over time: granted with each cycle, consumed by the worker about once a minute, expired."""

from collections.abc import Iterator
from decimal import ROUND_DOWN, Context, Decimal
from typing import Final, NamedTuple

from simulator.billing.balances import Book, compute_left
from simulator.state.instants import DAY, SECOND
from simulator.state.platform import Platform
from simulator.state.records import (
    AttachedCredit,
    Balance,
    Cycle,
    Entitlement,
    Entry,
    PricedMeter,
    Subscription,
)
from simulator.state.usage import EXACT, ZERO, format_plain

# Wide enough for any usage; what is left over is cut to the credit's own precision.
DIVISION: Final = Context(prec=60)
# An event may be an hour old when it comes, so it may be of the cycle before.
CYCLES_LOOKED_AT: Final = 2


class Terms(NamedTuple):
    """How far a balance may be overdrawn (None: unlimited), and what happens to the overdraft in a new cycle."""

    overage_max: Decimal | None
    overage_behavior: str


def balance_key(entitlement_id: str, customer_id: str) -> str:
    return f"{entitlement_id}/{customer_id}"


def open_balance(platform: Platform, kind: Entitlement, customer_id: str) -> Balance:
    """Return the customer's balance, creating it if there is none."""
    key = balance_key(kind.id, customer_id)
    if found := platform.balances.find(key):
        return found
    now = platform.now
    balance = Balance(
        id=platform.new_id("cbl"),
        entitlement_id=kind.id,
        customer_id=customer_id,
        created_at=now,
        updated_at=now,
    )
    return platform.balances.put(key, balance)


def find_terms(kind: Entitlement, attached: AttachedCredit | None) -> Terms:
    """Return the terms of a product's credits; the product's setting has priority over the entitlement's."""
    enabled, behavior = kind.overage_enabled, kind.overage_behavior
    limit = None if kind.overage_limit is None else Decimal(kind.overage_limit)
    if attached:
        enabled = enabled if attached.overage_enabled is None else attached.overage_enabled
        behavior = attached.overage_behavior or behavior
        limit = limit if attached.overage_limit is None else Decimal(attached.overage_limit)
    return Terms(limit if enabled else ZERO, behavior)


def store_balance(platform: Platform, balance: Balance, already: int = 0) -> None:
    """Store the balance and emit webhooks for its ledger's entries after the first `already`."""
    key = balance_key(balance.entitlement_id, balance.customer_id)
    platform.balances.put(key, balance)
    for entry in balance.entries[already:]:
        if told := _TOLD.get(entry.transaction_type):
            platform.emit(told, f"{key}/{entry.id}")


def describe_entry(platform: Platform, subject: str) -> tuple[Balance, Entry]:
    """Return the object that a credit webhook is about."""
    key, _, entry_id = subject.rpartition("/")
    balance = platform.balances.get(key)
    return balance, next(entry for entry in balance.entries if entry.id == entry_id)


def grant_cycle(platform: Platform, subscription: Subscription) -> None:
    """Settle the overage of the last cycle and grant what the product gives for the new one."""
    for attached in platform.products.get(subscription.product_id).credit_entitlements:
        kind = platform.entitlements.get(attached.credit_entitlement_id)
        balance = open_balance(platform, kind, subscription.customer_id)
        already, book = len(balance.entries), Book(balance, platform.now, platform.new_id)
        behavior = find_terms(kind, attached).overage_behavior
        if behavior in ("forgive_at_reset", "invoice_at_billing"):
            book.settle_overage("overage_reset" if behavior == "forgive_at_reset" else "overage_charged")
        days = kind.expires_after_days if attached.expires_after_days is None else attached.expires_after_days
        book.grant(
            EXACT.multiply(Decimal(attached.credits_amount), Decimal(subscription.quantity)),
            "credit_added",
            source_type="subscription",
            source_id=subscription.subscription_id,
            expires_at=None if days is None else platform.now + days * DAY,
        )
        if behavior == "carry_deficit_auto_repay":
            book.repay()
        store_balance(platform, balance, already)


def run_worker(platform: Platform, now: int) -> None:
    """Deduct what was used since the last run, if it is time; expire grants."""
    if now < platform.memory.next_credit_run or not len(platform.entitlements):
        return
    platform.memory.next_credit_run = now + int(platform.switches.credit_worker_s * SECOND)
    for balance in platform.balances:
        already = len(balance.entries)
        if Book(balance, now, platform.new_id).expire():
            store_balance(platform, balance, already)
    for subscription in platform.subscriptions:
        if subscription.status == "active":
            for cycle, priced in _credit_meters(subscription):
                _deduct(platform, subscription, cycle, priced)


def _credit_meters(subscription: Subscription) -> Iterator[tuple[Cycle, PricedMeter]]:
    for cycle in subscription.cycles[-CYCLES_LOOKED_AT:]:
        for priced in cycle.meters:
            if priced.credit_entitlement_id is not None:
                yield cycle, priced


def _deduct(platform: Platform, subscription: Subscription, cycle: Cycle, priced: PricedMeter) -> None:
    """Deduct the credits for usage that is new since the last run.

    What the balance cannot cover is never deducted later, because the worker's checkpoint has passed it.
    """
    kind = platform.entitlements.get(priced.credit_entitlement_id or "")
    meter = platform.meters.get(priced.meter_id)
    consumed = platform.usage.compute_consumed(subscription, cycle, meter, platform.switches, None)
    billable = max(ZERO, EXACT.subtract(consumed, Decimal(priced.free_threshold or 0)))
    used = DIVISION.divide(billable, Decimal(priced.meter_units_per_credit or "1"))
    due = used.quantize(Decimal(1).scaleb(-kind.precision), ROUND_DOWN, DIVISION)
    before = Decimal(cycle.deducted.get(meter.id, "0"))
    if due <= before:
        return
    cycle.deducted = cycle.deducted | {meter.id: format_plain(due)}
    platform.subscriptions.put(subscription.subscription_id, subscription)
    attached = _attached(platform, subscription, kind)
    balance = open_balance(platform, kind, subscription.customer_id)
    already, had = len(balance.entries), compute_left(balance)
    book = Book(balance, platform.now, platform.new_id)
    book.take(
        EXACT.subtract(due, before),
        "credit_deducted",
        overage_max=find_terms(kind, attached).overage_max,
        reason=meter.name,
    )
    store_balance(platform, balance, already)
    if (
        attached
        and find_low_level(attached) is not None
        and compute_left(balance) <= (find_low_level(attached) or ZERO) < had
    ):
        platform.emit("credit.balance_low", f"{subscription.subscription_id}/{kind.id}")


def find_low_level(attached: AttachedCredit) -> Decimal | None:
    """Return the balance at which a customer is notified that it is low."""
    percent = attached.low_balance_threshold_percent
    return (
        None
        if percent is None
        else EXACT.multiply(Decimal(attached.credits_amount), Decimal(percent).scaleb(-2))
    )


def _attached(platform: Platform, subscription: Subscription, kind: Entitlement) -> AttachedCredit | None:
    attached = platform.products.get(subscription.product_id).credit_entitlements
    return next((one for one in attached if one.credit_entitlement_id == kind.id), None)


_TOLD: Final = {
    "credit_added": "credit.added",
    "credit_deducted": "credit.deducted",
    "credit_expired": "credit.expired",
    "overage_charged": "credit.overage_charged",
    "overage_reset": "credit.overage_reset",
    "manual_adjustment": "credit.manual_adjustment",
}
