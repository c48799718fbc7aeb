"""The contracts fail Redis stores that are broken in the ways such stores are: in their scripts, keys and order."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import pytest

from tests.connectors.contracts.control import ControlContract, ControlPlace
from tests.connectors.contracts.holds import HoldsContract
from tests.connectors.contracts.store import AtOnce, StoreContract
from tests.connectors.redis.test_holds import HoldsPlace
from tests.support import redis_server
from tidegate.connectors.redis import control, holds, notes, writer
from tidegate.connectors.redis.client import Script
from tidegate.connectors.redis.reader import RedisReader
from tidegate.connectors.redis.writer import RedisWriter
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Changes, Note, Settled, StoredTotal
from tidegate.operators.model.records import Counter, Total

_numbers = count()


class Edit(NamedTuple):
    """A script of a module, with `old` replaced by `new`, and the test of a contract that must fail."""

    module: Any
    script: str
    old: str
    new: str
    finds: str


EDITS = {
    "takes older versions": Edit(
        writer, "WRITE", "take = later(version, old_version)", "take = true",
        "test_only_newer_totals_are_written",
    ),
    "takes the same version again": Edit(
        writer, "WRITE", "take = later(version, old_version)", "take = not later(old_version, version)",
        "test_a_replay_changes_nothing",
    ),
    "keeps the first end": Edit(
        writer, "WRITE", "take = length_of(row) ~= length_of(old[i])", "take = false",
        "test_an_end_moves_without_a_new_version",
    ),
    "moves any end": Edit(
        writer, "WRITE", "not take and version == old_version and total == old_total", "not take",
        "test_an_end_moves_with_its_own_total_only",
    ),
    "lets totals fall": Edit(
        writer, "WRITE", "not less(total, old_total)", "true", "test_only_newer_totals_are_written"
    ),
    "compares totals as doubles": Edit(
        writer, "WRITE", "if #a < 16 and #b < 16 then", "if true then", "test_totals_are_compared_exactly"
    ),
    "compares fractions as whole numbers": Edit(
        writer, "WRITE", ".. string.rep('0', places - #part_a)", "", "test_totals_are_compared_exactly"
    ),
    "tells of periods only": Edit(
        writer, "WRITE", "at, charts) or changed end", "at, charts) and changed end",
        "test_changes_name_who_was_written",
    ),
    "numbers all writes alike": Edit(
        writer, "WRITE", "math.max(times.now, top + 1, tonumber(ARGV[2]) + 1)", "top",
        "test_every_write_has_a_number_of_its_own",
    ),
    "lets counters fall": Edit(
        writer, "COUNT", "if not old or later(ARGV[i + 1], old) then", "if true then",
        "test_counters_only_grow",
    ),
    "compares counters as doubles": Edit(
        writer, "COUNT", "later(ARGV[i + 1], old)", "tonumber(ARGV[i + 1]) > tonumber(old)",
        "test_versions_and_counters_are_compared_exactly",
    ),
    "compares versions as doubles": Edit(
        writer, "WRITE", "take = later(version, old_version)", "take = tonumber(version) > tonumber(old_version)",
        "test_versions_and_counters_are_compared_exactly",
    ),
    "keeps the oldest note": Edit(
        notes, "NOTE", "tonumber(ARGV[2]) < at", "tonumber(ARGV[2]) > at",
        "test_a_note_is_replaced_by_a_later_one_only",
    ),
    "adds a record again": Edit(
        control, "APPEND", "if not position then", "if true then", "test_an_id_counts_once"
    ),
    "applies whatever was expected": Edit(
        control, "APPLY", "if ARGV[1] ~= '-1'", "if false",
        "test_who_looked_at_an_older_catalog_applies_nothing",
    ),
    "judges room as doubles": Edit(
        holds, "RESERVE", "add(room, total_of(found[1][place]), -1)",
        "room = big(string.format('%.0f', tonumber(most) - tonumber(written(total_of(found[1][place])))))",
        "test_the_edge_of_a_cap_is_exact",
    ),
    "sees no other holds": Edit(
        holds, "RESERVE", "if held[meter] then add(room, held[meter], -1) end", "",
        "test_the_edge_of_a_cap_is_exact",
    ),
    "ends no hold": Edit(
        writer, "WRITE", "changed = settle(key, ARGV[at]) or changed", "",
        "test_a_hold_ends_with_its_event_and_not_before",
    ),
    "looks for no new holds": Edit(
        writer, "WRITE", "if ARGV[7] ~= '' then", "if false then",
        "test_a_writer_knows_holds_that_came_after_it",
    ),
}  # fmt: skip


class _Alone(RedisWriter):
    """Writes hours and days after the periods, in a write of their own."""

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None:
        periods = [total for total in totals if total.window == "period"]
        super().write(periods, counters, notes, settled, heartbeats)
        super().write([total for total in totals if total.window != "period"], [])


class _Strips(RedisWriter):
    """Takes customers for the same that differ in white space."""

    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        stripped = [total._replace(customer=total.customer.strip()) for total in totals]
        super().write(stripped, counters, *rest, **more)


class _Rounds(RedisWriter):
    """Has numbers go through floats, as JSON in Lua does."""

    def write(self, totals: Sequence[Total], counters: Sequence[Counter], *rest: Any, **more: Any) -> None:
        rounded = [
            total._replace(total=int(float(total.total))) if isinstance(total.total, int) else total
            for total in totals
        ]
        super().write(rounded, counters, *rest, **more)


class _Unsorted(RedisReader):
    """Gives totals as hashes give their fields."""

    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        return sorted(super().read(customer, since), key=lambda stored: stored.total.start)


class _Claims(RedisReader):
    """Says of any number that it reaches back to it."""

    def changes(self, after: int) -> Changes:
        return super().changes(after)._replace(complete=True)


class _Repeats(RedisReader):
    """Tells again what it told last."""

    def changes(self, after: int) -> Changes:
        return super().changes(max(after - 1, 0))


class _Forgets(RedisReader):
    """Names nobody who was written in the bucket that was written last."""

    def changes(self, after: int) -> Changes:
        changes = super().changes(after)
        return changes._replace(customers=frozenset(sorted(changes.customers)[1:]))


CLASSES: dict[type[RedisWriter] | type[RedisReader], str] = {
    _Alone: "test_another_process_sees_whole_writes",
    _Strips: "test_customers_and_meters_are_not_mixed",
    _Rounds: "test_numbers_come_back_exactly",
    _Unsorted: "test_what_was_written_is_read",
    _Claims: "test_a_number_from_elsewhere_is_not_complete",
    _Repeats: "test_changes_name_who_was_written",
    _Forgets: "test_changes_name_who_was_written",
}


@dataclass(frozen=True)
class _BrokenPlace(HoldsPlace):
    writer: type[RedisWriter] = RedisWriter
    reader: type[RedisReader] = RedisReader

    def broken_by(self, broken: type[RedisWriter] | type[RedisReader]) -> "_BrokenPlace":
        if issubclass(broken, RedisWriter):
            return replace(self, writer=broken)
        return replace(self, reader=broken)

    def open_writer(self, **given: Any) -> RedisWriter:
        return self.writer(**self.given, resumed=False)

    def open_reader(self, **given: Any) -> RedisReader:
        return self.reader(**self.given)


class _Found(BaseException):
    """Ends Hypothesis at once, which would go on to look for a smaller example."""


class _Extra:
    """What is promised by this store alone."""

    fresh: Any

    def test_every_write_has_a_number_of_its_own(self) -> None:
        from tests.connectors.redis.test_writer import numbers_grow

        with self.fresh() as place:
            numbers_grow(place)

    def test_versions_and_counters_are_compared_exactly(self) -> None:
        from tests.connectors.redis.test_writer import beyond_doubles

        with self.fresh() as place:
            beyond_doubles(place)


def fails(place: HoldsPlace, name: str) -> bool:
    """Whether a contract's test of that name fails there."""

    class Contract(_Extra, HoldsContract, StoreContract, ControlContract):
        at_once: AtOnce = "customer"  # type: ignore[misc]

        @contextmanager
        def fresh(self) -> Iterator[HoldsPlace]:
            own = replace(place, prefix=f"b{next(_numbers)}")
            own.open_writer().close()
            try:
                yield own
            except Exception as error:
                raise _Found from error

        def fresh_control(self) -> AbstractContextManager[ControlPlace]:
            return self.fresh()

    try:
        # One that takes a number of decimal places is content with this one.
        getattr(Contract(), name)(*[9] * ("edge" in name))
    except (_Found, Exception, BaseExceptionGroup, pytest.fail.Exception):
        return True
    return False


@pytest.fixture(scope="module")
def place() -> Iterator[_BrokenPlace]:
    with redis_server.single("appendonly no") as server:
        yield _BrokenPlace("", (server.port,))


@pytest.mark.parametrize("broken", EDITS)
def test_the_contracts_fail_a_broken_script(
    place: _BrokenPlace, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, script, old, new, finds = EDITS[broken]
    text = getattr(module, script).text
    assert text.count(old) == 1
    reads = getattr(module, script)._word == "EVALSHA_RO"
    monkeypatch.setattr(module, script, Script(text.replace(old, new), reads=reads))
    assert fails(place, finds)


@pytest.mark.parametrize("broken", CLASSES, ids=lambda one: one.__name__.strip("_"))
def test_the_contracts_fail_a_broken_store(
    place: _BrokenPlace, broken: type[RedisWriter] | type[RedisReader]
) -> None:
    assert fails(place.broken_by(broken), CLASSES[broken])


@pytest.mark.parametrize(
    "name",
    ["test_only_newer_totals_are_written", "test_the_edge_of_a_cap_is_exact", "test_an_id_counts_once"],
)
def test_the_contracts_pass_the_store_they_are_made_of(place: _BrokenPlace, name: str) -> None:
    """One of each; the rest is what test_writer.py and test_holds.py run."""
    assert not fails(place, name)
