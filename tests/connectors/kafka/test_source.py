"""The Kafka source against real brokers: the contract, and what only Kafka can do wrong."""

import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec

from tests.connectors.contracts.source import Partition, Source, SourceContract
from tests.connectors.kafka.helpers import Patient, Reader, source, until
from tests.support.kafka_server import Brokers, Kafka
from tests.support.options import option
from tidegate.connectors.kafka.client import Cluster, KafkaError
from tidegate.connectors.kafka.consumer import Feed
from tidegate.connectors.kafka.source import KafkaPosition, KafkaSource

# As long as a drill, not as every run of the tests.
PAUSE_S = float(option("TIDEGATE_KAFKA_PAUSE_S", "1.5"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes about a topic is noticed at once, not within seconds."""
    monkeypatch.setattr("tidegate.connectors.kafka.topic.LOOK_EVERY_US", 50_000)


class TestContract(SourceContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _place(cls, kafka: Kafka) -> None:
        cls.kafka, cls.topic = kafka, kafka.topic()

    kafka: Kafka
    topic: str

    def source(self, **options: Any) -> KafkaSource:
        return source(self.kafka, self.topic, start="latest", poll_bytes=256, **options)

    @contextmanager
    def holding(self, payloads: list[bytes]) -> Iterator[Callable[[], Source]]:
        """Behind what earlier examples left, which is why reading starts at the end as it was before."""
        opened = Patient(self.source(follow=False))
        names = opened.list_parts()[:1]
        self.kafka.put(self.topic, list(payloads))
        opened.list_parts = lambda: names  # type: ignore[method-assign]
        yield lambda: opened

    @contextmanager
    def waiting(self) -> Iterator[Partition]:
        live = self.source()
        name, *_ = live.list_parts()
        part = live.build_part("in", name, None)
        self.kafka.put(self.topic, [b"last"])
        until(part.next_batch, "it reads nothing")
        yield part
        part.close()


def test_each_message_is_a_payload_or_some(kafka: Kafka) -> None:
    """Producers differ: one event a message, an array, NDJSON, or JSON written over several lines."""
    topic = kafka.topic()
    kafka.put(
        topic, [b'{"id":1}', b'{"id":2}\n{"id":3}\n', b'{\n  "id": 4\n}\n', b'[{"id":5},\n{"id":6}]', None]
    )
    read = Reader(source(kafka, topic, follow=False)).to_the_end()
    assert read == [
        b'{"id":1}',
        b'{"id":2}',
        b'{"id":3}',
        b'{   "id": 4 } ',
        b'[{"id":5}, {"id":6}]',
        b"null",
    ]


def test_an_event_without_a_time_has_that_of_its_message(kafka: Kafka) -> None:
    topic = kafka.topic()
    at = 1_790_000_000_123
    for number, value in enumerate((b"1", b"2\n3", b'{\n"x":4\n}', b"5")):
        kafka.put(topic, [value], timestamp=at + number)
    reader = Reader(source(kafka, topic, follow=False))
    reader.to_the_end()
    times = [
        poll.time_of(poll.block.index(payload))
        for poll in reader.polls
        for payload in poll.block.split(b"\n")
    ]
    assert times == [(at + number) * 1000 for number in (0, 1, 1, 2, 3)]
    [first, *_] = reader.polls
    assert first.time_of(0) == at * 1000, "asked again from the front"


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_messages_are_read(kafka: Kafka, codec: str) -> None:
    topic = kafka.topic()
    producer = Producer(kafka.client(compression__type=codec))
    for _ in range(100):
        producer.produce(topic, b'{"id":1}' * 20, partition=0)
    assert producer.flush(10) == 0
    assert len(Reader(source(kafka, topic, follow=False)).to_the_end()) == 100


def test_a_large_message_comes_whole(brokers: Brokers) -> None:
    """It is for the limit on payloads to judge it, so that it ends as a dead letter and not as a stop."""
    topic = brokers.topic(max_message_bytes="9000000")
    producer = Producer(brokers.client(message__max__bytes=9_000_000))
    large = b"x" * 8_000_000
    for value in (b"1", large, b"2"):
        producer.produce(topic, value, partition=0)
    assert producer.flush(10) == 0
    read = Reader(source(brokers, topic, follow=False, poll_bytes=4096)).to_the_end()
    assert read == [b"1", large, b"2"]


def test_partitions_are_read_side_by_side(kafka: Kafka) -> None:
    """One consumer serves all, and each partition keeps its order and its position."""
    topic = kafka.topic(4)
    for partition in range(4):
        kafka.put(topic, [b"%d:%d" % (partition, n) for n in range(500)], partition)
    reader = Reader(source(kafka, topic, follow=False, poll_bytes=2048))
    read = reader.to_the_end()
    for partition in range(4):
        assert [p for p in read if p.startswith(b"%d:" % partition)] == [
            b"%d:%d" % (partition, n) for n in range(500)
        ]
        assert reader.states[f"{topic}/{partition}"].offset == 500


def test_it_knows_how_far_it_is_behind(kafka: Kafka) -> None:
    """For the lag in the metrics, and the watchdog who tells a stall from a quiet night."""
    topic = kafka.topic()
    kafka.put(topic, [b"x" * 100] * 1000)
    reader = Reader(source(kafka, topic, poll_bytes=2048))
    [part] = reader.parts.values()
    seen = []

    def caught_up() -> bool:
        reader.poll()
        seen.append((len(reader.payloads), part.behind()))
        return seen[-1][1] == 0

    until(caught_up, "it never knows that it has caught up", 0)
    assert [read for read, _ in seen][-1] == 1000
    told = [(read, behind) for read, behind in seen if behind is not None]
    assert len({behind for _, behind in told}) > 10
    assert all(read + behind == 1000 for read, behind in told)
    reader.close()
    assert part.behind() is None


def committed(kafka: Kafka, group: str, topic: str) -> dict[int, int]:
    """What the group says of each partition, as lag tools ask for it."""
    [asked] = kafka.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    return {
        place.partition: place.offset for place in asked.result(10).topic_partitions if place.topic == topic
    }


def lag(kafka: Kafka, group: str, topic: str) -> int:
    """Messages of the topic that the group has not committed."""
    places = {partition: TopicPartition(topic, partition) for partition in committed(kafka, group, topic)}
    asked = kafka.admin.list_offsets({place: OffsetSpec.latest() for place in places.values()})
    ends = {place.partition: ends.result(10).offset for place, ends in asked.items()}
    return sum(ends[partition] - offset for partition, offset in committed(kafka, group, topic).items())


def test_the_group_is_told_what_is_durable_and_no_more(brokers: Brokers) -> None:
    """Lag that is too small would let retention take what a restart has to read again."""
    topic, group = brokers.topic(), brokers.unused()
    reader = Reader(source(brokers, topic, group=group))
    brokers.put(topic, [b"1", b"2", b"3"])
    reader.read(3)
    states = reader.snapshot()
    brokers.put(topic, [b"4"])
    # Bytewax polls again when the snapshot is durable.
    reader.read(4)
    until(lambda: committed(brokers, group, topic) == {0: 3}, "nothing is committed", meanwhile=reader.poll)
    assert lag(brokers, group, topic) == 1
    again = Reader(source(brokers, topic, group=group), states)
    assert again.read(1) == [b"4"]

    # At each snapshot, as one commit may fail, and is made up for by the next.
    def is_caught_up() -> bool:
        if not again.snapshot():
            return False
        again.poll()
        return lag(brokers, group, topic) == 0

    until(is_caught_up, "the lag stays")
    reader.close()
    again.close()


def test_the_last_position_is_told_at_the_end(brokers: Brokers) -> None:
    topic, group = brokers.topic(), brokers.unused()
    brokers.put(topic, [b"1", b"2"])
    Reader(source(brokers, topic, group=group, follow=False)).to_the_end()
    assert committed(brokers, group, topic) == {0: 2}


def test_a_resumed_position_is_told_at_once(brokers: Brokers) -> None:
    """The run before may have died between snapshot and commit, and nothing new may come for days."""
    topic, group = brokers.topic(), brokers.unused()
    brokers.put(topic, [b"1", b"2"])
    states = Reader(source(brokers, topic, group=brokers.unused(), follow=False))
    states.to_the_end()
    reader = Reader(source(brokers, topic, group=group), states.states)
    until(lambda: committed(brokers, group, topic) == {0: 2}, "nothing is committed", meanwhile=reader.poll)
    reader.close()


def test_transactions_leave_neither_aborted_messages_nor_lag(brokers: Brokers) -> None:
    topic, group = brokers.topic(), brokers.unused()
    producer = Producer(brokers.client(transactional__id=topic))
    producer.init_transactions(10)
    for value, end in ((b"1", producer.commit_transaction), (b"2", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(10)
        end(10)
    reader = Reader(source(brokers, topic, group=group))
    assert reader.read(1) == [b"1"]

    def caught_up() -> bool:
        reader.poll()
        reader.snapshot()
        return committed(brokers, group, topic) == {0: 4} and lag(brokers, group, topic) == 0

    until(caught_up, "the marks behind the last message count as lag")
    assert reader.payloads == [b"1"]
    reader.close()


def test_a_first_start_begins_where_it_is_told(brokers: Brokers) -> None:
    topic = brokers.topic()
    at = datetime(2026, 11, 1, tzinfo=UTC)
    for hour in range(3):
        brokers.put(topic, [b"%d" % hour], timestamp=int((at + timedelta(hours=hour)).timestamp() * 1000))
    read = {}
    for start in ("earliest", "latest", at + timedelta(minutes=1), at + timedelta(days=1)):
        reader = Reader(source(brokers, topic, follow=False, start=start))
        read[start] = reader.to_the_end()
    assert list(read.values()) == [[b"0", b"1", b"2"], [], [b"1", b"2"], []]


def test_a_crash_before_the_first_snapshot_does_not_move_the_start(kafka: Kafka, tmp_path: Path) -> None:
    """`latest` asked again would pass over what came meanwhile."""
    topic, starts = kafka.topic(), tmp_path / "starts.json"
    kafka.put(topic, [b"before"])
    Reader(source(kafka, topic, start="latest", starts=starts)).close()
    kafka.put(topic, [b"after"])
    again = Reader(source(kafka, topic, start="latest", starts=starts, follow=False))
    assert again.to_the_end() == [b"after"]


def test_partitions_added_while_running_are_said_and_read_from_their_beginning(
    brokers: Brokers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the first start was at the latest message: what is in them came after it."""
    topic, starts = brokers.topic(1), tmp_path / "starts.json"
    options: dict[str, Any] = {"start": "latest", "starts": starts}
    reader = Reader(source(brokers, topic, **options))
    brokers.grow(topic, 2)
    brokers.put(topic, [b"new"], partition=1)
    told = "has 2 partitions now, of which 1 are read; restart"
    until(lambda: told in caplog.text, "it is not said", meanwhile=reader.poll)
    states = reader.snapshot()
    reader.close()
    again = Reader(source(brokers, topic, follow=False, **options), states)
    assert again.to_the_end() == [b"new"]
    assert "partitions 1 are new, and read from their beginning" in caplog.text


def deleted_up_to(brokers: Brokers, topic: str, offset: int) -> None:
    """Retention, at once."""
    place = TopicPartition(topic, 0, offset)
    brokers.admin.delete_records([place])[place].result(10)


def test_messages_deleted_before_they_were_read_are_an_error(brokers: Brokers) -> None:
    topic = brokers.topic()
    brokers.put(topic, [b"%d" % n for n in range(10)])
    states = {f"{topic}/0": KafkaPosition(2, -1, source_id(brokers, topic))}
    deleted_up_to(brokers, topic, 7)
    reader = Reader(source(brokers, topic), states)
    with pytest.raises(
        KafkaError, match=r"partition 0: 5 messages from offset 2 on were deleted .* lost=skip"
    ):
        reader.read(1)
    reader.close()


def test_or_they_are_passed_over_and_that_is_said(brokers: Brokers, caplog: pytest.LogCaptureFixture) -> None:
    topic = brokers.topic()
    brokers.put(topic, [b"%d" % n for n in range(10)])
    states = {f"{topic}/0": KafkaPosition(2, -1, source_id(brokers, topic))}
    deleted_up_to(brokers, topic, 7)
    assert Reader(source(brokers, topic, lost="skip", follow=False), states).to_the_end() == [
        b"7",
        b"8",
        b"9",
    ]
    assert "5 messages from offset 2 on were deleted" in caplog.text


def test_a_topic_that_is_shorter_than_what_was_read_is_an_error(brokers: Brokers) -> None:
    """Brokers that lost acknowledged messages, or an old backup of them."""
    topic = brokers.topic()
    brokers.put(topic, [b"1", b"2"])
    states = {f"{topic}/0": KafkaPosition(9, -1, source_id(brokers, topic))}
    reader = Reader(source(brokers, topic), states)
    with pytest.raises(KafkaError, match="it was read up to 9 and ends at 2"):
        reader.read(1)
    reader.close()


def source_id(brokers: Brokers, topic: str) -> str:
    of = source(brokers, topic)
    of.list_parts()
    return of._topic.id


def test_a_topic_made_anew_is_not_read_on(brokers: Brokers) -> None:
    """Its offsets begin again, so a position in the old one would pass over what is new."""
    topic = brokers.topic()
    brokers.put(topic, [b"1"])
    reader = Reader(source(brokers, topic, follow=False))
    reader.to_the_end()
    remade(brokers, topic)
    brokers.put(topic, [b"2", b"3"])
    with pytest.raises(KafkaError, match="was deleted and made anew since it was last read"):
        Reader(source(brokers, topic), reader.states)


def remade(brokers: Brokers, topic: str) -> None:
    brokers.admin.delete_topics([topic])[topic].result(10)
    until(lambda: topic not in brokers.admin.list_topics(timeout=10).topics, "the topic stays")
    again = brokers.topic
    name, brokers.unused = brokers.unused, lambda: topic  # type: ignore[method-assign]
    try:
        until(lambda: _made(again), "it is not made again", 0.1)
    finally:
        brokers.unused = name  # type: ignore[method-assign]


def _made(make: Callable[[], str]) -> bool:
    try:
        make()
    except Exception:
        return False
    return True


def test_a_topic_that_is_deleted_while_it_is_read_ends_the_flow(brokers: Brokers) -> None:
    topic = brokers.topic()
    brokers.put(topic, [b"1"])
    reader = Reader(source(brokers, topic))
    reader.read(1)
    brokers.admin.delete_topics([topic])[topic].result(10)
    with pytest.raises(KafkaError, match=rf"topic '{topic}': .*there is no such"):
        reader.read(2)
    reader.close()


def test_a_topic_made_anew_while_it_is_read_ends_the_flow(brokers: Brokers) -> None:
    """librdkafka would go on in the new one, behind what is at its beginning."""
    topic = brokers.topic()
    brokers.put(topic, [b"1"])
    reader = Reader(source(brokers, topic))
    reader.read(1)
    remade(brokers, topic)
    brokers.put(topic, [b"2", b"3"])
    with pytest.raises(KafkaError, match=r"was deleted and made anew|its log was cut"):
        reader.read(3)
    reader.close()


def test_a_broker_that_dies_is_waited_for_but_not_for_ever(
    brokers: Brokers, caplog: pytest.LogCaptureFixture
) -> None:
    topic = brokers.topic()
    brokers.put(topic, [b"1"])
    reader, clock = Reader(source(brokers, topic)), Clock()
    impatient = Reader(source(brokers, topic, outage=timedelta(seconds=30), clock=clock))
    reader.read(1)
    impatient.read(1)
    brokers.kill()

    def poll_both() -> None:
        reader.poll()
        impatient.poll()

    until(lambda: caplog.text.count("waiting for one") == 2, "it is not said", meanwhile=poll_both)
    clock.now += 29_000_000
    impatient.poll()
    clock.now += 2_000_000
    with pytest.raises(KafkaError, match="no broker could be reached for 30 s; the flow ends"):
        impatient.poll()
    brokers.start()
    brokers.wait()
    brokers.put(topic, [b"2"])
    assert reader.read(2) == [b"1", b"2"]
    assert "brokers are back" in caplog.text
    reader.close()
    impatient.close()


@pytest.mark.parametrize(
    ("state", "rxidle", "is_back"),
    [("UP", 100_000, True), ("UP", -1, False), ("UP", 9_000_000, False), ("DOWN", 100_000, False)],
)
def test_brokers_are_back_when_one_has_answered_since(
    state: str, rxidle: int, is_back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Statistics name a broker as up that is connected and silent, or was up before all went away."""
    feed = Feed.__new__(Feed)
    feed._cluster, feed._now, feed._down_since = Cluster(["broker"]), 5_000_000, 0
    feed._on_statistics(json.dumps({"brokers": {"one": {"state": state, "rxidle": rxidle, "rx": 7}}}))
    assert feed.is_up is is_back and ("brokers are back" in caplog.text) is is_back


class Clock:
    """Stands still."""

    now = 1_795_000_000_000_000

    def __call__(self) -> int:
        return self.now


def test_a_broker_that_hangs_is_waited_for(brokers: Brokers) -> None:
    """As by SIGSTOP, a full disk or a long pause of its collector: connections stay, answers do not come."""
    topic = brokers.topic()
    brokers.put(topic, [b"1"])
    reader = Reader(source(brokers, topic))
    reader.read(1)
    brokers.pause()
    try:
        ended = time.monotonic() + PAUSE_S
        until(lambda: time.monotonic() > ended, "", meanwhile=reader.poll)
    finally:
        brokers.resume()
    brokers.put(topic, [b"2"])
    assert reader.read(2) == [b"1", b"2"]
    reader.close()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"fecth.min.bytes": "1"}, 'No such configuration property: "fecth.min.bytes"'),
        ({"fetch.min.bytes": "many"}, 'Invalid value for configuration property "fetch.min.bytes"'),
        ({"group.id": "mine"}, "config.group.id: can't be changed here"),
        ({"enable.auto.commit": "true"}, "config.enable.auto.commit: can't be changed here"),
    ],
)
def test_options_that_librdkafka_or_a_promise_does_not_allow(config: dict[str, str], said: str) -> None:
    """Before anything is connected."""
    with pytest.raises(ValueError, match=re.escape(said)):
        KafkaSource(["127.0.0.1:1"], "topic", config=config)


def test_no_client_is_left_to_the_garbage_collector(kafka: Kafka) -> None:
    """It may run on a thread of librdkafka's, which then ends the process."""
    topic = kafka.topic()
    kafka.put(topic, [b"1"])
    gc.collect()
    gc.disable()
    try:
        of = source(kafka, topic)
        reader = Reader(of)
        reader.read(1)
        part = reader.parts[f"{topic}/0"]
        held: list[ref[Any]] = [ref(part), ref(part._feed), ref(of._watch)]
        del of, reader, part
        assert [each() for each in held] == [None, None, None]
    finally:
        gc.enable()


def test_a_topic_that_is_not_there_is_one_clear_error(brokers: Brokers) -> None:
    with pytest.raises(KafkaError, match=r"topic 'nope': UNKNOWN_TOPIC_OR_PART: .*; there is no such topic"):
        source(brokers, "nope").list_parts()


def test_brokers_that_are_not_there_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.connectors.kafka.topic.ANSWER_S", 1.0)
    with pytest.raises(
        KafkaError, match=r"kafka '127\.0\.0\.1:1': topic 'x': .*Connection refused.*check the address"
    ):
        KafkaSource(["127.0.0.1:1"], "x").list_parts()
