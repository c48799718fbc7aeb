"""The flow as people start it, with Kafka for its source, its alerts and its dead letters."""

import json
import signal
from collections import Counter

import pytest

from tests.connectors.kafka.helpers import messages, until
from tests.connectors.kafka.test_source import lag
from tests.flows.conftest import SCENARIOS, SECONDS, Place
from tests.flows.meter.test_metering import ALERTS, DEAD, FIRST, SECOND, eventually
from tests.support.kafka_server import Brokers


class Topics:
    """The topics of a flow and its group, and the settings that name them."""

    def __init__(self, brokers: Brokers, partitions: int = 3) -> None:
        self.brokers = brokers
        self.group = brokers.unused()
        self.events, self.alerts, self.dead = (brokers.topic(count) for count in (partitions, 1, 1))

    def settings(self, **options: str) -> dict[str, str]:
        at = f"kafka://{self.brokers.bootstrap}"
        query = "&".join(f"{name}={value}" for name, value in {"group": self.group, **options}.items())
        return {
            "SOURCE": f"{at}/{self.events}?{query}",
            "ALERTS": f"{at}/{self.alerts}",
            "DEAD_LETTERS": f"{at}/{self.dead}",
            "CLOCK": "event",
            "EPOCH": "1s",
        }

    def put(self, scenario: str) -> None:
        """The lines of a scenario, each customer's in one partition."""
        for line in (SCENARIOS / scenario).read_bytes().splitlines():
            event = json.loads(line) if line.startswith(b"{") and line.endswith(b"}") else {}
            customer = str(event.get("subject") or event.get("customer_id"))
            self.brokers.put(self.events, [line], partition=len(customer.encode()) % 3)


@pytest.fixture
def topics(brokers: Brokers) -> Topics:
    return Topics(brokers)


def kinds_of(topics: Topics) -> list[tuple[str, str, str, str]]:
    """Customer, kind, state and level of each alert in the topic."""
    found = [json.loads(message.value or b"") for message in messages(topics.brokers, topics.alerts)]
    return sorted((each["customer"], each["kind"], each["state"], each["level"]) for each in found)


def reasons_of(topics: Topics) -> Counter[bytes]:
    """How often each reason stands in the headers of dead letters."""
    return Counter(message.headers["reason"] for message in messages(topics.brokers, topics.dead))


def test_a_flow_on_kafka_that_is_killed_counts_each_event_once(place: Place, topics: Topics) -> None:
    """Totals, alerts and dead letters are what they are on files; and lag tools see when it has caught up."""
    topics.put("first.jsonl")
    settings = topics.settings()
    with place.running(**settings) as flow:
        eventually(lambda: (place.folder / "store.db").exists() and place.periods() == FIRST)
        eventually(lambda: len(messages(topics.brokers, topics.dead)) == len(DEAD))
        flow.kill()
    topics.put("second.jsonl")
    with place.running(**settings) as flow:
        eventually(lambda: place.periods() == SECOND)
        until(lambda: lag(topics.brokers, topics.group, topics.events) == 0, "the lag stays", 0.1)
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(SECONDS) == 0, flow.communicate()[1]
    assert kinds_of(topics)[: len(ALERTS)] == ALERTS
    assert len(kinds_of(topics)) == len(
        {message.headers["id"] for message in messages(topics.brokers, topics.alerts)}
    )
    assert reasons_of(topics) == {b"conflict": 1, b"not_json": 1, b"too_late": 1}


def test_processes_share_the_partitions(place: Place, topics: Topics) -> None:
    topics.put("first.jsonl")
    place.run_processes(2, **topics.settings(follow="false"), RECOVERY_PARTS="2")
    assert place.periods() == FIRST
    assert sorted(reasons_of(topics)) == [b"conflict", b"not_json", b"too_late"]
    # Another number of processes, and a partition that nobody has a position in.
    topics.brokers.grow(topics.events, 4)
    topics.put("second.jsonl")
    topics.brokers.put(topics.events, [EXTRA], partition=3)
    place.run(**topics.settings(follow="false", start="latest"), RECOVERY_PARTS="2")
    assert place.periods() == {**SECOND, ("other", "calls"): "1", ("other", "tokens"): "1"}


EXTRA = (
    b'{"specversion":"1.0","id":"1","source":"api","type":"call","subject":"other",'
    b'"time":"2026-06-17T10:00:00Z","data":{"tokens":1}}'
)


def test_an_option_that_librdkafka_does_not_know_is_one_clear_line(place: Place) -> None:
    complained = place.refused(SOURCE="kafka://127.0.0.1:1/topic?config.fecth.min.bytes=1")
    assert complained == (
        'kafka: No such configuration property: "fecth.min.bytes"; see librdkafka\'s CONFIGURATION.md for what'
        " config.NAME may be\n"
    )
