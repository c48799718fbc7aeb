"""A customer's balance of one kind of credit: grants, consumed oldest first, and the ledger of all entries."""

from collections.abc import Callable
from decimal import Decimal
from typing import Final

from simulator.state.records import Balance, Entry, Grant, Metadata
from simulator.state.usage import EXACT, ZERO, format_plain

NO_METADATA: Final[Metadata] = {}
NewId = Callable[[str], str]


def compute_left(balance: Balance) -> Decimal:
    """Return the credits left on grants that have not expired."""
    return sum((Decimal(grant.remaining) for grant in balance.grants if not grant.expired), ZERO)


class Book:
    """Writes to one balance, at `now`; each action is an entry of its ledger."""

    def __init__(self, balance: Balance, now: int, new_id: NewId) -> None:
        self.balance, self._now, self._new_id = balance, now, new_id

    def grant(
        self,
        amount: Decimal,
        transaction_type: str,
        *,
        source_type: str,
        source_id: str | None = None,
        expires_at: int | None = None,
        reason: str | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> Entry:
        """Add credits, which expire at `expires_at`."""
        before = compute_left(self.balance)
        grant = Grant(
            id=self._new_id("cgr"),
            initial=format_plain(amount),
            remaining=format_plain(amount),
            source_type=source_type,  # type: ignore[arg-type]
            created_at=self._now,
            updated_at=self._now,
            expires_at=expires_at,
            source_id=source_id,
            metadata=metadata,
        )
        self.balance.grants = [*self.balance.grants, grant]
        return self._enter(
            transaction_type, amount, before, self.balance.overage, grant.id, reason, metadata, is_credit=True
        )

    def take(
        self,
        amount: Decimal,
        transaction_type: str,
        *,
        overage_max: Decimal | None = ZERO,
        reason: str | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> Decimal:
        """Take from the oldest grants, then as overage up to `overage_max` (None: unlimited); return what was taken."""
        before, overage = compute_left(self.balance), Decimal(self.balance.overage)
        from_grants = min(amount, before)
        rest = EXACT.subtract(amount, from_grants)
        room = rest if overage_max is None else max(ZERO, EXACT.subtract(overage_max, overage))
        as_overage = min(rest, room)
        taken = EXACT.add(from_grants, as_overage)
        if taken > 0:
            self._use_up(from_grants)
            self.balance.overage = format_plain(EXACT.add(overage, as_overage))
            self._enter(
                transaction_type,
                taken,
                before,
                format_plain(overage),
                None,
                reason,
                metadata,
                is_credit=False,
            )
        return taken

    def expire(self) -> bool:
        """Expire the grants that are due; return whether there were any."""
        due = [
            g
            for g in self.balance.grants
            if not g.expired and g.expires_at is not None and g.expires_at <= self._now
        ]
        for grant in due:
            before = compute_left(self.balance)
            grant.expired, grant.updated_at = True, self._now
            if (amount := Decimal(grant.remaining)) > 0:
                overage = self.balance.overage
                self._enter(
                    "credit_expired", amount, before, overage, grant.id, None, NO_METADATA, is_credit=False
                )
        return bool(due)

    def settle_overage(self, transaction_type: str) -> None:
        """End the overage, as reset or as charged."""
        overage = Decimal(self.balance.overage)
        if overage > 0:
            self.balance.overage = "0"
            kept = compute_left(self.balance)
            self._enter(
                transaction_type,
                overage,
                kept,
                format_plain(overage),
                None,
                None,
                NO_METADATA,
                is_credit=True,
            )

    def repay(self) -> None:
        """Pay overage back from the grants."""
        amount = min(Decimal(self.balance.overage), compute_left(self.balance))
        if amount > 0:
            before, overage = compute_left(self.balance), self.balance.overage
            self._use_up(amount)
            self.balance.overage = format_plain(EXACT.subtract(Decimal(overage), amount))
            self._enter(
                "credit_deducted",
                amount,
                before,
                overage,
                None,
                "repays overage",
                NO_METADATA,
                is_credit=False,
            )

    def _use_up(self, amount: Decimal) -> None:
        for grant in self.balance.grants:
            if amount <= 0:
                return
            if not grant.expired and (part := min(amount, Decimal(grant.remaining))) > 0:
                grant.remaining = format_plain(EXACT.subtract(Decimal(grant.remaining), part))
                grant.updated_at = self._now
                amount = EXACT.subtract(amount, part)

    def _enter(
        self,
        transaction_type: str,
        amount: Decimal,
        before: Decimal,
        overage_before: str,
        grant_id: str | None,
        reason: str | None,
        metadata: Metadata,
        *,
        is_credit: bool,
    ) -> Entry:
        entry = Entry(
            id=self._new_id("cle"),
            transaction_type=transaction_type,
            amount=format_plain(amount),
            is_credit=is_credit,
            balance_before=format_plain(before),
            balance_after=format_plain(compute_left(self.balance)),
            overage_before=overage_before,
            overage_after=self.balance.overage,
            created_at=self._now,
            grant_id=grant_id,
            reason=reason,
            metadata=metadata,
        )
        self.balance.entries = [*self.balance.entries, entry]
        self.balance.updated_at = self._now
        return entry
