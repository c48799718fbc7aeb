"""Makes repairs: writes each down first, does it, and says `done` only once it is seen applied.

The id of an act is of its cause: customer, meter, period, and the events or the amount. So it is the same act in
every run, after every restart, and with the journal lost: events wait once per repair (connectors/outbox/outbox.py),
adjustments and requests to write totals again have ids that the control log keeps, ledger entries have idempotency
keys and carry them as metadata. What a kill left planned is done again from the journal alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.billing_records import BillingRecords
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.reconciliation.credit_entries import CreditTerms, Entering, NeverDeducted, settle
from tidegate.connectors.reconciliation.repair_journal import Entry, Journal, State
from tidegate.operators.billing.drift import Span
from tidegate.operators.billing.provider import to_micros
from tidegate.operators.billing.repairs import Repair
from tidegate.operators.columns.quantity import format_quantity
from tidegate.operators.model.ports import Adjustment, ControlLog, Resend, StoreReader
from tidegate.operators.model.wire import format_instant

BY = "reconciliation"
# Of one act. What is beyond comes with the next run.
IDS_MAX, ENTRIES_MAX = 10_000, 200
NOTES_READ = 10_000
# Of the events of one act that the provider is asked for before it counts as applied.
ASKED_MAX = 20
REWRITES_APART = 600 * 1_000_000


class Subject(NamedTuple):
    """The total that a repair is about, and its state. `span` is our period, quantities are times 10²⁴."""

    customer: str
    billed_as: str
    meter: str
    span: Span
    ours: int
    billers: int


class Repairer:
    """Does what the journal says. `clock` gives µs since the epoch."""

    def __init__(
        self,
        journal: Journal,
        open_records: Callable[[], BillingRecords],
        outbox: Path,
        control: ControlLog,
        reads: DodoReads,
        clock: Callable[[], int],
    ) -> None:
        self.journal, self._open_records, self._outbox = journal, open_records, outbox
        self._control, self._reads, self._clock = control, reads, clock

    def finish(self) -> int:
        """Do what was planned and not done; return how many acts that were."""
        left = self.journal.unfinished()
        for entry in left:
            self._do(entry)
        return len(left)

    def confirm(self, store: StoreReader) -> None:
        """Close the acts that are seen applied, and those that were refused where they should have been."""
        for entry in self.journal.unseen():
            outcome = self._seen(entry, store)
            if outcome is not None:
                self._close(entry, *outcome)

    def sent_again(self, ids: Sequence[str]) -> set[str]:
        """Return those of these events that wait, or were sent again, by an act that the journal may have lost."""
        if not ids or not self._outbox.is_file():
            return set()
        reader = OutboxReader(self._outbox)
        try:
            return reader.restored(ids, BY)
        finally:
            reader.close()

    def repair(self, act: Repair, subject: Subject, credit: CreditTerms | None = None) -> str:
        """Write a repair down and make it, unless that was done; return `made`, `done` or `refused: why`."""
        states = [self._once(entry) for entry in self._planned(act, subject, credit)]
        refused = next((state for state in states if state.startswith("refused")), None)
        return refused or ("done" if all(state == "done" for state in states) else "made")

    def state_of(self, act: Repair, subject: Subject, credit: CreditTerms | None = None) -> str:
        """Return how a repair stands that is only to be named: `done` where nothing of it is left to do."""
        known = [self.journal.entry(entry.id) for entry in self._planned(act, subject, credit)]
        return "done" if all(entry is not None and entry.state == "done" for entry in known) else "would"

    def _once(self, planned: Entry) -> str:
        known = self.journal.entry(planned.id)
        if known is None:
            self.journal.plan(planned)
        elif known.state != "planned":
            return f"refused: {known.result}" if known.state == "refused" else known.state
        return self._do(known or planned)

    def _planned(self, act: Repair, subject: Subject, credit: CreditTerms | None) -> list[Entry]:
        if act.act in ("credit", "debit"):
            assert credit is not None
            return self._entries(act, subject, credit)
        start = format_instant(subject.span.start)
        after, how = {"ours": format_quantity(subject.ours), "billers": format_quantity(subject.billers)}, {}
        match act.act:
            case "resend" | "late":
                after["billers"] = "its events are there"
                cause = _digest(act.ids)
            case "adjust":
                after["ours"] = format_quantity(subject.ours + act.quantity)
                how = {"at": str(max(min(self._clock(), subject.span.end - 1), subject.span.start))}
                cause = f"{format_quantity(act.base)}:{format_quantity(act.base + act.quantity)}"
            case _:
                # All totals are written again at once, so one such act in a while is enough.
                cause = str(self._clock() // REWRITES_APART)
        whose = "all" if act.act == "rewrite" else f"{start}:{subject.meter}:{subject.customer}"
        id = f"recon:{act.act}:{whose}:{cause}"
        return [self._entry(id, act, subject, format_quantity(act.quantity), act.ids[:IDS_MAX], how, after)]

    def _entries(self, act: Repair, subject: Subject, credit: CreditTerms) -> list[Entry]:
        """Plan one entry for each event, so that each is settled once, also when others join or leave the finding."""
        settled = self.journal.settled(act.act, subject.customer, subject.meter)
        entering = Entering(act.act, credit, subject.billers, act.quantity)
        planned, copies = [], dict.fromkeys(act.ids, 0)
        for id, quantity in sorted(zip(act.ids, act.amounts, strict=True)):
            copies[id] += 1
            key = f"recon:{act.act}:{credit.meter_id}:{id}:{copies[id]}"
            amounts = entering.amounts(key, quantity)
            if self.journal.entry(key) is None and copies[id] <= settled[id]:
                # An older version settled it, under an id of its own.
                continue
            how = {"entitlement": credit.entitlement_id, "billed_as": subject.billed_as, **amounts}
            planned.append(self._entry(key, act, subject, format_quantity(quantity), (id,), how))
        return planned[:ENTRIES_MAX]

    def _entry(
        self,
        id: str,
        act: Repair,
        subject: Subject,
        quantity: str,
        ids: tuple[str, ...],
        how: Mapping[str, str],
        after: Mapping[str, str] | None = None,
    ) -> Entry:
        before = {"ours": format_quantity(subject.ours), "billers": format_quantity(subject.billers)}
        return Entry(
            at=format_instant(self._clock()),
            id=id,
            state="planned",
            act=act.act,
            customer=subject.customer,
            meter=subject.meter,
            period_start=format_instant(subject.span.start),
            period_end=format_instant(subject.span.end),
            why=act.why,
            quantity=quantity,
            ids=ids,
            before=before,
            after=before if after is None else after,
            how=how,
        )

    def _do(self, entry: Entry) -> str:
        try:
            result = self._done(entry)
        except _Refused as refused:
            return self._close(entry, "refused", str(refused))
        # An answer of the provider is proof; what others do with the rest is looked at later.
        return self._close(entry, "done" if entry.act in ("credit", "debit") else "made", result)

    def _close(self, entry: Entry, state: State, result: str) -> str:
        self.journal.close(entry, state, format_instant(self._clock()), result)
        return f"refused: {result}" if state == "refused" else state

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
        records = self._open_records()
        try:
            events = records.bodies(entry.customer, entry.ids, span)
        finally:
            records.close()
        if not events:
            raise _Refused(
                "the bytes of these events are gone; the ledger reaches back as long as it is kept"
            )
        # Rolled up or not, what is there is left as it is.
        outbox = Outbox(self._outbox, unfolded=True)
        try:
            restored = operator_actions.restore(outbox, events, by=BY, why=entry.id)
        finally:
            outbox.close()
        return f"{len(restored)} of {len(entry.ids)} events wait in the outbox"

    def _enter(self, entry: Entry) -> str:
        try:
            return settle(self._reads, entry)
        except (NeverDeducted, DodoError) as error:
            raise _Refused(str(error)) from None

    def _seen(self, entry: Entry, store: StoreReader) -> tuple[State, str] | None:
        """Return how an act ended that was made; None while it is not known."""
        match entry.act:
            case "adjust":
                return self._seen_adjusted(entry, store)
            case "rewrite":
                notes = store.notes("resend", None, NOTES_READ)
                is_answered = any(note.id.rpartition("/")[0] == entry.id for note in notes)
                return ("done", "the flow has written its totals again") if is_answered else None
            case _:
                return self._seen_there(entry)

    def _seen_adjusted(self, entry: Entry, store: StoreReader) -> tuple[State, str] | None:
        for note in store.notes("adjustment", entry.customer, NOTES_READ):
            if note.id == entry.id:
                refused = json.loads(note.body)["refused"]
                return ("done", "applied") if refused is None else ("refused", str(refused))
        # A store that was put back from a copy may have lost it; the same id is applied once.
        self._control.append(_adjustment(entry))
        return None

    def _seen_there(self, entry: Entry) -> tuple[State, str] | None:
        held_back = self._held_back(entry.ids)
        if held_back:
            return "refused", f"held back: {held_back}"
        ids = entry.ids[:ASKED_MAX]
        is_there = all(self._reads.has_event(id) for id in ids)
        return (
            ("done", f"the provider has {len(ids)} of {len(entry.ids)} that were asked for")
            if is_there
            else None
        )

    def _held_back(self, ids: Iterable[str]) -> str:
        """Return why an event of these is held back, or an empty text."""
        if not self._outbox.is_file():
            return ""
        reader = OutboxReader(self._outbox)
        try:
            return next((one.reason for one in reader.find(ids).values() if one.reason), "")
        finally:
            reader.close()


class _Refused(Exception):
    """An act that cannot be done, now or later."""


def _digest(ids: Iterable[str]) -> str:
    return xxh3_128_hexdigest(msgspec.json.encode(sorted(ids)))


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
    return to_micros(datetime.fromisoformat(written))
