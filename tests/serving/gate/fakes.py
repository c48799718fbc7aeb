"""A store that does as it is told, and both gates behind one face."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.events.keys import compute_identity
from tidegate.operators.gate.decision import Decision, Receipt
from tidegate.operators.gate.holds import has_room
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import (
    Account,
    CatalogVersion,
    Closing,
    Hold,
    News,
    Reserved,
    Scope,
    StoreError,
    Used,
)
from tidegate.serving.gate import AsyncGate, Gate
from tidegate.settings.catalog.file import parse_catalog

METERS = """\
meters:
  - {name: calls, event_name: call, aggregation: {type: count}}
  - {name: tokens, event_name: llm, aggregation: {type: sum, key: n}}
"""
NOW = 1_700_000_000_000_000


def catalog_text(calls: str = "{cap: 10}", rest: str = "") -> str:
    """A catalog with one plan for everybody, of which this is the limit of `calls`."""
    return f"{METERS}default_plan: p\nplans:\n  p:\n    limits: {{calls: {calls}}}\n{rest}"


class Clock:
    """A wall clock and a monotonic one that go when they are told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> int:
        return NOW + round(self.seconds * 1e6)

    def monotonic(self) -> float:
        return self.seconds


class FakeFeed:
    """Tells what the store gives it; breaks when the store's feed is cut."""

    def __init__(self, store: "FakeHolds") -> None:
        self._store = store
        self._cut = store.cuts

    def wait(self, seconds: float) -> News:
        with self._store.changed:
            if not self._store.news and self._cut == self._store.cuts:
                self._store.changed.wait(seconds)
            if self._cut != self._store.cuts:
                raise StoreError("feed: is cut")
            told, self._store.news = frozenset(self._store.news), set()
        self._store.waits += 1
        return News(told, self._store.number)

    def close(self) -> None:
        pass


class FakeHolds:
    """Accounts in a dictionary. `act` is called before every operation: it may raise, or take its time."""

    def __init__(self, text: str | None = None, self_timed: bool = False) -> None:
        self.self_timed = self_timed
        self.number = 0
        self.text = ""
        if text is not None:
            self.apply(text)
        self.used: dict[str, dict[str, int]] = {}
        self.holds: dict[tuple[str, str], Hold] = {}
        self.next_expiry: int | None = None
        self.act: Callable[[], object] = lambda: None
        self.answer: Any = None
        self.calls: list[str] = []
        self.news: set[str] = set()
        self.changed = threading.Condition()
        self.cuts = 0
        self.waits = 0
        self.closed = False
        self.beats = [Heartbeat(0, 1, "0", NOW, NOW, {}, ended=True)]

    def apply(self, text: str) -> None:
        self.text, self.number = text, self.number + 1

    def use(self, customer: str, **used: int) -> None:
        """Usage is written, and told."""
        self.used.setdefault(customer, {}).update(used)
        self.tell(customer)

    def tell(self, customer: str) -> None:
        with self.changed:
            self.news.add(customer)
            self.changed.notify_all()

    def cut(self) -> None:
        """Breaks every feed that is open."""
        with self.changed:
            self.cuts += 1
            self.news = set()
            self.changed.notify_all()

    def account(self, customer: str, scope: Scope, now: int) -> Account:
        self._called("account")
        return self.answer if self.answer is not None else self._account(customer)

    def reserve(
        self, hold: Hold, ceilings: Mapping[str, int], scope: Scope, now: int, seen: int | None = None
    ) -> Reserved:
        self._called("reserve")
        before = self._account(hold.customer)
        if (hold.customer, hold.id) in self.holds:
            same = self.holds[hold.customer, hold.id].quantities == hold.quantities
            return Reserved("repeated" if same else "conflict", before)
        if self.answer is not None:
            return Reserved(self.answer, before)
        if not has_room(before, hold.quantities, ceilings):
            return Reserved("full", before)
        if seen not in (None, before.revision):
            return Reserved("moved", before)
        self.holds[hold.customer, hold.id] = hold
        return Reserved("held", self._account(hold.customer))

    def commit(
        self, customer: str, source: str, id: str, quantities: Mapping[str, int] | None, until: int, now: int
    ) -> Closing:
        self._called("commit")
        hold = self.holds.get((customer, id))
        return Closing("committed", hold.quantities) if hold else Closing("unknown", {})

    def release(self, customer: str, source: str, id: str, now: int) -> Closing:
        self._called("release")
        hold = self.holds.pop((customer, id), None)
        return Closing("released", hold.quantities) if hold else Closing("unknown", {})

    def catalog(self) -> CatalogVersion | None:
        self._called("catalog")
        if not self.number:
            return None
        return CatalogVersion(
            number=self.number, text=self.text, applied_at=0, origin="cli", by="me", note=""
        )

    def feed(self) -> FakeFeed:
        self._called("feed")
        return FakeFeed(self)

    def open_holds(self, customer: str, identities: Sequence[bytes], now: int) -> frozenset[bytes]:
        held = {compute_identity(*(hold.customer, hold.source, hold.id)) for hold in self.holds.values()}
        return frozenset(held & set(identities))

    def heartbeats(self) -> list[Heartbeat]:
        return self.beats

    def close(self) -> None:
        self.closed = True

    def _account(self, customer: str) -> Account:
        used = {m: Used(n * SCALE, NOW, NOW) for m, n in self.used.get(customer, {}).items()}
        held: dict[str, int] = {}
        for hold in self.holds.values():
            if hold.customer == customer:
                for meter, quantity in hold.quantities.items():
                    held[meter] = held.get(meter, 0) + quantity
        return Account(used, held, self.next_expiry, self.number, hash(repr((used, held))))

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.act()


class Face:
    """`Gate`, or `AsyncGate` on an event loop of its own, with the same methods."""

    def __init__(self, kind: type[Gate] | type[AsyncGate], *given: Any, **choices: Any) -> None:
        self.gate = kind(*given, **choices)
        self._runner = asyncio.Runner() if isinstance(self.gate, AsyncGate) else None

    def check(self, *given: Any, **more: Any) -> Decision:
        return self._done(self.gate.check(*given, **more))  # type: ignore[no-any-return]

    def check_many(self, *given: Any, **more: Any) -> Decision:
        return self._done(self.gate.check_many(*given, **more))  # type: ignore[no-any-return]

    def reserve(self, *given: Any, **more: Any) -> Decision:
        return self._done(self.gate.reserve(*given, **more))  # type: ignore[no-any-return]

    def commit(self, *given: Any, **more: Any) -> Receipt:
        return self._done(self.gate.commit(*given, **more))  # type: ignore[no-any-return]

    def release(self, *given: Any, **more: Any) -> Receipt:
        return self._done(self.gate.release(*given, **more))  # type: ignore[no-any-return]

    def close(self) -> None:
        self._done(self.gate.close())
        if self._runner:
            self._runner.close()

    def _done(self, outcome: Any) -> Any:
        return self._runner.run(outcome) if self._runner else outcome


def gate_on(
    store: FakeHolds, kind: type[Gate] | type[AsyncGate] = Gate, clocks: Clock | None = None, **choices: Any
) -> Face:
    """A gate that decides by itself alone when the store may be asked again."""
    times = {"clock": clocks.wall, "monotonic": clocks.monotonic} if clocks else {"clock": lambda: NOW}
    given = {"near": False, "timeout": timedelta(seconds=20), "chance": lambda: 0.0}
    if store.number == 0 and "catalog" not in choices:
        given["catalog"] = parse_catalog(catalog_text())
    return Face(kind, store, **(given | times | choices))
