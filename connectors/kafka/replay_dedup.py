"""What a topic already has of what a replay is about to send again."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import confluent_kafka as rd
from confluent_kafka import Consumer, Message, TopicPartition

from tidegate.connectors.kafka.client import ANSWER_S, Cluster, KafkaError
from tidegate.connectors.kafka.start_offsets import Starts

_SETTINGS = {
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "allow.auto.create.topics": False,
    # The end is looked for, not what comes behind it.
    "fetch.wait.max.ms": 10,
}
AT_ONCE = 10_000


def settings_of(cluster: Cluster) -> dict[str, Any]:
    """Of consumers that only look."""
    return cluster.settings({}, {**_SETTINGS, "group.id": "tidegate-looks-back"})


def ids_since(cluster: Cluster, topic: str, starts: Starts) -> Counter[str]:
    """How often each `id` stands in the headers of messages from `starts` on; KafkaError where none comes in time."""
    found: Counter[str] = Counter()
    consumer: Consumer = cluster.made(Consumer, settings_of(cluster))
    try:
        consumer.assign([TopicPartition(topic, *place) for place in starts.items()])
        left = set(starts)
        deadline = time.monotonic() + ANSWER_S
        while left:
            for message in consumer.consume(AT_ONCE, 0.1):
                deadline = time.monotonic() + ANSWER_S
                error = message.error()
                if error is None:
                    found.update(_ids(message))
                elif error.code() == rd.KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                elif error.code() != rd.KafkaError.GROUP_AUTHORIZATION_FAILED:
                    # Nothing is asked of the group, which has only to be named.
                    raise cluster.error(
                        error, f"topic {topic!r}, reading what was written; or set replays=repeat"
                    )
            if time.monotonic() > deadline:
                raise KafkaError(
                    f"{cluster.name}: topic {topic!r}: what was written cannot be read in {ANSWER_S} s"
                )
    finally:
        consumer.close()
    return found


def _ids(message: Message) -> Iterator[str]:
    headers = message.headers() or []
    for name, value in headers.items() if isinstance(headers, dict) else headers:
        if name == "id" and isinstance(value, bytes):
            yield value.decode()
