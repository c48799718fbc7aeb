"""The steps of the metering flow, and how they hang together.

    source ─ decode ─┬─ meter (per shard) ─┬─ store
    control ─────────┘                     ├─ alerts
                                           ├─ dead letters
                                           └─ billing

An item of the stream is never an event: a poll is parted into chunks, one per shard, and a chunk becomes one emission.
"""

import gc
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import Dataflow, KeyedStream, op
from tidegate.connectors.files.own_files import OwnFiles
from tidegate.connectors.outbox.reader import OutboxReader, QueueStatistics
from tidegate.connectors.sqlite.writer_process import AsideWriter
from tidegate.flows.meter.control_source import ControlSource
from tidegate.flows.meter.decode_step import DecodeStep
from tidegate.flows.meter.emission import Emission
from tidegate.flows.meter.shard_step import ShardLogic
from tidegate.flows.meter.store_step import StoreStep
from tidegate.flows.runtime import recovery
from tidegate.flows.runtime.clock_guard import ClockGuard
from tidegate.flows.runtime.error_logging import end_at_once, log_errors, log_sink_errors
from tidegate.flows.runtime.health import Watchdog, serve
from tidegate.flows.runtime.idle_main_thread import IdleMainThread
from tidegate.flows.runtime.journal import Position
from tidegate.flows.runtime.lifecycle import Lifecycle, cluster_size
from tidegate.flows.runtime.marking import Marking
from tidegate.flows.runtime.meeting import Meeting, restart_on_foreign_connection
from tidegate.flows.runtime.metrics import Telemetry
from tidegate.flows.runtime.shutdown import Drain, DrainedSource
from tidegate.flows.runtime.step_names import ResumedSource, StepNames
from tidegate.flows.runtime.tracing import open_spans
from tidegate.operators.billing.outgoing import pack
from tidegate.operators.events.routing import parse_shard_name
from tidegate.operators.model.catalog import VersionedCatalog
from tidegate.operators.model.ports import ControlLog, Note, StoreWriter
from tidegate.operators.model.records import Accepted
from tidegate.operators.model.wire import encode_accepted, encode_dead_letter
from tidegate.settings.addresses.alerts import Delivered, Routed
from tidegate.settings.addresses.sinks import ProviderAddress
from tidegate.settings.catalog.file import CatalogError
from tidegate.settings.catalog.last_applied import LastApplied
from tidegate.settings.catalog.meter_history import note_counted
from tidegate.settings.catalog.versions import CatalogFollower, FileWatch, apply_file
from tidegate.settings.logs import configure
from tidegate.settings.problems import SettingsError
from tidegate.settings.settings import Settings


def started(settings: Settings) -> Dataflow:
    """Open all that the flow needs, and return the flow."""
    configure(settings.log)
    drain, telemetry = Drain(), Telemetry()
    drain.install()
    process = recovery.process_id()
    processes = cluster_size()
    lifecycle = Lifecycle(drain, settings.data_dir, process, processes, settings.peer_timeout)
    lifecycle.install()
    meeting = Meeting(settings.data_dir, process, processes)
    restart_on_foreign_connection()
    ClockGuard().watch()
    telemetry.phase = lambda: lifecycle.phase
    # Before the store is opened, which may have to be waited for.
    if settings.metrics is not None:
        watch(settings, telemetry)
    # Before anything is made, so that a wrong catalog leaves nothing behind.
    catalogs = open_catalogs(settings)
    check_source(settings)
    if settings.recovery:
        recovery.prepare(settings.data_dir, settings.recovery_parts, settings.shards)
        recovery.hold(settings.data_dir)
        catalogs.save()
    telemetry.catalog_problem = lambda: catalogs.problems
    if settings.traces is not None:
        telemetry.span = open_spans(settings.traces, process)
    end_at_once()
    flow = build(settings, catalogs, drain, telemetry, meeting.leave)
    lifecycle.wait()
    # Without recovery there is no folder that they share.
    if settings.recovery:
        meeting.wait()
        lifecycle.connect()
    return flow


def check_source(settings: Settings) -> None:
    """Raise FileError where files of the source are missing, can't be read, or are written by the flow itself."""
    if settings.source.is_checked:
        settings.source.open_in_flow(offers_of(settings)).check()


def open_catalogs(settings: Settings) -> CatalogFollower:
    """Return the catalogs of the store, which is made if need be, with the settings' file applied.

    A wrong file leaves the last good version in force; CatalogError where there was none.
    """
    settings.store.make()
    log = settings.store.open_control()
    noted = settings.data_dir / "recovery" / "catalog.json"
    in_force = LastApplied(noted) if settings.recovery else None
    if in_force is not None:
        note_counted(log, in_force.noted.meters)
    wrong = None
    try:
        apply_file(log, settings.catalog)
    except CatalogError as error:
        wrong = error
    catalogs = CatalogFollower(log, in_force)
    if wrong is not None:
        if not catalogs.current.catalog.meters:
            raise wrong
        catalogs.file_problem = str(wrong)
        logging.getLogger("tidegate.catalog").error(
            "the catalog stays at version %d: %s", catalogs.current.number, wrong
        )
    return catalogs


def watch(settings: Settings, telemetry: Telemetry) -> int:
    """Serve metrics and health, report a stall as an alert in the store, and return the port used."""
    assert settings.metrics is not None
    host, port = settings.metrics
    process = recovery.process_id()

    def report(stalled: bool, behind: int) -> None:
        state = "raised" if stalled else "resolved"
        fields = {"kind": "stalled", "state": state, "process": process, "behind": behind}
        now = wall_clock()
        with closing(settings.store.open()) as store:
            store.write([], [], [Note("alert", f"stalled/{process}", "", now, msgspec.json.encode(fields))])

    watchdog = Watchdog(telemetry, settings.stall, report)
    return serve(telemetry, watchdog, host, port + int(process) if port and process.isdigit() else port)


def build(
    settings: Settings,
    catalogs: CatalogFollower,
    drain: Drain,
    telemetry: Telemetry,
    met: Callable[[], object] = lambda: None,
) -> Dataflow:
    """Build the flow for these settings, ready to run until its sources end or `drain` is asked.

    `met` is called when all processes of its cluster have connected.
    """
    branches = settings.branches
    # Decoded events are thousands of short-lived dicts without cycles, which the collector would visit for nothing.
    gc.set_threshold(200_000, 50, 50)

    metering = Dataflow("metering")
    offers = offers_of(settings, catalogs)
    source = settings.source.open_in_flow(offers)

    def begin() -> None:
        met()
        if settings.recovery:
            recovery.begin(settings.data_dir)

    steps = StepNames(settings.data_dir if settings.recovery else None)
    step = steps.name("source", settings.source.place)
    drained = DrainedSource(source, drain, telemetry, begin, Marking(settings.source.place))
    polls = op.input(step, metering, ResumedSource(drained, steps.partitions(step)))
    decoding = DecodeStep(settings, catalogs, telemetry)
    chunks = op.flat_map_batch("decode", polls, decoding.chunks)
    control = op.input(
        "control", metering, DrainedSource(_open_control_source(settings, catalogs, telemetry), drain)
    )
    inputs = op.merge("inputs", chunks, op.flat_map("direct", control, decoding.direct))
    idle_main_thread = IdleMainThread()
    idle_main_thread.install()
    storing = StoreStep(
        _writer_opener(settings),
        _writer_process_opener(settings),
        telemetry,
        live=settings.now == "wall",
        large=settings.store_aside,
        epoch=settings.epoch,
    )

    @log_errors
    def make_shard_logic(position: Position | None) -> ShardLogic:
        idle_main_thread.begin()
        return ShardLogic(settings, catalogs, telemetry, storing, position, recovery.process_id())

    emissions = op.stateful_batch("meter", inputs, make_shard_logic)
    if "store" in branches:
        storing.attach(emissions)
    if "alerts" in branches:
        for number, address in enumerate(settings.alerts, 1):
            alerts = op.flat_map(f"alert_{number}", emissions, partial(_select_alerts, address))
            before = sum(other.place == address.place for other in settings.alerts[: number - 1])
            place = f"{address.place}#{before + 1}" if before else address.place
            step = steps.name("alerts", place, first="alerts_1") if settings.recovery else f"alerts_{number}"
            op.output(step, alerts, log_sink_errors(address.open_in_flow(offers)))
    dead = op.flat_map(
        "dead", emissions, lambda keyed: _encode_lines(keyed[0], keyed[1].dead, encode_dead_letter)
    )
    step = steps.name("dead_letters", settings.dead_letters.place)
    op.output(step, dead, log_sink_errors(settings.dead_letters.open_in_flow(offers)))
    if "billing" in branches:
        step = steps.name("billing", settings.billing.place)
        _attach_billing(step, emissions, settings, offers, telemetry)
    return metering


def _attach_billing(
    step: str,
    emissions: KeyedStream[Emission],
    settings: Settings,
    offers: Mapping[str, Callable[[], Any]],
    telemetry: Telemetry,
) -> None:
    """Attach the branch of accepted events: line by line to files, in packs to a billing provider."""
    if not isinstance(settings.billing, ProviderAddress):
        lines = op.flat_map(
            "bill", emissions, lambda keyed: _encode_lines(keyed[0], keyed[1].accepted, encode_accepted)
        )
        op.output(step, lines, log_sink_errors(settings.billing.open_in_flow(offers)))
        return
    if settings.billing.rollup != "none" and not settings.recovery:
        # What is read again after a restart would be added to windows again, whose sums the provider cannot compare.
        raise SettingsError(
            ["TIDEGATE_BILLING: rollup needs TIDEGATE_RECOVERY, or a restart would bill usage twice"]
        )
    packs = op.flat_map(
        "bill", emissions, lambda keyed: _encode_lines(keyed[0], _without_empty(keyed[1].accepted), pack)
    )
    op.output(step, packs, log_sink_errors(settings.billing.open_in_flow(offers)))
    telemetry.outbox = partial(_read_queue_statistics, settings.billing.outbox_path(settings.data_dir))


def _read_queue_statistics(outbox: Path) -> QueueStatistics:
    with closing(OutboxReader(outbox)) as reader:
        return reader.read_statistics()


def _without_empty(accepted: list[Accepted]) -> list[list[Accepted]]:
    return [accepted] if accepted else []


def _open_control_source(
    settings: Settings, catalogs: CatalogFollower, telemetry: Telemetry
) -> ControlSource:
    watched = FileWatch(settings.catalog, problem=catalogs.file_problem)

    def look(log: ControlLog) -> VersionedCatalog:
        catalogs.file_problem = watched.look(log)
        return catalogs.follow()

    return ControlSource(
        settings.store.open_control,
        endless=settings.source.endless,
        catalog=catalogs.current,
        look=look,
        asking=telemetry.track_store_wait,
    )


@log_errors
def _encode_lines(key: str, records: list[Any], encode: Callable[[Any], bytes]) -> list[tuple[str, bytes]]:
    shard = str(parse_shard_name(key))
    return [(shard, encode(record)) for record in records]


def _writer_opener(settings: Settings) -> Callable[[int], StoreWriter]:
    """Return a function that opens the store for a worker, given its number."""
    store, folder = settings.store, settings.data_dir
    if not settings.recovery:
        return lambda worker: store.open_writer(resumed=False)
    # With a journal from before there are totals, which a store without any has lost.
    resumed = (folder / "journal").exists()
    return lambda worker: store.open_writer(resumed=resumed, numbers=folder / "store" / f"worker-{worker}")


def _writer_process_opener(settings: Settings) -> Callable[[], StoreWriter] | None:
    """Return a function that opens the store in a writer process; None if it is switched off or there is one core."""
    if "store" not in settings.branches or not settings.store_aside or _count_cores() == 1:
        return None
    opener = settings.store.writer_process_opener()
    return None if opener is None else lambda: AsideWriter(opener)


def _count_cores() -> int | None:
    """How many cores this process may run on, None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _own_files(settings: Settings) -> OwnFiles:
    """Return the files that the flow writes, so that it never reads them as input."""
    addresses = (settings.store, *settings.alerts, settings.dead_letters, settings.billing)
    return OwnFiles([path for address in addresses for path in address.written()], settings.data_dir)


def offers_of(settings: Settings, catalogs: CatalogFollower | None = None) -> dict[str, Callable[[], Any]]:
    """Return a function for each value that connectors may need of the flow; it is called when one needs it."""
    folder, recovered = settings.data_dir, settings.recovery
    return {
        "api_key": lambda: settings.dodo_api_key,
        "catalog": lambda: lambda: catalogs.current.catalog if catalogs else None,
        "data_dir": lambda: folder,
        # Without recovery nothing is ever replayed, and each start appends.
        "lineage": lambda: recovery.lineage(folder) if recovered else "",
        "open_store": lambda: settings.store.open,
        "own": lambda: _own_files(settings),
        "parts": lambda: settings.shards,
        "poll_bytes": lambda: settings.poll_bytes,
        "queue": lambda: folder / f"deliveries-{recovery.process_id()}.db",
        "secrets": lambda: settings.delivery_secrets,
        # What topics were like when the recovery store began, with which it lives and dies.
        "starts": lambda: folder / "recovery" / "kafka-starts.json" if recovered else None,
        "sync": lambda: settings.sync,
    }


@log_errors
def _select_alerts(address: Routed, keyed: tuple[str, Emission]) -> list[tuple[str, bytes]]:
    """Return the alerts that an address wants, keyed by shard, or by their ids where they are delivered one by one."""
    key, emission = keyed
    wanted = [
        (alert.id, line) for alert, line in emission.alerts if address.wants(alert.kind, alert.customer)
    ]
    if isinstance(address, Delivered):
        return wanted
    shard = str(parse_shard_name(key))
    return [(shard, line) for _, line in wanted]
