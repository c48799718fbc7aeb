import json
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.operators.billing.outgoing import to_exact_number
from tidegate.operators.billing.rollup import (
    RollupReader,
    RollupWindow,
    build_event,
    list_unfit_meters,
    split_exact,
)
from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.model.catalog import Catalog, Condition, Customer, Filter, Meter, Plan
from tidegate.operators.model.periods import Billing, find_period

MINUTE = 60_000_000
EDGE = datetime(2026, 11, 22, 9, 12, 44, tzinfo=UTC)
CATALOG = Catalog(
    meters=(
        Meter("tokens", "llm", "sum", "tokens"),
        Meter("small", "llm", "count", filter=Filter("and", (Condition("model", "equals", "small"),))),
        Meter("users", "llm", "unique", "user"),
        Meter("peak", "llm", "max", "tokens"),
    ),
    plans={"p": Plan("p", period=Billing((EDGE,)))},
    customers={"acme": Customer("acme", "p")},
)

# A busy machine is no bug.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def payload(data: str, name: str = "llm") -> bytes:
    return f'{{"specversion":"1.0","type":"{name}","data":{data}}}'.encode()


@patient
@given(st.integers(1, 10**18 * SCALE) | st.integers(1, 10**30))
def test_parts_arrive_exactly_and_add_up(whole: int) -> None:
    """What a double would round is sent in pieces that it does not."""
    found = split_exact(whole)
    assert sum(Fraction(Decimal(str(part))) for part in found) == Fraction(whole, SCALE)
    for part in found:
        assert part > 0
        assert to_exact_number(part if isinstance(part, int) else Decimal(str(part))) == part


@patient
@given(st.integers(1, 10**15))
def test_a_whole_sum_is_one_part(units: int) -> None:
    assert split_exact(units * SCALE) == [units]


def test_a_tenth_is_one_part() -> None:
    assert split_exact(SCALE // 10) == [0.1]


def test_sums_and_counts_are_read_as_the_meters_read_them() -> None:
    readings = RollupReader(CATALOG)
    found = list(
        readings.read(
            [
                payload('{"tokens": 5, "model": "small"}'),
                payload('{"tokens": 0.1, "model": "large"}'),
                payload('{"tokens": "7", "model": "small"}'),
                payload('{"tokens": true}'),
                payload('{"tokens": -1}'),
                payload('{"tokens": 1e40}'),
                payload("null"),
                payload('{"tokens": 9}', "other"),
            ]
        )
    )
    assert sorted(found) == [
        (0, "small", SCALE),
        (0, "tokens", 5 * SCALE),
        (1, "tokens", SCALE // 10),
        (2, "small", SCALE),
    ]


def test_a_window_is_cut_at_the_edge_of_the_billing_period() -> None:
    """Usage of the old period must not be billed in the new one, though both lie in one minute."""
    readings = RollupReader(CATALOG)
    edge = int(EDGE.timestamp()) * 1_000_000
    before, after = (readings.find_window("acme", "tokens", at, MINUTE) for at in (edge - 1, edge))
    assert before.start == after.start == before.at == edge - 44_000_000
    assert after.at == edge
    policy = CATALOG.period_of("acme")
    assert find_period(policy, "UTC", before.at)[1] == find_period(policy, "UTC", after.at)[0] == edge


@patient
@given(st.integers(10_957 * 86_400_000_000, 40_000 * 86_400_000_000), st.sampled_from([MINUTE, 5 * MINUTE]))
def test_a_window_holds_its_event(at: int, length: int) -> None:
    window = RollupReader(CATALOG).find_window("acme", "tokens", at, length)
    assert window.start <= window.at <= at < window.start + length
    assert window.start % length == 0


def test_an_event_tells_what_it_sums_up_and_its_id_is_of_window_and_revision() -> None:
    window = RollupWindow("acme", "tokens", 0, MINUTE, 0)
    id, body = build_event(window, 12, 3, 0)
    assert json.loads(body) == {
        "event_id": id,
        "customer_id": "acme",
        "event_name": "tokens.rollup",
        "metadata": {
            "sum": 12,
            "count": 3,
            "window": "1970-01-01T00:00:00.000000Z",
            "seconds": 60,
            "revision": 0,
        },
    }
    changes = ({"meter": "other"}, {"start": MINUTE, "at": MINUTE}, {"length": 5 * MINUTE})
    others = [window._replace(**change) for change in changes]
    ids = {build_event(one, 12, 3, 0)[0] for one in (window, *others)} | {build_event(window, 12, 3, 1)[0]}
    assert len(ids) == 5
    assert build_event(window, 99, 9, 0)[0] == id


def test_meters_that_do_not_add_up_are_named() -> None:
    assert list_unfit_meters(CATALOG) == ["peak"]
