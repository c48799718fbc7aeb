"""Ports: the types and protocols through which flows and readers use the outside world; connectors implement them."""

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
    """A store cannot be opened, written or read; the message says what to do."""


class StoreRefused(StoreError):
    """The store's servers refuse what is asked, and will again: what is set up, here or there, is wrong."""


class StoreReplaced(StoreError):
    """The open store is no longer the one that the address names.

    Nothing was done; opening the store again succeeds.
    """


class StoreIncomplete(StoreError):
    """The store lost totals and does not have all of them back yet, so its contents are incomplete."""


class IngestError(TidegateError):
    """Events cannot be put where the flow reads them at present; the message says what to do. Senders may retry."""


class StreamMark(msgspec.Struct, frozen=True):
    """What a source reports about one of its partitions (`stream`) besides payloads, for what may be forgotten.

    `state` is `open` if it has, or may have, more to bring; `idle` if it is read to its end; `ended` if nothing more
    comes; None reports no state. `at` is a time that the partition has reached (µs since the epoch, 0 if unknown);
    `parts` names all partitions of the source, if it is not empty.
    """

    stream: str
    state: Literal["open", "idle", "ended"] | None = None
    at: int = 0
    parts: tuple[str, ...] = ()


class Payloads(msgspec.Struct, frozen=True):
    """A source's poll: payloads one per line, and when they reached us (µs since the epoch).

    `transport_time` is when the transport took them, or None if it does not say (a file). If payloads differ in it,
    `times_of` returns it for the payloads at these bytes of the block, 0 if unknown. `origin` names partition and
    position for people, `stream` the partition. A poll may have a `mark` instead of payloads. Everything that the
    partition gave up to and including this poll lies before `position`.
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
        """Return when the transport took the payload that contains this byte of the block."""
        if self.times_of is None:
            return self.transport_time
        return int(self.times_of(np.array([byte]))[0]) or None


class StoredTotal(NamedTuple):
    """A total as read from a store: the record, and when it was written (µs since the epoch)."""

    total: Total
    written_at: int


class Changes(NamedTuple):
    """What a reader missed: the customers written since `after`, and the number to ask from next time.

    `complete` is False if the feed no longer reaches back to `after`: the reader must then read everything again.
    """

    seq: int
    customers: frozenset[str]
    complete: bool


class Note(NamedTuple):
    """A record to be looked up later: an alert, a finding of drift, a delivery. `body` is one JSON object.

    `kind` and `id` identify it; a later note of the same kind and id replaces it if its `at` (µs since the epoch) is
    not older. An empty `body` removes it: readers do not return it, and an older note does not bring it back.
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

    `quantity`, a signed decimal, is added to the windows of `customer` and `meter` that contain `at` (µs since the
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
    """A request that the flow republish every total, for a store that lost some. `id` identifies the request."""

    id: str


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True, tag="acknowledgement"):
    """An operator's decision that drift is known and accepted: of one finding, or of a cause of a meter.

    One finding is a `customer`, a `meter` and the `start` of the period (µs since the epoch). A `cause` is of a
    `meter`, for all customers if `customer` is empty. `up_to` is the accepted amount, as decimal text with the sign of
    the drift; None for any. `at` is when (µs), `by` who, `reason` why. A later one of the same finding or cause
    replaces it; `is_withdrawn` ends it.
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
    """A control record that this program cannot read, as a newer version or a person wrote it; `why` says more."""

    why: str


class Control(NamedTuple):
    """A record of the flow's control input.

    `position` orders records, and readers continue from it; "" is the start.
    """

    position: str
    record: ControlRecord | Unread


class ControlConflict(TidegateError):
    """A control record with this id requests something else; nothing was added."""

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
    """Another version was applied in the meantime; `current` is its number."""

    def __init__(self, current: int) -> None:
        self.current = current
        super().__init__(f"catalog: is at version {current} by now; look at what changed and apply again")


class Held(NamedTuple):
    """What a customer's open holds hold per meter (×10²⁴), right until `next_expiry` (µs, None without open holds)."""

    quantities: Mapping[str, int]
    next_expiry: int | None


NOTHING_HELD: Final = Held({}, None)


class StoreWriter(Protocol):
    """Writes absolute totals, each only if its version is newer, so that a replay has no effect.

    The end of a window moves without a new version: of the same version and total, one with another end is written. One
    call is one transaction. Holds whose identity is in `settled` end in it. `heartbeats` are stored in it or right
    after it, never before; the last one written of a shard counts.
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
        """Return a customer's totals at one moment: all, or all periods and the hours and days after `since` (µs)."""
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
        """Return the newest notes of a kind, newest first."""
        ...

    def changes(self, after: int) -> Changes: ...
    def heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of each shard; none if no flow has reported."""
        ...

    def close(self) -> None: ...


class ControlLog(Protocol):
    """The flow's control input and the catalog's versions, in the store; from any process, durable on return."""

    def append(self, record: ControlRecord) -> str:
        """Add a record and return its position. A repeated record is not added again.

        Raises:
            ControlConflict: a record of this id requests something else (operators/model/adjustments.py,
                `is_same_request`).
        """
        ...

    def generation(self) -> str:
        """Return the identity of this log; a log that is lost and started again has another one."""
        ...

    def at(self, position: str) -> Control | None:
        """Return the record at exactly this position, None if there is none."""
        ...

    def resend(self, *, anew: bool = False) -> str:
        """Request that the flow republish every total, and return the request's id.

        An open request is joined, unless `anew`. Every shard answers by a note (operators/metering/republish.py). Until
        then, a store that knows that it lost totals raises StoreIncomplete to its readers.
        """
        ...

    def after(self, position: str, limit: int = 1000) -> list[Control]: ...
    def memo(self, name: str) -> bytes | None:
        """Return what was last stored under a name, None if nothing was."""
        ...

    def keep(self, name: str, body: bytes) -> None:
        """Store a few bytes under a name with the log, replacing the previous ones, for `memo` from any process."""
        ...

    def catalog(self, number: int | None = None) -> CatalogVersion | None:
        """Return the version of this number, or the newest; None if there is none."""
        ...

    def catalog_number(self) -> int:
        """Return the newest version's number, 0 before the first. Cheap enough for a hundred calls per second."""
        ...

    def catalogs(self, limit: int = 50) -> list[CatalogVersion]:
        """Return the newest versions, newest first."""
        ...

    def apply(
        self, text: str, *, origin: str, by: str, note: str = "", expected: int | None = None
    ) -> CatalogVersion:
        """Make `text`, a validated catalog, the next version and return it.

        Raises:
            CatalogConflict: `expected` is not the number of the newest version.
        """
        ...

    def close(self) -> None: ...


class Place(NamedTuple):
    """Where the flow reads an event: in partition `stream`, before `position`, as in heartbeats."""

    stream: str
    position: int


class Ingest(Protocol):
    """Where the HTTP service puts payloads for the flow to read."""

    async def put(self, payloads: Sequence[bytes], customers: Sequence[str]) -> list[Place]:
        """Store payloads, one per customer in `customers`, and return the place of each once all are durable.

        A payload is one line of JSON, an event. After an error some may have been stored: sending them again is
        harmless.

        Raises:
            IngestError: the payloads may not be durable.
        """
        ...

    async def close(self) -> None: ...


class Used(NamedTuple):
    """A stored total as a decision needs it: the quantity times 10²⁴, its `as_of` and `written_at` (µs)."""

    total: int
    as_of: int
    written_at: int


class Scope(NamedTuple):
    """What a decision needs of a customer: the totals of these meters for the period that begins at `start` (µs)."""

    meters: tuple[str, ...]
    start: int


class Account(NamedTuple):
    """What decisions about one customer are based on, all of one moment.

    `used` has the meters that have a total in the scope. `held` is the quantity of open holds per meter (×10²⁴),
    whatever their period, without settled, released and expired ones; it is valid until `next_expiry` (µs, None without
    open holds). `catalog` is the number of the newest catalog version, 0 without one. `revision` changes whenever
    `used` or `held` do.
    """

    used: Mapping[str, Used]
    held: Mapping[str, int]
    next_expiry: int | None
    catalog: int
    revision: int


class Hold(NamedTuple):
    """Quantities (×10²⁴, 0 or more) per meter that are reserved for one event until it arrives, or until `until` (µs).

    Customer, source and id are the event's own; `keys.compute_identity` of them is the identity in `Settled`.
    """

    customer: str
    source: str
    id: str
    quantities: Mapping[str, int]
    until: int


class Reserved(NamedTuple):
    """The result of a reserve, and the account after it.

    - `held`: it is held now.
    - `repeated`: it was held or committed already, with the same quantities; nothing changed.
    - `settled`: its event has arrived already; nothing is held.
    - `conflict`: it is held or committed with other quantities, which stand.
    - `full`: there is not enough room; nothing is held.
    - `moved`: the account has changed since it was read; nothing is held.
    """

    outcome: Literal["held", "repeated", "settled", "conflict", "full", "moved"]
    account: Account


class Closing(NamedTuple):
    """The result of committing or releasing a hold.

    `committed`: it counts, with the quantities committed, until its event arrives or it expires. `released`, `settled`:
    it no longer counts. `unknown`: no such hold is remembered. `conflict`: it was committed before with other
    quantities, or the meters are not those held; nothing changed. `reserved` are the quantities as requested, empty if
    unknown. `expired` says that a commit came after the expiry: the quantities are held again.
    """

    state: Literal["committed", "released", "settled", "unknown", "conflict"]
    reserved: Mapping[str, int]
    expired: bool = False


class News(NamedTuple):
    """The customers whose accounts changed since the previous call, None for all; and the newest catalog's number."""

    customers: frozenset[str] | None
    catalog: int


class Feed(Protocol):
    """A store's push channel for near caches, used by one thread. Raises StoreError when it is broken.

    It reports each change of an account that was read after the feed was opened, and each catalog version. Expiry of
    holds is not reported, because accounts carry it.
    """

    def wait(self, seconds: float) -> News:
        """Wait for news and return it; return after about `seconds` at the latest, possibly without news.

        Before it returns it has verified, by a round trip begun within this call, that the channel works and that
        everything committed before the call began has been reported, now or by an earlier call.
        """
        ...

    def close(self) -> None: ...


class Holds(Protocol):
    """The gate's access to a store: accounts and holds, from any thread and process. Creating one does no I/O.

    It is created with `read_wait` and `write_wait`, how long (timedelta) reading an account, or any other call, may
    take. Every failure raises StoreError, and the next call tries again, reconnecting if necessary. A hold ends in the
    transaction in which its event's totals are written (`Settled`). An ended hold is remembered for an hour past its
    expiry, so that late retries change nothing. `now` is in µs since the epoch.
    """

    self_timed: bool
    """True if each call returns or raises within its wait, whatever happens; otherwise the gate enforces the wait."""

    def account(self, customer: str, scope: Scope, now: int) -> Account:
        """Return the customer's account, in one round trip."""
        ...

    def reserve(
        self, hold: Hold, ceilings: Mapping[str, int], scope: Scope, now: int, seen: int | None = None
    ) -> Reserved:
        """Hold the quantities if, for each meter in `ceilings` (×10²⁴), used + held + requested stays within it.

        With `seen`, hold them only if the account's revision is still this one. Atomic. An expired or released hold of
        the same identity has no effect.
        """
        ...

    def commit(
        self, customer: str, source: str, id: str, quantities: Mapping[str, int] | None, until: int, now: int
    ) -> Closing:
        """Make the quantities final, and keep the hold until `until` at least.

        None commits what was reserved; the key "" stands for the only meter of the hold. They may exceed what was
        reserved. The first commit counts.
        """
        ...

    def release(self, customer: str, source: str, id: str, now: int) -> Closing:
        """End a hold that was not committed."""
        ...

    def open_holds(self, customer: str, identities: Sequence[bytes], now: int) -> frozenset[bytes]:
        """Return those of these event identities (`keys.compute_identity`) that an open hold counts."""
        ...

    def catalog(self) -> CatalogVersion | None:
        """Return the newest catalog version, None if there is none."""
        ...

    def heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of each shard; none if no flow has reported."""
        ...

    def feed(self) -> Feed: ...
    def close(self) -> None: ...
