"""Snapshots: a shard's state as frames of what changed since the last delta, and a shard restored from them.

There are two kinds of streams. `state` holds customers, keys, totals, alert states and counters; a frame that is
`whole` replaces all earlier ones. `ids-…` hold remembered identities in order of acceptance; they are only appended
to, so identities accepted earlier add nothing to the cost of a snapshot. The newest state frame names the streams in
use, the open one last.

State of earlier versions can be read too: a stream per event hour, `ids-HOUR-SERIAL`, without a customer per identity.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.alerts import SavedState
from tidegate.operators.metering.catalog_change import PreviousBoundaries
from tidegate.operators.metering.dedup import IdentityMemory
from tidegate.operators.metering.shard_state import SavedSettings, ShardState
from tidegate.operators.metering.sorted_runs import NOBODY, Rows, concatenate_rows
from tidegate.operators.metering.stream_times import Stream, Streams
from tidegate.operators.metering.unmetered_rows import SavedRow
from tidegate.operators.metering.windows import UNSAVED, WindowAdjustments, normalize
from tidegate.operators.model.adjustments import KnownAdjustment
from tidegate.operators.model.catalog import Meter
from tidegate.operators.model.records import Window


class Frame(NamedTuple):
    """A piece of a shard's state: its stream, its bytes, and whether it replaces the stream so far."""

    stream: str
    body: bytes
    whole: bool


class _Rows(msgspec.Struct):
    """Rows of a table: key words and columns as they are in memory."""

    keys: list[memoryview]
    columns: dict[str, memoryview]


class _StateFrame(msgspec.Struct):
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
    states: dict[int, SavedState]
    counts: dict[str, int]
    streams: list[str] | dict[int, str]
    serial: int
    latest: int
    adjusted: dict[int, tuple[int, str]] = {}
    # The settings and clocks of the state; frames of earlier versions lack these fields.
    lateness: int | None = None
    wall: bool = False
    store: str = ""
    floor: int = 0
    floors: bytes = b""
    partitions: dict[str, Stream] = {}
    stream_clocks: _Rows | None = None
    unmetered: list[SavedRow] = []
    adjustments: list[KnownAdjustment] = []
    zones: list[str] = []
    zone: bytes = b""
    let_go: _Rows | None = None


_NO_ROWS = _Rows([memoryview(b"")] * 2, {name: memoryview(b"") for name in ("mark", "seen", "customer")})
_STATE = msgspec.msgpack.Decoder(_StateFrame)
_IDS = msgspec.msgpack.Decoder(_Rows)


def build_delta(shard: ShardState) -> list[Frame]:
    """Return frames of what changed since the last delta, and mark the shard as saved."""
    saved = shard.saved
    frames = [Frame(stream, _encode_rows(rows), False) for stream, rows in shard.memory.drain_appended()]
    whole = saved.whole = saved.whole or shard.streams.whole
    if whole:
        saved.names = saved.keys = 0
        saved.values = {}
    key_index = shard.key_index
    keys = slice(saved.keys, key_index.key_customer.size)
    versions = [key_index.rules[number].version for number in key_index.key_rules.values[keys].tolist()]
    distinct = list(dict.fromkeys(versions))
    place = {version: i for i, version in enumerate(distinct)}
    clocks = np.arange(len(key_index.names)) if whole else _merge_distinct(saved.clocks)
    moved = list(shard.alert_states.words) if whole else list(shard.alert_states.changed_words)
    remembered = shard.adjustments
    state = _StateFrame(
        meters=[(meter.name, meter.event_name, meter.kind, meter.key) for meter in key_index.meters],
        names=key_index.names[saved.names :],
        clock_rows=clocks.tobytes(),
        clocks=key_index.clock.values[clocks].tobytes(),
        key_customer=key_index.key_customer.values[keys].tobytes(),
        key_meter=key_index.key_meter.values[keys].tobytes(),
        key_versions=distinct,
        key_version=np.array([place[version] for version in versions], np.int64).tobytes(),
        buckets=_drain_changed(shard.buckets, whole),
        periods=_drain_changed(shard.periods, whole),
        values={
            name: _copy_rows(t, np.arange(saved.values.get(name, 0), len(t)))
            for name, t in shard.values.items()
        },
        states={word: shard.alert_states.export_state(word) for word in moved},
        counts=shard.counts,
        streams=shard.memory.streams,
        serial=shard.memory.serial,
        latest=shard.latest,
        adjusted={word: (known.times, str(known.amount)) for word, known in shard.adjusted.items()},
        lateness=shard.lateness,
        wall=shard.streams.wall,
        store=shard.store,
        floor=shard.floor,
        floors=key_index.floor.values[clocks].tobytes(),
        partitions=shard.streams.known,
        stream_clocks=_encode_stream_clocks(shard.streams, whole),
        unmetered=shard.unmetered.drain_saved(whole=whole),
        adjustments=list(remembered.known.values()) if whole else remembered.unsaved,
        zones=key_index.zone_names if saved.names < len(key_index.names) else [],
        zone=key_index.zone[saved.names :].tobytes(),
        # It only grows when windows are dropped, which makes the next frame a whole one.
        let_go=_copy_rows(shard.let_go, np.arange(len(shard.let_go))) if whole else None,
    )
    frames.append(Frame("state", msgspec.msgpack.encode(state), whole))
    saved.whole = False
    saved.names, saved.keys = len(key_index.names), key_index.key_customer.size
    saved.values = {name: len(table) for name, table in shard.values.items()}
    saved.clocks = []
    shard.streams.touched, shard.streams.whole = [], False
    remembered.unsaved = []
    shard.alert_states.changed_words.clear()
    return frames


class PreviousState(NamedTuple):
    """What was in force before: alert states, the keys with a new limit, and the windows' boundaries."""

    held: dict[int, SavedState]
    changed: Ints
    boundaries: PreviousBoundaries


class SavedShard:
    """A shard's state as read from frames, before it is filled into a shard."""

    def __init__(self, states: list[_StateFrame], ids: dict[str, list[_Rows]]) -> None:
        self._states = states
        self._ids = ids

    @property
    def meters(self) -> list[Meter]:
        """The meters that have counted, by number."""
        found: Any = self._states[-1].meters if self._states else []
        return [Meter(name, event_name, kind, key) for name, event_name, kind, key in found]

    def fill(self, shard: ShardState) -> PreviousState:
        """Fill a fresh shard, and return what was in force when it was saved."""
        key_index, held = shard.key_index, dict[int, SavedState]()
        versions: list[str] = []
        zones: dict[str, int] = {}
        zone: list[Ints] = []
        for state in self._states:
            key_index.assign_rows(state.names)
            key_index.clock.values[_read_ints(state.clock_rows)] = _read_ints(state.clocks)
            if state.floors:
                key_index.floor.values[_read_ints(state.clock_rows)] = _read_ints(state.floors)
            if state.stream_clocks is not None:
                _set_rows(shard.streams.clocks, state.stream_clocks)
            key_index.add_keys(_read_ints(state.key_customer), _read_ints(state.key_meter))
            versions += [state.key_versions[i] for i in _read_ints(state.key_version).tolist()]
            _set_rows(shard.buckets, state.buckets)
            _set_rows(shard.periods, state.periods)
            for window, values in state.values.items():
                _set_rows(shard.values[window], values)
            if state.let_go is not None:
                _set_rows(shard.let_go, state.let_go)
            zone.append(_number_zones(state, zones))
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
                shard.adjusted[word] = WindowAdjustments(times, int(amount))
            shard.store = last.store
            shard.resume(SavedSettings(last.lateness, last.wall, last.floor, last.partitions))
        _count_unclassified(shard.counts)
        saved.names, saved.keys = len(key_index.names), key_index.key_customer.size
        saved.values = {name: len(table) for name, table in shard.values.items()}
        now = [key_index.rules[number].version for number in key_index.key_rules.values.tolist()]
        changed = [key for key, (old, new) in enumerate(zip(versions, now, strict=True)) if old != new]
        numbers = np.concatenate([np.empty(0, np.int64), *zone])
        saved.whole |= len(key_index.meters) > len(self.meters) or bool((numbers < 0).any())
        moved = np.ones(len(key_index.names), np.bool_)
        return PreviousState(
            held, np.array(changed, np.int64), PreviousBoundaries(list(zones), numbers, moved)
        )

    def _remember(self, memory: IdentityMemory, last: _StateFrame) -> None:
        names = last.streams if isinstance(last.streams, list) else list(last.streams.values())
        streams = [
            (name, concatenate_rows(_decode_identities(name, rows) for rows in self._find_rows(name)))
            for name in names
        ]
        # Streams by event hour are all closed.
        opened = streams.pop() if isinstance(last.streams, list) else None
        memory.restore(streams, opened, last.serial)

    def _find_rows(self, stream: str) -> list[_Rows]:
        return self._ids.get(stream) or [_NO_ROWS]


def read_frames(frames: Iterable[Frame]) -> SavedShard:
    """Return the state that frames hold, each stream in its order."""
    states: list[bytes] = []
    ids: dict[str, list[_Rows]] = {}
    for frame in frames:
        if frame.stream == "state":
            if frame.whole:
                states.clear()
            states.append(frame.body)
        else:
            ids.setdefault(frame.stream, []).append(_IDS.decode(frame.body))
    return SavedShard([_STATE.decode(body) for body in states], ids)


def _encode_stream_clocks(streams: Streams, whole: bool) -> _Rows:
    return _copy_rows(
        streams.clocks, np.arange(len(streams.clocks)) if whole else _merge_distinct(streams.touched)
    )


def _decode_identities(stream: str, rows: _Rows) -> Rows:
    lo, hi = (np.frombuffer(key, np.uint64) for key in rows.keys)
    columns = {name: np.frombuffer(column, np.uint32) for name, column in rows.columns.items()}
    if "seen" not in columns:
        hour = int(stream.split("-")[1])
        columns |= {
            "seen": np.full(len(lo), hour, np.uint32),
            "customer": np.full(len(lo), NOBODY, np.uint32),
        }
    return Rows(lo, hi, **columns)


def _encode_rows(rows: Rows) -> bytes:
    columns = {name: column.data for name, column in rows._asdict().items()}
    return msgspec.msgpack.encode(_Rows([columns.pop("lo"), columns.pop("hi")], columns))


def _drain_changed(table: Table, whole: bool) -> _Rows:
    dirty = table.columns["dirty"]
    rows = np.arange(len(table)) if whole else np.flatnonzero(dirty[: len(table)] & UNSAVED)
    dirty[rows] &= ~UNSAVED
    return _copy_rows(table, rows)


def _copy_rows(table: Table, rows: Ints) -> _Rows:
    return _Rows(
        [key[rows].data for key in table.keys],
        {name: column[rows].data for name, column in table.columns.items()},
    )


def _set_rows(table: Table, rows: _Rows) -> None:
    """Set these rows of the table, adding new ones."""
    keys = [np.frombuffer(key, np.uint64) for key in rows.keys]
    at, _ = table.claim(*keys)
    for name, values in rows.columns.items():
        if name not in table.columns:
            table.add_column(name, np.int64)
        column = table.columns[name]
        found = _read_column(values, column.dtype, len(at))
        if found.dtype.itemsize > column.dtype.itemsize:
            column = table.columns[name] = column.astype(found.dtype)
        column[at] = found


def _read_column(values: memoryview, usual: np.dtype[Any], rows: int) -> NDArray[Any]:
    """Return a column of a frame. Counts have 32 bits, or 64 once one of them needed more."""
    if len(values) == rows * usual.itemsize:
        return np.frombuffer(values, usual)
    return np.frombuffer(values, np.uint32 if usual.itemsize == 8 else np.int64)


def _count_unclassified(counts: dict[str, int]) -> None:
    """Count the events that an earlier version accepted without recording whether they were metered."""
    if "accepted" in counts and not counts.keys() & {"metered", "unmetered", "unclassified"}:
        counts["unclassified"] = counts["accepted"]


def _number_zones(state: _StateFrame, numbers: dict[str, int]) -> Ints:
    """Return the zone number of each of the frame's customers, -1 if unknown, and number new zones."""
    known = [numbers.setdefault(name, len(numbers)) for name in state.zones]
    return (
        np.array(known, np.int64)[_read_ints(state.zone)]
        if known
        else np.full(len(state.names), -1, np.int64)
    )


def _merge_distinct(parts: list[Ints]) -> Ints:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _read_ints(raw: bytes) -> Ints:
    return np.frombuffer(raw, np.int64)
