"""Putting events into Kafka: nobody is told that an event is taken before it is."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from tests.connectors.kafka.helpers import messages
from tests.support.kafka_server import Brokers, Kafka
from tidegate.connectors.kafka.ingest import KafkaIngest
from tidegate.operators.model.ports import IngestError, Place


def putting(kafka: Kafka, topic: str, *puts: tuple[list[bytes], list[str]], **config: str) -> list[Any]:
    """The outcomes of puts that are made at once."""

    async def main() -> list[Any]:
        ingest = KafkaIngest(kafka.bootstrap.split(","), topic, config=named(config))
        made: list[Coroutine[Any, Any, list[Place]]] = [ingest.put(*put) for put in puts]
        found = await asyncio.gather(*made, return_exceptions=True)
        await ingest.close()
        return found

    return asyncio.run(main())


def named(config: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in config.items()}


def test_a_customers_events_lie_in_one_partition_in_their_order(kafka: Kafka) -> None:
    """Customers are spread over partitions, as Java's clients would."""
    topic = kafka.topic(4)
    customers = [f"cus_{n % 8}" for n in range(400)]
    payloads = [f"{customer}:{n}".encode() for n, customer in enumerate(customers)]
    puts = [(payloads[at : at + 50], customers[at : at + 50]) for at in range(0, 400, 50)]
    outcomes = putting(kafka, topic, *puts)
    found = messages(kafka, topic)
    # Where they are is what heartbeats say of the partitions.
    places = [place for places in outcomes for place in places]
    before: Counter[int] = Counter()
    lie = {}
    for m in found:
        before[m.partition] += 1
        lie[m.value] = Place(f"{topic}/{m.partition}", before[m.partition])
    assert places == [lie[payload] for payload in payloads]
    assert Counter(m.value for m in found) == Counter(payloads)
    for customer in set(customers):
        mine = [m for m in found if m.key == customer.encode()]
        assert len({m.partition for m in mine}) == 1
        assert [m.value for m in mine] == [p for p in payloads if p.startswith(f"{customer}:".encode())]
    # toPositive(murmur2(key)) % 4 of org.apache.kafka.common.utils.Utils.
    assert [{m.key: m.partition for m in found}[b"cus_%d" % n] for n in range(8)] == [0, 0, 3, 2, 3, 0, 1, 0]


def test_nothing_put_is_nothing_sent(kafka: Kafka) -> None:
    topic = kafka.topic()
    assert putting(kafka, topic, ([], [])) == [[]]
    assert messages(kafka, topic) == []


def test_an_event_that_is_not_delivered_is_an_error(brokers: Brokers) -> None:
    """So that the client, who was not told otherwise, sends it again."""
    topic = brokers.topic()
    brokers.pause()
    try:
        [outcome] = putting(brokers, topic, ([b"1"], ["c"]), delivery_timeout_ms="300")
    finally:
        brokers.resume()
    assert isinstance(outcome, IngestError)
    assert "an event is not delivered: _MSG_TIMED_OUT" in str(outcome)


def test_an_event_that_is_too_large_is_an_error_and_its_neighbours_are_not(brokers: Brokers) -> None:
    topic = brokers.topic(max_message_bytes="1000")
    puts = ([b"x" * 2000], ["c"]), ([b"1"], ["c"])
    large, small = putting(brokers, topic, *puts, batch_num_messages="1")
    assert isinstance(large, IngestError) and "MSG_SIZE_TOO_LARGE" in str(large)
    assert small == [Place(f"{topic}/0", 1)]
    assert [m.value for m in messages(brokers, topic)] == [b"1"]


def test_more_than_the_queue_holds_is_refused(kafka: Kafka) -> None:
    """Backpressure: memory is bounded, and the client told to come again."""
    topic = kafka.topic()
    [outcome] = putting(
        kafka, topic, ([b"1"] * 500, ["c"] * 500), queue_buffering_max_messages="100", linger_ms="500"
    )
    assert isinstance(outcome, IngestError) and "send later" in str(outcome)
