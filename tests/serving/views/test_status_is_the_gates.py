"""What pages and commands say of a limit is what the gate answers: whatever the catalog, the usage and the holds."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.heartbeats import ENDED
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.columns.quantity import format_quantity, scale
from tidegate.operators.gate.decision import Decision
from tidegate.operators.model.aggregates import LEVELS
from tidegate.operators.model.catalog import (
    Catalog,
    Limit,
    Meter,
    Plan,
    SpendCap,
    Threshold,
    Tier,
    VersionedCatalog,
)
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.ports import Hold, Scope
from tidegate.operators.model.records import Total
from tidegate.serving.gate import Gate
from tidegate.serving.http.readers.usage import usage_body
from tidegate.serving.http.schemas import MeterUsage, UsageBody
from tidegate.serving.views.limit_status import read_account

NOW = 1_795_900_000_000_000
START, END = find_period(Calendar("month"), "UTC", NOW)
SECOND = 1_000_000
PATIENCE = timedelta(minutes=1)
LEAST = Decimal(1).scaleb(-24)
METERS = (
    Meter("calls", "c", "count"),
    Meter("tokens", "t", "sum", "n"),
    Meter("users", "u", "unique", "id"),
    Meter("peak", "p", "max", "n"),
    Meter("seats", "s", "last", "n"),
    Meter("floor", "f", "min", "n"),
)
PRICED = (Tier(Decimal(2), Decimal("0.5")), Tier(None, Decimal(2)))

few = st.integers(0, 12).map(lambda halves: Decimal(halves) / 2)
some = few | st.none()
caps: dict[str, Any] = {
    "on_cap": st.sampled_from(["block", "block", "allow", "warn"]),
    "grace_pct": st.sampled_from([Decimal(0), Decimal(0), Decimal(10), Decimal(100)]),
    "shadow": st.sampled_from([False, False, True]),
}
limits = st.builds(
    Limit,
    included=some,
    cap=some,
    tiers=st.sampled_from([(), PRICED]),
    thresholds=st.sampled_from([(), (Threshold(percent=Decimal(50)),)]),
    **caps,
)
spends = st.none() | st.builds(SpendCap, cap=few, **caps)
by_meter = st.dictionaries(st.sampled_from([meter.name for meter in METERS]), few, max_size=6)


class Store:
    """One store for all examples, each of which is a customer of its own."""

    def __init__(self, path: Path) -> None:
        self.names = count()
        self.writer, self.reader, self.holds = SqliteWriter(path), SqliteReader(path), SqliteHolds(path)
        self.writer.write([], [], heartbeats=[ENDED])

    def account(self, used: dict[str, Decimal], held: dict[str, Decimal], expired: bool) -> str:
        customer = f"cus_{next(self.names)}"
        totals = [
            Total(
                customer, "period", meter, START, END, format_quantity(scale(each)), 1, 1, NOW, 0, 0, 0, True
            )
            for meter, each in used.items()
        ]
        self.writer.write(totals, [])
        until = NOW - 1 if expired else NOW + 10 * SECOND
        hold = Hold(customer, "", "held", {meter: scale(each) for meter, each in held.items()}, until)
        assert self.holds.reserve(hold, {}, Scope((), START), NOW - SECOND).outcome == "held"
        return customer

    def usage(self, catalog: Catalog, customer: str) -> UsageBody:
        stored, held = read_account(self.reader, customer, NOW)
        return usage_body(
            VersionedCatalog(0, catalog), customer, stored, held, [], now=NOW, at=NOW, hours=0, days=0
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    found = Store(tmp_path_factory.mktemp("store") / "store.db")
    with closing(found.writer), closing(found.reader), closing(found.holds):
        yield found


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(
    st.dictionaries(st.sampled_from([m.name for m in METERS]), limits),
    spends,
    by_meter,
    by_meter,
    st.booleans(),
)
def test_the_limit_status_is_what_the_gate_answers(
    store: Store,
    limited: dict[str, Limit],
    spend: SpendCap | None,
    used: dict[str, Decimal],
    held: dict[str, Decimal],
    expired: bool,
) -> None:
    catalog = Catalog(METERS, {"p": Plan("p", limits=limited, spend_cap=spend)}, {}, "p")
    customer = store.account(used, held, expired)
    body = store.usage(catalog, customer)
    with Gate(store.holds, catalog, near=False, timeout=PATIENCE, clock=lambda: NOW) as gate:
        for meter, shown in zip(METERS, body.meters, strict=True):
            decision = gate.check(customer, meter.name, asked(meter, used))
            assert not decision.degraded
            agree(shown, decision, meter)


def asked(meter: Meter, used: dict[str, Decimal]) -> Decimal | int:
    """The least that can be asked for; of a level the one that there is."""
    if meter.kind in LEVELS:
        return used.get(meter.name, 0)
    return LEAST if meter.kind == "sum" else 1


def agree(shown: MeterUsage, decision: Decision, meter: Meter) -> None:
    said = (shown, decision)
    assert (shown.level == "denied") == (not decision.allowed), said
    assert shown.standing.startswith("would deny") == decision.denied_in_shadow, said
    if decision.allowed and not decision.denied_in_shadow:
        levels = {"grace": ["grace"], "warn": ["over"], "overage": ["overage"]}
        assert shown.level in levels.get(decision.reason, ["free", "noted", "overage"]), said
    if shown.level in ("denied", "grace", "over"):
        assert shown.standing.endswith("(spend)") == (decision.scope == "spend"), said
    if decision.scope == "meter" and meter.kind not in LEVELS:
        assert decision.reserved is not None
        assert Decimal(shown.reserved) == decision.reserved, said
        assert (None if shown.remaining is None else Decimal(shown.remaining)) == decision.remaining, said


@pytest.mark.parametrize(
    ("catalog", "used", "held", "level", "standing"),
    [
        # What is held is as good as used.
        (Plan("p", limits={"calls": Limit(cap=Decimal(3))}), {"calls": 1}, {"calls": 2}, "denied", "DENIED"),
        # Money is spent by another meter.
        (
            Plan(
                "p",
                limits={"tokens": Limit(tiers=PRICED), "calls": Limit(tiers=PRICED)},
                spend_cap=SpendCap(Decimal(1)),
            ),
            {"tokens": 2},
            {},
            "denied",
            "DENIED (spend)",
        ),
        (
            Plan(
                "p", limits={"calls": Limit(tiers=PRICED)}, spend_cap=SpendCap(Decimal(1), "warn", Decimal(0))
            ),
            {"calls": 2},
            {},
            "over",
            "over cap (spend)",
        ),
        (
            Plan("p", limits={"calls": Limit(cap=Decimal(2), grace_pct=Decimal(50))}),
            {"calls": 1},
            {"calls": 1},
            "grace",
            "in grace",
        ),
    ],
)
def test_holds_and_the_spend_cap_are_seen(
    store: Store, catalog: Plan, used: dict[str, int], held: dict[str, int], level: str, standing: str
) -> None:
    customer = store.account(
        {meter: Decimal(each) for meter, each in used.items()},
        {meter: Decimal(each) for meter, each in held.items()},
        expired=False,
    )
    (calls, *_) = store.usage(Catalog(METERS, {"p": catalog}, {}, "p"), customer).meters
    assert (calls.level, calls.standing) == (level, standing)


def test_no_usage_is_counted_as_held_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event comes while the account is read: between what is held and what is used."""
    catalog = Catalog(METERS, {"p": Plan("p", limits={"calls": Limit(cap=Decimal(5))})}, {}, "p")
    customer = store.account({}, {"calls": Decimal(3)}, expired=False)
    read = store.reader.read
    arriving = iter([True])

    def read_after_the_event(name: str, since: int = 0) -> Any:
        if next(arriving, False):
            store.holds.release(name, "", "held", NOW)
            total = Total(name, "period", "calls", START, END, 3, 1, 1, NOW, 0, 0, 0, True)
            store.writer.write([total], [])
        return read(name, since)

    monkeypatch.setattr(store.reader, "read", read_after_the_event)
    calls = store.usage(catalog, customer).meters[0]
    assert (calls.total, calls.reserved, calls.remaining, calls.level) == ("3", "0", "2", "free")
