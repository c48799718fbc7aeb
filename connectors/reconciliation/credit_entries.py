"""Entries in the provider's credit ledger: what a repair comes to in credits, once for its key, and never beyond usage.

The key of an entry is its idempotency key and is kept in its metadata, so the ledger itself says what was entered
before, also where our journal is lost. What was never deducted, as the customer had no credits left, is not credited.
Source: Dodo Payments, credit ledger entries.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from typing import NamedTuple

from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.reconciliation.repair_journal import Entry
from tidegate.operators.billing.credit_excess import AMOUNTS, add_amounts
from tidegate.operators.billing.provider import LedgerEntry, to_micros
from tidegate.operators.columns.quantity import to_decimal
from tidegate.operators.model.errors import TidegateError

KEY = "tidegate_act"
# After a period's end its last events may still come and be deducted.
DEDUCTED_UNTIL = 65 * 60 * 1_000_000


class NeverDeducted(TidegateError):
    """The usage that is to be credited was never deducted."""


class CreditTerms(NamedTuple):
    """How a meter is paid in credits: what is free, how many units a credit buys, and its decimal places.

    `excess` is what was deducted for usage that should not be there and is not given back yet; `entered` has the keys
    of the acts that the ledger has.
    """

    meter_id: str
    entitlement_id: str
    free: int
    units_per_credit: Decimal
    places: int
    excess: Decimal = Decimal(0)
    entered: frozenset[str] = frozenset()

    def credits(self, quantity: int) -> Decimal:
        """Return the credits that a total (×10²⁴) comes to, rounded down as the provider does."""
        chargeable = AMOUNTS.divide(to_decimal(max(quantity - self.free, 0)), self.units_per_credit)
        return chargeable.quantize(Decimal(1).scaleb(-self.places), ROUND_DOWN, AMOUNTS)


class Entering:
    """Splits what an act comes to over its events: each pays for its part above what is free."""

    def __init__(self, act: str, terms: CreditTerms, billed: int, quantity: int) -> None:
        self._act, self._terms, self._excess = act, terms, terms.excess
        self._counted = billed if act == "credit" else billed + quantity

    def amounts(self, key: str, quantity: int) -> dict[str, str]:
        """Return what the next event comes to in credits, and how much of it is entered, as decimal texts."""
        before, self._counted = self._counted, self._counted - quantity
        worth = amount = AMOUNTS.subtract(self._terms.credits(before), self._terms.credits(self._counted))
        if self._act == "credit" and key not in self._terms.entered:
            amount = min(worth, max(self._excess, Decimal(0)))
            self._excess = AMOUNTS.subtract(self._excess, amount)
        return {"worth": _plain(worth), "amount": _plain(amount)}


def settle(reads: DodoReads, entry: Entry) -> str:
    """Write a planned credit or debit into the ledger unless it is there; return what was done.

    Raises: NeverDeducted where nothing was taken that could be given back; DodoError.
    """
    how = entry.how
    if Decimal(how.get("worth", how["amount"])) <= 0:
        return "nothing to enter: it was all free"
    ledger = reads.ledger(
        how["entitlement"], how["billed_as"], to_micros(datetime.fromisoformat(entry.period_start))
    )
    if entry.id in keys_of(ledger):
        return "was entered before: the provider's ledger has it"
    if Decimal(how["amount"]) <= 0:
        raise NeverDeducted("its usage was never deducted: the customer had no credits left")
    body = {
        "entry_type": entry.act,
        "amount": how["amount"],
        "reason": entry.why,
        "idempotency_key": entry.id,
        "metadata": {KEY: entry.id},
    }
    entered = reads.enter(how["entitlement"], how["billed_as"], body)
    return "entered" if entered.is_new else f"was entered before ({entered.answer})"


def keys_of(ledger: Sequence[LedgerEntry]) -> frozenset[str]:
    """Return the keys of the acts that a ledger has."""
    return frozenset(str(one.metadata[KEY]) for one in ledger if one.metadata and KEY in one.metadata)


def deductions(ledger: Sequence[LedgerEntry], until: int) -> list[tuple[int, Decimal]]:
    """Return what was deducted for usage of before `until` (µs), as (time in µs, credits)."""
    return [
        (to_micros(one.created_at), one.amount)
        for one in ledger
        if one.transaction_type == "credit_deducted" and to_micros(one.created_at) < until + DEDUCTED_UNTIL
    ]


def refills(ledger: Sequence[LedgerEntry]) -> list[int]:
    """Return the times (µs) at which an empty balance got credits."""
    return [to_micros(one.created_at) for one in ledger if one.is_credit and one.balance_before <= 0]


def given_back(ledger: Sequence[LedgerEntry]) -> Decimal:
    """Return what acts of ours have credited."""
    return add_amounts(one.amount for one in ledger if one.is_credit and KEY in (one.metadata or {}))


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
