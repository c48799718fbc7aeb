"""Kafka's sinks: what is written is delivered before a snapshot, or the flow ends; after a crash it is there once."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bytewax.outputs import StatefulSinkPartition

from tests.connectors.kafka.helpers import messages, until
from tests.support.kafka_server import Brokers, Kafka
from tidegate.connectors.kafka.client import KafkaError
from tidegate.connectors.kafka.sinks import AlertSink, DeadLetterSink, Delivered, KafkaSink
from tidegate.operators.model.records import DeadLetter
from tidegate.operators.model.wire import encode_dead_letter

Part = StatefulSinkPartition[bytes, Delivered]


def opened(
    kind: type[KafkaSink], kafka: Kafka, topic: str, state: Delivered | None = None, **options: Any
) -> Part:
    sink = kind(kafka.bootstrap.split(","), topic, **options)
    [name] = sink.list_parts()
    return sink.build_part("out", name, state)


def alert(number: int, customer: str = "cus_1") -> bytes:
    return json.dumps(
        {"id": f"a{number}", "kind": "threshold", "customer": customer, "level": "80%"}
    ).encode()


def dead(payload: bytes, number: int = 1) -> bytes:
    letter = DeadLetter(
        id=f"d{number}",
        reason="not_json",
        detail="needs é",
        payload=payload,
        received_at=1_790_000_000_000_000,
    )
    return encode_dead_letter(letter)


def test_an_alert_is_a_message_of_its_customer(kafka: Kafka) -> None:
    topic = kafka.topic()
    part = opened(AlertSink, kafka, topic)
    part.write_batch([alert(1), alert(2, "cus_2")])
    part.snapshot()
    assert messages(kafka, topic) == [
        (0, b"cus_1", alert(1), {"id": b"a1", "kind": b"threshold"}),
        (0, b"cus_2", alert(2, "cus_2"), {"id": b"a2", "kind": b"threshold"}),
    ]


@pytest.mark.parametrize("payload", [b'{"id": "\xc3\xa9"}', b"\xff\x00 no text", b""])
def test_a_dead_letter_is_its_payload_and_says_why(kafka: Kafka, payload: bytes) -> None:
    """Byte for byte, so that it can be mended and sent again."""
    topic = kafka.topic()
    part = opened(DeadLetterSink, kafka, topic)
    part.write_batch([dead(payload)])
    part.snapshot()
    [(_, _, value, headers)] = messages(kafka, topic)
    assert value == payload
    assert headers == {
        "id": b"d1",
        "reason": b"not_json",
        "detail": "needs é".encode(),
        "received_at": b"2026-09-21T14:13:20.000000Z",
    }


def test_a_dead_letter_that_is_too_large_is_cut(brokers: Brokers) -> None:
    """Payloads are refused for their size too, and the flow must get on."""
    topic = brokers.topic(max_message_bytes="10000")
    part = opened(DeadLetterSink, brokers, topic)
    # In one batch, which the broker refuses as a whole.
    part.write_batch([dead(b"x" * 30_000, 1), dead(b"small", 2)])
    part.snapshot()
    found = {headers["id"]: (value, headers) for _, _, value, headers in messages(brokers, topic)}
    value, headers = found[b"d1"]
    assert value == b"x" * 7_500
    assert headers["payload_bytes"] == b"30000"
    assert found[b"d2"][0] == b"small" and "payload_bytes" not in found[b"d2"][1]


def test_an_alert_that_is_too_large_ends_the_flow(brokers: Brokers) -> None:
    """Cut, it would be no alert."""
    topic = brokers.topic(max_message_bytes="200")
    part = opened(AlertSink, brokers, topic)
    with pytest.raises(
        KafkaError, match=r"a message of \d+ bytes: MSG_SIZE_TOO_LARGE.*raise its max\.message\.bytes"
    ):
        part.write_batch([alert(1, "c" * 300)])
        part.snapshot()
    part.close()


def test_a_snapshot_waits_until_all_is_delivered(brokers: Brokers) -> None:
    """Brokers that are away hold up the epoch, and nothing is lost."""
    topic = brokers.topic()
    part = opened(AlertSink, brokers, topic)
    part.write_batch([alert(1)])
    part.snapshot()
    with away(brokers):
        part.write_batch([alert(n) for n in range(2, 50)])
    part.snapshot()
    assert [value for _, _, value, _ in messages(brokers, topic)] == [alert(n) for n in range(1, 50)]


def test_what_is_not_delivered_in_time_ends_the_flow(brokers: Brokers) -> None:
    topic = brokers.topic()
    part = opened(AlertSink, brokers, topic, config={"delivery.timeout.ms": "400"})
    with away(brokers):
        part.write_batch([alert(1)])
        with pytest.raises(
            KafkaError, match=r"not delivered: _MSG_TIMED_OUT.*brokers and replicas did not take it"
        ):
            part.snapshot()
    part.close()


@contextmanager
def away(brokers: Brokers) -> Iterator[None]:
    brokers.pause()
    try:
        yield
    finally:
        brokers.resume()


def test_a_topic_that_is_not_there_ends_the_start(brokers: Brokers) -> None:
    with pytest.raises(KafkaError, match="topic 'nope': UNKNOWN_TOPIC_OR_PART"):
        AlertSink(brokers.bootstrap.split(","), "nope").list_parts()


def test_a_topic_deleted_meanwhile_ends_the_flow(brokers: Brokers) -> None:
    topic = brokers.topic()
    part = opened(AlertSink, brokers, topic, config={"delivery.timeout.ms": "3000"})
    part.write_batch([alert(1)])
    part.snapshot()
    brokers.admin.delete_topics([topic])[topic].result(10)
    until(lambda: topic not in brokers.admin.list_topics(timeout=10).topics, "the topic stays")
    with pytest.raises(KafkaError, match="a message is not delivered"):
        part.write_batch([alert(2)])
        part.snapshot()
    part.close()


class Crashing:
    """Plays Bytewax: writes lines, snapshots now and then, dies, and replays from a snapshot."""

    def __init__(self, kafka: Kafka, topic: str, starts: Path, **options: Any) -> None:
        self._kafka, self._topic = kafka, topic
        self._options = {"starts": starts, **options}
        self.state: Delivered | None = None
        self._part = self._opened()

    def _opened(self) -> Part:
        return opened(AlertSink, self._kafka, self._topic, self.state, **self._options)

    def write(self, *numbers: int) -> None:
        for number in numbers:
            self._part.write_batch([alert(number)])

    def save(self) -> None:
        self.state = self._part.snapshot()

    def die(self) -> None:
        """After what was written has gone out, as it mostly has."""
        self._part.snapshot()
        self._part.close()
        self._part = self._opened()


def counts(kafka: Kafka, topic: str) -> Counter[int]:
    return Counter(int(json.loads(value or b"")["id"][1:]) for _, _, value, _ in messages(kafka, topic))


def test_each_record_is_there_once_whenever_it_dies(kafka: Kafka, tmp_path: Path) -> None:
    """Before the first snapshot, after it, in the middle of a replay, and with records of equal ids."""
    topic = kafka.topic(3)
    kafka.put(topic, [alert(99)], headers=[("id", b"a1")])
    flow = Crashing(kafka, topic, tmp_path / "starts.json")
    flow.write(1, 2)
    flow.die()
    flow.write(1, 2, 3)
    flow.save()
    flow.write(4, 4, 5)
    flow.die()
    # A replay that is saved before it is through, and then dies again.
    flow.write(4)
    flow.save()
    flow.die()
    flow.write(4, 5, 6)
    flow.save()
    assert counts(kafka, topic) == {99: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1, 6: 1}


def test_repeats_are_told_by_their_ids_where_nobody_looks(kafka: Kafka, tmp_path: Path) -> None:
    topic = kafka.topic()
    flow = Crashing(kafka, topic, tmp_path / "starts.json", replays="repeat")
    flow.write(1)
    flow.die()
    flow.write(1, 2)
    flow.save()
    assert counts(kafka, topic) == {1: 2, 2: 1}
