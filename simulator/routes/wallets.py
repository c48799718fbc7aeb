"""Customers' money over the API: wallets by currency and their movements; and entitlements, of which there are none."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simulator.http.calls import Answer, Call, render_page
from simulator.state.instants import write_instant
from simulator.state.platform import Platform
from simulator.state.problems import INVALID_PARAMETERS, Problem
from simulator.state.records import Movement, Wallet


class NewMovement(msgspec.Struct, kw_only=True):
    amount: Annotated[int, Meta(ge=1)]
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]
    entry_type: Literal["credit", "debit"]
    idempotency_key: str | None = None
    reason: str | None = None


def list_wallets(platform: Platform, call: Call) -> Answer:
    customer = platform.customers.get(call.params["customer_id"])
    found = [one for one in platform.wallets if one.customer_id == customer.customer_id]
    dollars = sum(one.balance for one in found if one.currency == "USD")
    return Answer(200, {"items": [_view(one) for one in found], "total_balance_usd": dollars})


def list_movements(platform: Platform, call: Call) -> Answer:
    customer, currency = platform.customers.get(call.params["customer_id"]), call.read_text("currency")
    found = [
        (wallet, number)
        for wallet in platform.wallets
        if wallet.customer_id == customer.customer_id and currency in (None, wallet.currency)
        for number in range(len(wallet.movements))
    ]
    return render_page(platform, call, found, lambda one: _movement_view(platform, *one))


def add_movement(platform: Platform, call: Call) -> Answer:
    """Credit or debit by hand; a used key is a 409, as for credits."""
    customer, new = platform.customers.get(call.params["customer_id"]), call.read_body(NewMovement)
    key = f"{customer.customer_id}/{new.currency}"
    now = platform.now
    fresh = Wallet(customer_id=customer.customer_id, currency=new.currency, created_at=now, updated_at=now)
    wallet = platform.wallets.find(key) or fresh
    if new.idempotency_key is not None and any(
        o.idempotency_key == new.idempotency_key for o in wallet.movements
    ):
        raise Problem(409, INVALID_PARAMETERS, "idempotency_key: is used already")
    amount = new.amount if new.entry_type == "credit" else -new.amount
    if wallet.balance + amount < 0:
        raise Problem(400, INVALID_PARAMETERS, f"amount: the wallet has {wallet.balance} only")
    wallet.movements = [
        *wallet.movements,
        Movement(
            id=platform.new_id("wtx"),
            amount=amount,
            created_at=now,
            reason=new.reason,
            idempotency_key=new.idempotency_key,
        ),
    ]
    wallet.updated_at = now
    platform.wallets.put(key, wallet)
    return Answer(200, _view(wallet))


def list_entitlements(platform: Platform, call: Call) -> Answer:
    """Return licences and features; the simulator sells none."""
    platform.customers.get(call.params["customer_id"])
    return Answer(200, {"items": []})


def _view(wallet: Wallet) -> dict[str, Any]:
    return {
        "customer_id": wallet.customer_id,
        "currency": wallet.currency,
        "balance": wallet.balance,
        "created_at": write_instant(wallet.created_at),
        "updated_at": write_instant(wallet.updated_at),
    }


def _movement_view(platform: Platform, wallet: Wallet, number: int) -> dict[str, Any]:
    movement = wallet.movements[number]
    before = sum(one.amount for one in wallet.movements[:number])
    return {
        "id": movement.id,
        "business_id": platform.memory.business_id,
        "customer_id": wallet.customer_id,
        "currency": wallet.currency,
        "event_type": "merchant_adjustment",
        "amount": abs(movement.amount),
        "is_credit": movement.amount > 0,
        "before_balance": before,
        "after_balance": before + movement.amount,
        "created_at": write_instant(movement.created_at),
        "reason": movement.reason,
        "reference_object_id": None,
    }
