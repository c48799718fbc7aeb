"""What tests of Kafka's connectors share: a source that is patient, and reading one to its end."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import Consumer, TopicPartition

from tests.connectors.contracts.source import payloads_in
from tests.support.kafka_server import Kafka
from tidegate.connectors.kafka.source import KafkaSource
from tidegate.operators.model.ports import Payloads

PATIENCE_S = 60.0


def source(kafka: Kafka, topic: str, **options: Any) -> KafkaSource:
    """A source on the session's Kafka."""
    return KafkaSource(kafka.bootstrap.split(","), topic, **options)


class PatientPartition(StatefulSourcePartition[Payloads, Any]):
    """Waits until something comes or the end, so that a number of polls says something."""

    def __init__(self, part: StatefulSourcePartition[Payloads, Any]) -> None:
        self.part = part

    def next_batch(self) -> Iterable[Payloads]:
        deadline = time.monotonic() + PATIENCE_S
        while not (batch := self.part.next_batch()):
            assert time.monotonic() < deadline, "nothing comes"
            time.sleep(0.0005)
        return batch

    def next_awake(self) -> datetime | None:
        return self.part.next_awake()

    def snapshot(self) -> Any:
        return self.part.snapshot()

    def close(self) -> None:
        self.part.close()


class Patient(FixedPartitionedSource[Payloads, Any]):
    """Its partitions are patient."""

    def __init__(self, inner: KafkaSource) -> None:
        self.inner = inner

    def list_parts(self) -> list[str]:
        return self.inner.list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> PatientPartition:
        return PatientPartition(self.inner.build_part(step_id, for_part, resume_state))


def until(
    condition: Callable[[], object],
    what: str,
    wait: float = 0.01,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Wait until a condition holds; call `meanwhile` before each check."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        meanwhile()
        if condition():
            return
        assert time.monotonic() < deadline, what
        time.sleep(wait)


class Reader:
    """Drives the partitions of a source as Bytewax does, from the states it is given."""

    def __init__(self, of: KafkaSource, states: dict[str, Any] | None = None) -> None:
        self.states = dict(states or {})
        self.parts = {name: of.build_part("in", name, self.states.get(name)) for name in of.list_parts()}
        self.polls: list[Payloads] = []

    def poll(self) -> None:
        """One poll of each partition that has not ended."""
        for name, part in list(self.parts.items()):
            try:
                self.polls += part.next_batch()
            except StopIteration:
                self.states[name] = part.snapshot()
                self.parts.pop(name).close()

    def read(self, count: int) -> list[bytes]:
        """Polls until there are as many payloads, and once more; all of them."""
        until(
            lambda: len(self.payloads) >= count, f"{count} payloads do not come", 0.001, meanwhile=self.poll
        )
        self.poll()
        return self.payloads

    def to_the_end(self) -> list[bytes]:
        """Polls until the source ends; all payloads."""
        until(lambda: not self.parts, "the source does not end", 0.001, meanwhile=self.poll)
        return self.payloads

    @property
    def payloads(self) -> list[bytes]:
        return payloads_in(self.polls)

    def snapshot(self) -> dict[str, Any]:
        """The state of each partition."""
        self.states |= {name: part.snapshot() for name, part in self.parts.items()}
        return dict(self.states)

    def close(self) -> None:
        while self.parts:
            self.parts.popitem()[1].close()


class Found(NamedTuple):
    """A message that a topic has."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


def messages(kafka: Kafka, topic: str) -> list[Found]:
    """All that a topic has, each partition in its order."""
    looks = {"enable.partition.eof": True, "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    consumer = Consumer({**kafka.client(group__id="look"), **looks})
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    found: list[Found] = []
    left = len(partitions)
    while left:
        message = consumer.poll(10)
        assert message is not None, "the end of the topic does not come"
        if message.error():
            left -= 1
        else:
            headers = dict(message.headers() or [])
            found.append(Found(message.partition(), message.key(), message.value(), headers))  # type: ignore[arg-type]
    consumer.close()
    return found
