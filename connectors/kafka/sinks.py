"""Kafka topics as sinks: alerts keyed by customer, dead letters as they came, with their reason in the headers.

Takes the `(key, line)` of every other sink, a line being a JSON object. An alert's message has the line as its value,
its customer as its key, and `id` and `kind` as headers. A dead letter's message has as its value the payload, byte for
byte, so that it can be sent to the source's topic again once it is mended; `id`, `reason`, `detail` and `received_at`
are headers. One that the topic does not take whole is cut, and then has `payload_bytes`, its whole length, too.

Guarantee: no snapshot without it: it waits until all replicas in sync have what was written before; what they refuse,
or don't take within `delivery.timeout.ms`, is an error, and the flow goes on from the snapshot before. What it writes
again then, it first looks for in the topic, so each record is there once; but for one that a dying process had on the
wire, or with `replays="repeat"`, which needs no right to read, where what came after the snapshot comes again, under
the same `id`. Writing itself waits only where QUEUED_MAX records do.
Source: https://docs.confluent.io/platform/current/clients/confluent-kafka-python/html/index.html#producer
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tidegate.connectors.engine import FixedPartitionedSink, StatefulSinkPartition
from tidegate.connectors.kafka.client import Cluster
from tidegate.connectors.kafka.producer import Delivery, Record
from tidegate.connectors.kafka.replay_dedup import ids_since, settings_of
from tidegate.connectors.kafka.start_offsets import Starts, settled
from tidegate.connectors.kafka.topic import Asker, Topic


class Delivered(NamedTuple):
    """What was delivered at a snapshot: the topic's own id, and the next offset of each partition.

    `there` counts, by id, records before `ends` that a replay has yet to come to.
    """

    topic: str
    ends: Starts
    there: dict[str, int]


class _Alert(msgspec.Struct):
    id: str
    kind: str
    customer: str


class _DeadLetter(msgspec.Struct):
    id: str
    reason: str
    detail: str
    received_at: str
    payload: str = ""
    payload_base64: bytes = b""


_ALERT = msgspec.json.Decoder(_Alert)
_DEAD_LETTER = msgspec.json.Decoder(_DeadLetter)


def alert_record(line: bytes) -> Record:
    """Return an alert's line as a message."""
    alert = _ALERT.decode(line)
    return Record(alert.customer, line, [("id", alert.id), ("kind", alert.kind)])


def dead_letter_record(line: bytes) -> Record:
    """Return a dead letter's line as a message."""
    letter = _DEAD_LETTER.decode(line)
    payload = letter.payload.encode() or letter.payload_base64
    names = ("id", "reason", "detail", "received_at")
    return Record(letter.id, payload, [(name, getattr(letter, name)) for name in names])


def cut_in_half(record: Record) -> Record | None:
    """Return the record with half of its value, which still says how long it was; None where nothing is left to cut."""
    if not record.value:
        return None
    headers = dict(record.headers)
    headers.setdefault("payload_bytes", str(len(record.value)))
    return Record(record.key, record.value[: len(record.value) // 2], list(headers.items()))


class KafkaSink(FixedPartitionedSink[bytes, Delivered]):
    """Sends each value of `(key, line)` to the topic `path` at the brokers `hosts`.

    `starts` names the file that keeps where the topic ended when this life of the recovery store began; without it
    nothing is replayed, nor looked for. ValueError where librdkafka does not take `config`.
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
        replays: Literal["skip", "repeat"] = "skip",
        starts: Path | None = None,
    ) -> None:
        self._cluster = Cluster(hosts, user=user, password=password, sasl=sasl, tls=tls, config=config)
        self._name = path
        self._looks = replays == "skip" and starts is not None
        self._starts_path = starts
        # Only to see whether librdkafka takes them, before anything runs.
        Delivery(self._cluster, path).drop()

    @abstractmethod
    def record(self, line: bytes) -> Record:
        """Convert a line to a message."""

    def cut(self, record: Record) -> Record | None:
        """Return a smaller message for one that the topic finds too large, or None where there is none."""
        return None

    def list_parts(self) -> list[str]:
        with Asker(self._cluster, settings_of(self._cluster), self._name) as asker:
            asker.topic()
        return ["0"]

    def part_fn(self, item_key: str) -> int:
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: Delivered | None) -> "_Partition":
        with Asker(self._cluster, settings_of(self._cluster), self._name) as asker:
            topic = asker.topic()
            ends = asker.edge(1)(topic.partitions)
            starts, _ = settled(
                self._starts_path if self._looks else None,
                f"{step_id}/{self._name}",
                topic.id,
                topic.partitions,
                lambda _: ends,
                asker.edge(0),
            )
        there: Counter[str] = Counter()
        if resume_state and resume_state.topic == topic.id:
            starts, there = {**starts, **resume_state.ends}, Counter(resume_state.there)
        if self._looks and starts != ends:
            there += ids_since(self._cluster, self._name, starts)
        return _Partition(self, Delivery(self._cluster, self._name, self.cut), topic, ends, there)


class AlertSink(KafkaSink):
    """Alerts: the line as it is, keyed by customer."""

    def record(self, line: bytes) -> Record:
        return alert_record(line)


class DeadLetterSink(KafkaSink):
    """Dead letters: the payload as it came, the reason in the headers."""

    def record(self, line: bytes) -> Record:
        return dead_letter_record(line)

    def cut(self, record: Record) -> Record | None:
        return cut_in_half(record)


class _Partition(StatefulSinkPartition[bytes, Delivered]):
    def __init__(
        self, sink: KafkaSink, delivery: Delivery, topic: Topic, ends: Starts, there: Counter[str]
    ) -> None:
        self._sink = sink
        self._delivery = delivery
        self._topic = topic
        self._ends = ends
        self._there = there

    def write_batch(self, values: list[bytes]) -> None:
        for line in values:
            record = self._sink.record(line)
            if not self._is_there(str(dict(record.headers)["id"])):
                self._delivery.send(record)
        self._delivery.check()

    def snapshot(self) -> Delivered:
        self._delivery.settle()
        return Delivered(self._topic.id, {**self._ends, **self._delivery.ends}, dict(+self._there))

    def close(self) -> None:
        # At an orderly end a snapshot came before. Otherwise what is dropped here is replayed.
        self._delivery.drop()

    def _is_there(self, id: str) -> bool:
        """Whether a record is there from before the crash; each one that is there answers for one."""
        if not self._there[id]:
            return False
        self._there[id] -= 1
        return True
