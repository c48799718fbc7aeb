"""What the routes work with: one of each, made once, closed at the end."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.reconciliation.acknowledgements import AcknowledgementReader
from tidegate.connectors.sqlite.api_keys import KeyFile
from tidegate.operators.model.ports import ControlLog, Ingest, StoreReader
from tidegate.serving.gate import AsyncGate, UnknownMeter
from tidegate.serving.http.access import Access
from tidegate.serving.http.connection.stream_slots import Places
from tidegate.serving.http.metrics import Metrics
from tidegate.serving.http.problems import Problem
from tidegate.serving.http.readers.flow_monitor import FlowMonitor
from tidegate.serving.http.readers.intake import Judge, Verdict
from tidegate.serving.http.readers.overview_cache import SharedBoard
from tidegate.serving.http.readers.store_executor import Desk
from tidegate.serving.http.readers.store_follower import Live
from tidegate.serving.http.readers.uncounted import take_up
from tidegate.settings.addresses.ingest import IngestLog
from tidegate.settings.catalog.file import CatalogError
from tidegate.settings.catalog.versions import apply_file
from tidegate.settings.serving import ServingSettings

STORE_WITHIN_S = 2.0
FOLLOWED_WITHIN_S = 0.5
TAKEN_UP_WITHIN_S = 5.0

_log = logging.getLogger("tidegate.service")


@dataclass
class Service:
    """One service over one store. Opening it reads and makes files; nothing runs before `start`."""

    settings: ServingSettings
    clock: Callable[[], int] = wall_clock
    monotonic: Callable[[], float] = time.monotonic
    keys: KeyFile | None = None
    openapi: bytes = b""
    access: Access = field(init=False)
    places: Places = field(init=False)
    reader: Desk[StoreReader] = field(init=False)
    control: Desk[ControlLog] = field(init=False)
    # For the control log's thread alone.
    acknowledged: AcknowledgementReader = field(default_factory=AcknowledgementReader)
    gate: AsyncGate = field(init=False)
    flow: FlowMonitor = field(init=False)
    live: Live = field(init=False)
    board: SharedBoard = field(init=False)
    judge: Judge = field(init=False)
    judge_of_many: Judge = field(init=False)
    metrics: Metrics = field(init=False)
    ingest: Ingest = field(init=False)
    _refused_file: tuple[str, int] = ("", 0)
    """Why the catalog's file was not applied, and the newest version then."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings, store = self.settings, self.settings.store
        if self.keys is None and settings.auth == "keys":
            self.keys = KeyFile(settings.keys, clock=self.clock)
            self.keys.open_signing()
        self.access = Access(self.keys, settings.rate_per_key, settings.rate_per_customer_key, self.monotonic)
        self.places = Places(settings.streams_max, settings.streams_per_key, settings.streams_per_customer)
        self.reader = Desk("reader", store.open_reader)
        self.control = Desk("control", self._open_control)
        self.live = Live(store.open_reader, self._open_control)
        times = settings.check_timeout, settings.write_timeout
        holds = store.open_holds(read_wait=times[0], write_wait=times[1])
        self.gate = AsyncGate(
            holds, timeout=times[0], write_timeout=times[1], clock=self.clock, monotonic=self.monotonic
        )
        self.board = SharedBoard(settings, self.live, self.clock, self.monotonic, self.gate.counters)
        self.judge, self.judge_of_many = Judge(settings, self.clock), Judge(settings, self.clock)
        self.metrics = Metrics()
        self.flow = FlowMonitor(lambda: self.gate, settings.max_lag, store.open, self.clock)

    def check(self) -> None:
        """Make the store and open the log of events; raise TidegateError or OSError where one is set up wrong."""
        self.settings.store.make()
        self.settings.store.check()
        self.ingest = self.settings.ingest.open()

    async def start(self) -> None:
        """Open the store and the log of events, if `check` did not, and begin to follow the store.

        It waits a moment for the store, so that the first request finds a catalog, but not longer.
        """
        if not hasattr(self, "ingest"):
            self.check()
        self.live.start()
        # Not only with the first check, as probes ask how the flow is doing.
        self.gate.follow()
        taking_up = asyncio.create_task(self._take_up())
        self._tasks.append(taking_up)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.live.first.wait(), STORE_WITHIN_S)
            await self.followed(self.live.version.number)
            # Goes on where it takes longer.
            await asyncio.wait_for(asyncio.shield(taking_up), TAKEN_UP_WITHIN_S)
        self._tasks.append(asyncio.create_task(self.flow.run()))

    async def _take_up(self) -> None:
        """Count what was taken before this start and the flow has not counted, once the store says what it has."""
        if not isinstance(self.settings.ingest, IngestLog):
            return
        folder = Path(self.settings.ingest.path)
        await self.live.first.wait()
        while True:
            try:
                heartbeats = await self.reader.ask(lambda reader: reader.heartbeats())
                break
            except Problem:
                await asyncio.sleep(STORE_WITHIN_S)

        def judge(payloads: Sequence[bytes]) -> list[Verdict]:
            return self.judge_of_many.verdicts(payloads, self.live.version)

        await asyncio.to_thread(take_up, folder, heartbeats, judge, self.gate.accepted)

    async def followed(self, number: int) -> None:
        """Wait until this process decides by this version of the catalog, so that its author sees it at once.

        Not for long: other processes follow by themselves, and so would this one.
        """
        deadline = self.monotonic() + FOLLOWED_WITHIN_S
        while self.monotonic() < deadline:
            if self.live.version.number >= number and await self._gate_version() >= number:
                return
            await asyncio.sleep(0.002)

    async def _gate_version(self) -> int:
        """Return the version of the catalog that the gate decides by."""
        try:
            return (await self.gate.check("-", "-", 0)).catalog
        except UnknownMeter as error:
            return error.catalog

    def catalog_problem(self) -> str:
        """Return why the catalog's file, or the newest version, is not in force; empty where they are."""
        problem, newest = self._refused_file
        refused = problem if self.live.version.number <= newest else ""
        return "; ".join(filter(None, (refused, self.live.catalog_problem)))

    def is_stale(self, customer: str) -> bool:
        """Whether this customer's totals are older than TIDEGATE_MAX_LAG."""
        lag = self.gate.lag(customer)
        return lag is None or lag > self.settings.max_lag // timedelta(microseconds=1)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.live.stop()
        await self.ingest.close()
        await self.gate.close()
        self.board.close()
        self.reader.close()
        self.control.close()
        self.live.join()
        if self.keys is not None:
            self.keys.close()

    def _open_control(self) -> Any:
        """Open the control log, and apply the catalog's file as the flow does, if there is one."""
        log = self.settings.store.open_control()
        self._refused_file = "", 0
        try:
            if self.settings.catalog.exists():
                apply_file(log, self.settings.catalog)
        except CatalogError as error:
            # As in the flow, the last good version stays in force.
            self._refused_file = str(error), log.catalog_number()
            _log.error("the catalog stays as it is: %s", error)
        return log
