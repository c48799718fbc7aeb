"""A Kafka topic as a source of payloads.

Hands out the messages of a topic, a Bytewax partition per topic partition, in blocks of one payload a line: a message
holds one event, an array, or NDJSON. A message without a value (a tombstone) is rejected as `not_an_object`; message
keys and headers are not looked at. A message's timestamp is when the transport took it (the producer's create time or
the broker's append time, as the topic has it), and the time of events without one.

Position: offset and leader epoch of the next message, in the recovery store. Once a snapshot is durable its offsets
are also committed to the consumer group, for lag tools; nothing is ever read from there. Partitions are assigned, not
subscribed to, so no restart waits for a rebalance. Guarantee: each message once, resumed anywhere. What a position
points at must still be there: where retention or a deleted topic took it, that is an error, or with `lost="skip"`
said and passed over. Brokers that are away are waited for, `outage` at most.

Limits: partitions that are added are read from the next start on. What one worker holds of messages that are read
ahead: about two polls, and what librdkafka prefetches (`config.queued.max.messages.kbytes`).
Source: https://docs.confluent.io/platform/current/clients/confluent-kafka-python/html/index.html
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Final, Literal, NamedTuple

import confluent_kafka as rd
import numpy as np
from confluent_kafka import Consumer, Message

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.connectors.kafka.client import Cluster, KafkaError
from tidegate.connectors.kafka.consumer import STATISTICS_MS, Feed
from tidegate.connectors.kafka.start_offsets import Starts, settled
from tidegate.connectors.kafka.topic import Asker, Topic, TopicWatch, made_anew
from tidegate.operators.events.framing import frame_messages
from tidegate.operators.model.ports import Ints, Payloads

_OURS: Final = {
    # librdkafka reads ahead until the queue is full and then looks again; its second would be a pause of ours.
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 16_384,
    "fetch.error.backoff.ms": 100,
    "socket.nagle.disable": True,
    # A commit waits so long for the group's coordinator; and so long the end of a flow waits for a commit.
    "session.timeout.ms": 6_000,
}
_OWN: Final = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    "statistics.interval.ms": STATISTICS_MS,
}
PAUSE_ACTIVE_US = 1_000
PAUSE_IDLE_US = 5_000
ACTIVE_FOR_US = 1_000_000

_log = logging.getLogger("tidegate.kafka")


class KafkaPosition(NamedTuple):
    """Where to read on: the `offset` of the next message, after one of leader epoch `epoch` (-1 if unknown).

    `topic` is the topic's own id, "" where brokers give none.
    """

    offset: int
    epoch: int
    topic: str


class KafkaSource(FixedPartitionedSource[Payloads, KafkaPosition]):
    """The topic `path` at the brokers `hosts`.

    `start` says where partitions without a position are read from: `earliest`, `latest`, or the first message at or
    after a time; `starts` names the file that keeps the answer. With `lost="skip"` messages that retention took
    before they were read are passed over, and said. Without `follow` it ends where the topic ended at the start.
    ValueError where librdkafka does not take `config`.
    """

    def __init__(
        self,
        hosts: Sequence[object],
        path: str,
        *,
        user: str | None = None,
        password: str | None = None,
        sasl: str | None = None,
        tls: bool = False,
        config: Mapping[str, str] | None = None,
        group: str = "tidegate",
        start: Literal["earliest", "latest"] | datetime = "earliest",
        lost: Literal["raise", "skip"] = "raise",
        follow: bool = True,
        outage: timedelta = timedelta(minutes=5),
        poll_bytes: int = 4 << 20,
        starts: Path | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._cluster = Cluster(hosts, user=user, password=password, sasl=sasl, tls=tls, config=config)
        self._settings = self._cluster.settings(_OURS, {**_OWN, "group.id": group})
        self._name = path
        self._start = start
        self._follow = follow
        self._starts_path = starts
        self._starts: Starts = {}
        self._topic = Topic(path, "", ())
        self._watch: TopicWatch | None = None
        self._reading = _Reading(self._cluster, lost, clock)
        self._poll_bytes = poll_bytes
        self._outage = outage // timedelta(microseconds=1)
        self._worker = threading.local()
        # Only to see whether librdkafka takes them, before anything runs.
        self._cluster.made(Consumer, self._settings).close()

    def list_parts(self) -> list[str]:
        with Asker(self._cluster, self._settings, self._name) as asker:
            self._topic = asker.topic()
            self._starts, added = settled(
                self._starts_path,
                self._topic.name,
                self._topic.id,
                self._topic.partitions,
                lambda partitions: self._first(asker, partitions),
                asker.edge(0),
            )
        self._watch = self._watch or TopicWatch(self._cluster, self._settings, self._topic)
        if added:
            told = "%s: topic %r: partitions %s are new, and read from their beginning"
            _log.warning(told, self._cluster.name, self._name, ", ".join(map(str, added)))
        return [f"{self._name}/{partition}" for partition in self._topic.partitions]

    def build_part(self, step_id: str, for_part: str, resume_state: KafkaPosition | None) -> "_Partition":
        partition = int(for_part.rpartition("/")[2])
        if resume_state and resume_state.topic != self._topic.id:
            raise made_anew(self._cluster, self._name)
        position = resume_state or KafkaPosition(self._starts[partition], -1, self._topic.id)
        feed = self._feed()
        until = None if self._follow else feed.edges(partition)[1]
        return _Partition(
            self._reading, feed, self._name, partition, position, until, tell=bool(resume_state)
        )

    def _first(self, asker: Asker, partitions: Sequence[int]) -> Starts:
        if isinstance(self._start, datetime):
            return asker.since(int(self._start.timestamp() * 1_000_000), partitions)
        return asker.edge(0 if self._start == "earliest" else 1)(partitions)

    def _feed(self) -> Feed:
        """Return the consumer of this worker, which is a thread."""
        feed: Feed | None = getattr(self._worker, "feed", None)
        if feed is None or feed.is_idle:
            assert self._watch, "list_parts comes first"
            feed = Feed(
                self._cluster, self._settings, self._name, self._watch, self._poll_bytes, self._outage
            )
            self._worker.feed = feed
        return feed


class _Reading(NamedTuple):
    """How a source's partitions are read."""

    cluster: Cluster
    lost: Literal["raise", "skip"]
    clock: Callable[[], int]


class _Partition(StatefulSourcePartition[Payloads, KafkaPosition]):
    unit = "messages"

    def __init__(
        self,
        reading: _Reading,
        feed: Feed,
        topic: str,
        partition: int,
        position: KafkaPosition,
        until: int | None,
        tell: bool,
    ) -> None:
        self._reading = reading
        self._feed = feed
        self._topic = topic
        self._partition = partition
        self._position = position
        self._until = until
        # A position that is resumed is durable, and perhaps the last run died before it told the group.
        self._taken = position.offset if tell else None
        self._active_at = 0
        self._last_at = 0
        self._awake: datetime | None = None
        self._at_end = False
        feed.assign(partition, position.offset, position.epoch)

    def next_batch(self) -> list[Payloads]:
        now = self._reading.clock()
        if self._taken is not None:
            # Bytewax asks for more only once the snapshot that it took is durable.
            self._feed.commit(self._partition, self._taken, now)
            self._taken = None
        if self._until is not None and self._position.offset >= self._until:
            raise StopIteration
        messages = self._feed.take(self._partition, now)
        self._pace(now, waiting=not messages)
        if messages:
            self._at_end = False
            return self._payloads(messages, now)
        if gone := self._feed.gone(self._partition):
            self._resume_after(gone)
        elif (end := self._feed.end(self._partition)) is not None:
            self._at_end = True
            # Behind the last message there may be marks of transactions, which are never handed over.
            self._position = self._position._replace(offset=max(self._position.offset, end))
        return []

    def next_awake(self) -> datetime | None:
        return self._awake

    def caught_up(self) -> bool:
        """Return whether the partition's end was reached, and no broker has been away since."""
        return self._at_end and self.behind() == 0 and self._feed.is_up

    def behind(self) -> int | None:
        """How many messages there are that were not handed out; None until a broker has said. From any thread."""
        end = self._feed.known_end(self._partition)
        return None if end is None else max(0, end - self._position.offset)

    def reached(self) -> int:
        """Return the offset of the next message."""
        return self._position.offset

    def taken_until(self) -> int:
        """Return the timestamp of the last message that was handed out (µs), 0 before the first."""
        return self._last_at

    def snapshot(self) -> KafkaPosition:
        self._taken = self._position.offset
        return self._position

    def close(self) -> None:
        if self._taken is not None:
            self._feed.commit(self._partition, self._taken, self._reading.clock())
        self._feed.release(self._partition)
        if self._feed.is_idle:
            self._feed.close()

    def _payloads(self, messages: list[Message], now: int) -> list[Payloads]:
        block, ends = frame_messages(list(map(Message.value, messages)))
        origin = f"{self._topic}/{self._partition}:{messages[0].offset()}"
        last = messages[-1]
        offset, epoch = last.offset(), last.leader_epoch()
        kind, at = last.timestamp()
        if kind != rd.TIMESTAMP_NOT_AVAILABLE:
            self._last_at = max(self._last_at, at * 1000)
        assert offset is not None
        self._position = KafkaPosition(offset + 1, -1 if epoch is None else epoch, self._position.topic)
        return [Payloads(block, now, None, origin, _Times(messages, block, ends))] if block else []

    def _pace(self, now: int, waiting: bool) -> None:
        if not waiting:
            self._active_at = now
            self._awake = None
            return
        pause = PAUSE_ACTIVE_US if now - self._active_at < ACTIVE_FOR_US else PAUSE_IDLE_US
        self._awake = datetime.fromtimestamp((now + pause) / 1e6, UTC)

    def _resume_after(self, gone: rd.KafkaError) -> None:
        """Goes on behind messages that are gone, or raises."""
        offset = self._position.offset
        first, behind = self._feed.edges(self._partition)
        if offset < first:
            what = f"{first - offset} messages from offset {offset} on were deleted before they were metered"
            advice = "keep messages for longer than the flow may be down"
        else:
            what = f"its log was cut: it was read up to {offset} and ends at {behind} ({gone.name()})"
            advice = "its brokers lost messages that were metered, or it was restored from elsewhere"
        told = f"{self._reading.cluster.name}: topic {self._topic!r}, partition {self._partition}: {what}; {advice}"
        if self._reading.lost == "raise":
            raise KafkaError(f"{told}; to go on without them start with lost=skip")
        _log.error("%s", told)
        self._feed.release(self._partition)
        self._at_end = False
        self._position = KafkaPosition(first if offset < first else behind, -1, self._position.topic)
        self._feed.assign(self._partition, self._position.offset, -1)


class _Times:
    """When the broker or the producer stamped the messages that bytes of a block belong to, 0 where they have not."""

    def __init__(self, messages: list[Message], block: bytes, ends: list[int] | None) -> None:
        self._messages = messages
        self._block = block
        self._ends = ends

    @cached_property
    def _breaks(self) -> Ints:
        return np.flatnonzero(np.frombuffer(self._block, np.uint8) == ord("\n"))

    @cached_property
    def _stamps(self) -> Ints:
        # Of a message that has no timestamp it is -1.
        stamps = map(_STAMP, map(Message.timestamp, self._messages))
        return np.maximum(np.fromiter(stamps, np.int64, len(self._messages)), 0) * 1000

    def __call__(self, starts: Ints) -> Ints:
        line = np.searchsorted(self._breaks, starts)
        message = line if self._ends is None else np.searchsorted(self._ends, line, side="right")
        return self._stamps[message]


_STAMP = itemgetter(1)
