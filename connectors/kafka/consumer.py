"""One Kafka consumer for all partitions of a topic that a worker reads, as each consumer costs threads and connections.

Messages are taken by partition. What a poll brings of other partitions waits for them; no poll is made while too much
waits. Errors that librdkafka mends by itself are waited for, `outage` at most; others are raised.
"""

import logging
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import confluent_kafka as rd
import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from tidegate.connectors.kafka.client import Cluster, KafkaError, weakly
from tidegate.connectors.kafka.topic import TopicWatch

MESSAGES_MAX = 16_384
MESSAGES_MIN = 16
SIZE_AT_FIRST = 512
STATISTICS_MS = 2_000
# A group without members forgets its offsets some day, so they are repeated where nothing is new.
REPEAT_US = 600_000_000

# A commit that fails for these will fail again.
_REFUSED = frozenset(
    {
        rd.KafkaError.GROUP_AUTHORIZATION_FAILED,
        rd.KafkaError.TOPIC_AUTHORIZATION_FAILED,
        rd.KafkaError.UNKNOWN_MEMBER_ID,
        rd.KafkaError.ILLEGAL_GENERATION,
        rd.KafkaError.INVALID_GROUP_ID,
    }
)
_GONE = frozenset(
    {rd.KafkaError._AUTO_OFFSET_RESET, rd.KafkaError.OFFSET_OUT_OF_RANGE, rd.KafkaError._LOG_TRUNCATION}
)

_error, _partition = Message.error, Message.partition

_log = logging.getLogger("tidegate.kafka")


class _Broker(msgspec.Struct):
    """`rxidle` is how long ago something was received from it (µs), negative for never."""

    state: str
    rxidle: int = -1


class _Statistics(msgspec.Struct):
    """The part of librdkafka's STATISTICS.md that is looked at."""

    brokers: dict[str, _Broker]


_STATISTICS = msgspec.json.Decoder(_Statistics)


class Feed:
    """The messages of a topic by partition, for one worker. Nothing here waits but `edges` and `close`."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Mapping[str, Any],
        topic: str,
        watch: TopicWatch,
        poll_bytes: int,
        outage: int,
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._watch = watch
        self._poll_bytes = poll_bytes
        self._outage = outage
        self._count = _messages(poll_bytes, SIZE_AT_FIRST)
        self._waiting: dict[int, list[Message]] = {}
        self._waits = 0
        self._ends: dict[int, int] = {}
        self._gone: dict[int, rd.KafkaError] = {}
        self._committing: dict[int, int] = {}
        self._committed: dict[int, tuple[int, int]] = {}
        self._now = 0
        self._down_since: int | None = None
        self._fatal: KafkaError | None = None
        heard = {
            "error_cb": weakly(self._on_error),
            "stats_cb": weakly(self._on_statistics),
            "on_commit": weakly(self._on_commit),
        }
        self._consumer: Consumer = cluster.made(Consumer, {**settings, **heard})

    @property
    def is_idle(self) -> bool:
        """Whether no partition is read."""
        return not self._waiting

    @property
    def is_up(self) -> bool:
        """Whether brokers could be reached when they were last needed."""
        return self._down_since is None

    def assign(self, partition: int, offset: int, epoch: int) -> None:
        """Read a partition from `offset` on; `epoch` is the leader's that the message before it had, or -1."""
        self._waiting[partition] = []
        self._ends.pop(partition, None)
        place = TopicPartition(self._topic, partition, offset)
        if epoch >= 0:
            place = TopicPartition(self._topic, partition, offset, leader_epoch=epoch)
        self._consumer.incremental_assign([place])

    def release(self, partition: int) -> None:
        """End reading a partition."""
        self._waits -= len(self._waiting.pop(partition))
        self._gone.pop(partition, None)
        self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def close(self) -> None:
        """End the consumer; it waits for commits that are under way."""
        if self._committing:
            self._send_commits()
        self._consumer.close()

    def take(self, partition: int, now: int) -> list[Message]:
        """Return the partition's next messages, none if none are here yet. `now` in µs since the epoch."""
        self._now = now
        if not self._waiting[partition] and self._waits < self._count:
            self._poll()
        self._check()
        taken, self._waiting[partition] = self._waiting[partition], []
        self._waits -= len(taken)
        return taken

    def end(self, partition: int) -> int | None:
        """Return the offset after the last message taken, if the partition's end was reached since the last call."""
        return self._ends.pop(partition, None)

    def gone(self, partition: int) -> rd.KafkaError | None:
        """Why the position is no place to read on, if so; asked once."""
        return self._gone.pop(partition, None)

    def edges(self, partition: int) -> tuple[int, int]:
        """Return the first offset that there is, and the next that there will be; waits for the broker."""
        place = TopicPartition(self._topic, partition)
        return self._cluster.answer(
            lambda wait: self._consumer.get_watermark_offsets(place, wait),
            f"topic {self._topic!r}, its offsets",
        )

    def known_end(self, partition: int) -> int | None:
        """Return the next offset that there will be, as the last answer of a broker said; None before the first."""
        try:
            _, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        except (rd.KafkaException, RuntimeError):
            # Whoever asks may do so while the consumer ends.
            return None
        return end if end >= 0 else None

    def commit(self, partition: int, offset: int, now: int) -> None:
        """Tells the group that all before `offset` is settled. Goes out with the next poll."""
        known, at = self._committed.get(partition, (-1, 0))
        if offset != known or now - at > REPEAT_US:
            self._committing[partition] = offset

    def _poll(self) -> None:
        if self._committing:
            self._send_commits()
        messages = self._consumer.consume(self._count, 0)
        if any(map(_error, messages)):
            messages = [message for message in messages if not self._is_event(message)]
        if not messages:
            return
        self._is_up()
        self._waits += len(messages)
        if len(self._waiting) == 1:
            [waiting] = self._waiting.values()
            waiting.extend(messages)
        else:
            for partition, run in groupby(messages, _partition):
                self._waiting[partition].extend(run)  # type: ignore[index]
        sample = messages[:: 1 + len(messages) // 64]
        size = 1 + sum(map(len, sample)) // len(sample)
        self._count = _messages(self._poll_bytes, size)

    def _is_event(self, message: Message) -> bool:
        """Whether this is no message but something that has happened, which is noted or raised."""
        error, partition = message.error(), message.partition()
        if error is None:
            return False
        assert partition is not None
        if error.code() == rd.KafkaError._PARTITION_EOF:
            self._ends[partition] = message.offset() or 0
        elif error.code() in _GONE:
            self._gone[partition] = error
        else:
            raise self._cluster.error(error, f"topic {self._topic!r}, partition {partition}")
        return True

    def _check(self) -> None:
        self._watch.look(self._now)
        if self._fatal:
            raise self._fatal
        if self._down_since is not None and self._now - self._down_since > self._outage:
            raise KafkaError(
                f"{self._cluster.name}: no broker could be reached for {self._outage // 1_000_000} s; the flow ends,"
                " and goes on where it was when it is started again"
            )

    def _send_commits(self) -> None:
        offsets = [TopicPartition(self._topic, *place) for place in self._committing.items()]
        self._committing = {}
        self._consumer.commit(offsets=offsets, asynchronous=True)

    def _on_commit(self, error: rd.KafkaError | None, places: list[TopicPartition]) -> None:
        for place in places:
            failed = error or place.error
            if failed is None:
                self._committed[place.partition] = (place.offset, self._now)
            elif failed.code() in _REFUSED:
                self._fatal = self._cluster.error(failed, f"topic {self._topic!r}, commit")
            else:
                # It is only told to people; the next snapshot's commit makes up for it.
                _log.warning("%s: a commit failed: %s", self._cluster.name, failed.name())

    def _on_error(self, error: rd.KafkaError) -> None:
        if error.code() == rd.KafkaError._AUTHENTICATION:
            self._fatal = self._cluster.error(error, f"topic {self._topic!r}")
        elif error.code() == rd.KafkaError._ALL_BROKERS_DOWN and self._down_since is None:
            self._down_since = self._now
            _log.warning("%s: no broker can be reached; waiting for one", self._cluster.name)

    def _is_up(self) -> None:
        if self._down_since is not None:
            self._down_since = None
            _log.warning("%s: brokers are back", self._cluster.name)

    def _on_statistics(self, text: str) -> None:
        """Take brokers for back where one has answered since they were away: what is connected may only seem to be."""
        if self._down_since is None:
            return
        away = self._now - self._down_since
        brokers = _STATISTICS.decode(text).brokers.values()
        if any(broker.state == "UP" and 0 <= broker.rxidle < away for broker in brokers):
            self._is_up()


def _messages(poll_bytes: int, size: int) -> int:
    """How many messages of a size make a poll."""
    return max(MESSAGES_MIN, min(MESSAGES_MAX, poll_bytes // size))
