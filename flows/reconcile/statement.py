"""At a run's end: the statement is written, and the evidence of the run signed."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.reconciliation.evidence import sign_run
from tidegate.connectors.reconciliation.repair_journal import Journal
from tidegate.connectors.reconciliation.statement_store import write_statement
from tidegate.operators.billing.coverage import BilledCycle, CoverageLine
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.billing.provider import Payment
from tidegate.operators.billing.statement import RepairRecord, build_statement
from tidegate.operators.model.wire import format_instant

_log = logging.getLogger("tidegate.reconciliation")


class Accountant:
    """Writes into `folder`; `looked_back` (µs) is how far a run's lines reach."""

    def __init__(self, folder: Path, reads: DodoReads, journal: Journal, looked_back: int) -> None:
        self._folder, self._reads, self._journal, self._looked_back = folder, reads, journal, looked_back

    def close_run(
        self,
        run: int,
        times: tuple[int, int],
        catalog: int,
        cycles: Mapping[str, Sequence[BilledCycle]],
        proof: Sequence[CoverageLine],
        findings: Sequence[DriftStatus],
    ) -> None:
        """Write the statement of a run that is complete, and sign what it read and found; `times` in µs."""
        started_at, now = times
        payments = self._payments(now)
        lines = build_statement(cycles, payments, proof, self._repairs(), run, now)
        write_statement(self._folder, lines, now - self._looked_back, now)
        billed = [msgspec.json.encode(one) for some in cycles.values() for one in some]
        used = [
            msgspec.json.encode([one.customer, one.meter, one.span.start, one.span.end, str(one.ours)])
            for one in proof
        ]
        inputs = sorted([*billed, *used, *map(msgspec.json.encode, payments)])
        outcome = [*map(msgspec.json.encode, lines), *(one.findings for one in findings)]
        sign_run(
            self._folder, run, (format_instant(started_at), format_instant(now)), catalog, inputs, outcome
        )

    def _payments(self, now: int) -> list[Payment]:
        """Return the payments of the time that is looked into; none where they cannot be read."""
        try:
            return self._reads.payments(now - self._looked_back)
        except DodoError as error:
            _log.warning("the statement has no payments: %s", error)
            return []

    def _repairs(self) -> dict[tuple[str, str, str], list[RepairRecord]]:
        found: dict[tuple[str, str, str], list[RepairRecord]] = {}
        for one in self._journal.all():
            made = RepairRecord(
                act=one.act, state=one.state, quantity=one.quantity, events=len(one.ids), why=one.why
            )
            found.setdefault((one.customer, one.meter, one.period_start[:19]), []).append(made)
        return found
