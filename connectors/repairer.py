"""Makes repairs: writes each down first, does it, writes down what came of it.

Every act can be done again without being done twice: events wait once per repair (connectors/outbox.py), adjustments
and requests to write totals again have ids that the control log keeps, ledger entries have idempotency keys. So what a
kill left planned is done again from the journal alone.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import NamedTuple

from connectors.books import Books
from connectors.dodo import DodoError
from connectors.dodo_reads import DodoReads
from connectors.outbox import Outbox
from connectors.repair_journal import Entry, Journal
from operators.biller import micros
from operators.billing import instant
from operators.drift import Span
from operators.ports import Adjustment, ControlLog, Resend
from operators.quantity import decimal, text
from operators.repairs import Repair

BY = "reconciliation"
# Of one act. What is beyond comes with the next pass.
IDS_MAX = 10_000
CREDIT_PLACES = Decimal(10) ** -10


class Subject(NamedTuple):
    """The total that a repair is about, and where it stood. `span` is our period, quantities are times 10²⁴."""

    number: int
    customer: str
    billed_as: str
    meter: str
    span: Span
    ours: int
    billers: int


class CreditTerms(NamedTuple):
    """How a meter is paid in credits: what is free, and how many units a credit buys."""

    entitlement_id: str
    free: int
    units_per_credit: Decimal


class Repairer:
    """Does what the journal says. `clock` gives µs since the epoch."""

    def __init__(
        self,
        journal: Journal,
        books: Callable[[], Books],
        outbox: Path,
        control: ControlLog,
        reads: DodoReads,
        clock: Callable[[], int],
    ) -> None:
        self.journal, self._books, self._outbox = journal, books, outbox
        self._control, self._reads, self._clock = control, reads, clock

    def finish(self) -> int:
        """Does what was planned and not done; how many acts that were."""
        left = self.journal.unfinished()
        for entry in left:
            self._do(entry)
        return len(left)

    def repair(self, act: Repair, subject: Subject, credit: CreditTerms | None = None) -> str:
        """Writes one repair down and makes it, unless that was done; `done` or `refused: why`."""
        planned = self._planned(act, subject, credit)
        known = self.journal.entry(planned.id)
        if known is None:
            self.journal.plan(planned)
        elif known.state != "planned":
            return known.state if known.state == "done" else f"refused: {known.result}"
        return self._do(known or planned)

    def _planned(self, act: Repair, subject: Subject, credit: CreditTerms | None) -> Entry:
        start = instant(subject.span.start)
        before = {"ours": text(subject.ours), "billers": text(subject.billers)}
        how: Mapping[str, str] = {}
        after = dict(before)
        match act.act:
            case "resend" | "late":
                after["billers"] = "its events are there"
            case "adjust":
                after["ours"] = text(subject.ours + act.quantity)
                how = {"at": str(max(min(self._clock(), subject.span.end - 1), subject.span.start))}
            case "credit" | "debit":
                assert credit is not None
                how = self._in_credits(act, subject, credit)
        # All totals are written again at once, so one such act a pass is enough.
        whose = "all" if act.act == "rewrite" else f"{start}:{subject.meter}:{subject.customer}"
        return Entry(
            at=instant(self._clock()),
            id=f"recon:{whose}:{subject.number}:{act.act}",
            state="planned",
            act=act.act,
            customer=subject.customer,
            meter=subject.meter,
            period_start=start,
            period_end=instant(subject.span.end),
            why=act.why,
            quantity=text(act.quantity),
            ids=act.ids[:IDS_MAX],
            before=before,
            after=after,
            how=how,
        )

    def _in_credits(self, act: Repair, subject: Subject, credit: CreditTerms) -> Mapping[str, str]:
        """The credits that the units came to, as far as they were beyond what is free; rounded down."""
        counted = subject.billers if act.act == "credit" else subject.billers + act.quantity
        chargeable = max(counted - credit.free, 0) - max(counted - act.quantity - credit.free, 0)
        credits = (decimal(chargeable) / credit.units_per_credit).quantize(CREDIT_PLACES, ROUND_DOWN)
        amount = f"{credits:f}".rstrip("0").rstrip(".") if "." in f"{credits:f}" else f"{credits:f}"
        return {"entitlement": credit.entitlement_id, "billed_as": subject.billed_as, "amount": amount}

    def _do(self, entry: Entry) -> str:
        try:
            result = self._done(entry)
        except _Refused as refused:
            self.journal.close(entry, "refused", instant(self._clock()), str(refused))
            return f"refused: {refused}"
        self.journal.close(entry, "done", instant(self._clock()), result)
        return "done"

    def _done(self, entry: Entry) -> str:
        match entry.act:
            case "resend" | "late":
                return self._send_again(entry)
            case "rewrite":
                return f"control record {self._control.append(Resend(id=entry.id))}"
            case "adjust":
                return f"control record {self._control.append(_adjustment(entry))}"
            case "credit" | "debit":
                return self._enter(entry)
        raise _Refused(f"{entry.act!r} is no act that is known")

    def _send_again(self, entry: Entry) -> str:
        span = Span(_micros(entry.period_start), _micros(entry.period_end))
        books = self._books()
        try:
            events = books.bodies(entry.customer, entry.ids, span)
        finally:
            books.close()
        if not events:
            raise _Refused(
                "the bytes of these events are gone; the ledger reaches back as long as it is kept"
            )
        # Rolled up or not, what is there is left as it is.
        outbox = Outbox(self._outbox, unfolded=True)
        try:
            restored = outbox.restore(events, by=BY, why=entry.id)
        finally:
            outbox.close()
        return f"{len(restored)} of {len(entry.ids)} events wait in the outbox"

    def _enter(self, entry: Entry) -> str:
        if Decimal(entry.how["amount"]) <= 0:
            return "nothing to enter: it was all free"
        body = {
            "entry_type": entry.act,
            "amount": entry.how["amount"],
            "reason": entry.why,
            "idempotency_key": entry.id,
        }
        try:
            entered = self._reads.enter(entry.how["entitlement"], entry.how["billed_as"], body)
        except DodoError as error:
            raise _Refused(str(error)) from None
        return "entered" if entered.is_new else f"was entered before ({entered.answer})"


class _Refused(Exception):
    """An act that cannot be done, now or later."""


def _adjustment(entry: Entry) -> Adjustment:
    return Adjustment(
        id=entry.id,
        customer=entry.customer,
        meter=entry.meter,
        at=int(entry.how["at"]),
        quantity=entry.quantity,
        reason=entry.why,
        by=BY,
    )


def _micros(written: str) -> int:
    return micros(datetime.fromisoformat(written))
