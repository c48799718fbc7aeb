"""Events as they go to the provider, held to the rules of its API by a second reading of them."""

import json
import re
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.operators.billing.outgoing import (
    BYTES_MAX,
    ENVELOPE_BYTES,
    INT_MAX,
    INT_MIN,
    MINUTE,
    BillingRules,
    OutgoingEvent,
    Refusal,
    pack,
    split_batches,
    to_exact_number,
    unpack,
)
from tidegate.operators.model.catalog import Catalog, Condition, Customer, Filter, Meter, Plan
from tidegate.operators.model.periods import Calendar
from tidegate.operators.model.records import Accepted
from tidegate.operators.model.wire import format_instant

AT = 1_795_348_800_250_000  # 2026-11-22T12:00:00.250Z
ID = "0123456789abcdef0123456789abcdef-77a2b"
RULES = BillingRules(
    Catalog(
        meters=(
            Meter("tokens", "llm", "sum", "tokens"),
            Meter("cached", "llm", "count", filter=Filter("and", (Condition("model", "equals", "small"),))),
        ),
        plans={"p": Plan("p", period=Calendar("day"))},
        customers={
            "acme": Customer("acme", "p", billing_id="cus_1"),
            "tokyo": Customer("tokyo", "p", zone="Asia/Tokyo", billing_id="cus_2"),
            "nobody": Customer("nobody", "p"),
        },
    )
)

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=110)
numbers = (
    st.integers(-(2**70), 2**70)
    | st.decimals(allow_nan=False, allow_infinity=False, places=3)
    | st.floats(allow_nan=False, allow_infinity=False)
)

# A busy machine is no bug.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
values = numbers | st.none() | st.booleans() | st.text(st.characters(exclude_categories=["Cs"]), max_size=520)
nested = st.lists(values, max_size=3) | st.dictionaries(keys, values, max_size=2)


def event(data: dict[str, Any], name: str = "llm") -> bytes:
    """A CloudEvent; decimals as they are written."""

    class Plain(json.JSONEncoder):
        def default(self, value: Any) -> Any:
            return float(value)

    fields = {"specversion": "1.0", "id": "1", "source": "s", "type": name, "subject": "acme", "data": data}
    return json.dumps(fields, cls=Plain).encode()


def sent(data: dict[str, Any], **given: Any) -> dict[str, Any]:
    made = RULES.build_event(ID, "cus_1", AT, event(data), **given)
    assert isinstance(made, OutgoingEvent), made
    body: dict[str, Any] = json.loads(made.body)
    return body


def refused(data: dict[str, Any], **given: Any) -> str:
    made = RULES.build_event(ID, "cus_1", AT, event(data), **given)
    assert isinstance(made, Refusal), made
    return made.reason


def breaks(event: dict[str, Any]) -> list[str]:
    """The rules of the API that an event breaks; none of this is the code under test."""
    wrong = []
    if set(event) - {"timestamp"} != {"event_id", "customer_id", "event_name", "metadata"}:
        wrong.append("fields")
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", event["event_id"]):
        wrong.append("event_id")
    if "timestamp" in event and not re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["timestamp"]
    ):
        wrong.append("timestamp")
    if len(event["metadata"]) > 50:
        wrong.append("pairs")
    for key, value in event["metadata"].items():
        if not 1 <= len(key) <= 100:
            wrong.append("key")
        if type(value) not in (str, int, float, bool) or (
            type(value) is int and not -(2**63) <= value < 2**63
        ):
            wrong.append("type")
        if isinstance(value, str) and len(value) > 500:
            wrong.append("value")
    return wrong


@patient
@given(
    st.dictionaries(keys | st.sampled_from(["tokens", "model"]), values | nested, max_size=60), st.booleans()
)
def test_what_is_sent_breaks_no_rule_and_changes_no_value(data: dict[str, Any], restamp: bool) -> None:
    """One event against the rules fails a thousand; one changed value is a wrong bill."""
    made = RULES.build_event(ID, "cus_1", AT, event(data), restamp=restamp)
    if isinstance(made, Refusal):
        assert made.reason in ("number_not_exact", "value_too_long", "too_many_properties", "key_too_long")
        return
    outgoing = json.loads(made.body)
    assert not breaks(outgoing)
    original = json.loads(event(data))["data"]
    for key, value in outgoing["metadata"].items():
        if not (restamp and key == "orig_ts"):
            assert value == original[key] and type(value) is type(original[key])
    scalars = {key for key, value in original.items() if type(value) in (str, int, float, bool)}
    for needed in ("tokens", "model"):
        assert (needed in outgoing["metadata"]) == (needed in scalars)


def test_an_event_in_full() -> None:
    made = RULES.build_event(
        ID, "cus_1", AT, event({"tokens": 812, "model": "small", "cached": False, "x": 0.1})
    )
    assert isinstance(made, OutgoingEvent)
    assert json.loads(made.body) == {
        "event_id": ID,
        "customer_id": "cus_1",
        "event_name": "llm",
        "timestamp": "2026-11-22T12:00:00.250000Z",
        "metadata": {"tokens": 812, "model": "small", "cached": False, "x": 0.1},
    }
    assert made.trimmed == 0


def test_the_platforms_own_shape_is_read_too() -> None:
    payload = b'{"event_id":"a","customer_id":"cus_9","event_name":"llm","metadata":{"tokens":1}}'
    made = RULES.build_event(ID, "cus_9", AT, payload)
    assert isinstance(made, OutgoingEvent)
    assert json.loads(made.body)["metadata"] == {"tokens": 1}
    for none in (b"null", b"{}"):
        assert RULES.build_event(ID, "cus_9", AT, payload.replace(b'{"tokens":1}', none))


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("9223372036854775807", True),
        ("9223372036854775808", False),
        ("-9223372036854775808", True),
        ("-9223372036854775809", False),
        ("0.1", True),
        ("1e3", True),
        ("123456789012345.6", True),
        ("0.1234567890123456789", False),
        ("12345678901234567890.5", False),
        ("1e400", False),
        ("1e-400", False),
        ("-0.0", True),
    ],
)
def test_a_number_goes_exactly_or_not_at_all(text: str, exact: bool) -> None:
    payload = event({"tokens": 0}).replace(b'"tokens": 0', b'"tokens": ' + text.encode())
    made = RULES.build_event(ID, "cus_1", AT, payload)
    if exact:
        assert isinstance(made, OutgoingEvent)
        assert json.loads(made.body, parse_float=Decimal)["metadata"]["tokens"] == Decimal(text)
    else:
        assert isinstance(made, Refusal) and made.reason == "number_not_exact"


@patient
@given(st.integers() | st.decimals(allow_nan=True, allow_infinity=True))
def test_sendable_is_exact(value: int | Decimal) -> None:
    number = to_exact_number(value)
    if number is not None:
        assert Decimal(str(number)) == value
        assert isinstance(number, float) or INT_MIN <= number <= INT_MAX


def test_what_no_meter_reads_is_left_out_where_it_cannot_go() -> None:
    """A prompt of a thousand characters is no reason not to bill its tokens."""
    data = {"tokens": 5, "prompt": "x" * 501, "tags": ["a"], "none": None, "k" * 101: 1, "huge": 2**70}
    made = RULES.build_event(ID, "cus_1", AT, event(data))
    assert isinstance(made, OutgoingEvent)
    assert json.loads(made.body)["metadata"] == {"tokens": 5}
    assert made.trimmed == 5


def test_what_a_meter_reads_goes_before_all_else() -> None:
    data = {f"k{number}": number for number in range(60)} | {"tokens": 7, "model": "small"}
    metadata = sent(data)["metadata"]
    assert len(metadata) == 50
    assert metadata["tokens"] == 7 and metadata["model"] == "small"


def test_what_a_meter_reads_and_cannot_go_refuses_the_event() -> None:
    assert refused({"tokens": 1, "model": "x" * 501}) == "value_too_long"
    assert refused({"tokens": 2**63}) == "number_not_exact"


def test_what_a_meter_reads_and_is_no_value_is_as_if_it_were_missing() -> None:
    assert sent({"tokens": [1], "model": None})["metadata"] == {}


def test_a_restamped_event_has_no_time_but_tells_its_own() -> None:
    event = sent({"tokens": 1, "orig_ts": "theirs"}, restamp=True)
    assert "timestamp" not in event
    assert event["metadata"] == {"tokens": 1, "orig_ts": "2026-11-22T12:00:00.250000Z"}


def test_room_is_made_for_the_time_of_a_restamped_event() -> None:
    data = {"tokens": 1} | {f"k{number}": number for number in range(60)}
    metadata = sent(data, restamp=True)["metadata"]
    assert len(metadata) == 50
    assert metadata["tokens"] == 1 and "orig_ts" in metadata


def test_no_room_is_made_where_meters_read_it_all() -> None:
    needed = tuple(Condition(f"k{number}", "equals", number) for number in range(50))
    filters = tuple(Filter("and", needed[part : part + 10]) for part in range(0, 50, 10))
    rules = BillingRules(Catalog(meters=(Meter("m", "llm", "count", filter=Filter("or", filters)),)))
    payload = event({f"k{number}": number for number in range(50)})
    made = rules.build_event(ID, "cus_1", AT, payload, restamp=True)
    assert isinstance(made, Refusal) and made.reason == "no_room_for_original_time"
    assert isinstance(rules.build_event(ID, "cus_1", AT, payload), OutgoingEvent)


def test_more_than_fifty_that_meters_read_refuse_the_event() -> None:
    needed = tuple(Condition(f"k{number}", "equals", number) for number in range(60))
    filters = tuple(Filter("and", needed[part : part + 10]) for part in range(0, 60, 10))
    rules = BillingRules(Catalog(meters=(Meter("m", "llm", "count", filter=Filter("or", filters)),)))
    made = rules.build_event(ID, "cus_1", AT, event({f"k{number}": number for number in range(60)}))
    assert isinstance(made, Refusal) and made.reason == "too_many_properties"


def test_who_is_which_customer() -> None:
    assert RULES.find_billing_id("acme") == "cus_1"
    assert RULES.find_billing_id("nobody") is None
    assert RULES.find_billing_id("stranger") is None
    assert RULES.find_billing_id("cus_stranger") == "cus_stranger"


HOUR = 60 * MINUTE


@pytest.mark.parametrize(
    ("customer", "after", "may"),
    [
        # Noon; the day ends at midnight, for Tokyo in three hours.
        ("acme", HOUR, True),
        ("acme", 12 * HOUR - 3 * MINUTE, True),
        ("acme", 12 * HOUR - MINUTE, False),
        ("acme", 13 * HOUR, False),
        ("tokyo", 3 * HOUR - 3 * MINUTE, True),
        ("tokyo", 3 * HOUR, False),
        ("stranger", 24 * HOUR, True),
        ("stranger", 10 * 24 * HOUR, False),
    ],
)
def test_usage_is_only_billed_late_within_its_own_period(customer: str, after: int, may: bool) -> None:
    assert RULES.may_restamp(customer, AT, AT + after) is may


@patient
@given(st.lists(st.integers(1, 300_000), max_size=60), st.integers(1, 20))
def test_batches_hold_every_event_once_in_order_within_both_limits(sizes: list[int], events_max: int) -> None:
    parts = split_batches(sizes, events_max)
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(len(sizes)))
    for part in parts:
        held = sizes[part]
        body = ENVELOPE_BYTES + sum(held) + len(held) - 1
        assert len(held) <= events_max
        assert body <= BYTES_MAX or len(held) == 1


@patient
@given(st.lists(st.integers(1, 300_000), max_size=60))
def test_no_two_neighbouring_batches_would_have_fitted_in_one(sizes: list[int]) -> None:
    parts = split_batches(sizes)
    for first, second in pairwise(parts):
        both = [*sizes[first], sizes[second.start]]
        assert len(both) > 1000 or ENVELOPE_BYTES + sum(both) + len(both) > BYTES_MAX


@patient
@given(
    st.lists(
        st.builds(Accepted, st.text(), st.text(), st.integers(0, 2**60), st.just("on_time"), st.binary())
    )
)
def test_packed_events_come_back(events: list[Accepted]) -> None:
    assert unpack(pack(events)) == events


def test_an_instant_has_its_microseconds_and_its_zone() -> None:
    assert format_instant(AT) == "2026-11-22T12:00:00.250000Z"
    assert format_instant(0) == "1970-01-01T00:00:00.000000Z"
