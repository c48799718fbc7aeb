"""Adjustments at their shard, whatever they say: applied once, or refused in words."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.operators.strategies import NOON
from tidegate.operators.metering.shard import Shard
from tidegate.operators.model import adjustments
from tidegate.operators.model.adjustments import FULL, USED_BEFORE, find_fault, is_same_request
from tidegate.operators.model.catalog import Catalog, Customer, Meter, Plan
from tidegate.operators.model.periods import DAY, MAX_AT, MIN_AT, Calendar, Never
from tidegate.operators.model.ports import Adjustment
from tidegate.operators.model.records import Total

PLANS = {
    "p": Plan("p", Calendar("month"), "Europe/Berlin"),
    "never": Plan("never", Never(), "Asia/Kathmandu"),
}
CATALOG = Catalog(
    (Meter("calls", "call", "count"), Meter("top", "call", "max", "n")),
    PLANS,
    {"n": Customer("n", "never")},
    "p",
)


def shard(frames: Any = ()) -> Shard:
    return Shard.restore(0, CATALOG, timedelta(days=2), "wall", frames)


def adjustment(id: str = "1", **fields: Any) -> Adjustment:
    given: dict[str, Any] = {"customer": "acme", "meter": "calls", "at": NOON, "quantity": "1"}
    return Adjustment(id=id, **(given | {"reason": "r", "by": "me"} | fields))


def periods(of: Shard) -> dict[str, Total]:
    return {total.customer: total for total in of.drain_totals() if total.window == "period"}


ANY_AT = st.one_of(
    st.sampled_from((-1, 0, MIN_AT - 1, MIN_AT, MAX_AT - 1, MAX_AT, -(2**63), 2**63, 10**30)),
    st.integers(MIN_AT, MAX_AT),
    st.integers(),
)
QUANTITIES = st.one_of(
    st.sampled_from(
        (
            "NaN",
            "sNaN",
            "-Infinity",
            "1e999999",
            "-0",
            "0." + "1" * 25,
            "0." + "1" * 24,
            "",
            "1_000",
            "１",
            "1e-999999999",
        )
    ),
    st.text(max_size=6),
    st.decimals(places=3, allow_nan=False, allow_infinity=False, min_value=-(10**15), max_value=10**15).map(
        str
    ),
)
TEXTS = st.one_of(st.sampled_from(("acme", "n", "calls", "top", "", "c" * 300)), st.text(max_size=4))


@given(
    st.lists(
        st.builds(adjustment, id=TEXTS, customer=TEXTS, meter=TEXTS, at=ANY_AT, quantity=QUANTITIES),
        max_size=6,
    )
)
def test_no_adjustment_ends_a_shard(found: list[Adjustment]) -> None:
    """A flow that dies by a record dies at every start."""
    one = shard()
    for each in found:
        alerts, refused = one.adjust(each, NOON)
        assert not (alerts and refused)
        msgspec.json.encode(msgspec.structs.asdict(each) | {"refused": refused})
    assert len(periods(one)) <= len(found)
    one.take_delta()


@pytest.mark.parametrize("at", [-1_388_534_400_000_000, 253_402_300_799_000_000, MIN_AT - 1, MAX_AT])
@pytest.mark.parametrize("customer", ["acme", "n"])
def test_a_time_that_no_event_has_is_refused(at: int, customer: str) -> None:
    """1926 ended the flow in a zone, and spun for ever under a period that never ends."""
    assert shard().adjust(adjustment(at=at, customer=customer), NOON) == (
        [],
        "at: needs 2000-01-01 to 2099-12-31",
    )


def test_an_adjustment_counts_once_through_restarts() -> None:
    """The log may be read again from its start after its store was put back."""
    one = shard()
    frames = one.take_delta()
    assert one.adjust(adjustment(quantity="5"), NOON)[1] is None
    frames += one.take_delta()
    for _ in range(2):
        again = shard(frames)
        assert again.adjust(adjustment(quantity="5.0", reason="again"), NOON) == ([], None)
        assert again.adjust(adjustment("2", quantity="1"), NOON)[1] is None
        again.republish()
        assert periods(again)["acme"].total == 6
        frames += again.take_delta()


@pytest.mark.parametrize("other", [{"quantity": "6"}, {"meter": "top"}, {"at": NOON + 1}], ids=str)
def test_the_first_of_two_stands(other: dict[str, Any]) -> None:
    one = shard()
    one.adjust(adjustment(quantity="5"), NOON)
    assert one.adjust(adjustment(**({"quantity": "5"} | other)), NOON) == ([], USED_BEFORE)
    assert periods(one)["acme"].total == 5


def test_a_refusal_stands_too() -> None:
    """What was answered as refused must not be applied when its log is read again."""
    one = shard()
    _, refused = one.adjust(adjustment(at=NOON - 90 * DAY), NOON)
    assert refused == "its period is no longer held"
    assert shard(one.take_delta()).adjust(adjustment(at=NOON - 90 * DAY), NOON - 90 * DAY) == ([], refused)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjustments, "REMEMBERED_MAX", 3)
    one = shard()
    for id in "123":
        assert one.adjust(adjustment(id), NOON)[1] is None
    assert one.adjust(adjustment("4"), NOON) == ([], FULL)
    one.adjusted.clear()
    assert one.adjust(adjustment("4"), NOON)[1] is None
    assert len(one.adjustments.known) == 1


@given(st.builds(adjustment, quantity=QUANTITIES, at=ANY_AT), st.text(), st.text())
def test_who_asks_and_why_makes_no_other_adjustment(one: Adjustment, reason: str, by: str) -> None:
    other = msgspec.structs.replace(one, reason=reason, by=by)
    assert is_same_request(one, other)
    assert not is_same_request(one, msgspec.structs.replace(one, customer=one.customer + "x"))
    assert find_fault(one) == find_fault(other)
