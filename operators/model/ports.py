"""What the flow and its readers ask of the outside world; every connector fills one of these shapes."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.records import Counter, Total

Ints = NDArray[np.int64]


class StoreError(TidegateError):
    """A store cannot be opened, written or read; says what to do."""


class StoreRefused(StoreError):
    """The store's servers refuse what is asked, and will again: what is set up, here or there, is wrong."""


class StoreReplaced(StoreError):
    """What is open is not what the address names any more: nothing was done, and opening it again will do."""


class StoreIncomplete(StoreError):
    """The store lost totals, and does not have all of them back yet: what it holds is not all there is."""


class IngestError(TidegateError):
    """Events cannot be put where the flow reads them, as of now; says what to do. Whoever sent them may send again."""


class StreamMark(msgspec.Struct, frozen=True):
    """What a source says of one of its partitions (`stream`) besides payloads, for what may be forgotten.

    `state` is `open` where it has, or may have, more to bring; `idle` where it is read to its end; `ended` where
    nothing more comes; None says nothing of it. `at` is a time that it has come to (µs since the epoch, 0 if unknown);
    `parts` names all partitions of the source, if it is not empty.
    """

    stream: str
    state: Literal["open", "idle", "ended"] | None = None
    at: int = 0
    parts: tuple[str, ...] = ()


class Payloads(msgspec.Struct, frozen=True):
    """A source's poll: payloads one per line (`\\n`), and when they reached us (µs since the epoch).

    `transport_time` is when the transport took them, or None where it does not say (a file). Where payloads differ in
    it, `times_of` gives it for the payloads at these bytes of the block, 0 where there is none. `origin` names
    partition and position, for people, `stream` the partition. A poll may hold a `mark` instead of payloads.
    All that the partition gave up to and with this poll lies before `position`.
    """

    block: bytes
    received_at: int
    transport_time: int | None
    origin: str
    times_of: Callable[[Ints], Ints] | None = None
    stream: str = ""
    mark: StreamMark | None = None
    position: int = 0

    def time_of(self, byte: int) -> int | None:
        """Return when the transport took the payload that holds this byte of the block."""
        if self.times_of is None:
            return self.transport_time
        return int(self.times_of(np.array([byte]))[0]) or None


class StoredTotal(NamedTuple):
    """A total as a store gives it back: the record, and when it was written (µs since the epoch)."""

    total: Total
    written_at: int


class Changes(NamedTuple):
    """What a reader missed: the customers written since `after`, and the number to ask from next time.

    `complete` is False where the feed no longer reaches back to `after`: read everything anew.
    """

    seq: int
    customers: frozenset[str]
    complete: bool


class Note(NamedTuple):
    """Something to be looked up later: an alert, a finding of drift, a delivery. `body` is one JSON object.

    `kind` and `id` name it; a later one of the same name replaces it if its `at` (µs since the epoch) is not older.
    An empty `body` takes it off the list: readers do not return it, and an older one does not bring it back.
    """

    kind: str
    id: str
    customer: str
    at: int
    body: bytes


class Settled(NamedTuple):
    """Identities of accepted events, as the two words of their digests (operators/events/keys.py), in columns.

    Their totals are in the same write. A hold of the same identity has become usage, and ends with it.
    """

    lo: NDArray[np.uint64]
    hi: NDArray[np.uint64]


class Adjustment(msgspec.Struct, frozen=True, kw_only=True, tag="adjustment"):
    """A change of a total that no event made, by an operator or by reconciliation; applied once per `id`.

    `quantity`, a signed decimal, is added to the windows of `customer` and `meter` that hold `at` (µs since the
    epoch). `by` says who, `reason` why.
    """

    id: str
    customer: str
    meter: str
    at: int
    quantity: str
    reason: str
    by: str


class Resend(msgspec.Struct, frozen=True, kw_only=True, tag="resend"):
    """Asks the flow to write every total again, into a store that lost some. `id` names the request."""

    id: str


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True, tag="acknowledgement"):
    """An operator's decision that drift is known and accepted: of one finding, or of a cause of a meter.

    One finding is a `customer`, a `meter` and the `start` of the period (µs since the epoch). A `cause` is of a
    `meter`, of all customers where `customer` is empty. `up_to` is the amount that is accepted, as decimal text with
    the sign of the drift; None for any. `at` is when (µs), `by` who, `reason` why. A later one of the same finding or
    cause replaces it; `is_withdrawn` ends it.
    """

    id: str
    customer: str
    meter: str
    start: int | None = None
    cause: str = ""
    up_to: str | None = None
    reason: str
    by: str
    at: int
    is_withdrawn: bool = False


ControlRecord = Adjustment | Resend | Acknowledgement


class Unread(NamedTuple):
    """A control record that this program can't read, as a newer one wrote it or a hand changed it; `why` in words."""

    why: str


class Control(NamedTuple):
    """A record of the flow's control input. `position` orders them and is what a reader asks on from; "" is before."""

    position: str
    record: ControlRecord | Unread


class ControlConflict(TidegateError):
    """A control record of this id asks for something else; nothing was added."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"id {id!r}: was used before for another customer, meter, time or quantity, which stands; choose another id"
        )


class CatalogVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A catalog as it was applied: its YAML text, its number (1 is the first), when, by whom and why."""

    number: int
    text: str
    applied_at: int
    origin: Literal["file", "cli", "api", "platform"]
    by: str
    note: str


class CatalogConflict(TidegateError):
    """Another version was applied meanwhile; `current` is its number."""

    def __init__(self, current: int) -> None:
        self.current = current
        super().__init__(f"catalog: is at version {current} by now; look at what changed and apply again")


class Held(NamedTuple):
    """What a customer's open holds hold per meter (×10²⁴), right until `next_expiry` (µs, None without open holds)."""

    quantities: Mapping[str, int]
    next_expiry: int | None


NOTHING_HELD: Final = Held({}, None)


class StoreWriter(Protocol):
    """Takes absolute totals; writes a total only if its version is newer, so a replay is a no-op.

    A boundary moves without a new version: of the same version and total, one with another end is written.
    One call is one transaction. Holds whose identity is in `settled` end in it. `heartbeats` are stored in it or right
    after it, never before; of a shard the last one written stands.
    """

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None: ...
    def close(self) -> None: ...


class StoreReader(Protocol):
    """Reads what was written, from any process, while the flow writes."""

    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        """Read a customer's totals, of one moment: all, or all periods and the hours and days after `since` (µs)."""
        ...

    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]: ...
    def read_held(self, now: int, customers: Collection[str] | None = None) -> dict[str, Held]:
        """Return what is held at `now` (µs) by customer, of these or of all; who has no open hold is left out.

        It equals `held` and `next_expiry` of `Holds.account`. `changes` names a customer whose holds changed; that a
        hold has expired it does not.
        """
        ...

    def counters(self) -> Iterable[Counter]: ...
    def notes(self, kind: str, customer: str | None = None, limit: int = 100) -> list[Note]:
        """The newest notes of a kind, the newest first."""
        ...

    def changes(self, after: int) -> Changes: ...
    def heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of each shard; none where no flow has reported."""
        ...

    def close(self) -> None: ...


class ControlLog(Protocol):
    """The flow's control input, and the catalog's versions, in the store; from any process, durable on return."""

    def append(self, record: ControlRecord) -> str:
        """Add a record and return its position. The same record again is not added again.

        Raises:
            ControlConflict: a record of this id asks for something else (operators/model/adjustments.py, `is_same`).
        """
        ...

    def generation(self) -> str:
        """Return what names this log and no other; a log that is lost and begun again has another one."""
        ...

    def at(self, position: str) -> Control | None:
        """Return the record at this very position, None where there is none."""
        ...

    def resend(self, *, anew: bool = False) -> str:
        """Asks the flow to write every total again, or joins who has asked already, unless `anew`; the Resend's id.

        Every shard answers by a note (operators/metering/republish.py). A store that can tell that it lost totals
        keeps its readers away from where they are missing until then, by StoreIncomplete.
        """
        ...

    def after(self, position: str, limit: int = 1000) -> list[Control]: ...
    def memo(self, name: str) -> bytes | None:
        """Return what was last kept under a name, None where nothing was."""
        ...

    def keep(self, name: str, body: bytes) -> None:
        """Keep a few bytes with the log, in the place of what was there, for `memo` from any process."""
        ...

    def catalog(self, number: int | None = None) -> CatalogVersion | None:
        """The version of this number, or the newest; None where there is none."""
        ...

    def catalog_number(self) -> int:
        """The newest version's number, 0 before the first. Cheap enough to ask a hundred times a second."""
        ...

    def catalogs(self, limit: int = 50) -> list[CatalogVersion]:
        """The newest versions, the newest first."""
        ...

    def apply(
        self, text: str, *, origin: str, by: str, note: str = "", expected: int | None = None
    ) -> CatalogVersion:
        """Makes `text`, a validated catalog, the next version; CatalogConflict where `expected` is not the newest."""
        ...

    def close(self) -> None: ...


class Place(NamedTuple):
    """Where the flow reads an event: in partition `stream`, before `position`, as its heartbeats say it."""

    stream: str
    position: int


class Ingest(Protocol):
    """Where the HTTP service puts payloads for the flow to read."""

    async def put(self, payloads: Sequence[bytes], customers: Sequence[str]) -> list[Place]:
        """Return the place of each when all are durable, a payload per customer; IngestError where they may not be.

        A payload is one line of JSON, an event. After an error some may be there all the same: sending again is
        harmless.
        """
        ...

    async def close(self) -> None: ...


class Used(NamedTuple):
    """A stored total as a decision needs it: the quantity times 10²⁴, its `as_of` and `written_at` (µs)."""

    total: int
    as_of: int
    written_at: int


class Scope(NamedTuple):
    """What is asked of a customer: the totals of these meters for the period that begins at `start` (µs)."""

    meters: tuple[str, ...]
    start: int


class Account(NamedTuple):
    """What decisions about one customer rest on, all of one moment.

    `used` has the meters that have a total in the scope. `held` is what open holds hold per meter (×10²⁴), whatever
    their period; settled, released and expired ones are left out, and it stays right until `next_expiry` (µs, None
    without open holds). `catalog` is the number of the newest catalog version, 0 without one. `revision` differs
    whenever `used` or `held` do.
    """

    used: Mapping[str, Used]
    held: Mapping[str, int]
    next_expiry: int | None
    catalog: int
    revision: int


class Hold(NamedTuple):
    """Quantities (×10²⁴, 0 or more) per meter that are kept for one event until it comes, or until `until` (µs).

    Customer, source and id are the event's own; `keys.identity` of them is what `Settled` names.
    """

    customer: str
    source: str
    id: str
    quantities: Mapping[str, int]
    until: int


class Reserved(NamedTuple):
    """How a reserve ended, and the account after it.

    - `held`: it is held now.
    - `repeated`: it was held or committed already, with the same quantities; nothing changed.
    - `settled`: its event has come already; nothing is held.
    - `conflict`: it is held or committed with other quantities, which stand.
    - `full`: there is not enough room; nothing is held.
    - `moved`: the account is no longer the one that was seen; nothing is held.
    """

    outcome: Literal["held", "repeated", "settled", "conflict", "full", "moved"]
    account: Account


class Closing(NamedTuple):
    """What became of a hold that is committed or released.

    `committed`: it counts, with the quantities committed, until its event comes or it expires. `released`,
    `settled`: it no longer counts. `unknown`: no such hold is remembered. `conflict`: it was committed before with
    other quantities, or the meters are not those held; nothing changed. `reserved` are the quantities as they were
    asked for, empty where unknown. `expired` says that a commit came after the expiry: it is held anew.
    """

    state: Literal["committed", "released", "settled", "unknown", "conflict"]
    reserved: Mapping[str, int]
    expired: bool = False


class News(NamedTuple):
    """Whose accounts changed since the call before, None for everybody's; and the newest catalog's number."""

    customers: frozenset[str] | None
    catalog: int


class Feed(Protocol):
    """A store's push channel for near caches; one thread has it. Raises StoreError when it is broken.

    It tells of each change of an account that was read after the feed was opened, and of each catalog version.
    Expiry of holds is not told: accounts say it themselves.
    """

    def wait(self, seconds: float) -> News:
        """Returns as soon as there is news, and after about `seconds` at the latest; it may be none.

        Before it returns it has made sure, by a round trip begun within this very call, that the channel works
        and that all that was committed before the call began has been told, now or by an earlier call.
        """
        ...

    def close(self) -> None: ...


class Holds(Protocol):
    """The gate's end of a store: accounts and holds, from any thread and process. Making one does no I/O.

    It is made with `read_wait` and `write_wait`, how long (timedelta) an account, or anything else, may take.
    Whatever fails raises StoreError, and the next call tries anew, connecting again if need be. What a hold counts
    in ends in the same transaction in which its event's totals are written (`Settled`). An ended hold is remembered
    for an hour past its expiry, so that late retries change nothing. `now` is in µs since the epoch.
    """

    self_timed: bool
    """True where each call returns or raises within its wait, whatever happens; else the gate sees to that."""

    def account(self, customer: str, scope: Scope, now: int) -> Account:
        """One round trip."""
        ...

    def reserve(
        self, hold: Hold, ceilings: Mapping[str, int], scope: Scope, now: int, seen: int | None = None
    ) -> Reserved:
        """Holds if, for each meter in `ceilings` (×10²⁴), used + held + asked for is no more than its ceiling.

        With `seen`, only if the account's revision still is this one. Atomic. An expired or released hold of the
        same identity is as if it had never been.
        """
        ...

    def commit(
        self, customer: str, source: str, id: str, quantities: Mapping[str, int] | None, until: int, now: int
    ) -> Closing:
        """Makes the quantities final, and keeps the hold until `until` at least.

        None commits what was reserved; the key "" stands for the only meter of the hold. They may be more than was
        reserved. The first commit stands.
        """
        ...

    def release(self, customer: str, source: str, id: str, now: int) -> Closing:
        """Ends a hold that was not committed."""
        ...

    def open_holds(self, customer: str, identities: Sequence[bytes], now: int) -> frozenset[bytes]:
        """Return those of these event identities (`keys.identity`) that an open hold counts."""
        ...

    def catalog(self) -> CatalogVersion | None:
        """The newest catalog version, None where there is none."""
        ...

    def heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of each shard; none where no flow has reported."""
        ...

    def feed(self) -> Feed: ...
    def close(self) -> None: ...
