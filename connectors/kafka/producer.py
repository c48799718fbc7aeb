"""A Kafka producer that answers for every message: it is delivered, or that is an error."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import confluent_kafka as rd
from confluent_kafka import Message, Producer

from tidegate.connectors.kafka.client import Cluster, weakly

QUEUED_MAX = 100_000
OURS = {
    "linger.ms": 1,
    "socket.nagle.disable": True,
    # It is for the topic to say what is too large.
    "message.max.bytes": 32 << 20,
    "queue.buffering.max.messages": QUEUED_MAX,
    # As Java's clients choose, so that all who write a customer's events agree on the partition.
    "partitioner": "murmur2_random",
}
OWN = {"enable.idempotence": True, "acks": "all"}
_WAIT_S = 0.5


class Record(NamedTuple):
    """A message to be: key, value, and headers in order."""

    key: str
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class Delivery:
    """Sends records to one topic, each once and in order within its key, and knows what became of them.

    What the topic finds too large is given to `cut`, which returns a smaller record to send instead, or None. What is
    not delivered for `delivery.timeout.ms` is an error. Used by one thread at a time.
    """

    def __init__(
        self, cluster: Cluster, topic: str, cut: Callable[[Record], Record | None] = lambda record: None
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._cut = cut
        self._failed: rd.KafkaError | None = None
        self._too_large: list[Record] = []
        self.ends: dict[int, int] = {}
        settings = {**cluster.settings(OURS, OWN), "error_cb": weakly(self._on_error)}
        self._producer: Producer = cluster.made(Producer, settings)

    def send(self, record: Record) -> None:
        """Hands a record over; waits only where too many wait. KafkaError where one before it was not delivered."""
        while True:
            try:
                return self._produce(record)
            except BufferError:
                self._producer.poll(_WAIT_S)
                self.check()

    def check(self) -> None:
        """Check the delivery of records, nearly without waiting; KafkaError if one was not delivered."""
        self._producer.poll(0)
        self._raise()
        while self._too_large:
            self._flush()
            too_large, self._too_large = self._too_large, []
            for record in too_large:
                self._send_alone(record)

    def settle(self) -> None:
        """Wait until all that was sent is delivered; KafkaError where something is not."""
        self._flush()
        self.check()

    def drop(self) -> None:
        """Forgets what is not delivered, and ends."""
        self._producer.purge()
        self._producer.flush(_WAIT_S)

    def _send_alone(self, record: Record) -> None:
        """Cuts a record until it is taken. A batch is refused as a whole, so each is tried as it is first."""
        self._produce(record)
        self._flush()
        while self._too_large:
            [refused] = self._too_large
            self._too_large.clear()
            smaller = self._cut(refused)
            if smaller is None:
                error = rd.KafkaError(rd.KafkaError.MSG_SIZE_TOO_LARGE)
                raise self._cluster.error(
                    error, f"topic {self._topic!r}, a message of {len(refused.value)} bytes"
                )
            self._produce(smaller)
            self._flush()

    def _flush(self) -> None:
        while len(self._producer):
            self._producer.flush(_WAIT_S)
            self._raise()

    def _raise(self) -> None:
        if self._failed:
            raise self._cluster.error(self._failed, f"topic {self._topic!r}, a message is not delivered")

    def _produce(self, record: Record) -> None:
        self._producer.produce(
            self._topic,
            record.value,
            record.key,
            headers=record.headers,
            on_delivery=partial(self._on_delivery, record),
        )

    def _on_delivery(self, record: Record, error: rd.KafkaError | None, message: Message) -> None:
        if error is None:
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None
            self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)
        elif error.code() == rd.KafkaError.MSG_SIZE_TOO_LARGE:
            self._too_large.append(record)
        else:
            self._failed = self._failed or error

    def _on_error(self, error: rd.KafkaError) -> None:
        if error.fatal() or error.code() == rd.KafkaError._AUTHENTICATION:
            self._failed = self._failed or error
