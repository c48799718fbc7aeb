"""Credits in the form of the API."""

from decimal import Decimal
from typing import Any

import msgspec

from simulator.billing.balances import compute_left
from simulator.state.instants import write_instant, write_optional_instant
from simulator.state.platform import Platform
from simulator.state.records import Balance, Entitlement, Entry, Grant
from simulator.state.usage import EXACT, ZERO, format_plain


def render_entry(platform: Platform, balance: Balance, entry: Entry) -> dict[str, Any]:
    return entry_fields(balance, entry) | {
        "brand_id": platform.memory.business_id.replace("bus_", "brnd_"),
        "business_id": platform.memory.business_id,
        "transaction_type": entry.transaction_type,
        "description": entry.reason,
        "reference_id": None,
        "reference_type": None,
    }


def render_kind(platform: Platform, kind: Entitlement) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(kind)
    del fields["deleted"]
    return fields | {
        "business_id": platform.memory.business_id,
        "created_at": write_instant(kind.created_at),
        "updated_at": write_instant(kind.updated_at),
    }


def render_balance(balance: Balance) -> dict[str, Any]:
    return {
        "id": balance.id,
        "balance": format_plain(compute_left(balance)),
        "overage": balance.overage,
        "credit_entitlement_id": balance.entitlement_id,
        "customer_id": balance.customer_id,
        "created_at": write_instant(balance.created_at),
        "updated_at": write_instant(balance.updated_at),
        "last_transaction_at": write_instant(balance.entries[-1].created_at) if balance.entries else None,
    }


def render_holding(kind: Entitlement, balance: Balance | None, most: Decimal | None) -> dict[str, Any]:
    """Return a customer's credits of one kind; `most` is how far they may be overdrawn, None for unlimited."""
    held, overage = (compute_left(balance), Decimal(balance.overage)) if balance else (ZERO, ZERO)
    room = None if most is None else max(ZERO, EXACT.subtract(most, overage))
    return {
        "credit_entitlement_id": kind.id,
        "credit_entitlement_name": kind.name,
        "unit": kind.unit,
        "balance": format_plain(held),
        "overage": format_plain(overage),
        "overage_enabled": most != ZERO,
        "overage_limit": format_plain(most) if most else None,
        "remaining_headroom": format_plain(room) if most and room is not None else None,
        "limit_reached": room == ZERO and held == ZERO,
    }


def find_grant_status(grant: Grant) -> str:
    if grant.expired:
        return "expired"
    return "active" if Decimal(grant.remaining) > 0 else "depleted"


def render_grant(balance: Balance, grant: Grant) -> dict[str, Any]:
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
        "created_at": write_instant(grant.created_at),
        "updated_at": write_instant(grant.updated_at),
        "expires_at": write_optional_instant(grant.expires_at),
    }


def entry_fields(balance: Balance, entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "amount": entry.amount,
        "balance_before": entry.balance_before,
        "balance_after": entry.balance_after,
        "overage_before": entry.overage_before,
        "overage_after": entry.overage_after,
        "created_at": write_instant(entry.created_at),
        "credit_entitlement_id": balance.entitlement_id,
        "customer_id": balance.customer_id,
        "is_credit": entry.is_credit,
        "metadata": entry.metadata,
        "grant_id": entry.grant_id,
    }
