"""`Gate` and `AsyncGate`: the same gate for threads and for event loops."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from tidegate.connectors.clock import wall_clock
from tidegate.operators.gate.decision import Decision, Receipt
from tidegate.operators.gate.holds import ONLY_METER
from tidegate.operators.model.catalog import Catalog, Fail
from tidegate.operators.model.ports import Holds
from tidegate.serving.gate.arguments import Quantity, asked_of, final_of
from tidegate.serving.gate.core import HOLD_MAX, Call, Clocks, Core, Terms
from tidegate.serving.gate.freshness import FlowState
from tidegate.serving.gate.pending import PendingEvent
from tidegate.settings.catalog.file import load_catalog
from tidegate.settings.settings import load_settings

T = TypeVar("T")
Final = Quantity | Mapping[str, Quantity] | None

TIMEOUT = timedelta(milliseconds=50)
WRITE_TIMEOUT = timedelta(seconds=1)
STALENESS = timedelta(milliseconds=100)
SETTLE_WITHIN = timedelta(hours=1)
EXPIRES_IN = timedelta(minutes=5)
OPEN_WITHIN = timedelta(seconds=5)


class _Gate:
    """What both gates share: how they are made, and what they tell of themselves."""

    def __init__(
        self,
        store: Holds,
        catalog: Catalog | None = None,
        *,
        near: bool = True,
        timeout: timedelta = TIMEOUT,
        write_timeout: timedelta = WRITE_TIMEOUT,
        staleness: timedelta = STALENESS,
        settle_within: timedelta = SETTLE_WITHIN,
        source: str = "",
        fail: Fail = "closed",
        unknown_meters: bool = False,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Return a gate on a store's holds; `catalog` is what it decides by while the store has no version.

        `near` answers checks from memory while the store's feed proves that to be at most `staleness` old. A check
        takes `timeout` at most, everything else `write_timeout`. A commit keeps its hold for `settle_within`, which
        is how long the flow may be behind. `source` is what events carry where a call names none, and `fail` decides
        while no catalog is known. A meter that the catalog does not have raises UnknownMeter, as no cap could apply to
        it; with `unknown_meters` it is allowed, with that reason.
        """
        if not timedelta(0) < settle_within <= HOLD_MAX:
            raise ValueError(
                f"settle_within: needs more than 0, at most {HOLD_MAX.days} days, got {settle_within}"
            )
        for name, length in (
            ("timeout", timeout),
            ("write_timeout", write_timeout),
            ("staleness", staleness),
        ):
            if length <= timedelta(0):
                raise ValueError(f"{name}: needs more than 0, got {length}")
        terms = Terms(near, timeout, write_timeout, staleness, settle_within, source, fail, unknown_meters)
        self._core = Core(store, catalog, terms, Clocks(clock, monotonic, chance))
        self._direct = store.self_timed

    @classmethod
    def open(
        cls,
        store: str | None = None,
        *,
        timeout: timedelta = TIMEOUT,
        write_timeout: timedelta = WRITE_TIMEOUT,
        open_within: timedelta = OPEN_WITHIN,
        **choices: Any,
    ) -> Self:
        """Open a gate on the store of this address, else of TIDEGATE_STORE, with `choices` as of the class.

        While the store has no catalog, the file of TIDEGATE_CATALOG counts, if it is there. Waits `open_within` at most
        for the store's catalog, so that the first decision knows it; where it is not there by then, the gate's own
        `fail` decides. SettingsError or CatalogError where settings or that file are wrong.
        """
        given = {"source": "file:-"} | ({"store": store} if store is not None else {})
        settings = load_settings(given)
        catalog = load_catalog(settings.catalog) if Path(settings.catalog).exists() else None
        holds = settings.store.open_holds(read_wait=timeout, write_wait=write_timeout)
        choices = {"catalog": catalog} | choices
        gate = cls(holds, timeout=timeout, write_timeout=write_timeout, **choices)
        gate._core.warm(open_within)
        return gate

    def accepted(self, customer: str, identity: bytes, event: PendingEvent) -> None:
        """Count an event that this process put where the flow reads, until totals contain it.

        `identity` is `keys.identity` of the event. Checks and reservations of this gate count it at once.
        """
        self._core.accepted(customer, identity, event)

    def follow(self) -> None:
        """Begin to follow the store at once, and not with the first call; `flow_state` and `lag` need it."""
        self._core.follow()

    def flow_state(self, max_lag: timedelta) -> FlowState:
        """Return how the flow is doing, where totals may be `max_lag` old, as this gate last saw it."""
        return self._core.freshness.state(self._core.now(), max_lag // timedelta(microseconds=1))

    def lag(self, customer: str) -> int | None:
        """Return how old the customer's totals may be (µs), None where the flow has not said."""
        return self._core.freshness.lag(customer, self._core.now())

    def counters(self) -> dict[str, int]:
        """Return the counts of decisions since the start, by name.

        `allowed`, `denied`, `denied_in_shadow`; of these `near` from memory, `stale` on totals that are too old;
        `degraded`, without the store; `faults` of store or gate that are to be fixed; `feed_lost`.
        """
        return self._core.tally.counts()


class Gate(_Gate):
    """Asks whether requests may pass. For threads; safe to share between them, not across a fork.

        with Gate.open("sqlite:data/tidegate.db") as gate:
            if gate.check("acme", "api_calls").allowed: ...

    No method raises because of the store: decisions say that they are `degraded`. ValueError is for arguments that
    cannot be.
    """

    def check(self, customer: str, meter: str, quantity: Quantity = 1) -> Decision:
        """Whether so much more of the meter may be used now. Nothing is held: who is slow may be overtaken."""
        return self.check_many(customer, {meter: quantity})

    def check_many(self, customer: str, quantities: Mapping[str, Quantity]) -> Decision:
        """Check several meters at once: allowed if all are; the answer names the most restrictive cap."""
        asked = asked_of(customer, quantities)
        found = self._core.recall(customer, asked)
        return found if found is not None else self._made(self._core.look(customer, asked))

    def reserve(
        self,
        customer: str,
        meter: str,
        quantity: Quantity,
        expires_in: timedelta = EXPIRES_IN,
        *,
        id: str,
        source: str | None = None,
    ) -> Decision:
        """Hold the quantity, if it may be used: no other decision will grant it again.

        It counts until the event of this customer, source and id arrives through the flow, until it is released, or
        for `expires_in`. A retry with the same id and quantity gets the same answer and holds nothing more.
        """
        return self.reserve_many(customer, {meter: quantity}, expires_in, id=id, source=source)

    def reserve_many(
        self,
        customer: str,
        quantities: Mapping[str, Quantity],
        expires_in: timedelta = EXPIRES_IN,
        *,
        id: str,
        source: str | None = None,
    ) -> Decision:
        """Reserve for several meters that one event feeds: all are held, or none."""
        asked = asked_of(customer, quantities)
        return self._made(self._core.reserve(customer, asked, expires_in, id, source))

    def commit(self, customer: str, id: str, quantity: Final = None, *, source: str | None = None) -> Receipt:
        """Says what was used of a hold, before or after its event is sent; None is all of it.

        The hold is changed to that and goes on counting until the event arrives. A mapping is by meter.
        """
        return self._made(self._core.commit(customer, id, final_of(quantity, ONLY_METER), source))

    def release(self, customer: str, id: str, *, source: str | None = None) -> Receipt:
        """Give back what is held, as nothing was used; a committed hold stays."""
        return self._made(self._core.release(customer, id, source))

    def close(self) -> None:
        """End its threads and close its connections."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _made(self, call: Call[T]) -> T:
        refusal = self._core.refusal(call)
        if refusal is not None:
            return refusal
        begun = self._core.now()
        try:
            if self._direct:
                return self._core.ended(call, call.run())
            future = call.side.lane.submit(call.run)
            try:
                return self._core.ended(call, future.result(call.side.timeout))
            finally:
                future.cancel()
        except Exception as error:
            return self._core.failed(call, error, begun)


class AsyncGate(_Gate):
    """The same for an event loop: what the near cache has is answered at once, the rest is awaited on threads."""

    async def check(self, customer: str, meter: str, quantity: Quantity = 1) -> Decision:
        """As `Gate.check`."""
        return await self.check_many(customer, {meter: quantity})

    async def check_many(self, customer: str, quantities: Mapping[str, Quantity]) -> Decision:
        """As `Gate.check_many`."""
        asked = asked_of(customer, quantities)
        found = self._core.recall(customer, asked)
        return found if found is not None else await self._made(self._core.look(customer, asked))

    async def reserve(
        self,
        customer: str,
        meter: str,
        quantity: Quantity,
        expires_in: timedelta = EXPIRES_IN,
        *,
        id: str,
        source: str | None = None,
    ) -> Decision:
        """As `Gate.reserve`."""
        return await self.reserve_many(customer, {meter: quantity}, expires_in, id=id, source=source)

    async def reserve_many(
        self,
        customer: str,
        quantities: Mapping[str, Quantity],
        expires_in: timedelta = EXPIRES_IN,
        *,
        id: str,
        source: str | None = None,
    ) -> Decision:
        """As `Gate.reserve_many`."""
        asked = asked_of(customer, quantities)
        return await self._made(self._core.reserve(customer, asked, expires_in, id, source))

    async def commit(
        self, customer: str, id: str, quantity: Final = None, *, source: str | None = None
    ) -> Receipt:
        """As `Gate.commit`."""
        return await self._made(self._core.commit(customer, id, final_of(quantity, ONLY_METER), source))

    async def release(self, customer: str, id: str, *, source: str | None = None) -> Receipt:
        """As `Gate.release`."""
        return await self._made(self._core.release(customer, id, source))

    async def close(self) -> None:
        """As `Gate.close`."""
        await asyncio.to_thread(self._core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _made(self, call: Call[T]) -> T:
        refusal = self._core.refusal(call)
        if refusal is not None:
            return refusal
        begun = self._core.now()
        try:
            future = asyncio.wrap_future(call.side.lane.submit(call.run))
            return self._core.ended(call, await asyncio.wait_for(future, call.side.timeout))
        except Exception as error:
            return self._core.failed(call, error, begun)
