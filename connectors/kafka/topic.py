"""What is asked about a topic: at the start its id, partitions and their edges, and later if it is still the same."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import confluent_kafka as rd
from confluent_kafka import Consumer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from tidegate.connectors.kafka.client import ANSWER_S, Cluster, KafkaError
from tidegate.connectors.kafka.start_offsets import Starts

# What more waiting does not mend.
FINAL = frozenset({rd.KafkaError._AUTHENTICATION, rd.KafkaError._RESOLVE})
LOOK_EVERY_US = 10_000_000

_log = logging.getLogger("tidegate.kafka")


class Topic(NamedTuple):
    """A topic as it stands: `id` is another one where it was deleted and made anew, "" where brokers give none."""

    name: str
    id: str
    partitions: tuple[int, ...]


class Asker:
    """Asks a cluster, within `ANSWER_S` for each question; KafkaError where it does not answer."""

    def __init__(self, cluster: Cluster, settings: dict[str, Any], topic: str) -> None:
        self._cluster = cluster
        self._settings = settings
        self._topic = topic
        self._failed: list[rd.KafkaError] = []
        self._consumer: Consumer = cluster.made(Consumer, {**settings, "error_cb": self._failed.append})

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *raised: object) -> None:
        self._consumer.close()

    def topic(self) -> Topic:
        """Return the topic as it stands; KafkaError where there is none, or it may not be seen."""
        found = self._metadata().topics[self._topic]
        if found.error:
            raise self._cluster.error(found.error, f"topic {self._topic!r}")
        return Topic(self._topic, self._id(), tuple(sorted(found.partitions)))

    def edge(self, end: int) -> Callable[[Sequence[int]], Starts]:
        """Return a request for the first (0) or the next (1) offset of partitions."""
        return lambda partitions: {partition: self.edges(partition)[end] for partition in partitions}

    def edges(self, partition: int) -> tuple[int, int]:
        """Return the first offset that there is, and the next one that there will be."""
        place = TopicPartition(self._topic, partition)
        return self._cluster.answer(
            lambda wait: self._consumer.get_watermark_offsets(place, wait),
            f"topic {self._topic!r}, its offsets",
        )

    def since(self, at: int, partitions: Sequence[int]) -> Starts:
        """Return the offsets of the first messages at or after `at` (µs since the epoch), or the next ones."""
        wanted = [TopicPartition(self._topic, partition, -(-at // 1000)) for partition in partitions]

        def ask(wait: float) -> dict[int, TopicPartition]:
            found = {each.partition: each for each in self._consumer.offsets_for_times(wanted, wait)}
            for each in found.values():
                if each.error:
                    raise rd.KafkaException(each.error)
            return found

        found = self._cluster.answer(ask, f"topic {self._topic!r}, offsets by time")
        return {p: each.offset if each.offset >= 0 else self.edges(p)[1] for p, each in found.items()}

    def _metadata(self) -> Any:
        deadline, wait = time.monotonic() + ANSWER_S, 0.25
        while True:
            try:
                return self._consumer.list_topics(self._topic, timeout=wait)
            except rd.KafkaException as error:
                last: rd.KafkaError = error.args[0]
            # Only this hands over what went wrong with each connection.
            self._consumer.poll(0)
            wait = min(2 * wait, 4)
            final = [error for error in self._failed if error.code() in FINAL]
            if final or time.monotonic() > deadline:
                telling = [error for error in self._failed if error.code() != rd.KafkaError._ALL_BROKERS_DOWN]
                raise self._cluster.error((final or telling or [last])[-1], f"topic {self._topic!r}")

    def _id(self) -> str:
        with AdminClient(_without_group(self._settings)) as admin:

            def ask(wait: float) -> str:
                asked = admin.describe_topics(TopicCollection([self._topic]), request_timeout=wait)
                try:
                    return str(asked[self._topic].result().topic_id)
                except rd.KafkaException as error:
                    if error.args[0].code() == rd.KafkaError._UNSUPPORTED_FEATURE:
                        return ""
                    raise

            return self._cluster.answer(ask, f"topic {self._topic!r}")


class TopicWatch:
    """Looks now and then whether a topic is still the one that is read, which consumers are not told.

    librdkafka waits for a topic that was deleted, and reads on in one of the same name. Workers share a watch.
    """

    def __init__(self, cluster: Cluster, settings: dict[str, Any], topic: Topic) -> None:
        self._cluster = cluster
        self._topic = topic
        self._admin = AdminClient(_without_group(settings))
        self._asked: Future[Any] | None = None
        self._look_at = 0
        self._missed = 0
        self._lock = threading.Lock()

    def look(self, now: int) -> None:
        """Never waits. KafkaError where the topic is gone or another one. `now` in µs since the epoch."""
        if not self._topic.id or now < self._look_at or not self._lock.acquire(blocking=False):
            return
        try:
            if self._asked is None:
                wanted = TopicCollection([self._topic.name])
                self._asked = self._admin.describe_topics(wanted, request_timeout=ANSWER_S)[self._topic.name]
            elif self._asked.done():
                answer, self._asked = self._asked, None
                self._look_at = now + LOOK_EVERY_US
                self._judge(answer)
        finally:
            self._lock.release()

    def _judge(self, answer: "Future[Any]") -> None:
        try:
            found = answer.result()
        except rd.KafkaException as error:
            is_gone = error.args[0].code() == rd.KafkaError.UNKNOWN_TOPIC_OR_PART
            self._missed = self._missed + 1 if is_gone else 0
            # A broker that has just come up may not know of it yet.
            if self._missed < 2:
                return
            failed = error.args[0]
        else:
            self._missed = 0
            self._compare(found)
            return
        raise self._cluster.error(failed, f"topic {self._topic.name!r}")

    def _compare(self, found: Any) -> None:
        if str(found.topic_id) != self._topic.id:
            raise made_anew(self._cluster, self._topic.name)
        count, read = len(found.partitions), len(self._topic.partitions)
        if count > read:
            told = "%s: topic %r has %d partitions now, of which %d are read; restart the flow to read all"
            _log.warning(told, self._cluster.name, self._topic.name, count, read)
            # Said once.
            self._topic = self._topic._replace(partitions=tuple(range(count)))


def made_anew(cluster: Cluster, topic: str) -> KafkaError:
    """Return the error about a topic that is not the one that was read."""
    return KafkaError(
        f"{cluster.name}: topic {topic!r}: was deleted and made anew since it was last read, so positions in it mean"
        " nothing; start with a new data directory to meter the new topic from its beginning"
    )


def _without_group(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith("group.")}
