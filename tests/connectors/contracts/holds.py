"""What every store promises to the gate, as tests to inherit: accounts, holds and the feed of near caches.

A subclass says in `fresh` how an empty store comes to be, as a place that any process can open. The state machine
drives reserves, commits, releases, events, replays, expiries and restarts in any order beside a model that is a
dictionary; `TIDEGATE_GATE_SEEDS` is how many such stories are told, and how many seeds the killing tests try.
"""

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.connectors.contracts.store import ODD_KEYS, PAIRS, child, processes
from tests.support.options import option
from tidegate.operators.columns.quantity import SCALE, format_quantity, scale
from tidegate.operators.events.keys import compute_identity
from tidegate.operators.gate.holds import REMEMBERED, find_final_quantities
from tidegate.operators.model.ports import (
    Account,
    ControlLog,
    Feed,
    Held,
    Hold,
    Holds,
    Scope,
    Settled,
    StoreReader,
    StoreWriter,
    Used,
)
from tidegate.operators.model.records import Total

SEEDS = int(option("TIDEGATE_GATE_SEEDS", "1"))

START, END = 1_700_000_000_000_000, 1_702_000_000_000_000
NOW = START + 5_000_000_000
SECOND = 1_000_000
METERS = ("calls", "tokens")
SCOPE = Scope(METERS, START)
CAP = 10 * SCALE
CEILINGS = dict.fromkeys(METERS, CAP)
LIFE = 30 * SECOND
SETTLE = 60 * SECOND


class Place(Protocol):
    """Where a store is; picklable, as other processes open it too."""

    def open_writer(self) -> StoreWriter: ...
    def open_reader(self) -> StoreReader: ...
    def open_holds(self) -> Holds: ...
    def open_control(self) -> ControlLog: ...


def total_of(customer: str, meter: str, quantity: int, version: int, **fields: Any) -> Total:
    """A total of the period, the quantity times 10²⁴."""
    written: int | str = (
        quantity // SCALE if quantity % SCALE == 0 and quantity < 2**63 else format_quantity(quantity)
    )
    total = Total(
        customer, "period", meter, START, END, written, version, version, NOW + version, 0, 0, 0, True
    )
    return total._replace(**fields)


def settled_of(*identities: tuple[str, str, str]) -> Settled:
    """Events of these customers, sources and ids."""
    words = np.frombuffer(b"".join(compute_identity(*parts) for parts in identities), np.uint64).reshape(
        -1, 2
    )
    return Settled(words[:, 0].copy(), words[:, 1].copy())


def hold_of(customer: str, id: str, until: int = NOW + LIFE, source: str = "", **quantities: Any) -> Hold:
    """Quantities in units, as numbers or texts."""
    amounts = {meter: scale(Decimal(quantity)) for meter, quantity in quantities.items()}
    return Hold(customer, source, id, amounts, until)


def reserve(holds: Holds, customer: str, id: str, now: int = NOW, **quantities: Any) -> str:
    hold = hold_of(customer, id, now + LIFE, **quantities)
    return holds.reserve(hold, CEILINGS, SCOPE, now).outcome


# The model


@dataclass
class Kept:
    """A hold as the model knows it."""

    state: str
    asked: dict[str, int]
    quantities: dict[str, int]
    until: int


class Story(RuleBasedStateMachine):
    """Anything that may happen to two customers, beside what must come of it."""

    fresh: Callable[[], AbstractContextManager[Place]]

    customers = st.sampled_from(["a", "b"])
    ids = st.sampled_from(["1", "2", "3"])
    amounts = st.dictionaries(
        st.sampled_from(METERS), st.sampled_from([0, SCALE // 2, SCALE, 4 * SCALE, 7 * SCALE]), min_size=1
    )

    @initialize()
    def open(self) -> None:
        self.stack = ExitStack()
        self.place = self.stack.enter_context(type(self).fresh())
        self.now = NOW
        self.used: dict[tuple[str, str], int] = {}
        self.version = 0
        self.kept: dict[tuple[str, str], Kept] = {}
        self.counted: set[tuple[str, str]] = set()
        self.beyond: dict[tuple[str, str], int] = {}
        self.writes: list[tuple[list[Total], Settled, list[tuple[str, str, str]]]] = []
        self.holds, self.writer = self.place.open_holds(), self.place.open_writer()
        self.writer.write([], [])
        self.reader = self.place.open_reader()

    # What applications do

    @rule(customer=customers, id=ids, quantities=amounts, seen=st.sampled_from(["not", "now", "long ago"]))
    def reserve(self, customer: str, id: str, quantities: dict[str, int], seen: str) -> None:
        revision = {"not": None, "now": self.account(customer).revision, "long ago": -1}[seen]
        hold = Hold(customer, "", id, quantities, self.now + LIFE)
        reserved = self.holds.reserve(hold, CEILINGS, SCOPE, self.now, revision)
        assert reserved.outcome == self.expected(customer, id, quantities, seen)
        if reserved.outcome == "held":
            self.kept[customer, id] = Kept("held", quantities, quantities, self.now + LIFE)
        self.same(customer, reserved.account)

    def expected(self, customer: str, id: str, quantities: dict[str, int], seen: str) -> str:
        kept = self.kept.get((customer, id))
        if kept and kept.state == "settled":
            return "settled"
        if kept and self.counts(kept):
            return "repeated" if kept.asked == quantities else "conflict"
        for meter in METERS:
            after = self.used.get((customer, meter), 0) + self.held(customer).get(meter, 0)
            if after + quantities.get(meter, 0) > CAP:
                return "full"
        return "moved" if seen == "long ago" else "held"

    @rule(
        customer=customers,
        id=ids,
        given=st.none() | amounts | st.just({"": 3 * SCALE}),
        settle=st.sampled_from([5, 60]),
    )
    def commit(self, customer: str, id: str, given: dict[str, int] | None, settle: int) -> None:
        until = self.now + settle * SECOND
        closing = self.holds.commit(customer, "", id, given, until, self.now)
        kept = self.kept.get((customer, id))
        if kept is None:
            assert (closing.state, closing.reserved) == ("unknown", {})
            return
        assert closing.reserved == kept.asked
        final = find_final_quantities(kept.asked, given)
        if kept.state in ("released", "settled"):
            assert closing.state == kept.state
        elif final is None or (kept.state == "committed" and final != kept.quantities):
            assert closing.state == "conflict"
        elif kept.state == "committed":
            assert closing.state == "committed"
        else:
            counted = self.counts(kept)
            assert (closing.state, closing.expired) == ("committed", not counted)
            for meter, quantity in final.items():
                room = kept.quantities[meter] if counted else 0
                self.exceed(customer, meter, max(quantity - room, 0))
            kept.state, kept.quantities, kept.until = "committed", final, max(until, kept.until)

    @rule(customer=customers, id=ids)
    def release(self, customer: str, id: str) -> None:
        closing = self.holds.release(customer, "", id, self.now)
        kept = self.kept.get((customer, id))
        if kept is not None and kept.state == "held":
            kept.state = "released"
        assert closing.state == (kept.state if kept else "unknown")

    # What happens to them

    @rule(seconds=st.sampled_from([1, 10, 20, 30]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(customer=customers, ids=st.lists(ids, unique=True), without=st.booleans())
    def events_arrive(self, customer: str, ids: list[str], without: bool) -> None:
        """With what was kept for them, and one that nobody reserved for."""
        settled = [(customer, "", id) for id in ids]
        for id in ids:
            if (customer, id) in self.counted:
                continue
            kept = self.kept.get((customer, id))
            quantities = kept.quantities if kept else {"calls": SCALE}
            for meter, quantity in quantities.items():
                self.count(customer, meter, quantity, counted=bool(kept and self.counts(kept)))
            self.counted.add((customer, id))
        if without:
            self.count(customer, "calls", SCALE // 4, counted=False)
            settled.append((customer, "", f"unreserved-{self.version}"))
        for id in ids:
            if (customer, id) in self.kept:
                self.kept[customer, id].state = "settled"
        self.write([self.total(customer, meter) for meter in METERS], settled)

    @rule(back=st.integers(0, 3))
    def the_flow_replays(self, back: int) -> None:
        """What was reserved only after its event had come ends now."""
        for totals, settled, identities in self.writes[-1 - back :]:
            self.writer.write(totals, [], settled=[settled])
            for customer, _, id in identities:
                if (customer, id) in self.kept:
                    self.kept[customer, id].state = "settled"

    @rule()
    def the_gate_restarts(self) -> None:
        self.holds.close()
        self.holds = self.place.open_holds()

    @rule()
    def the_flow_restarts(self) -> None:
        self.writer.close()
        self.writer = self.place.open_writer()

    # What must hold

    @invariant()
    def accounts_are_right(self) -> None:
        for customer in "ab":
            self.same(customer, self.account(customer))

    @invariant()
    def readers_see_what_is_held(self) -> None:
        """Pages show what gates decide by."""
        accounts = {customer: self.account(customer) for customer in "ab"}
        held = {
            customer: Held(account.held, account.next_expiry)
            for customer, account in accounts.items()
            if account.next_expiry is not None
        }
        assert self.reader.read_held(self.now) == self.reader.read_held(self.now, ["a", "b", "c"]) == held

    @invariant()
    def no_cap_is_exceeded(self) -> None:
        """Used and held stay within the cap, but for what was used without or beyond a hold."""
        for customer in "ab":
            for meter in METERS:
                both = self.used.get((customer, meter), 0) + self.held(customer).get(meter, 0)
                assert both <= CAP + self.beyond.get((customer, meter), 0)

    def teardown(self) -> None:
        """In the end nothing is held, and whatever is not used may be reserved again."""
        self.now += SETTLE + LIFE
        for customer in "ab":
            assert not self.account(customer).held
            rest = {meter: CAP - self.used.get((customer, meter), 0) for meter in METERS}
            if min(rest.values()) >= 0:
                hold = Hold(customer, "", "last", rest, self.now + LIFE)
                assert self.holds.reserve(hold, CEILINGS, SCOPE, self.now).outcome == "held"
        self.holds.close()
        self.writer.close()
        self.reader.close()
        self.stack.close()

    # How

    def counts(self, kept: Kept) -> bool:
        return kept.state in ("held", "committed") and kept.until > self.now

    def held(self, customer: str) -> dict[str, int]:
        sums: dict[str, int] = {}
        for (owner, _), kept in self.kept.items():
            if owner == customer and self.counts(kept):
                for meter, quantity in kept.quantities.items():
                    sums[meter] = sums.get(meter, 0) + quantity
        return {meter: quantity for meter, quantity in sums.items() if quantity}

    def account(self, customer: str) -> Account:
        return self.holds.account(customer, SCOPE, self.now)

    def same(self, customer: str, account: Account) -> None:
        ends = [
            kept.until for (owner, _), kept in self.kept.items() if owner == customer and self.counts(kept)
        ]
        used = {meter: self.used[customer, meter] for meter in METERS if (customer, meter) in self.used}
        assert {meter: one.total for meter, one in account.used.items()} == used
        assert dict(account.held) == self.held(customer)
        assert account.next_expiry == min(ends, default=None)

    def count(self, customer: str, meter: str, quantity: int, counted: bool) -> None:
        self.used[customer, meter] = self.used.get((customer, meter), 0) + quantity
        if not counted:
            self.exceed(customer, meter, quantity)

    def exceed(self, customer: str, meter: str, quantity: int) -> None:
        self.beyond[customer, meter] = self.beyond.get((customer, meter), 0) + quantity

    def total(self, customer: str, meter: str) -> Total:
        self.version += 1
        return total_of(customer, meter, self.used.setdefault((customer, meter), 0), self.version)

    def write(self, totals: list[Total], identities: list[tuple[str, str, str]]) -> None:
        settled = settled_of(*identities) if identities else settled_of(("nobody", "", ""))
        self.writes.append((totals, settled, identities))
        self.writer.write(totals, [], settled=[settled])


class HoldsContract(ABC):
    @abstractmethod
    def fresh(self) -> AbstractContextManager[Place]:
        """An empty store of its own, that a writer has opened before."""

    # Whatever happens

    def test_no_story_exceeds_a_cap_or_leaks_a_hold(self) -> None:
        """Money depends on it: what is granted is there, and what is given back can be granted again."""
        told = type("Told", (Story,), {"fresh": staticmethod(self.fresh)})
        run_state_machine_as_test(
            told,
            settings=settings(
                max_examples=40 * SEEDS,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    # Accounts

    def test_an_account_has_the_period_that_was_asked_for(self) -> None:
        """Last month's usage closes no door today."""
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            totals = [
                total_of("a", "calls", 9 * SCALE, 1, start=START - 100, end=START),
                total_of("a", "calls", 3 * SCALE, 2),
                total_of("a", "calls", 4 * SCALE, 3, window="day"),
                total_of("a", "other", 5 * SCALE, 4),
                total_of("b", "calls", 6 * SCALE, 5),
            ]
            writer.write(totals, [])
            account = holds.account("a", SCOPE, NOW)
            assert {meter: used.total for meter, used in account.used.items()} == {"calls": 3 * SCALE}
            assert account.used["calls"].as_of == NOW + 2 and account.used["calls"].written_at > 0
            assert (dict(account.held), account.next_expiry, account.catalog) == ({}, None, 0)
            past = holds.account("a", Scope(METERS, START - 100), NOW)
            assert past.used["calls"].total == 9 * SCALE
            assert not holds.account("nobody", SCOPE, NOW).used

    def test_quantities_are_exact(self) -> None:
        """0.1 and 0.2 fill a cap of 0.3, and 10²⁴ parts of one count too."""
        tiny, huge = 1, 9 * 10**30 * SCALE + 1
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            writer.write(
                [total_of("a", "calls", scale(Decimal("0.1")), 1), total_of("b", "calls", huge, 1)], []
            )
            hold = hold_of("a", "1", calls="0.2")
            ceiling = {"calls": scale(Decimal("0.3"))}
            assert holds.reserve(hold, ceiling, SCOPE, NOW).outcome == "held"
            more = Hold("a", "", "2", {"calls": tiny}, NOW + LIFE)
            assert holds.reserve(more, ceiling, SCOPE, NOW).outcome == "full"
            assert holds.account("b", SCOPE, NOW).used["calls"].total == huge
            exact = {"calls": huge + tiny}
            big = Hold("b", "", "1", {"calls": tiny}, NOW + LIFE)
            assert holds.reserve(big, {"calls": huge}, SCOPE, NOW).outcome == "full"
            assert holds.reserve(big, exact, SCOPE, NOW).outcome == "held"
            assert holds.account("b", SCOPE, NOW).held == {"calls": tiny}

    @pytest.mark.parametrize("places", range(0, 25, 3))
    def test_the_edge_of_a_cap_is_exact(self, places: int) -> None:
        """At every size of the last digit: one part too much is too much, and not one less."""
        part = 10**places
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            used, held, ceiling = 7 * 10**15 * part - 1, 3 * part + 1, 7 * 10**15 * part + 5 * part
            writer.write([total_of("a", "calls", used, 1)], [])
            first = Hold("a", "", "1", {"calls": held}, NOW + LIFE)
            assert holds.reserve(first, {"calls": ceiling}, SCOPE, NOW).outcome == "held"
            over = Hold("a", "", "2", {"calls": ceiling - used - held + 1}, NOW + LIFE)
            assert holds.reserve(over, {"calls": ceiling}, SCOPE, NOW).outcome == "full"
            fits = Hold("a", "", "2", {"calls": ceiling - used - held}, NOW + LIFE)
            assert holds.reserve(fits, {"calls": ceiling}, SCOPE, NOW).outcome == "held"

    def test_a_total_that_an_adjustment_made_negative_gives_room(self) -> None:
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            writer.write([total_of("a", "calls", 0, 1, total="-2.5", steady=False)], [])
            assert reserve(holds, "a", "1", calls="12.5") == "held"
            assert reserve(holds, "a", "2", calls="0.1") == "full"

    def test_the_newest_catalog_is_part_of_an_account(self) -> None:
        """So that a check in one round trip knows that it decides by an old one."""
        with (
            self.fresh() as place,
            closing(place.open_control()) as control,
            closing(place.open_holds()) as holds,
        ):
            assert holds.catalog() is None
            for number in (1, 2):
                version = control.apply(f"text {number}", origin="cli", by="me")
                assert holds.account("a", SCOPE, NOW).catalog == number
                assert holds.catalog() == version
            hold = hold_of("a", "1", calls=1)
            assert holds.reserve(hold, {}, SCOPE, NOW).account.catalog == 2

    # Holds

    def test_who_holds_what_is_not_mixed_up(self) -> None:
        """`a-b,c` is not `a,b-c`: one customer's hold is never ended by another's event."""
        pairs = [(a, b) for a, b in PAIRS if a and b] + [(odd, odd) for odd in ODD_KEYS if odd]
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            for n, (customer, id) in enumerate(dict.fromkeys(pairs)):
                hold = Hold(customer, "", id, {"calls": n + 1}, NOW + LIFE)
                assert holds.reserve(hold, {}, SCOPE, NOW).outcome == "held"
                other = Hold(customer, "s", id, {"calls": n + 1}, NOW + LIFE)
                assert holds.reserve(other, {}, SCOPE, NOW).outcome == "held"
            before = {customer: holds.account(customer, SCOPE, NOW).held for customer, _ in pairs}
            writer.write([], [], settled=[settled_of(("a-b", "", "b-c"))])
            gone = list(dict.fromkeys(pairs)).index(("a-b", "b-c")) + 1
            for customer, held in before.items():
                expected = held["calls"] - (gone if customer == "a-b" else 0)
                assert holds.account(customer, SCOPE, NOW).held == {"calls": expected}

    def test_a_hold_ends_with_its_event_and_not_before(self) -> None:
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            assert reserve(holds, "a", "1", calls=8) == "held"
            assert reserve(holds, "a", "2", calls=8) == "full"
            writer.write([total_of("a", "calls", 5 * SCALE, 1)], [], settled=[settled_of(("a", "", "1"))])
            account = holds.account("a", SCOPE, NOW)
            assert (account.used["calls"].total, dict(account.held)) == (5 * SCALE, {})
            assert reserve(holds, "a", "2", calls=5) == "held"

    def test_all_meters_are_held_or_none(self) -> None:
        with self.fresh() as place, closing(place.open_holds()) as holds:
            assert reserve(holds, "a", "1", calls=8) == "held"
            assert reserve(holds, "a", "2", calls=3, tokens=1) == "full"
            assert holds.account("a", SCOPE, NOW).held == {"calls": 8 * SCALE}
            assert reserve(holds, "a", "2", calls=2, tokens=10) == "held"
            assert holds.account("a", SCOPE, NOW).held == {"calls": 10 * SCALE, "tokens": 10 * SCALE}

    def test_a_hold_without_a_ceiling_is_held_whatever_there_is(self) -> None:
        """Where a cap lets pass, what is on its way still counts for everybody else."""
        with self.fresh() as place, closing(place.open_holds()) as holds:
            hold = hold_of("a", "1", calls=1000)
            assert holds.reserve(hold, {}, SCOPE, NOW).outcome == "held"
            assert holds.account("a", SCOPE, NOW).held == {"calls": 1000 * SCALE}

    def test_a_ceiling_below_nothing_is_never_met(self) -> None:
        with self.fresh() as place, closing(place.open_holds()) as holds:
            assert holds.reserve(hold_of("a", "1", calls=0), {"calls": -1}, SCOPE, NOW).outcome == "full"

    def test_at_its_last_instant_a_hold_counts_and_then_no_more(self) -> None:
        with self.fresh() as place, closing(place.open_holds()) as holds:
            assert reserve(holds, "a", "1", calls=8) == "held"
            for now, held, again, other in (
                (NOW + LIFE - 1, {"calls": 8 * SCALE}, "repeated", "full"),
                (NOW + LIFE, {}, "held", "held"),
            ):
                account = holds.account("a", SCOPE, now)
                assert (dict(account.held), account.next_expiry) == (held, NOW + LIFE if held else None)
                assert reserve(holds, "a", "2", now, calls=3) == other
                holds.release("a", "", "2", now)
                assert reserve(holds, "a", "1", now, calls=8) == again
            # By itself, and not because another reserve tidied up before.
            assert reserve(holds, "b", "1", calls=8) == "held"
            assert reserve(holds, "b", "1", NOW + LIFE, calls=9) == "held"

    def test_readers_leave_out_what_has_expired(self) -> None:
        """Also beside a hold of the same customer that is still open, and before anybody sweeps."""
        with (
            self.fresh() as place,
            closing(place.open_reader()) as reader,
            closing(place.open_holds()) as holds,
        ):
            for id, until in (("short", NOW + SECOND), ("long", NOW + LIFE)):
                assert holds.reserve(hold_of("a", id, until, calls=2), {}, SCOPE, NOW).outcome == "held"
            assert reader.read_held(NOW) == {"a": Held({"calls": 4 * SCALE}, NOW + SECOND)}
            later = {"a": Held({"calls": 2 * SCALE}, NOW + LIFE)}
            assert reader.read_held(NOW + SECOND) == reader.read_held(NOW + SECOND, ["a"]) == later
            assert reader.read_held(NOW + LIFE) == reader.read_held(NOW + LIFE, ["a"]) == {}

    def test_a_commit_counts_for_as_long_as_it_says_and_never_shorter_than_its_hold(self) -> None:
        """The flow may be behind: what was used must count until its event comes."""
        with self.fresh() as place, closing(place.open_holds()) as holds:
            for id, settle, until in (("1", 2 * LIFE, NOW + 2 * LIFE), ("2", SECOND, NOW + LIFE)):
                assert reserve(holds, id, id, calls=8) == "held"
                assert holds.commit(id, "", id, {"": 9 * SCALE}, NOW + settle, NOW).state == "committed"
                account = holds.account(id, SCOPE, until - 1)
                assert (dict(account.held), account.next_expiry) == ({"calls": 9 * SCALE}, until)
                # A retry of the reserve is the reserve that was.
                assert reserve(holds, id, id, calls=8) == "repeated"
                assert holds.account(id, SCOPE, until).held == {}

    @pytest.mark.parametrize("swept", [False, True])
    def test_a_first_commit_stands_when_its_time_is_over(self, swept: bool) -> None:
        """A retry that comes late must not hold again what nobody will ever settle."""
        late = NOW + LIFE + SECOND
        with self.fresh() as place, closing(place.open_holds()) as holds:
            assert reserve(holds, "a", "1", calls=8) == "held"
            assert holds.commit("a", "", "1", {"": 4 * SCALE}, NOW + SECOND, NOW).state == "committed"
            if swept:
                assert reserve(holds, "a", "2", late, calls=1) == "held"
            for given, state in ((4, "committed"), (5, "conflict")):
                closed = holds.commit("a", "", "1", {"": given * SCALE}, late + SETTLE, late)
                assert (closed.state, closed.expired) == (state, False)
            assert holds.release("a", "", "1", late).state == "committed"
            assert holds.account("a", SCOPE, late).held.get("calls", 0) == (SCALE if swept else 0)
            # Like any that is over, it may be reserved for anew.
            assert reserve(holds, "a", "1", late, calls=8) == "held"

    @pytest.mark.parametrize("swept", [False, True])
    def test_a_commit_after_the_expiry_counts_again(self, swept: bool) -> None:
        """It was used, and its event comes: better beyond the cap for all to see than not at all."""
        late = NOW + LIFE + SECOND
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            assert reserve(holds, "a", "1", calls=8) == "held"
            if swept:
                assert reserve(holds, "a", "2", late, calls=10) == "held"
            closed = holds.commit("a", "", "1", {"": 4 * SCALE}, late + SETTLE, late)
            assert (closed.state, closed.expired, closed.reserved) == (
                "committed",
                True,
                {"calls": 8 * SCALE},
            )
            other = 10 * SCALE if swept else 0
            assert holds.account("a", SCOPE, late).held == {"calls": 4 * SCALE + other}
            writer.write([], [], settled=[settled_of(("a", "", "1"))])
            assert holds.account("a", SCOPE, late).held.get("calls", 0) == other

    @pytest.mark.parametrize("ended", ["released", "expired", "swept"])
    def test_an_event_that_comes_after_its_hold_ended_is_remembered(self, ended: str) -> None:
        """So that a late retry of the reserve, or a late commit, does not count it a second time."""
        now = NOW + (0 if ended == "released" else LIFE + SECOND)
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            assert reserve(holds, "a", "1", calls=8) == "held"
            if ended == "released":
                holds.release("a", "", "1", NOW)
            elif ended == "swept":
                assert reserve(holds, "a", "2", now, calls=1) == "held"
                holds.release("a", "", "2", now)
            writer.write([], [], settled=[settled_of(("a", "", "1"))])
            assert reserve(holds, "a", "1", now, calls=8) == "settled"
            assert holds.commit("a", "", "1", None, now + SETTLE, now).state == "settled"
            assert holds.release("a", "", "1", now).state == "settled"
            assert holds.account("a", SCOPE, now).held == {}

    def test_an_ended_hold_is_remembered_for_an_hour_and_not_for_ever(self) -> None:
        """Retries of a slow client change nothing; and the store does not fill up with them."""
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            for n in range(100):
                assert holds.reserve(hold_of("a", str(n), calls=1), {}, SCOPE, NOW).outcome == "held"
            writer.write([], [], settled=[settled_of(*(("a", "", str(n)) for n in range(50)))])
            late = NOW + LIFE + REMEMBERED - SECOND
            for n in range(40):
                assert holds.reserve(hold_of("b", str(n), calls=1), {}, SCOPE, late).outcome == "held"
                holds.release("b", "", str(n), late)
            assert reserve(holds, "a", "0", late, calls=1) == "settled"
            assert holds.commit("a", "", "1", None, late, late).state == "settled"
            later = NOW + 2 * (LIFE + REMEMBERED)
            for n in range(40):
                assert holds.reserve(hold_of("b", str(n), later, calls=1), {}, SCOPE, later).outcome == "held"
            assert {holds.release("a", "", str(n), later).state for n in range(100)} == {"unknown"}
            assert holds.account("a", SCOPE, later).held == {}

    def test_many_holds_and_events_in_few_writes(self) -> None:
        """Events that nobody reserved for, of all customers, come between those that somebody did."""
        rng = random.Random(1)
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            for n in range(300):
                hold = Hold(f"c{n % 7}", "s", str(n), {"calls": 1}, NOW + LIFE)
                assert holds.reserve(hold, {}, SCOPE, NOW).outcome == "held"
            events = [(f"c{n % 7}", "s", str(n)) for n in range(-1000, 200)]
            rng.shuffle(events)
            writer.write([], [], settled=[settled_of(*events[::2]), settled_of(*events[1::2])])
            left = [f"c{n % 7}" for n in range(200, 300)]
            for n in range(7):
                assert holds.account(f"c{n}", SCOPE, NOW).held == {"calls": left.count(f"c{n}")}

    def test_a_writer_knows_holds_that_came_after_it(self) -> None:
        """It may have been up for weeks before the first reserve, and has seen many since."""
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            numbers = count()
            for _ in range(30):
                ids = [str(next(numbers)) for _ in range(100)]
                for id in ids:
                    assert holds.reserve(hold_of("a", id, calls=1), {}, SCOPE, NOW).outcome == "held"
                for id in ids[:50]:
                    holds.release("a", "", id, NOW)
                writer.write([], [], settled=[settled_of(*(("a", "", id) for id in ids[50:]))])
                assert holds.account("a", SCOPE, NOW).held == {}

    # Several at once

    def test_usage_moves_from_held_to_used_at_once(self) -> None:
        """Whoever reads in between never sees an event missing, nor twice."""
        steps = 150
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
        ):
            for n in range(steps):
                assert holds.reserve(hold_of("a", str(n), calls=1), {}, SCOPE, NOW).outcome == "held"
            sums: set[int] = set()
            done = threading.Event()

            def watch() -> None:
                with closing(place.open_holds()) as seeing:
                    while not done.is_set():
                        account = seeing.account("a", SCOPE, NOW)
                        used = account.used.get("calls", Used(0, 0, 0)).total
                        sums.add(used + account.held.get("calls", 0))

            watching = threading.Thread(target=watch)
            watching.start()
            try:
                for n in range(steps):
                    total = total_of("a", "calls", (n + 1) * SCALE, n + 1)
                    writer.write([total], [], settled=[settled_of(("a", "", str(n)))])
            finally:
                done.set()
                watching.join()
            assert sums == {steps * SCALE}

    def test_no_more_is_granted_than_there_is_room_for(self) -> None:
        """Many threads of several processes want more than there is; some retry, some give back."""
        with self.fresh() as place:
            with closing(place.open_holds()) as holds:
                assert holds.reserve(hold_of("a", "first", calls=10), {}, SCOPE, NOW).outcome == "held"
            answers = processes.Queue()
            start = processes.Barrier(3)
            with (
                child(_grab, place, 0, start, answers),
                child(_grab, place, 1, start, answers),
                child(_grab, place, 2, start, answers),
            ):
                granted = sum(answers.get(timeout=60) for _ in range(3))
            with closing(place.open_holds()) as holds:
                assert holds.account("a", SCOPE, NOW).held == {"calls": GRABBED_CAP * SCALE}
            assert granted == GRABBED_CAP - 10

    @pytest.mark.parametrize("seed", range(SEEDS))
    def test_killed_processes_leave_nothing_held_for_ever_and_nothing_granted_twice(self, seed: int) -> None:
        rng = random.Random(seed)
        with self.fresh() as place, closing(place.open_holds()) as holds:
            for turn in range(3):
                with (
                    child(_reserve_on, place, seed, turn) as client,
                    child(_settle_on, place, seed, turn) as flow,
                ):
                    deadline = time.monotonic() + 30
                    while time.monotonic() < deadline and not holds.account("a", SCOPE, NOW).used:
                        time.sleep(0.01)
                    time.sleep(rng.random() / 20)
                    (client if rng.random() < 0.5 else flow).kill()
                    time.sleep(rng.random() / 20)
                    client.kill()
                    flow.kill()
                    client.join()
                    flow.join()
                account = holds.account("a", SCOPE, NOW)
                used = account.used["calls"].total
                assert used + account.held.get("calls", 0) <= 500 * SCALE
            later = NOW + LIFE
            assert holds.account("a", SCOPE, later).held == {}
            rest = Hold("a", "", "rest", {"calls": 500 * SCALE - used}, later + LIFE)
            assert holds.reserve(rest, {"calls": 500 * SCALE}, SCOPE, later).outcome == "held"

    # The feed

    def test_the_feed_tells_of_every_change_of_an_account(self) -> None:
        """What it did not tell of would be answered from memory for ever."""
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_control()) as control,
            closing(place.open_holds()) as holds,
            closing(place.open_holds()) as other,
        ):
            writer.write([total_of("a", "calls", SCALE, 1)], [])
            feed = other.feed()
            with closing(feed):
                acts: list[Callable[[], object]] = [
                    lambda: writer.write([total_of("a", "calls", 2 * SCALE, 2)], []),
                    lambda: holds.reserve(hold_of("a", "1", calls=1), {}, SCOPE, NOW),
                    lambda: holds.reserve(hold_of("a", "2", calls=1), {}, SCOPE, NOW),
                    lambda: holds.commit("a", "", "1", {"": SCALE // 2}, NOW + SETTLE, NOW),
                    lambda: holds.release("a", "", "2", NOW),
                    lambda: writer.write([], [], settled=[settled_of(("a", "", "1"))]),
                ]
                for act in acts:
                    other.account("a", SCOPE, NOW)
                    assert told(feed) == (frozenset(), 0)
                    act()
                    customers, _ = told(feed)
                    assert customers is None or customers == {"a"}
                for number in (1, 2):
                    control.apply("text", origin="api", by="me")
                    assert told(feed)[1] == number

    def test_the_feed_tells_at_once(self) -> None:
        """It does not wait for its time to be up where there is news."""
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
            closing(holds.feed()) as feed,
        ):
            holds.account("a", SCOPE, NOW)
            timer = threading.Timer(0.05, writer.write, ([total_of("a", "calls", SCALE, 1)], []))
            timer.start()
            begun = time.monotonic()
            news = feed.wait(30)
            assert time.monotonic() - begun < 25
            timer.join()
            assert news.customers is None or news.customers == {"a"}

    def test_a_near_cache_that_follows_is_never_wrong(self) -> None:
        """Kept accounts, dropped as told, are those of the store whenever the feed has just been waited for."""
        rng = random.Random(7)
        with (
            self.fresh() as place,
            closing(place.open_writer()) as writer,
            closing(place.open_holds()) as holds,
            closing(place.open_holds()) as other,
            closing(other.feed()) as feed,
        ):
            kept: dict[str, Account] = {}
            for n in range(1, 200):
                customer = rng.choice("abc")
                match rng.randrange(4):
                    case 0:
                        writer.write([total_of(customer, "calls", n * SCALE, n)], [])
                    case 1:
                        holds.reserve(hold_of(customer, str(n), calls=1), {}, SCOPE, NOW)
                    case 2:
                        holds.release(customer, "", str(n - 1), NOW)
                    case 3:
                        writer.write([], [], settled=[settled_of((customer, "", str(n - 1)))])
                customers, _ = told(feed)
                kept = {} if customers is None else {c: kept[c] for c in kept if c not in customers}
                for name in "abc":
                    now = other.account(name, SCOPE, NOW)
                    assert kept.setdefault(name, now) == now


def told(feed: Feed) -> tuple[frozenset[str] | None, int]:
    """What one wait tells of changes that were committed before it."""
    return feed.wait(0.001)


GRABBED_CAP = 100


def _grab(place: Place, process: int, start: Any, answers: Any) -> None:
    """Eight threads that reserve one at a time until there is nothing left; says how many were granted."""
    granted: list[int] = []
    with closing(place.open_holds()) as holds:
        start.wait(30)

        def want(thread: int) -> None:
            for n in count():
                id = f"{process}-{thread}-{n}"
                outcome = _patient(holds, id, {"calls": GRABBED_CAP * SCALE})
                if outcome != "held":
                    return
                assert _patient(holds, id, {}) == "repeated"
                if n % 5 == 4:
                    holds.release("a", "", id, NOW)
                else:
                    granted.append(1)

        threads = [threading.Thread(target=want, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # What was given back at the very end, somebody else may not have seen.
        while _patient(holds, f"{process}-last-{len(granted)}", {"calls": GRABBED_CAP * SCALE}) == "held":
            granted.append(1)
    answers.put(len(granted))


def _patient(holds: Holds, id: str, ceilings: Mapping[str, int]) -> str:
    return holds.reserve(hold_of("a", id, calls=1), ceilings, SCOPE, NOW).outcome


def _reserve_on(place: Place, seed: int, turn: int) -> None:
    """Reserves, and commits or gives back some, until it is killed."""
    rng = random.Random(f"{seed} {turn}")
    with closing(place.open_holds()) as holds:
        for n in count():
            id = f"{turn}-{n}"
            holds.reserve(hold_of("a", id, calls=1), {"calls": 500 * SCALE}, SCOPE, NOW)
            if rng.random() < 0.2:
                holds.release("a", "", id, NOW)
            elif rng.random() < 0.2:
                holds.commit("a", "", id, None, NOW + LIFE, NOW)


def _settle_on(place: Place, seed: int, turn: int) -> None:
    """A flow that counts the events of what is held, in any order, until it is killed."""
    rng = random.Random(f"{turn} {seed}")
    with closing(place.open_writer()) as writer, closing(place.open_holds()) as holds:
        known = holds.account("a", SCOPE, NOW).used.get("calls", Used(0, 0, 0)).total // SCALE
        version = known + 1
        done: set[str] = set()
        while True:
            id = f"{turn}-{rng.randrange(100 + 2 * len(done))}"
            # What it can repeat with success is held: so an application knew that its request may pass.
            hold = hold_of("a", id, calls=1)
            if id in done or holds.reserve(hold, {"calls": -1}, SCOPE, NOW).outcome != "repeated":
                continue
            done.add(id)
            total = total_of("a", "calls", version * SCALE, version)
            writer.write([total], [], settled=[settled_of(("a", "", id))])
            version += 1
