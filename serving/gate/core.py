"""The gate without its shells: what is asked of the store, and what is answered when it does not.

Every operation is a `Call`: `run` does the work, blocking; `blind` is the answer without the store. How a call is
run, directly, on a thread or awaited, is all that the sync and the async gate differ in.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from threading import Lock
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from tidegate.operators.columns.quantity import to_decimal
from tidegate.operators.gate.customer_limits import Asked, CatalogLimits, CustomerLimits
from tidegate.operators.gate.decision import AccountView, Decision, Receipt, decide_blind, decide_stale
from tidegate.operators.gate.holds import find_final_quantities
from tidegate.operators.model.aggregates import LEVELS
from tidegate.operators.model.catalog import Catalog, Fail
from tidegate.operators.model.ports import Account, Closing, Hold, Holds, Reserved, StoreError, Used
from tidegate.serving.gate.arguments import UnknownMeter, check_identity
from tidegate.serving.gate.breaker import Breaker
from tidegate.serving.gate.cache_follower import Watch
from tidegate.serving.gate.call_threads import Lane
from tidegate.serving.gate.catalog_source import GateCatalog
from tidegate.serving.gate.freshness import READ_EVERY, Freshness, describe
from tidegate.serving.gate.near_cache import Near
from tidegate.serving.gate.pending import Pending, PendingEvent
from tidegate.serving.gate.tally import Tally

T = TypeVar("T")

HOLD_MAX: Final = timedelta(days=7)
THREADS: Final = 4
# How many in a row one check follows; more is no catalog, but a store that lies.
CATALOGS_MAX: Final = 5
KNOWN_MAX: Final = 10_000
# The part of its time that a failure takes to count as one that others would wait for.
SLOW: Final = 0.25
# Seconds; twice what the thread that follows the feed takes, so that a call reads heartbeats only where none runs.
FOLLOWED_EVERY: Final = 2 * READ_EVERY
# No account has this revision, and no catalog this number.
UNSEEN: Final = -1
ANY: Final = -2


class Terms(NamedTuple):
    """How a gate behaves; `Gate` says what each means."""

    near: bool
    timeout: timedelta
    write_timeout: timedelta
    staleness: timedelta
    settle_within: timedelta
    source: str
    fail: Fail
    unknown_meters: bool


class Clocks(NamedTuple):
    """The wall clock in µs since the epoch, a monotonic one in seconds, and chance from 0 to 1."""

    wall: Callable[[], int]
    monotonic: Callable[[], float]
    chance: Callable[[], float]


class Side(NamedTuple):
    """Reading or writing: its time limit in seconds, its breaker and its threads."""

    timeout: float
    breaker: Breaker
    lane: Lane


class _Known(NamedTuple):
    """What a catalog says of a customer, and the period that it was asked in."""

    bounds: CatalogLimits
    own: CustomerLimits
    start: int
    end: int


class _Turn:
    """Calls that reserve under one id: the lock of the one whose turn it is, and how many want it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.wanted = 0


class Call(NamedTuple, Generic[T]):
    """One operation on the store."""

    run: Callable[[], T]
    blind: Callable[[str], T]
    side: Side


class Core:
    """A gate's state and logic. Nothing is connected and no thread runs until the first call."""

    def __init__(self, store: Holds, catalog: Catalog | None, terms: Terms, clocks: Clocks) -> None:
        self.store = store
        self.terms = terms
        self.tally = Tally(clocks.monotonic)
        self._clocks = clocks
        self._near = Near(terms.staleness.total_seconds())
        self._catalogs = GateCatalog(store, catalog, lambda: self._near.drop(None))
        self.freshness = Freshness(clocks.wall)
        self._pending = Pending()
        self._watch = Watch(
            store, self._near, self._catalogs, self.freshness, self._pending, self.tally, clocks.monotonic
        )
        self._reading = Side(
            terms.timeout.total_seconds(), Breaker(clocks.chance), Lane("tidegate-read", THREADS)
        )
        self._writing = Side(
            terms.write_timeout.total_seconds(), Breaker(clocks.chance), Lane("tidegate-write", THREADS)
        )
        self._known: dict[str, _Known] = {}
        self._turns: dict[tuple[str, str, str], _Turn] = {}
        self._lock = Lock()
        self._process = 0
        self._closed = False

    # What the shells do with calls.

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clocks.monotonic()

    def refusal(self, call: Call[T]) -> T | None:
        """Return the answer if the store is not to be asked, else None."""
        if self._process != os.getpid():
            self._start()
        if call.side.breaker.lets(self.now()):
            return None
        return self._degraded(call, "the store failed several times in a row and is left alone for a moment")

    def failed(self, call: Call[T], error: Exception, begun: float) -> T:
        """Return the answer for a call begun at `begun` that ended so.

        A failure that comes at once keeps nobody waiting, and may be of one customer's totals alone: it is no reason
        to leave the store alone.
        """
        if isinstance(error, UnknownMeter):
            raise error
        now = self.now()
        if now - begun >= call.side.timeout * SLOW:
            call.side.breaker.failed(now)
        if isinstance(error, TimeoutError):
            return self._degraded(call, f"the store did not answer within {call.side.timeout:g} s")
        if not isinstance(error, StoreError):
            self.tally.fault(error)
        return self._degraded(call, str(error) or type(error).__name__)

    def ended(self, call: Call[T], result: T) -> T:
        """Return the answer for a call that the store answered."""
        call.side.breaker.succeeded()
        self.tally.recovered()
        return self._counted(result)

    def warm(self, within: timedelta) -> None:
        """Wait for the store's catalog, so long at most."""
        self._catalogs.follow(ANY, within.total_seconds())

    def follow(self) -> None:
        """Begin to follow the store, as the first call would."""
        if self._process != os.getpid():
            self._start()

    def close(self) -> None:
        with self._lock:
            self._closed, self._process = True, 0
        self._watch.stop()
        self._reading.lane.close()
        self._writing.lane.close()
        self.store.close()

    # The operations.

    def recall(self, customer: str, asked: Asked) -> Decision | None:
        """Return the decision, if the near cache has all that it takes."""
        view = None if customer in self._pending else self._near.get(customer, self.now())
        if view is None or not view.start <= self._clocks.wall() < view.until:
            return None
        return self._counted(self._flagged(view.decide(asked), view.own, asked), "near")

    def look(self, customer: str, asked: Asked) -> Call[Decision]:
        """Return the decision by what the store has now."""
        customer.encode()

        def run() -> Decision:
            view = self._view(customer)
            return self._flagged(view.decide(asked), view.own, asked)

        return Call(run, lambda detail: self._decide_blind(customer, asked, detail), self._reading)

    def reserve(
        self, customer: str, asked: Asked, expires_in: timedelta, id: str, source: str | None
    ) -> Call[Decision]:
        """Return the decision, with the quantities held if it is to allow."""
        source = self._source_of(customer, source, id)
        if not timedelta(0) < expires_in <= HOLD_MAX:
            raise ValueError(
                f"expires_in: needs more than 0 and at most {HOLD_MAX.days} days, got {expires_in}"
            )
        until = self._clocks.wall() + _micros(expires_in)
        hold = Hold(customer, source, id, asked, until)
        deadline = self.now() + self._writing.timeout
        return Call(
            lambda: self._reserve_fresh(hold, deadline),
            lambda detail: self._decide_blind(customer, asked, detail),
            self._writing,
        )

    def commit(
        self, customer: str, id: str, quantities: Mapping[str, int] | None, source: str | None
    ) -> Call[Receipt]:
        """Make a hold's quantities final."""
        source = self._source_of(customer, source, id)

        def run() -> Receipt:
            now = self._clocks.wall()
            until = now + _micros(self.terms.settle_within)
            closing = self.store.commit(customer, source, id, quantities, until, now)
            return self._receipt(customer, id, closing, quantities)

        return Call(run, lambda detail: _unavailable(customer, id, detail), self._writing)

    def release(self, customer: str, id: str, source: str | None) -> Call[Receipt]:
        """End a hold."""
        source = self._source_of(customer, source, id)

        def run() -> Receipt:
            closing = self.store.release(customer, source, id, self._clocks.wall())
            return self._receipt(customer, id, closing, None)

        return Call(run, lambda detail: _unavailable(customer, id, detail), self._writing)

    # How they are done.

    def _source_of(self, customer: str, source: str | None, id: str) -> str:
        source = self.terms.source if source is None else source
        check_identity(customer, source, id)
        return source

    def _view(self, customer: str) -> AccountView:
        """Return the customer's view as of now, also in the near cache."""
        for _ in range(CATALOGS_MAX):
            ticket = self._near.ticket()
            now = self._clocks.wall()
            pending = customer in self._pending
            self.freshness.follow(self.store, self.now(), 0 if pending else FOLLOWED_EVERY)
            bounds, own, start, end = self._terms_of(customer, now)
            account = self.store.account(customer, own.build_scope(start), now)
            if self._is_current(bounds, account):
                if pending:
                    # Heartbeats were read before the account, so what they do not contain it may, but not the reverse.
                    more = self._pending_of(own, start, end, now)
                    return AccountView(
                        own, account._replace(used=_used_with(account.used, more, now)), start, end
                    )
                view = AccountView(own, account, start, end)
                if self.terms.near:
                    self._near.put(customer, view, ticket)
                return view
        raise StoreError("the catalog changes faster than it can be followed")

    def _reserve_fresh(self, hold: Hold, deadline: float) -> Decision:
        """Reserve, unless totals are too old for a cap that then denies: it holds nothing."""
        self.freshness.follow(self.store, self.now(), FOLLOWED_EVERY)
        _, own, _, _ = self._terms_of(hold.customer, self._clocks.wall())
        if not own.kinds.keys() >= hold.quantities.keys():
            # Perhaps only this process does not know the newest catalog yet.
            own = self._view(hold.customer).own
            self._check_known(own, hold.quantities)
        outdated = own.list_outdated(hold.quantities, self.freshness.lag(hold.customer, self.now()))
        if any(fail == "closed" for _, fail in outdated):
            view = self._view(hold.customer)
            return self._flagged(view.decide(hold.quantities), view.own, hold.quantities)
        with self._turn(hold, deadline):
            return self._flagged(self._reserved(hold, deadline), own, hold.quantities)

    @contextmanager
    def _turn(self, hold: Hold, deadline: float) -> Iterator[None]:
        """Let one call at a time reserve under an id.

        A call that lost its answer is made again while the first may still run. What the first takes back, as the
        catalog changed under it, the second must not have been told of.
        """
        key = hold.customer, hold.source, hold.id
        with self._lock:
            turn = self._turns.setdefault(key, _Turn())
            turn.wanted += 1
        try:
            if not turn.lock.acquire(timeout=max(deadline - self.now(), 0)):
                raise StoreError("an earlier call with this id is still under way")
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            with self._lock:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._turns[key]

    def _reserved(self, hold: Hold, deadline: float) -> Decision:
        seen: int | None = None
        while True:
            now = self._clocks.wall()
            bounds, own, start, end = self._terms_of(hold.customer, now)
            if seen is None and own.may_spend_cap_deny():
                # Money depends on all meters, so first it has to be seen what they are at.
                seen = UNSEEN
            ceilings = self._ceilings_of(own, hold.quantities, start, end, now)
            reserved = self.store.reserve(hold, ceilings, own.build_scope(start), now, seen)
            if reserved.outcome == "held":
                self._near.drop((hold.customer,))
            if not self._is_current(bounds, reserved.account):
                if reserved.outcome == "held":
                    if self.now() > deadline:
                        # Whoever asked was answered, and may have asked again and been told that it is held.
                        raise StoreError("the catalog changed while it was reserved")
                    # Under another catalog it might not have been.
                    self.store.release(hold.customer, hold.source, hold.id, now)
            elif reserved.outcome != "moved":
                return _decided(AccountView(own, reserved.account, start, end), reserved, hold.quantities)
            else:
                decision = AccountView(own, reserved.account, start, end).decide(hold.quantities)
                if not decision.allowed:
                    return decision
                seen = reserved.account.revision
            if self.now() > deadline:
                raise StoreError("too many others reserve for this customer at the same time")

    def _ceilings_of(
        self, own: CustomerLimits, quantities: Mapping[str, int], start: int, end: int, now: int
    ) -> Mapping[str, int]:
        """Return up to where each meter may go, less the customer's pending events of this period."""
        ceilings = own.compute_ceilings(quantities)
        if own.customer not in self._pending:
            return ceilings
        more = self._pending_of(own, start, end, now)
        return {meter: ceiling - more.get(meter, 0) for meter, ceiling in ceilings.items()}

    def accepted(self, customer: str, identity: bytes, event: PendingEvent) -> None:
        """Count an event that this process made durable until totals contain it."""
        self._pending.add(customer, identity, event)

    def _pending_of(self, own: CustomerLimits, start: int, end: int, now: int) -> dict[str, int]:
        """Return what the customer's pending events of this period add per meter, without those that a hold counts."""
        events, merged = self._pending.of(own.customer, self.freshness.positions(own.customer))
        of_period = {identity: event for identity, event in events.items() if start <= event.at < end}
        held = self.store.open_holds(own.customer, list(of_period), now) if of_period else frozenset()
        counted = [event for identity, event in of_period.items() if identity not in held]
        if merged is not None and start <= merged.at < end:
            counted.append(merged)
        more: dict[str, int] = {}
        for event in counted:
            more = _added(more, event.quantities)
        return {meter: quantity for meter, quantity in more.items() if own.kinds.get(meter) not in LEVELS}

    def _terms_of(self, customer: str, now: int) -> _Known:
        """Return the customer's terms now; worked out once per catalog and period."""
        bounds = self._bounds()
        known = self._known.get(customer)
        if known is None or known.bounds is not bounds or not known.start <= now < known.end:
            own = bounds.find(customer)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            known = self._known[customer] = _Known(bounds, own, *own.find_period(now))
        return known

    def _bounds(self) -> CatalogLimits:
        if self._catalogs.bounds is None:
            self._catalogs.follow(ANY, self._reading.timeout / 2)
        bounds = self._catalogs.bounds
        if bounds is None:
            raise StoreError(self._catalogs.problem or "the catalog is still being read")
        return bounds

    def _is_current(self, bounds: CatalogLimits, account: Account) -> bool:
        """Whether the account was read under the catalog that decisions go by; else that is another one now.

        A version that cannot be read in time, or not at all, leaves the one before it in force.
        """
        if account.catalog != bounds.number or self._catalogs.problem:
            self._catalogs.follow(account.catalog, self._reading.timeout / 2)
        return self._catalogs.bounds is bounds

    def _decide_blind(self, customer: str, asked: Asked, detail: str) -> Decision:
        bounds = self._catalogs.bounds
        own = bounds.find(customer) if bounds else None
        return decide_blind(own, customer, asked, self.terms.fail, detail)

    def _receipt(
        self, customer: str, id: str, closing: Closing, quantities: Mapping[str, int] | None
    ) -> Receipt:
        self._near.drop((customer,))
        exceeded: dict[str, Decimal] = {}
        if closing.state == "committed" and quantities is not None:
            final = find_final_quantities(closing.reserved, quantities) or {}
            over = {meter: quantity - closing.reserved[meter] for meter, quantity in final.items()}
            exceeded = {meter: to_decimal(quantity) for meter, quantity in over.items() if quantity > 0}
        return Receipt(
            customer=customer, id=id, state=closing.state, exceeded=exceeded, expired=closing.expired
        )

    def _flagged(self, decision: Decision, own: CustomerLimits, asked: Asked) -> Decision:
        """Return the decision with its lag, and with what is wrong: totals too old, or a catalog that can't be read."""
        self._check_known(own, asked)
        lag = self.freshness.lag(own.customer, self.now())
        outdated = own.list_outdated(asked, lag) if own.may_be_outdated(lag) else []
        if outdated:
            self.tally.add("stale")
            decision = decide_stale(decision, outdated, lag, describe(lag))
        else:
            decision = msgspec.structs.replace(decision, lag=lag)
        problem = self._catalogs.problem
        return msgspec.structs.replace(decision, degraded=True, detail=problem) if problem else decision

    def _check_known(self, own: CustomerLimits, asked: Asked) -> None:
        """Raise UnknownMeter for a meter that the catalog does not have, unless those are asked for."""
        if self.terms.unknown_meters:
            return
        for meter in asked:
            if meter not in own.kinds:
                raise UnknownMeter(meter, own.kinds, own.number)

    def _degraded(self, call: Call[T], detail: str) -> T:
        self.tally.degraded(detail)
        return self._counted(call.blind(detail))

    def _counted(self, result: T, *also: str) -> T:
        if isinstance(result, Decision):
            shadow = ("denied_in_shadow",) if result.denied_in_shadow else ()
            self.tally.add("allowed" if result.allowed else "denied", *shadow, *also)
        return result

    def _start(self) -> None:
        """Start to watch, at the first call; a gate that was used before a fork must not be used after it."""
        with self._lock:
            if self._closed:
                raise RuntimeError("gate: is closed; open another one")
            if self._process == os.getpid():
                return
            if self._process:
                raise RuntimeError("gate: was used before this process forked; open one in each process")
            self._process = os.getpid()
        if self.terms.near:
            self._watch.start()


def _used_with(used: Mapping[str, Used], more: Mapping[str, int], now: int) -> dict[str, Used]:
    """Return what is used when `more` is added, as of now where there was nothing."""
    added = dict(used)
    for meter, quantity in more.items():
        stored = used.get(meter)
        added[meter] = stored._replace(total=stored.total + quantity) if stored else Used(quantity, now, now)
    return added


def _added(base: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Return the sum of both, meter by meter."""
    added = dict(base)
    for meter, quantity in more.items():
        added[meter] = added.get(meter, 0) + quantity
    return added


def _decided(view: AccountView, reserved: Reserved, asked: Asked) -> Decision:
    match reserved.outcome:
        case "held":
            return view.decide_reserved(asked)
        case "repeated":
            return view.decide_known(asked, "held")
        case "settled" | "conflict" as why:
            return view.decide_known(asked, why)
    decision = view.decide(asked)
    if decision.allowed:
        raise StoreError("the store finds no room where there is some")
    return decision


def _unavailable(customer: str, id: str, detail: str) -> Receipt:
    return Receipt(customer=customer, id=id, state="unavailable", degraded=True, detail=detail)


def _micros(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
