"""The contract fails stores that are broken in the ways stores are: else it proves nothing."""

import inspect
import sqlite3
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.connectors.contracts.store import Place, StoreContract
from tidegate.connectors.sqlite import table_layout
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter, make_store
from tidegate.operators.metering.totals import Totals
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Changes, Note, Settled, StoredTotal
from tidegate.operators.model.records import Counter, Total


class _Judging(SqliteWriter):
    """Judges by itself whether an entry is newer, and makes of a newer one what it likes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._db.create_function("merged", 2, self._merged)

    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        # One by one, so that each goes through `merged`.
        for total in totals:
            super().write([total], [])
        super().write([], counters, *rest, **more)

    def _merged(self, old: str, new: str) -> str | None:
        kept, (entry,) = {known[0]: known for known in msgspec.json.decode(old)}, msgspec.json.decode(new)
        known = kept.get(entry[0])
        if known is not None:
            if not self.is_newer(Entry.of(entry), Entry.of(known)):
                return None
            entry = list(self.made(Entry.of(entry), Entry.of(known)))
        return msgspec.json.encode([*({**kept, entry[0]: entry}).values()]).decode()

    def is_newer(self, new: "Entry", old: "Entry") -> bool:
        return new.version > old.version and (not new.steady or Decimal(new.total) >= Decimal(old.total))

    def made(self, new: "Entry", old: "Entry") -> "Entry":
        return new


class Entry(NamedTuple):
    meter: str
    end: int
    total: Any
    version: int
    as_of: int
    events: int
    late: int
    corrected: int
    adjustment: Any
    steady: bool

    @classmethod
    def of(cls, entry: list[Any]) -> "Entry":
        return cls._make(entry if len(entry) == len(cls._fields) else [*entry, entry[3], 0, 0, 0, True])


class _TakesOlderVersions(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return not new.steady or Decimal(new.total) >= Decimal(old.total)


class _TakesWhatComesLast(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return True


class _TakesTheSameVersionAgain(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return new.version == old.version or super().is_newer(new, old)


class _GoesBack(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return new.version > old.version


class _HoldsBackWhatFell(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return super().is_newer(new._replace(steady=True), old)


class _HoldsBackEqualTotals(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return new.version > old.version and Decimal(new.total) > Decimal(old.total)


class _ComparesAsFloats(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return new.version > old.version and (not new.steady or float(new.total) >= float(old.total))


class _ComparesAsTheySort(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return new.version > old.version and (not new.steady or str(new.total) >= str(old.total))


class _Adds(_Judging):
    def made(self, new: Entry, old: Entry) -> Entry:
        return new._replace(total=str(Decimal(new.total) + Decimal(old.total)))


class _LosesAColumn(_Judging):
    def made(self, new: Entry, old: Entry) -> Entry:
        return new._replace(corrected=old.corrected)


class _KeepsTheFirstEnd(_Judging):
    """Until another event comes."""


class _MovesAnyEnd(_Judging):
    def is_newer(self, new: Entry, old: Entry) -> bool:
        return new.end != old.end or super().is_newer(new, old)


class _LosesTheEnd(_Judging):
    def made(self, new: Entry, old: Entry) -> Entry:
        return new._replace(end=old.end)


class _LosesOtherMeters(_Judging):
    def _merged(self, old: str, new: str) -> str | None:
        return new


class _RoundsWhatIsReplaced(_Judging):
    def made(self, new: Entry, old: Entry) -> Entry:
        return new._replace(total=int(Decimal(new.total)))


class _BeginsAnew(SqliteWriter):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._db.execute("DELETE FROM counters")


class _Mapped(SqliteWriter):
    """Writes another total than the one given."""

    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        super().write([self.mapped(total) for total in totals], counters, *rest, **more)

    def mapped(self, total: Total) -> Total:
        raise NotImplementedError


class _RoundsBigTotals(_Mapped):
    def mapped(self, total: Total) -> Total:
        return total._replace(total=int(float(total.total))) if isinstance(total.total, int) else total


class _RoundsDecimals(_Mapped):
    def mapped(self, total: Total) -> Total:
        return total._replace(total=str(float(total.total))) if isinstance(total.total, str) else total


class _TurnsTextIntoNumbers(_Mapped):
    def mapped(self, total: Total) -> Total:
        whole = str(total.total).isdigit() and int(total.total) < 2**63
        return total._replace(total=int(total.total)) if whole else total


class _NormalisesUnicode(_Mapped):
    def mapped(self, total: Total) -> Total:
        return total._replace(customer=unicodedata.normalize("NFC", total.customer))


class _StripsKeys(_Mapped):
    def mapped(self, total: Total) -> Total:
        return total._replace(customer=total.customer.strip())


class _CutsLongKeys(_Mapped):
    def mapped(self, total: Total) -> Total:
        return total._replace(customer=total.customer[:255])


class _JoinsKeysWithADash(_Mapped):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[str, tuple[str, str]] = {}

    def mapped(self, total: Total) -> Total:
        pair = total.customer, total.meter
        customer, meter = self._known.setdefault("-".join(pair), pair)
        return total._replace(customer=customer, meter=meter)


class _CommitsInHalves(SqliteWriter):
    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        super().write(totals[::2], counters, *rest, **more)
        super().write(totals[1::2], [])


class _CommitsRowByRow(SqliteWriter):
    """On a slow disk, so that there is time to be killed between two rows."""

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.set_trace_callback(lambda statement: time.sleep(0.002))
        yield self._db


class _LocksWhatItRead(SqliteWriter):
    """Reads before it locks: where another has written meanwhile, the lock is refused.

    With a pause in between, as the fault needs time to show.
    """

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN")
        self._db.execute("SELECT max(seq) FROM feed").fetchone()
        time.sleep(0.001)
        yield self._db
        self._db.execute("COMMIT")


class _AddsUpCounters(SqliteWriter):
    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        super().write(totals, [], *rest, **more)
        add = "ON CONFLICT DO UPDATE SET value = value + excluded.value"
        self._db.executemany(f"INSERT INTO counters VALUES (?, ?, ?) {add}", counters)


class _LetsCountersFall(SqliteWriter):
    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        super().write(totals, [], *rest, **more)
        self._db.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?, ?)", counters)


class _KeepsTheFirstNote(SqliteWriter):
    def write(
        self, totals: Sequence[Total], counters: Sequence[Counter], notes: Sequence[Note] = (), *rest: Any
    ) -> None:
        known = {row[0] for row in self._db.execute("SELECT id FROM notes")}
        super().write(totals, counters, [note for note in notes if note.id not in known])


class _ShowsWhatIsOffTheList(SqliteReader):
    def notes(self, kind: str, customer: str | None = None, limit: int = 100) -> list[Note]:
        rows = self._file.db.execute(
            "SELECT kind, id, customer, at, body FROM notes WHERE kind = ? ORDER BY at DESC", (kind,)
        )
        return [Note(*row) for row in rows if customer in (None, row[2])][:limit]


class _KeepsTheFirstHeartbeat(SqliteWriter):
    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None:
        known = {row[0] for row in self._db.execute("SELECT shard FROM heartbeats")}
        super().write(totals, counters, notes, settled, [one for one in heartbeats if one.shard not in known])


class _TellsNobodyOfNotes(SqliteWriter):
    def _announce(self, customers: list[str]) -> None:
        if self._db.execute("SELECT count(*) FROM notes").fetchone()[0] == 0:
            super()._announce(customers)


class _LeavesOutNothing(SqliteReader):
    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        return super().read(customer)


class _LeavesOutPeriods(SqliteReader):
    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        return [stored for stored in super().read(customer) if stored.total.end > since]


class _ReadsEverybodysNotes(SqliteReader):
    def notes(self, kind: str, customer: str | None = None, limit: int = 100) -> list[Note]:
        return super().notes(kind, None, limit)


class _TellsAllButOne(SqliteWriter):
    def _announce(self, customers: list[str]) -> None:
        super()._announce(customers[:-1] if len(customers) > 1 else customers)


class _TellsOnlyOfNewTotals(SqliteWriter):
    def _announce(self, customers: list[str]) -> None:
        known = {
            name
            for row in self._db.execute("SELECT customers FROM feed")
            for name in msgspec.json.decode(row[0])
        }
        super()._announce([customer for customer in customers if customer not in known])


class _TellsBeforeItWrites(SqliteWriter):
    """With a slow disk in between, as the fault needs time to show."""

    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        with self._transaction():
            super()._announce([total.customer for total in totals])
        time.sleep(0.01)
        super().write(totals, counters, *rest, **more)

    def _announce(self, customers: list[str]) -> None:
        pass


class _NumbersOnItsOwn(SqliteWriter):
    _seq = 0

    def _announce(self, customers: list[str]) -> None:
        self._seq += 1
        text = msgspec.json.encode(customers).decode()
        self._db.execute("INSERT OR REPLACE INTO feed VALUES (?, 0, ?)", (self._seq, text))


class _ReadsByPrefix(SqliteReader):
    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        return [stored for stored in super().totals() if stored.total.customer.startswith(customer)]


class _ReadsAnyCase(SqliteReader):
    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        return [stored for stored in super().totals() if stored.total.customer.lower() == customer.lower()]


class _ReadsAsOfItsStart(SqliteReader):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._file.db.execute("BEGIN")
        self._file.db.execute("SELECT * FROM feed").fetchone()


class _ReadsOneCustomerAfterTheOther(SqliteReader):
    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        if customer is not None:
            yield from self.read(customer)
            return
        for name, _ in groupby(list(super().totals()), key=lambda stored: stored.total.customer):
            yield from self.read(name)


class _HoldsBackItsOwnReading(SqliteReader):
    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        yield from table_layout.read_all(self._file.db)


class _ReadsUnsorted(SqliteReader):
    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        yield from sorted(super().totals(customer), key=lambda stored: stored.total.start)


class _GivesABoolAsInteger(SqliteReader):
    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        stored = super().read(customer, since)
        return [one._replace(total=Total._make((*one.total[:-1], int(one.total.steady)))) for one in stored]


class _ClaimsToReachBack(SqliteReader):
    def changes(self, after: int) -> Changes:
        return super().changes(after)._replace(complete=True)


class _RepeatsTheLastChange(SqliteReader):
    def changes(self, after: int) -> Changes:
        return super().changes(max(after - 1, 0))


class _TakesColumnsForWholeNumbers(SqliteWriter):
    """Of a column of limbs, the first one."""

    def write(self, totals: Sequence[Total], *others: Any) -> None:
        if isinstance(totals, Totals):
            totals = [total._replace(total=int(float(total.total))) for total in totals]
        super().write(totals, *others)


BROKEN = {
    _KeepsTheFirstHeartbeat: "test_of_each_shard_the_last_heartbeat_is_read",
    _TakesColumnsForWholeNumbers: "test_totals_in_columns_are_stored_as_what_they_are",
    _TakesOlderVersions: "test_only_newer_totals_are_written",
    _TakesWhatComesLast: "test_order_does_not_matter",
    _TakesTheSameVersionAgain: "test_a_replay_changes_nothing",
    _GoesBack: "test_totals_are_compared_exactly",
    _HoldsBackWhatFell: "test_totals_are_compared_exactly",
    _HoldsBackEqualTotals: "test_totals_are_compared_exactly",
    _ComparesAsFloats: "test_totals_are_compared_exactly",
    _ComparesAsTheySort: "test_totals_are_compared_exactly",
    _Adds: "test_every_field_is_replaced",
    _LosesAColumn: "test_every_field_is_replaced",
    _KeepsTheFirstEnd: "test_an_end_moves_without_a_new_version",
    _MovesAnyEnd: "test_an_end_moves_with_its_own_total_only",
    _LosesTheEnd: "test_every_field_is_replaced",
    _LosesOtherMeters: "test_customers_and_meters_are_not_mixed",
    _RoundsWhatIsReplaced: "test_numbers_come_back_exactly",
    _BeginsAnew: "test_it_is_still_there_when_opened_again",
    _RoundsBigTotals: "test_numbers_come_back_exactly",
    _RoundsDecimals: "test_numbers_come_back_exactly",
    _TurnsTextIntoNumbers: "test_numbers_come_back_exactly",
    _NormalisesUnicode: "test_customers_and_meters_are_not_mixed",
    _StripsKeys: "test_customers_and_meters_are_not_mixed",
    _CutsLongKeys: "test_customers_and_meters_are_not_mixed",
    _JoinsKeysWithADash: "test_customers_and_meters_are_not_mixed",
    _CommitsInHalves: "test_another_process_sees_whole_writes",
    _CommitsRowByRow: "test_a_killed_writer_leaves_whole_writes",
    _LocksWhatItRead: "test_two_processes_write_at_once",
    _AddsUpCounters: "test_counters_only_grow",
    _LetsCountersFall: "test_counters_only_grow",
    _TellsAllButOne: "test_changes_name_who_was_written",
    _TellsOnlyOfNewTotals: "test_a_killed_writer_leaves_whole_writes",
    _TellsBeforeItWrites: "test_another_process_is_told_of_what_it_can_read",
    _NumbersOnItsOwn: "test_two_processes_write_at_once",
    _KeepsTheFirstNote: "test_a_note_is_replaced_by_a_later_one_only",
    _ShowsWhatIsOffTheList: "test_a_note_without_body_leaves_the_list_and_stays_away",
    _TellsNobodyOfNotes: "test_a_note_is_announced",
    _ReadsEverybodysNotes: "test_notes_are_found_by_kind_and_customer_newest_first",
    _LeavesOutPeriods: "test_periods_are_read_whatever_their_end",
    _LeavesOutNothing: "test_windows_that_ended_are_left_out_when_asked",
    _ReadsByPrefix: "test_customers_and_meters_are_not_mixed",
    _ReadsAnyCase: "test_customers_and_meters_are_not_mixed",
    _ReadsAsOfItsStart: "test_an_empty_store_is_empty",
    _ReadsOneCustomerAfterTheOther: "test_all_totals_are_of_one_moment",
    _HoldsBackItsOwnReading: "test_all_totals_are_of_one_moment",
    _ReadsUnsorted: "test_what_was_written_is_read",
    _GivesABoolAsInteger: "test_every_field_is_replaced",
    _ClaimsToReachBack: "test_a_number_from_elsewhere_is_not_complete",
    _RepeatsTheLastChange: "test_changes_name_who_was_written",
}


@dataclass(frozen=True)
class _BrokenPlace:
    broken: type[SqliteWriter] | type[SqliteReader]
    path: Path

    def open_writer(self) -> SqliteWriter:
        return (self.broken if issubclass(self.broken, SqliteWriter) else SqliteWriter)(self.path)

    def open_reader(self) -> SqliteReader:
        make_store(self.path)
        return (self.broken if issubclass(self.broken, SqliteReader) else SqliteReader)(self.path)


class _Found(BaseException):
    """Ends Hypothesis at once, which would go on to look for a smaller example."""


def fails(broken: type[SqliteWriter] | type[SqliteReader], name: str) -> bool:
    """Whether the contract's test of that name fails for `broken`."""

    class Contract(StoreContract):
        @contextmanager
        def fresh(self) -> Iterator[Place]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    yield _BrokenPlace(broken, Path(folder, "store.db"))
                except Exception as error:
                    raise _Found from error

    try:
        getattr(Contract(), name)()
    except _Found:
        return True
    return False


@pytest.mark.parametrize(("broken", "finds"), BROKEN.items(), ids=[one.__name__.strip("_") for one in BROKEN])
def test_the_contract_fails_a_broken_store(
    broken: type[SqliteWriter] | type[SqliteReader], finds: str
) -> None:
    assert fails(broken, finds)


def test_every_test_of_the_contract_finds_something() -> None:
    tests = {name for name, _ in inspect.getmembers(StoreContract) if name.startswith("test_")}
    assert tests - set(BROKEN.values()) == set()


@pytest.mark.parametrize("name", sorted(set(BROKEN.values())))
def test_the_contract_passes_the_store_they_are_made_of(name: str) -> None:
    assert not fails(SqliteWriter, name)
