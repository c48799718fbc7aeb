"""What the service knows without being asked: the newest catalog, and who changed, as it happens.

A thread follows the store's feed and the catalog's number. Streams wait for a customer here: each has a mark and not
a queue, so a slow reader costs nothing and gets the newest state when it comes back.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Final

from tidegate.operators.model.catalog import NO_CATALOG, VersionedCatalog
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.ports import ControlLog, StoreError, StoreReader
from tidegate.settings.catalog.versions import CatalogFollower

LOOK_EVERY: Final = 0.02
AGAIN_AFTER: Final = 0.5
SILENT_S: Final = 2.0
"""A store that answers nothing for so long is away, also while its connector still tries."""
EVERYBODY: Final = ""

_log = logging.getLogger("tidegate.service")


class Waiter:
    """One stream's mark: set when its customer changed, or anybody for `EVERYBODY`."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()


class Live:
    """Follows one store. `start` and everything but the thread's own work belong to one event loop."""

    def __init__(
        self, open_reader: Callable[[], StoreReader], open_control: Callable[[], ControlLog]
    ) -> None:
        self._open_reader, self._open_control = open_reader, open_control
        self._stop = Event()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[str, set[Waiter]] = defaultdict(set)
        self.version = NO_CATALOG
        self.seq = 0
        self.problem = "the store has not been opened yet"
        self.catalog_problem = ""
        """Why the newest version is not gone by; empty where it is."""
        self.looked_at = float("-inf")
        """When the store last answered, by the monotonic clock."""
        self.first = asyncio.Event()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run, name="tidegate-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.changed.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def trouble(self, now: float) -> str:
        """Return why the store cannot be followed at monotonic time `now`; empty where it can."""
        silent = now - self.looked_at
        if self.problem or silent <= SILENT_S:
            return self.problem
        return f"the store has not answered for {silent:.0f} s"

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(5)

    def add(self, customer: str) -> Waiter:
        """Watch for changes of this customer from now on, until `remove`."""
        waiter = Waiter()
        self._waiters[customer].add(waiter)
        return waiter

    def remove(self, customer: str, waiter: Waiter) -> None:
        self._waiters[customer].discard(waiter)
        if not self._waiters[customer]:
            del self._waiters[customer]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except TidegateError as error:
                if str(error) != self.problem:
                    _log.warning("the store cannot be followed: %s", error)
                self.problem = str(error)
                self._stop.wait(AGAIN_AFTER)

    def _follow(self) -> None:
        control = self._open_control()
        try:
            reader = self._open_reader()
            try:
                self._look_on(reader, CatalogFollower(control))
            finally:
                with suppress(StoreError):
                    reader.close()
        finally:
            with suppress(StoreError):
                control.close()

    def _look_on(self, reader: StoreReader, catalogs: CatalogFollower) -> None:
        seq = reader.changes(self.seq).seq
        self.looked_at = time.monotonic()
        self._tell(None, catalogs, seq)
        while not self._stop.wait(LOOK_EVERY):
            changes = reader.changes(seq)
            self.looked_at = time.monotonic()
            number = catalogs.follow().number
            if changes.seq != seq or (number, catalogs.problem) != (
                self.version.number,
                self.catalog_problem,
            ):
                seq = changes.seq
                self._tell(changes.customers if changes.complete else None, catalogs, seq)

    def _tell(self, customers: frozenset[str] | None, catalogs: CatalogFollower, seq: int) -> None:
        """Pass the customers that changed to the event loop; None is everybody."""
        catalog = catalogs.current
        if catalog.number != self.version.number:
            customers = None
        loop = self._loop
        assert loop is not None
        with suppress(RuntimeError):
            # The loop may have ended by now.
            loop.call_soon_threadsafe(self._take, customers, catalog, seq, catalogs.problem)

    def _take(
        self, customers: frozenset[str] | None, catalog: VersionedCatalog, seq: int, problem: str
    ) -> None:
        self.version, self.seq, self.problem = catalog, seq, ""
        self.catalog_problem = problem
        self.first.set()
        whose = self._waiters.keys() if customers is None else customers & self._waiters.keys()
        for customer in {*whose, EVERYBODY}:
            for waiter in self._waiters.get(customer, ()):
                waiter.changed.set()
