"""What every store promises, as tests to inherit.

A subclass says in `fresh` how an empty store comes to be, as a place that any process can open for writing
and for reading, and in `at_once` what of a write its readers see at once. Only newer totals are written, exactly; who
follows the changes misses none. Processes are real ones, and are killed. `test_broken_stores.py` shows that it
fails broken ones.
"""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from decimal import Decimal
from itertools import count, islice, product
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any, ClassVar, Literal, Protocol

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.reference.traffic import traffic
from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.shard import Shard
from tidegate.operators.metering.totals import Totals
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Adjustment, Note, Payloads, StoredTotal, StoreReader, StoreWriter
from tidegate.operators.model.records import Counter, Total, Window

Key = tuple[str, str, str, int]

HOUR = 3_600_000_000
VERSIONS_SEEN = 30
WRITES_MAX = 20_000
KILLS = 3
SHARE = 60

# Children of a process that has imported these and done nothing else: one forked from here would share our
# connections, and one that begins with nothing imports for most of a second.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "tests.connectors.contracts.holds",
        "tidegate.connectors.sqlite.holds",
        "tidegate.connectors.redis.holds",
        "tidegate.serving.gate",
    ]
)

# Run by each subclass, and by stores that are broken on purpose: what fails there says nothing here.
contract = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.differing_executors]
)

ODD_KEYS = [
    "", " ", "a", "A", "a ", "a-b", "a-b,c", "a,b-c", "%", "_", "'; --", '"', "\\", "\x00", "a\x00b", "a\nb",
    "0", "0.0", "1e3", "é", "e\u0301", "\U0001f30a", "\uffff", "null", "x" * 5000,
]  # fmt: skip

PAIRS = [(a, b) for a in ("a-b,c", "a", "a-b", "a,b", "") for b in ("c", "b-c", "b,c", "a-b,c", "")]

NUMBERS: list[int | str] = [
    0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), str(2**63), str(10**30 + 1), "0.1", "0.10", "-0.000000000001",
    "1000000.000000000000000000000001", "9007199254740993.5", "1E+3", "0",
]  # fmt: skip

COMPARED: list[int | str] = [
    -20, "-3", 0, "0.1", "0.10", 9, "9.5", 10, "10.0", "1E+1", 2**53, 2**53 + 1, "9007199254740992.5",
    2**63 - 1, str(2**63), str(2**70), str(2**70 + 1),
]  # fmt: skip

texts = st.one_of(st.sampled_from(ODD_KEYS), st.text(st.characters(codec="utf-8"), max_size=8))
small = st.integers(0, 2**40)
times = st.integers(-(10**15), 10**17)
numbers = st.one_of(
    st.sampled_from(NUMBERS),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(2**63, 10**40).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
)
totals_of_any_kind = st.builds(
    Total, texts, st.sampled_from(["period", "day", "hour"]), texts, times, times, numbers,
    st.integers(1, 2**62), small, times, small, small, numbers, st.booleans(),
)  # fmt: skip

# Few keys and versions, so that they meet.
meeting = st.builds(
    lambda customer, window, version, total, steady: total_of(
        customer, window=window, version=version, total=total, steady=steady
    ),
    st.sampled_from("ab"),
    st.sampled_from(["hour", "day"]),
    st.integers(1, 5),
    st.sampled_from(COMPARED),
    st.booleans(),
)
batches_meeting = st.lists(st.lists(meeting, max_size=6), max_size=6)


def history_of(steps: list[int]) -> list[Total]:
    """The readings of one total as a flow makes them: steady until it falls."""
    history, total, steady = [], 0, True
    for version, step in enumerate(steps, 1):
        total, steady = total + step, steady and step >= 0
        history.append(total_of("a", version=version, total=total, events=version, steady=steady))
    return history


histories = st.lists(st.integers(-3, 9), min_size=1, max_size=12).map(history_of)
chances = st.randoms(use_true_random=False)


def total_of(customer: str, meter: str = "calls", **fields: Any) -> Total:
    """A total of the first hour; `fields` as given."""
    first = Total(customer, "hour", meter, 0, HOUR, 1, 1, 1, 5, 0, 0, 0, True)
    return first._replace(**fields)


def batch_of(version: int) -> list[Total]:
    """One write of several shards, all of one version."""
    windows = ("period", "day", "hour")
    return [
        total_of(f"cus_{n}", window=window, version=version, total=version)
        for n in range(100)
        for window in windows
    ]


def key_of(total: Total) -> Key:
    return total.customer, total.window, total.meter, total.start


def written(batches: Iterable[Iterable[Total]]) -> dict[Key, Total]:
    """What a store holds after these writes, in the plainest way."""
    held: dict[Key, Total] = {}
    for total in (total for batch in batches for total in batch):
        old = held.get(key_of(total))
        goes_back = old is not None and total.steady and Decimal(total.total) < Decimal(old.total)
        if old is None or (total.version > old.version and not goes_back):
            held[key_of(total)] = total
    return held


def same(got: object, expected: object) -> None:
    """Equal and of the same types, as 1, True and 1.0 are equal too."""
    assert repr(got) == repr(expected)


def holds(reader: StoreReader, expected: dict[Key, Total]) -> None:
    """All that the store holds, whole and by customer."""
    same([stored.total for stored in reader.totals()], [expected[key] for key in sorted(expected)])
    for customer in {key[0] for key in expected}:
        own = [expected[key] for key in sorted(expected) if key[0] == customer]
        same([stored.total for stored in reader.read(customer)], own)
        same([stored.total for stored in reader.totals(customer)], own)


class Follower:
    """Keeps what it read, and reads again only who is named in the change feed: the gate's cache."""

    def __init__(self, reader: StoreReader) -> None:
        self.seq, self.kept, self._reader = 0, dict[str, list[StoredTotal]](), reader

    def catch_up(self) -> None:
        changes = self._reader.changes(self.seq)
        assert changes.seq >= self.seq
        stale = changes.customers if changes.complete else {s.total.customer for s in self._reader.totals()}
        for customer in stale:
            self.kept[customer] = self._reader.read(customer)
        self.seq = changes.seq

    def is_right(self) -> bool:
        stored: dict[str, list[StoredTotal]] = {}
        for one in self._reader.totals():
            stored.setdefault(one.total.customer, []).append(one)
        return self.kept == stored


class Place(Protocol):
    """Where a store is; picklable, as other processes open it too."""

    def open_writer(self) -> StoreWriter: ...
    def open_reader(self) -> StoreReader: ...


AtOnce = Literal["all", "customer"]


class StoreContract(ABC):
    at_once: ClassVar[AtOnce] = "all"
    """`customer` for a store on several servers: there all of one customer, and not all customers."""

    @abstractmethod
    def fresh(self) -> AbstractContextManager[Place]:
        """An empty store of its own."""

    @contextmanager
    def opened(self) -> Iterator[tuple[StoreWriter, StoreReader]]:
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_reader()) as reader,
        ):
            yield writer, reader

    # Notes

    def test_notes_are_found_by_kind_and_customer_newest_first(self) -> None:
        """A dashboard shows the last alerts of a customer without reading all of them."""
        with self.opened() as (writer, reader):
            notes = [Note("alert", str(n), "ab"[n % 2], 100 - n % 5, b'{"n":%d}' % n) for n in range(10)]
            writer.write([], [], notes)
            writer.write([], [], [Note("drift", "0", "a", 500, b"{}")])
            newest = [note.at for note in reader.notes("alert")]
            assert newest == sorted(newest, reverse=True)
            same(sorted(reader.notes("alert")), sorted(notes))
            same(sorted(reader.notes("alert", "a")), sorted(notes[::2]))
            same(reader.notes("alert", limit=3), reader.notes("alert")[:3])
            same(reader.notes("drift", "b"), [])

    def test_a_note_is_replaced_by_a_later_one_only(self) -> None:
        """A replay tells the same again; an older finding never hides a newer one."""
        with self.opened() as (writer, reader):
            for at, body in ((5, b'"first"'), (7, b'"later"'), (6, b'"late"')):
                writer.write([], [], [Note("drift", "x", "a", at, body)])
            same(reader.notes("drift"), [Note("drift", "x", "a", 7, b'"later"')])

    def test_a_note_without_body_leaves_the_list_and_stays_away(self) -> None:
        """What is resolved is no longer shown, also if a replay repeats the finding."""
        with self.opened() as (writer, reader):
            writer.write([], [], [Note("drift", str(n), "a", n, b"{}") for n in range(6)])
            writer.write([], [], [Note("drift", str(n), "a", 9, b"") for n in (5, 4, 0)])
            writer.write([], [], [Note("drift", "4", "a", 4, b"{}")])
            assert [note.id for note in reader.notes("drift", limit=2)] == ["3", "2"]
            assert [note.id for note in reader.notes("drift", "a")] == ["3", "2", "1"]

    def test_a_note_is_announced(self) -> None:
        """Who shows alerts follows the change feed."""
        with self.opened() as (writer, reader):
            before = reader.changes(0).seq
            writer.write([], [], [Note("alert", "x", "a", 5, b"{}")])
            assert reader.changes(before).customers == {"a"}

    # What is stored

    @contract
    @given(st.lists(totals_of_any_kind, max_size=12, unique_by=key_of))
    def test_what_was_written_is_read(self, totals: list[Total]) -> None:
        """The dashboard shows the very figure that was metered, to the last digit, for any customer id."""
        with self.opened() as (writer, reader):
            writer.write(totals, [])
            holds(reader, written([totals]))

    def test_numbers_come_back_exactly(self) -> None:
        """Also as a second reading, which takes another path through a store than the first."""
        with self.opened() as (writer, reader):
            for version in (1, 2):
                totals = [
                    total_of("a", str(n), total=number, adjustment=number, version=version, steady=False)
                    for n, number in enumerate(NUMBERS)
                ]
                writer.write(totals, [])
                holds(reader, written([totals]))

    def test_every_field_is_replaced(self) -> None:
        """A newer total replaces the older one whole."""
        old = Total("a", "day", "m", 0, 1, 2, 3, 4, 5, 6, 7, 8, True)
        new = Total("a", "day", "m", 0, 10, "20.5", 30, 40, 50, 60, 70, "80.5", False)
        with self.opened() as (writer, reader):
            writer.write([old], [])
            writer.write([new], [])
            holds(reader, written([[new]]))

    def test_customers_and_meters_are_not_mixed(self) -> None:
        """`a-b,c` is not `a,b-c`: one customer's usage is never another's."""
        totals = [total_of(a, b, total=n) for n, (a, b) in enumerate(PAIRS)]
        totals += [total_of(odd, total=n) for n, odd in enumerate(ODD_KEYS) if (odd, "calls") not in PAIRS]
        with self.opened() as (writer, reader):
            writer.write(totals, [])
            writer.write([total._replace(version=2, events=7) for total in totals[::2]], [])
            expected = [t._replace(version=2, events=7) if n % 2 == 0 else t for n, t in enumerate(totals)]
            holds(reader, {key_of(total): total for total in expected})

    def test_windows_that_ended_are_left_out_when_asked(self) -> None:
        """A page that shows two days is not to read the two years before them."""
        hour, day = HOUR, 24 * HOUR
        windows: list[tuple[Window, int, int]] = [
            ("hour", 0, hour),
            ("hour", 9 * hour, 10 * hour),
            ("hour", 10 * hour, 11 * hour),
            ("day", 0, day),
            ("period", 0, 30 * day),
        ]
        totals = [total_of("a")._replace(window=w, start=start, end=end) for w, start, end in windows]
        with self.opened() as (writer, reader):
            writer.write(totals, [])
            found = {(one.total.window, one.total.start) for one in reader.read("a", 10 * hour)}
            assert found == {("hour", 10 * hour), ("day", 0), ("period", 0)}

    def test_an_empty_store_is_empty(self) -> None:
        """A reader that is up before the first event answers, and then sees that event."""
        with self.opened() as (writer, reader):
            assert not reader.read("a") and not list(reader.totals()) and not list(reader.counters())
            before = reader.changes(0)
            assert before.complete and not before.customers
            writer.write([], [])
            writer.write([total_of("a")], [])
            holds(reader, written([[total_of("a")]]))
            assert reader.changes(before.seq).customers == {"a"}

    def test_it_is_still_there_when_opened_again(self) -> None:
        """A restart begins with what the last one left."""
        with self.fresh() as place:
            with closing(place.open_writer()) as writer:
                writer.write(batch_of(1), [Counter(1, "events", 9)])
            with closing(place.open_writer()) as writer, closing(place.open_reader()) as reader:
                holds(reader, written([batch_of(1)]))
                writer.write([total_of("new")], [Counter(1, "events", 8)])
                holds(reader, written([batch_of(1), [total_of("new")]]))
                assert list(reader.counters()) == [Counter(1, "events", 9)]
                assert reader.changes(0).customers == {"new", *(total.customer for total in batch_of(1))}

    def test_of_each_shard_the_last_heartbeat_is_read(self) -> None:
        """Gates judge by it whether totals are fresh."""
        first = Heartbeat(0, 2, "0", 10, 8, {"log/0": 7}, behind=3)
        other = Heartbeat(1, 2, "1", 11, 9, {}, ended=True)
        last = Heartbeat(0, 2, "0", 20, 19, {"log/0": 9})
        with self.opened() as (writer, reader):
            assert reader.heartbeats() == []
            writer.write([total_of("a")], [], (), (), [first, other])
            assert reader.heartbeats() == [first, other]
            writer.write([], [], (), (), [last])
            assert reader.heartbeats() == [last, other]
            holds(reader, written([[total_of("a")]]))

    # What is newer

    @contract
    @given(batches_meeting)
    def test_only_newer_totals_are_written(self, batches: list[list[Total]]) -> None:
        """Neither an older version nor, while a total is steady, a smaller one: usage shown never falls."""
        with self.opened() as (writer, reader):
            for batch in batches:
                writer.write(batch, [])
            holds(reader, written(batches))

    def test_an_end_moves_without_a_new_version(self) -> None:
        """A trial is extended: the period's total is as it was, and ends later. A replay of it is no news."""
        total = total_of("a", total="12.5", version=3, events=2, window="period")
        with self.opened() as (writer, reader):
            writer.write([total, total_of("a", "other")], [])
            for end in (3 * HOUR, 10**17, HOUR // 2):
                before = reader.changes(0).seq
                writer.write([total._replace(end=end)], [])
                holds(reader, written([[total._replace(end=end), total_of("a", "other")]]))
                after = reader.changes(before)
                assert after.customers == {"a"}
                writer.write([total._replace(end=end)], [])
                assert not reader.changes(after.seq).customers

    def test_an_end_moves_with_its_own_total_only(self) -> None:
        """What another lineage has under this version is no news."""
        total = total_of("a", total=12, version=3, window="period")
        with self.opened() as (writer, reader):
            writer.write([total], [])
            writer.write([total._replace(total=13, end=9), total._replace(version=2, end=9)], [])
            holds(reader, written([[total]]))

    def test_periods_are_read_whatever_their_end(self) -> None:
        """Where one ends now is for the catalog to say; the store may not have heard of it yet."""
        with self.opened() as (writer, reader):
            writer.write([total_of("a", window="period"), total_of("a", window="day")], [])
            assert [one.total.window for one in reader.read("a", 5 * HOUR)] == ["period"]

    def test_totals_are_compared_exactly(self) -> None:
        """As floats or as texts, some steady totals would seem to go back, and others not to."""
        first, second = [], []
        for n, (old, new, steady) in enumerate(product(COMPARED, COMPARED, (True, False))):
            first.append(total_of("a", str(n), total=old))
            second.append(total_of("a", str(n), total=new, version=2, steady=steady))
        with self.opened() as (writer, reader):
            writer.write(first, [])
            writer.write(second, [])
            holds(reader, written([first, second]))

    def test_totals_in_columns_are_stored_as_what_they_are(self) -> None:
        """Shards hand out columns: decimals, late events, adjustments and all."""
        case = traffic(25, 800)
        decoder = Decoder(case.catalog, shards=2, clock="event")
        shards = [Shard(number, case.catalog, case.lateness, "event") for number in range(2)]
        with self.opened() as (writer, reader):
            batches, follower = list[Sequence[Total]](), Follower(reader)
            for begin in range(0, 800, 200):
                lines = b"\n".join(case.lines[begin : begin + 200])
                for number, chunk in decoder.decode(Payloads(lines, 0, None, "")):
                    shards[number].apply(chunk)
                summed = next(
                    total for total in shards[0].drain_totals() if total.steady and total.window == "hour"
                )
                key: dict[str, Any] = {"customer": summed.customer, "meter": summed.meter, "at": summed.start}
                shards[0].adjust(Adjustment(id="1", quantity="-1000000.5", reason="", by="", **key), 0)
                large = next(total for total in shards[1].drain_totals() if total.steady)
                key = {"customer": large.customer, "meter": large.meter, "at": large.start}
                shards[1].adjust(Adjustment(id="2", quantity=f"{10**28}.25", reason="", by="", **key), 0)
                shards[1].republish()
                shards[0].republish()
                totals = Totals(taken for shard in shards for taken in shard.drain_totals().changed)
                writer.write(totals, [])
                follower.catch_up()
                assert follower.is_right(), "whoever is in columns is named in the feed"
                batches.append(totals)
            holds(reader, written(batches))
        assert len(totals) == len(list(totals)) and totals[-1] == list(totals)[-1]
        kept = [total for batch in batches for total in batch]
        assert any(Decimal(total.total) > 10**28 for total in kept)
        assert any(total.adjustment for total in kept) and any(isinstance(total.total, str) for total in kept)
        assert any(total.late for total in kept) and any(total.corrected for total in kept)

    @contract
    @given(histories, histories, chances)
    def test_a_replay_changes_nothing(self, one: list[Total], other: list[Total], chance: Random) -> None:
        """After a crash the flow writes again what it wrote; nobody can tell, not even by `written_at`."""
        batches = [one, [total._replace(customer="b") for total in other]]
        with self.opened() as (writer, reader):
            for batch in batches:
                writer.write(batch, [])
            before = list(reader.totals())
            for total in chance.choices([total for batch in batches for total in batch], k=8):
                writer.write([total], [])
            same(list(reader.totals()), before)

    @contract
    @given(histories, chances)
    def test_order_does_not_matter(self, history: list[Total], chance: Random) -> None:
        """However the readings of one total come, the last one stands."""
        with self.opened() as (writer, reader):
            shuffled = chance.sample(history, len(history))
            at = chance.randint(0, len(history))
            for batch in (shuffled[:at], shuffled[at:]):
                writer.write(batch, [])
            holds(reader, written([history[-1:]]))

    @contract
    @example([[Counter(0, "events", 2)], [Counter(0, "events", 1)]])
    @given(
        st.lists(
            st.lists(st.builds(Counter, st.integers(0, 2), texts, st.integers(0, 2**63 - 1)), max_size=4),
            max_size=4,
        )
    )
    def test_counters_only_grow(self, batches: list[list[Counter]]) -> None:
        """So that the books still add up after a replay."""
        largest: dict[tuple[int, str], int] = {}
        with self.opened() as (writer, reader):
            for batch in batches:
                writer.write([], batch)
                for shard, name, value in batch:
                    largest[shard, name] = max(value, largest.get((shard, name), 0))
            same(sorted(reader.counters()), [Counter(*key, largest[key]) for key in sorted(largest)])

    # What is seen meanwhile

    def test_all_totals_are_of_one_moment(self) -> None:
        """A comparison with the provider is of one cut, however long it takes; it holds up no other reading."""
        with self.opened() as (writer, reader):
            writer.write(batch_of(1), [])
            under_way = reader.totals()
            first = next(under_way)
            writer.write([*batch_of(2), total_of("new")], [])
            same([s.total for s in reader.read("cus_7")], [t for t in sorted(batch_of(2)) if t[0] == "cus_7"])
            seen = versions_seen([first, *under_way], self.at_once)
            assert all(len(of_one) == 1 for of_one in seen) and seen[0] == {1}
            holds(reader, written([[*batch_of(2), total_of("new")]]))

    def test_another_process_sees_whole_writes(self) -> None:
        """The gate, a process of its own, never decides on half of an update."""
        with self.fresh() as place, closing(place.open_writer()) as writer:
            writer.write(batch_of(1), [])
            enough = processes.Event()
            with child(_see_whole_writes, place, enough, self.at_once) as watching:
                for version in islice(count(2), WRITES_MAX):
                    if enough.is_set() or not watching.is_alive():
                        break
                    writer.write(batch_of(version), [])
                watching.join()
            assert watching.exitcode == 0 and enough.is_set()

    def test_a_killed_writer_leaves_whole_writes(self) -> None:
        """Killed at any instruction, it leaves a store that the next one goes on with."""
        with self.fresh() as place:
            with closing(place.open_writer()) as writer:
                writer.write(batch_of(1), [])
            for _ in range(KILLS):
                begun = newest_in(place)
                with child(_write_on, place, begun + 1) as writing:
                    while writing.is_alive() and newest_in(place) == begun:
                        pass
                    assert writing.is_alive()
                    writing.kill()
                    writing.join()
                with closing(place.open_reader()) as reader:
                    assert all(len(of_one) == 1 for of_one in versions_seen(reader.totals(), self.at_once))
            with closing(place.open_writer()) as writer, closing(place.open_reader()) as reader:
                seq, left = reader.changes(0).seq, newest_in(place)
                writer.write(batch_of(left + 1), [])
                holds(reader, written([batch_of(left + 1)]))
                changes = reader.changes(seq)
                assert changes.complete and len(changes.customers) == 100

    # Who was changed

    def test_changes_name_who_was_written(self) -> None:
        """A raised total is in force at once, as the gate drops what it had kept of that customer."""
        odd = [total_of(customer) for customer in ODD_KEYS]
        with self.opened() as (writer, reader):
            start = reader.changes(0).seq
            writer.write(odd, [])
            first = reader.changes(start)
            writer.write([total_of("b"), total_of("c"), total_of("b", "other")], [])
            second = reader.changes(first.seq)
            assert first.complete and first.customers == set(ODD_KEYS)
            assert second.complete and second.customers == {"b", "c"}
            assert reader.changes(start) == (second.seq, first.customers | second.customers, True)
            assert reader.changes(second.seq) == (second.seq, frozenset(), True)

    def test_a_number_from_elsewhere_is_not_complete(self) -> None:
        """A store put back from a backup is behind its readers, who have to read anew."""
        with self.opened() as (writer, reader):
            writer.write([total_of("a")], [])
            changes = reader.changes(reader.changes(0).seq + 1000)
            assert not changes.complete
            assert reader.changes(changes.seq) == (changes.seq, frozenset(), True)

    def test_another_process_is_told_of_what_it_can_read(self) -> None:
        """A gate that heard of a change too early would read, and keep, what was there before."""
        with self.fresh() as place, closing(place.open_writer()) as writer:
            ours, theirs = processes.Pipe()
            with child(_follow, place, theirs):
                theirs.close()
                for version in range(1, VERSIONS_SEEN):
                    writer.write(batch_of(version), [])
                    ours.send("written")
                    assert ours.recv() == {version}

    def test_two_processes_write_at_once(self) -> None:
        """Nothing is lost between two processes of a flow, and who follows the changes misses none."""
        with self.fresh() as place, closing(place.open_reader()) as reader:
            gate = Follower(reader)
            start = processes.Barrier(3)
            with child(_write_share, place, 0, start) as one, child(_write_share, place, 1, start) as other:
                start.wait()
                while one.is_alive() or other.is_alive():
                    gate.catch_up()
                one.join()
                other.join()
            assert (one.exitcode, other.exitcode) == (0, 0)
            gate.catch_up()
            holds(
                reader,
                written([share_of(0, n) for n in range(SHARE)] + [share_of(1, n) for n in range(SHARE)]),
            )
            assert list(reader.counters()) == [Counter(0, "events", 2 * SHARE - 1)]
            assert gate.is_right()


def versions_in(place: Place) -> set[int]:
    with closing(place.open_reader()) as reader:
        return {stored.total.version for stored in reader.totals()}


def newest_in(place: Place) -> int:
    return max(versions_in(place))


def versions_seen(totals: Iterable[StoredTotal], at_once: AtOnce) -> list[set[int]]:
    """The versions of all totals together, or of each customer's."""
    seen: dict[str, set[int]] = {}
    for total, _ in totals:
        seen.setdefault("" if at_once == "all" else total.customer, set()).add(total.version)
    return list(seen.values())


def share_of(writer: int, n: int) -> list[Total]:
    """One of a writer's writes: some customers of its own, written once, and some that both write."""
    version = 2 * n + writer + 1
    own = [total_of(f"own_{writer}_{n}_{i}") for i in range(3)]
    return [*own, *(total_of(f"both_{i}", version=version, total=version) for i in range(3))]


@contextmanager
def child(target: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    """A process of its own that does not outlive the test."""
    process = processes.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _see_whole_writes(place: Place, enough: Any, at_once: AtOnce) -> None:
    last, seen = 0, set[int]()
    with closing(place.open_reader()) as reader:
        while len(seen) < VERSIONS_SEEN:
            stored = list(reader.totals())
            assert all(len(versions) == 1 for versions in versions_seen(stored, at_once))
            (version,) = {one.total.version for one in stored if one.total.customer == "cus_42"}
            (of_one,) = {one.total.version for one in reader.read("cus_42")}
            assert last <= version <= of_one
            last = of_one
            seen.add(version)
    enough.set()


def _follow(place: Place, parent: Any) -> None:
    """Follows the changes without a pause, so also during a write; after it, says which versions it keeps."""
    with closing(place.open_reader()) as reader:
        gate = Follower(reader)
        while True:
            while not parent.poll():
                gate.catch_up()
            parent.recv()
            gate.catch_up()
            parent.send({stored.total.version for kept in gate.kept.values() for stored in kept})


def _write_on(place: Place, version: int) -> None:
    writer = place.open_writer()
    for later in count(version):
        writer.write(batch_of(later), [])


def _write_share(place: Place, which: int, start: Any) -> None:
    shares: Sequence[list[Total]] = [share_of(which, n) for n in range(SHARE)]
    with closing(place.open_writer()) as writer:
        start.wait()
        for n, totals in enumerate(shares):
            writer.write(totals, [Counter(0, "events", 2 * n + which)])
