"""A shard's state as frames: what changed since the last delta, and a shard built up from them again.

Two kinds of streams. `state` holds customers, keys, totals, alert states and counters; a frame that is `whole` replaces
all before it. `ids-…` hold remembered identities in order of acceptance, only ever appended to, so that what was
accepted earlier costs a snapshot nothing; the newest state frame names those that count, the open one last.

State of earlier versions is read too: a stream per event hour, `ids-HOUR-SERIAL`, without a customer per identity.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.alerts import Held
from tidegate.operators.metering.catalog_change import Before
from tidegate.operators.metering.dedup import Memory
from tidegate.operators.metering.shard_state import Left, ShardState
from tidegate.operators.metering.sorted_runs import NOBODY, Rows, joined
from tidegate.operators.metering.stream_times import Stream, Streams
from tidegate.operators.metering.unmetered_rows import SavedRow
from tidegate.operators.metering.windows import UNSAVED, Adjusted, normalize
from tidegate.operators.model.adjustments import Known
from tidegate.operators.model.catalog import Meter
from tidegate.operators.model.records import Window


class Frame(NamedTuple):
    """A piece of a shard's state: its stream, its bytes, and whether it replaces the stream so far."""

    stream: str
    body: bytes
    whole: bool


class _Rows(msgspec.Struct):
    """Rows of a table: key words and columns as they lie in memory."""

    keys: list[memoryview]
    columns: dict[str, memoryview]


class _State(msgspec.Struct):
    """One frame of the stream `state`."""

    meters: list[tuple[str, str, str, str | None]]
    names: list[str]
    clock_rows: bytes
    clocks: bytes
    key_customer: bytes
    key_meter: bytes
    key_versions: list[str]
    key_version: bytes
    buckets: _Rows
    periods: _Rows
    values: dict[Window, _Rows]
    states: dict[int, Held]
    counts: dict[str, int]
    streams: list[str] | dict[int, str]
    serial: int
    latest: int
    adjusted: dict[int, tuple[int, str]] = {}
    # What the state depends on, and what time it is in it; a frame of a version before has none of it.
    lateness: int | None = None
    wall: bool = False
    store: str = ""
    floor: int = 0
    floors: bytes = b""
    partitions: dict[str, Stream] = {}
    stream_clocks: _Rows | None = None
    unmetered: list[SavedRow] = []
    adjustments: list[Known] = []
    zones: list[str] = []
    zone: bytes = b""
    let_go: _Rows | None = None


_NO_ROWS = _Rows([memoryview(b"")] * 2, {name: memoryview(b"") for name in ("mark", "seen", "customer")})
_STATE = msgspec.msgpack.Decoder(_State)
_IDS = msgspec.msgpack.Decoder(_Rows)


def delta(shard: ShardState) -> list[Frame]:
    """Frames of what changed since the last delta; the shard then counts as saved."""
    saved = shard.saved
    frames = [Frame(stream, _encoded(rows), False) for stream, rows in shard.memory.appended()]
    whole = saved.whole = saved.whole or shard.streams.whole
    if whole:
        saved.names = saved.keys = 0
        saved.values = {}
    roster = shard.roster
    keys = slice(saved.keys, roster.key_customer.size)
    versions = [roster.rules[number].version for number in roster.key_rules.values[keys].tolist()]
    distinct = list(dict.fromkeys(versions))
    place = {version: i for i, version in enumerate(distinct)}
    clocks = np.arange(len(roster.names)) if whole else _distinct(saved.clocks)
    moved = list(shard.watch.words) if whole else list(shard.watch.moved)
    remembered = shard.adjustments
    state = _State(
        meters=[(meter.name, meter.event_name, meter.kind, meter.key) for meter in roster.meters],
        names=roster.names[saved.names :],
        clock_rows=clocks.tobytes(),
        clocks=roster.clock.values[clocks].tobytes(),
        key_customer=roster.key_customer.values[keys].tobytes(),
        key_meter=roster.key_meter.values[keys].tobytes(),
        key_versions=distinct,
        key_version=np.array([place[version] for version in versions], np.int64).tobytes(),
        buckets=_changed(shard.buckets, whole),
        periods=_changed(shard.periods, whole),
        values={
            name: _rows(t, np.arange(saved.values.get(name, 0), len(t))) for name, t in shard.values.items()
        },
        states={word: shard.watch.held(word) for word in moved},
        counts=shard.counts,
        streams=shard.memory.streams,
        serial=shard.memory.serial,
        latest=shard.latest,
        adjusted={word: (known.times, str(known.amount)) for word, known in shard.adjusted.items()},
        lateness=shard.lateness,
        wall=shard.streams.wall,
        store=shard.store,
        floor=shard.floor,
        floors=roster.floor.values[clocks].tobytes(),
        partitions=shard.streams.known,
        stream_clocks=_stream_clocks(shard.streams, whole),
        unmetered=shard.unmetered.saved(whole=whole),
        adjustments=list(remembered.known.values()) if whole else remembered.unsaved,
        zones=roster.zone_names if saved.names < len(roster.names) else [],
        zone=roster.zone[saved.names :].tobytes(),
        # It only grows when windows are let go of, which makes the next frame a whole one.
        let_go=_rows(shard.let_go, np.arange(len(shard.let_go))) if whole else None,
    )
    frames.append(Frame("state", msgspec.msgpack.encode(state), whole))
    saved.whole = False
    saved.names, saved.keys = len(roster.names), roster.key_customer.size
    saved.values = {name: len(table) for name, table in shard.values.items()}
    saved.clocks = []
    shard.streams.touched, shard.streams.whole = [], False
    remembered.unsaved = []
    shard.watch.moved.clear()
    return frames


class Was(NamedTuple):
    """What was in force: alert states, the keys whose limit is another now, and the windows' boundaries."""

    held: dict[int, Held]
    changed: Ints
    boundaries: Before


class State:
    """A shard's state as frames give it, before it is filled into a shard."""

    def __init__(self, states: list[_State], ids: dict[str, list[_Rows]]) -> None:
        self._states = states
        self._ids = ids

    @property
    def meters(self) -> list[Meter]:
        """The meters that have counted, by number."""
        found: Any = self._states[-1].meters if self._states else []
        return [Meter(name, event_name, kind, key) for name, event_name, kind, key in found]

    def fill(self, shard: ShardState) -> Was:
        """Fill a fresh shard, and return what was in force when it was saved."""
        roster, held = shard.roster, dict[int, Held]()
        versions: list[str] = []
        zones: dict[str, int] = {}
        zone: list[Ints] = []
        for state in self._states:
            roster.rows(state.names)
            roster.clock.values[_ints(state.clock_rows)] = _ints(state.clocks)
            if state.floors:
                roster.floor.values[_ints(state.clock_rows)] = _ints(state.floors)
            if state.stream_clocks is not None:
                _take(shard.streams.clocks, state.stream_clocks)
            roster.add_keys(_ints(state.key_customer), _ints(state.key_meter))
            versions += [state.key_versions[i] for i in _ints(state.key_version).tolist()]
            _take(shard.buckets, state.buckets)
            _take(shard.periods, state.periods)
            for window, values in state.values.items():
                _take(shard.values[window], values)
            if state.let_go is not None:
                _take(shard.let_go, state.let_go)
            zone.append(_zones(state, zones))
            held.update(state.states)
            shard.counts.update(state.counts)
            shard.unmetered.restore(state.unmetered)
            shard.adjustments.known.update((known.id, known) for known in state.adjustments)
        for table in (shard.buckets, shard.periods):
            normalize(table)
        saved = shard.saved
        if self._states:
            last = self._states[-1]
            saved.whole = False
            self._remember(shard.memory, last)
            shard.latest = last.latest
            for word, (times, amount) in last.adjusted.items():
                shard.adjusted[word] = Adjusted(times, int(amount))
            shard.store = last.store
            shard.resume(Left(last.lateness, last.wall, last.floor, last.partitions))
        _classify(shard.counts)
        saved.names, saved.keys = len(roster.names), roster.key_customer.size
        saved.values = {name: len(table) for name, table in shard.values.items()}
        now = [roster.rules[number].version for number in roster.key_rules.values.tolist()]
        changed = [key for key, (old, new) in enumerate(zip(versions, now, strict=True)) if old != new]
        numbers = np.concatenate([np.empty(0, np.int64), *zone])
        saved.whole |= len(roster.meters) > len(self.meters) or bool((numbers < 0).any())
        moved = np.ones(len(roster.names), np.bool_)
        return Was(held, np.array(changed, np.int64), Before(list(zones), numbers, moved))

    def _remember(self, memory: Memory, last: _State) -> None:
        names = last.streams if isinstance(last.streams, list) else list(last.streams.values())
        streams = [(name, joined(_identities(name, rows) for rows in self._rows_of(name))) for name in names]
        # Streams by event hour are all closed.
        opened = streams.pop() if isinstance(last.streams, list) else None
        memory.restore(streams, opened, last.serial)

    def _rows_of(self, stream: str) -> list[_Rows]:
        return self._ids.get(stream) or [_NO_ROWS]


def read(frames: Iterable[Frame]) -> State:
    """The state that frames hold, each stream in its order."""
    states: list[bytes] = []
    ids: dict[str, list[_Rows]] = {}
    for frame in frames:
        if frame.stream == "state":
            if frame.whole:
                states.clear()
            states.append(frame.body)
        else:
            ids.setdefault(frame.stream, []).append(_IDS.decode(frame.body))
    return State([_STATE.decode(body) for body in states], ids)


def _stream_clocks(streams: Streams, whole: bool) -> _Rows:
    return _rows(streams.clocks, np.arange(len(streams.clocks)) if whole else _distinct(streams.touched))


def _identities(stream: str, rows: _Rows) -> Rows:
    lo, hi = (np.frombuffer(key, np.uint64) for key in rows.keys)
    columns = {name: np.frombuffer(column, np.uint32) for name, column in rows.columns.items()}
    if "seen" not in columns:
        hour = int(stream.split("-")[1])
        columns |= {
            "seen": np.full(len(lo), hour, np.uint32),
            "customer": np.full(len(lo), NOBODY, np.uint32),
        }
    return Rows(lo, hi, **columns)


def _encoded(rows: Rows) -> bytes:
    columns = {name: column.data for name, column in rows._asdict().items()}
    return msgspec.msgpack.encode(_Rows([columns.pop("lo"), columns.pop("hi")], columns))


def _changed(table: Table, whole: bool) -> _Rows:
    dirty = table.columns["dirty"]
    rows = np.arange(len(table)) if whole else np.flatnonzero(dirty[: len(table)] & UNSAVED)
    dirty[rows] &= ~UNSAVED
    return _rows(table, rows)


def _rows(table: Table, rows: Ints) -> _Rows:
    return _Rows(
        [key[rows].data for key in table.keys],
        {name: column[rows].data for name, column in table.columns.items()},
    )


def _take(table: Table, rows: _Rows) -> None:
    """Sets these rows, new or not."""
    keys = [np.frombuffer(key, np.uint64) for key in rows.keys]
    at, _ = table.claim(*keys)
    for name, values in rows.columns.items():
        if name not in table.columns:
            table.add_column(name, np.int64)
        column = table.columns[name]
        found = _column(values, column.dtype, len(at))
        if found.dtype.itemsize > column.dtype.itemsize:
            column = table.columns[name] = column.astype(found.dtype)
        column[at] = found


def _column(values: memoryview, usual: np.dtype[Any], rows: int) -> NDArray[Any]:
    """Read a column of a frame. Counts have 32 bits there, or 64 once one of them needed more."""
    if len(values) == rows * usual.itemsize:
        return np.frombuffer(values, usual)
    return np.frombuffer(values, np.uint32 if usual.itemsize == 8 else np.int64)


def _classify(counts: dict[str, int]) -> None:
    """Count what a version before this one accepted without telling whether it was metered."""
    if "accepted" in counts and not counts.keys() & {"metered", "unmetered", "unclassified"}:
        counts["unclassified"] = counts["accepted"]


def _zones(state: _State, numbers: dict[str, int]) -> Ints:
    """Return the zones of the state's customers by number, -1 where it does not say, and number new ones."""
    known = [numbers.setdefault(name, len(numbers)) for name in state.zones]
    return np.array(known, np.int64)[_ints(state.zone)] if known else np.full(len(state.names), -1, np.int64)


def _distinct(parts: list[Ints]) -> Ints:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _ints(raw: bytes) -> Ints:
    return np.frombuffer(raw, np.int64)
