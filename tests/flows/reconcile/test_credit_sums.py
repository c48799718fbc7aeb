"""What several meters of one balance were charged too much, with more digits than Decimal's own operators keep."""

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from tidegate.connectors.reconciliation.credit_entries import CreditTerms
from tidegate.flows.reconcile.judge import _over_of_several
from tidegate.operators.billing.drift import Span
from tidegate.operators.billing.provider import LedgerEntry
from tidegate.operators.columns.quantity import SCALE

LARGE = Decimal("9876543210987654321098765432.1")
TINY = Decimal("0.000001")


def deducted(amount: Decimal) -> LedgerEntry:
    at = datetime(2026, 11, 22, tzinfo=UTC)
    return LedgerEntry(
        transaction_type="credit_deducted",
        amount=amount,
        is_credit=False,
        balance_before=amount,
        created_at=at,
    )


def test_what_several_meters_were_charged_is_added_up_exactly() -> None:
    comparison = SimpleNamespace(total=0, subscription_id="sub_1", provider_period=Span(0, 2 * 10**15))
    explained: Any = SimpleNamespace(comparison=comparison, findings=())
    usage = SimpleNamespace(id="mtr_2", consumed_units=LARGE)
    begin = datetime(1970, 1, 1, tzinfo=UTC)
    cycle = SimpleNamespace(meters=[usage], start_date=begin, end_date=begin)
    reads: Any = SimpleNamespace(history=lambda id: [cycle])
    terms = CreditTerms("mtr_1", "ent", 0, Decimal(1), 1)
    others = {"mtr_2": CreditTerms("mtr_2", "ent", 0, Decimal(1), 1)}
    ledger = [deducted(LARGE), deducted(TINY)]
    assert _over_of_several(reads, explained, terms, others, ledger) == TINY
    assert terms.credits(7 * SCALE) == 7
