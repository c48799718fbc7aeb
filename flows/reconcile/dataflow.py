"""The reconciliation flow: what customers see against what they will be invoiced, explained and, if allowed, repaired.

    subscriptions ─ compare ─ judge ─ explain ─ settle
      (due in this     │       │        │       └─ repairs, store notes, alerts, report, book
       run)         totals   off     events of
                    of both  twice   both, and
                    sides    is      what may
                             drift   be done

A run begins every TIDEGATE_RECONCILE_EVERY, or once with TIDEGATE_RECONCILE_ONCE. It reads the provider within a
request budget of its own, and changes nothing unless TIDEGATE_RECONCILE_REPAIR allows it. How far it is, is in its own
book, so it needs no recovery store: a killed run goes on with the subscriptions that are left.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.dodo.client import DodoClient
from tidegate.connectors.dodo.reads import DodoReads, Unauthorized
from tidegate.connectors.engine import Dataflow, DynamicSink, FixedPartitionedSink, StatelessSinkPartition, op
from tidegate.connectors.outbox.billing_records import BillingRecords
from tidegate.connectors.reconciliation.acknowledgements import AcknowledgementFollower
from tidegate.connectors.reconciliation.conflicts import KIND, known_in
from tidegate.connectors.reconciliation.findings import Book, Task
from tidegate.connectors.reconciliation.repair_journal import Journal
from tidegate.connectors.reconciliation.repairer import Repairer
from tidegate.connectors.reconciliation.report import (
    LinesToStdout,
    console,
    proof_line,
    proof_table,
    sum_fields,
    summary,
    table,
)
from tidegate.flows.reconcile.compare import Comparer, ProviderMeters, Seen, Terms
from tidegate.flows.reconcile.coverage import Prover
from tidegate.flows.reconcile.follow_subscriptions import NOTES_READ, Follower
from tidegate.flows.reconcile.judge import Explainer, Judge, Judged, Settler
from tidegate.flows.reconcile.schedule import AGAIN_AFTER_S, Passes, meters_of
from tidegate.flows.reconcile.statement import Accountant
from tidegate.flows.runtime.error_logging import log_errors, log_sink_errors
from tidegate.operators.billing.acknowledgements import Acknowledgements, render_acknowledgement
from tidegate.operators.billing.coverage import CoverageLine, add_up
from tidegate.operators.billing.provider import match_meters
from tidegate.operators.billing.subscriptions import find_siblings
from tidegate.operators.columns.quantity import scale
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.ports import Acknowledgement, Note
from tidegate.operators.model.wire import format_instant
from tidegate.settings.addresses.sinks import Dodo, FilePlace
from tidegate.settings.catalog.file import load_catalog
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.problems import SettingsError
from tidegate.settings.reconciliation import ReconciliationSettings

T = TypeVar("T")
# Lines of the proof in a report; beyond, those that are billed to the unit are left to the sums.
PLAIN_LINES_MAX = 10_000
# How long acknowledgements are gone by before the control log is asked for newer ones (µs).
ACCEPTED_FOR = 1_000_000

_log = logging.getLogger("tidegate.reconciliation")


class _Closes(Protocol):
    def close(self) -> None: ...


class Outside(NamedTuple):
    """Time and network, which tests stand in for."""

    clock: Callable[[], int] = wall_clock
    sleep: Callable[[float], object] = time.sleep
    client: Callable[[ReconciliationSettings], DodoClient] | None = None


def build(settings: ReconciliationSettings, outside: Outside | None = None) -> Dataflow:
    """Build the flow for these settings, ready to run."""
    runtime = _Runtime(settings, outside or Outside())
    flow = Dataflow("reconciliation")
    tasks = op.input("subscriptions", flow, runtime.passes())
    seen = op.flat_map_batch("look", tasks, log_errors(runtime.compare))
    found = op.map("judge", seen, log_errors(runtime.judge.judge))
    explained = op.map("explain", found, log_errors(runtime.explain))
    op.output("settle", explained, log_sink_errors(_Settling(runtime)))
    return flow


class _Runtime:
    """Everything that the steps share, opened once. All of it is used by one worker, which has the only partition."""

    def __init__(self, settings: ReconciliationSettings, outside: Outside) -> None:
        if not isinstance(settings.billing, Dodo):
            raise SettingsError([f"TIDEGATE_BILLING: needs dodo: to reconcile with, got {settings.billing}"])
        self._settings, self._clock, self._sleep = settings, outside.clock, outside.sleep
        folder: Path = settings.folder
        client = (outside.client or _client)(settings)
        self.reads = DodoReads(client, sleep=outside.sleep)
        self._open: list[_Closes] = [client]
        self._book = Book(folder)
        control = self._control = settings.store.open_control()
        self._catalog = _catalogs(settings, CatalogFollower(control))
        self._store = settings.store.open()
        alerts = _AlertOut(settings)
        outbox = settings.billing.outbox_path(settings.data_dir)
        terms = Terms(settings.reconcile_settle)

        def records() -> BillingRecords:
            return BillingRecords(outbox)

        reader = self._reader = settings.store.open_reader()
        self._open += [reader, self._store, control, alerts, self._book]
        comparer = Comparer(self.reads, reader, records, self._catalog, terms, self._clock, settings.shards)
        self._comparer = comparer
        is_skipping = settings.billing.unmapped == "skip"
        self._follower = Follower(
            self.reads, control, self._store, reader, alerts, self._clock, applies=settings.reconcile_periods
        )
        self._prover = Prover(
            reader, records, self._catalog, self._book, terms, self._clock, is_skipping=is_skipping
        )
        journal = Journal(folder / "repairs.ndjson")
        repairer = Repairer(journal, records, outbox, control, self.reads, self._clock)
        self._accountant = Accountant(folder, self.reads, journal, terms.looked_back)
        self._repairer = repairer
        tolerance = scale(settings.reconcile_tolerance)
        self._acknowledging = AcknowledgementFollower()
        self._accepted: Acknowledgements | None = None
        self._accepted_at = 0
        self.judge = Judge(self._book, terms.settle_us, self._clock, tolerance)
        self._explainer = Explainer(
            comparer, self.reads, repairer, self._acknowledged, self._clock,
            in_credits=settings.reconcile_credits, repair=settings.reconcile_repair, tolerance=tolerance,
        )  # fmt: skip
        self._report = settings.reconcile_report.open() if settings.reconcile_report else None
        self.settler = Settler(
            self._book, repairer, self._store, alerts, self._report, self.reads, self._acknowledged, self._clock,
            repair=settings.reconcile_repair, tolerance=tolerance,
        )  # fmt: skip
        self._meters: tuple[Catalog, int, ProviderMeters] | None = None
        try:
            self._finish()
        except BaseException:
            self.close()
            raise

    def _finish(self) -> None:
        """Complete the repairs that an earlier run had planned, and may have made."""
        self._repairer.confirm(self._reader)
        left = self._repairer.finish() if self._settings.reconcile_repair else 0
        if left:
            _log.warning("%d repairs were planned and not known to be done; they were made", left)

    def passes(self) -> Passes:
        return Passes(
            self._settings,
            self._book,
            self.reads,
            self._follower.follow,
            self._report_run,
            self._clock,
            self._sleep,
        )

    def close(self) -> None:
        for one in self._open:
            one.close()

    def compare(self, tasks: list[Task]) -> list[Seen]:
        provider_meters = self._read_provider_meters(tasks[0].number)
        compared = self._ask_patiently(lambda: self._comparer.compare(tasks, provider_meters))
        proofs = [self._prover.prove(task, provider_meters) for task in tasks if task.subscription is None]
        return [*compared, *proofs]

    def explain(self, found: Judged) -> Judged:
        return self._ask_patiently(lambda: self._explainer.explain(found))

    def _ask_patiently(self, ask: Callable[[], T]) -> T:
        """Return the answer, and wait for it where the API key is refused, until somebody has replaced the key."""
        while True:
            try:
                return ask()
            except Unauthorized as error:
                if self._settings.reconcile_once:
                    raise
                _log.error("reconciliation waits: %s", error)
                self._sleep(AGAIN_AFTER_S)

    def _read_provider_meters(self, number: int) -> ProviderMeters:
        catalog = self._catalog()
        if self._meters is None or self._meters[:2] != (catalog, number):
            found, others = match_meters(catalog, meters_of(self._book))
            for other in others:
                if not other.is_archived:
                    _log.warning("meter %s (%s) is not compared: %s", other.id, other.name, other.why)
            siblings = find_siblings(self._book.subscriptions(number))
            self._meters = (
                catalog,
                number,
                ProviderMeters(found, {other.id: other for other in others}, siblings),
            )
        return self._meters[2]

    def _acknowledged(self) -> Acknowledgements:
        """Return the acknowledgements in force; those that are new are noted in the store, with who and why."""
        now = self._clock()
        if self._accepted is not None and now < self._accepted_at + ACCEPTED_FOR:
            return self._accepted
        found, self._accepted_at = self._acknowledging.follow(self._control), now
        self._accepted = found
        if new := self._acknowledging.take_new():
            self._store.write([], [], [_note_of(one) for one in new])
        return found

    def _report_run(self, number: int) -> None:
        """Report a run that is complete."""
        self._repairer.confirm(self._reader)
        with closing(self._book.reader()) as reader:
            last, found, unread = reader.last(), reader.open(), reader.unread()
        assert last is not None
        figures = {
            **last.figures,
            "pass": number,
            "started_at": format_instant(last.started_at),
            "ended_at": format_instant(last.ended_at or 0),
            "open_drift": sum(one.status == "drift" for one in found),
            "open_suspect": sum(one.status == "suspect" for one in found),
            "open_acknowledged": sum(one.status == "acknowledged" for one in found),
        }
        conflicts = known_in(self._reader.notes(KIND, None, NOTES_READ))
        figures["conflicts"] = [f"{name}: {why}" for name, why in sorted(conflicts.items())]
        proof = _Proof(number, self._prover.lines(number, self._read_provider_meters(number)))
        figures["coverage"] = [sum_fields(one) for one in proof.sums]
        times, cycles = (last.started_at, last.ended_at or self._clock()), self._book.cycles(number)
        self._accountant.close_run(
            number, times, self._control.catalog_number(), cycles, proof.whole, self._book.open()
        )
        self._book.keep_proof(proof.lines)
        line = msgspec.json.encode({"status": "ended"} | figures)
        self._store.write([], [], [Note("reconciliation", "last", "", self._clock(), line)])
        if self._report is not None:
            self._report.write([*(body for _, body in proof.lines), line])
        if not isinstance(self._report, LinesToStdout):
            screen = console()
            for name, why in sorted(conflicts.items()):
                screen.print(f"conflict: customer {name}: {why}; nothing of it is applied")
            if found:
                screen.print(table(found))
            if proof.sums:
                screen.print(proof_table(proof.sums))
            screen.print(summary(last, found, len(unread)))
        _log.info("%s", summary(last, found, len(unread)))


class _Proof:
    """The proof of a run: its sums, and its lines as JSON; of a great many only those that are not plainly billed."""

    def __init__(self, number: int, lines: Iterable[CoverageLine]) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.whole: list[CoverageLine] = []
        self.sums = add_up(self._kept(number, lines))

    def _kept(self, number: int, lines: Iterable[CoverageLine]) -> Iterator[CoverageLine]:
        for line in lines:
            self.whole.append(line)
            if line.ours != line.billed or len(self.lines) < PLAIN_LINES_MAX:
                self.lines.append((line.customer, proof_line(number, line)))
            yield line


def _note_of(one: Acknowledgement) -> Note:
    body = render_acknowledgement(one) | {"is_withdrawn": one.is_withdrawn}
    return Note("acknowledgement", one.id, one.customer, one.at, msgspec.json.encode(body))


class _Settling(DynamicSink[Judged]):
    def __init__(self, runtime: _Runtime) -> None:
        self._runtime = runtime

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_SettlingPartition":
        return _SettlingPartition(self._runtime)


class _SettlingPartition(StatelessSinkPartition[Judged]):
    def __init__(self, runtime: _Runtime) -> None:
        self._runtime = runtime

    def write_batch(self, items: list[Judged]) -> None:
        for found in items:
            self._runtime.settler.settle(found)

    def close(self) -> None:
        self._runtime.close()


class _AlertOut:
    """The alert sinks of the settings, each alert in them when a call returns.

    A file is written by one flow alone, so what goes to `alerts.ndjson` goes to `alerts-drift.ndjson` beside it.
    """

    def __init__(self, settings: ReconciliationSettings) -> None:
        self._settings = settings
        # At the start, so that a wrong address or secret does not first show with an alert.
        self._sinks = [(address, self._sink(address)) for address in settings.alerts]
        self._opened: list[tuple[Any, Any, bool]] | None = None

    def __call__(self, id: str, kind: str, customer: str, line: bytes) -> None:
        if self._opened is None:
            self._opened = [self._build(address, sink) for address, sink in self._sinks]
        for address, part, is_keyed in self._opened:
            if address.wants(kind, customer):
                part.write_batch([line if is_keyed else (id, line)])
                if is_keyed:
                    part.snapshot()

    def close(self) -> None:
        """End deliveries; what could not be delivered waits in its queue for the next start."""
        for _, part, _ in self._opened or ():
            part.close()
        self._opened = None

    def _build(self, address: Any, sink: Any) -> tuple[Any, Any, bool]:
        if isinstance(sink, FixedPartitionedSink):
            return address, sink.build_part("alerts", sink.list_parts()[0], None), True
        return address, sink.build("alerts", 0, 1), False

    def _sink(self, address: Any) -> Any:
        """Open an alert sink. Nothing is replayed to it, so it needs no lineage and no start offsets."""
        offers: dict[str, Callable[[], Any]] = {
            "sync": lambda: True,
            "lineage": lambda: "",
            "queue": lambda: self._settings.folder / "deliveries.db",
            "secrets": lambda: self._settings.delivery_secrets,
            "starts": lambda: None,
        }
        return (address.beside("drift") if isinstance(address, FilePlace) else address).open_in_flow(offers)


def _client(settings: ReconciliationSettings) -> DodoClient:
    assert isinstance(settings.billing, Dodo)
    client: DodoClient = settings.billing.open_client(settings.dodo_api_key)
    return client


def _catalogs(settings: ReconciliationSettings, catalogs: CatalogFollower) -> Callable[[], Catalog]:
    """Return the catalog in force: the store's newest, else the file's, where no flow has run yet."""
    of_file: list[Catalog] = []

    def current() -> Catalog:
        if (version := catalogs.follow()).number:
            return version.catalog
        if not of_file:
            of_file.append(load_catalog(settings.catalog))
        return of_file[0]

    return current
