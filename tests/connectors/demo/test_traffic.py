"""The traffic is what the demo claims it is: counted here in a second, naive way, from the bytes alone."""

import json
from collections import Counter
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.connectors.demo.traffic import Traffic

START = 1_700_000_000_000_000
RATE = 200
EVENTS = 30_000


class Sent(NamedTuple):
    """An event as a reader sees it; `delay_s` from its time to its sending."""

    identity: str
    customer: str
    name: str
    usage: dict[str, Any]
    sent_s: float
    delay_s: float
    is_dodo: bool


TRAFFIC = Traffic(1, START, RATE)
PAYLOADS = [TRAFFIC.event(i) for i in range(EVENTS)]


def seen(i: int) -> Sent | None:
    try:
        event = json.loads(PAYLOADS[i], parse_float=Decimal)
        is_dodo = "event_id" in event
        keys = (
            ("event_id", "customer_id", "event_name", "metadata", "timestamp")
            if is_dodo
            else ("id", "subject", "type", "data", "time")
        )
        identity, customer, name, usage, time = (event[key] for key in keys)
    except (ValueError, KeyError):
        return None
    assert is_dodo or (event["specversion"] == "1.0" and event["source"].startswith("/gateway/"))
    assert time.endswith("Z") and len(time) == len("2026-01-01T00:00:00.000Z")
    sent = TRAFFIC.due(i) / 1e6
    delay = sent - datetime.fromisoformat(time).timestamp()
    return Sent(identity, customer, name, usage, sent - START / 1e6, delay, is_dodo)


ALL = [seen(i) for i in range(EVENTS)]
FIRST: dict[str, Sent] = {}
for one in ALL:
    if one:
        FIRST.setdefault(one.identity, one)


def share(count: int) -> float:
    return count / EVENTS


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**9), st.integers(1, 2000))
def test_an_event_is_a_function_of_seed_start_and_number(seed: int, i: int, customers: int) -> None:
    """So a resumed run repeats it to the byte, and its repeat is dropped as one."""
    event = Traffic(seed, START, RATE, customers).event(i)
    assert event == Traffic(seed, START, RATE, customers).event(i)
    assert event and b"\n" not in event


def test_it_is_the_same_on_every_machine() -> None:
    """A change of these bytes is a change of everybody's demo: make it on purpose."""
    assert PAYLOADS[1] == (
        b'{"specversion":"1.0","id":"18bcfe56800-1-1","source":"/gateway/3","type":"llm.tokens",'
        b'"subject":"cus_006","time":"2023-11-14T22:13:19.980Z",'
        b'"data":{"input_tokens":1856,"output_tokens":126,"model":"reason-1","cached":false}}'
    )


def test_another_run_sends_other_events() -> None:
    """A store that has seen the first run must not take the second for repeats."""
    first = {Traffic(1, START).event(i) for i in range(100)}
    assert not first & {Traffic(1, START + 1000).event(i) for i in range(100)}
    assert not first & {Traffic(2, START).event(i) for i in range(100)}


def test_one_in_a_hundred_is_sent_twice_soon_after() -> None:
    repeats = [i for i in range(EVENTS) if PAYLOADS[i] in PAYLOADS[max(0, i - 10 * RATE) : i]]
    assert share(len(repeats)) == pytest.approx(0.01, rel=0.25)
    well_formed = sum(1 for one in ALL if one)
    assert well_formed - len(FIRST) == pytest.approx(len(repeats), abs=3)


def test_a_few_are_late_by_seconds_fewer_by_hours_none_is_early() -> None:
    delays = [one.delay_s for one in FIRST.values()]
    assert all(0 < delay < 8 * 3600 + 1 for delay in delays)
    assert share(sum(1 <= delay <= 11 for delay in delays)) == pytest.approx(0.02, rel=0.2)
    assert share(sum(delay >= 3600 for delay in delays)) == pytest.approx(0.002, rel=0.4)
    assert all(delay < 0.1 or 0.99 < delay < 10.1 or delay >= 3600 for delay in delays)


def test_a_very_few_are_garbage() -> None:
    assert 3 <= sum(one is None for one in ALL) <= 30
    assert len({p for p, one in zip(PAYLOADS, ALL, strict=True) if not one}) > 2


def test_usage_has_the_catalogs_shape() -> None:
    names = Counter(one.name for one in FIRST.values())
    assert set(names) == {"llm.tokens", "api.call", "gpu.run", "seats.set"}
    for one in FIRST.values():
        if one.name == "gpu.run":
            assert one.usage["seconds"].as_tuple().exponent == -3 and one.usage["seconds"] > 0
        elif one.name == "llm.tokens":
            assert one.usage["input_tokens"] > 0 and one.usage["output_tokens"] >= 0
            assert isinstance(one.usage["cached"], bool)
        elif one.name == "api.call":
            assert set(one.usage) == {"route", "user", "status"}
        else:
            assert one.usage["seats"] >= 1
    assert share(sum(one.is_dodo for one in FIRST.values())) == pytest.approx(0.05, rel=0.2)


def test_few_customers_send_most() -> None:
    before = Counter(one.customer for one in FIRST.values() if one.sent_s < 20)
    every = Counter(one.customer for one in FIRST.values())
    assert set(every) == {f"cus_{n:03d}" for n in range(1, 41)}
    assert sum(n for _, n in before.most_common(3)) > 0.6 * before.total()


def test_one_runs_away_and_through_its_cap() -> None:
    """What the demo is for: cus_003 is on the plan `pro`, whose cap with grace is 210000 input tokens."""
    before = Counter(one.customer for one in FIRST.values() if one.sent_s < 20)
    after = Counter(one.customer for one in FIRST.values() if one.sent_s >= 20)
    times = (after["cus_003"] / after["cus_006"]) / (before["cus_003"] / before["cus_006"])
    assert times == pytest.approx(20, rel=0.5)

    tokens: Counter[str] = Counter()
    passed: dict[str, float] = {}
    for one in FIRST.values():
        tokens[one.customer] += one.usage.get("input_tokens", 0)
        if tokens[one.customer] > 210_000:
            passed.setdefault(one.customer, one.sent_s)
    assert 22 < passed["cus_003"] < 45
    others = [passed.get(f"cus_{n:03d}", 999) for n in (1, 2, 4)]
    assert min(others) > 90


def test_traffic_swells_and_ebbs_around_its_rate() -> None:
    minute = 60 * RATE
    assert TRAFFIC.due(minute) - START == pytest.approx(60e6, abs=10)
    per_second = Counter((TRAFFIC.due(i) - START) // 1_000_000 for i in range(minute))
    assert max(per_second.values()) > 1.8 * RATE and min(per_second.values()) < 0.7 * RATE


@given(st.integers(0, 10**9))
def test_a_later_number_is_never_due_earlier(i: int) -> None:
    assert TRAFFIC.due(i) <= TRAFFIC.due(i + 1)


def test_speed_stretches_event_time_and_not_the_pace() -> None:
    fast = Traffic(1, START, RATE, speed=60)
    assert fast.due(1000) == TRAFFIC.due(1000)
    i = next(i for i in range(5000, EVENTS) if (one := ALL[i]) and one.delay_s < 0.1)
    event = json.loads(fast.event(i))
    at = datetime.fromisoformat(event.get("time") or event["timestamp"]).timestamp()
    assert at - START / 1e6 == pytest.approx(60 * (fast.due(i) - START) / 1e6, abs=0.1)


@pytest.mark.parametrize("customers", [1, 2, 3, 7, 8])
def test_few_customers_are_enough(customers: int) -> None:
    traffic = Traffic(1, START, customers=customers)
    events = b"".join(traffic.event(i) for i in range(6000))
    names = {b"cus_%03d" % n for n in range(1, customers + 2)}
    assert {name for name in names if name in events} == names - {b"cus_%03d" % (customers + 1)}
