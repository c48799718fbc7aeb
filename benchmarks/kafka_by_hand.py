"""The same metering as one writes it first without a framework: a Kafka consumer and a script in Redis.

    consume a thousand ─ msgspec ─ one EVALSHA an event, in a pipeline: dedup by SET NX, totals by HINCRBY ─ commit

Left out, in its favour: conflicts, time classes, zones, alerts, dead letters, counters, versions, numbers that are no
integers (thousandths are counted), and readers who want to know what changed. A crash repeats up to a batch, which
the script finds to be repeats for as long as Redis keeps the ids.

    python -m benchmarks.kafka_by_hand BROKERS TOPIC PARTITIONS REDIS_PORT
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import redis
from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.oracle import Row

BATCH = 1000
SCRIPT = """
if not redis.call('SET', KEYS[1], '', 'NX', 'EX', 90000) then return 0 end
for i = 1, #ARGV, 2 do
  if ARGV[i + 1]:sub(1, 1) == 'm' then
    local to = tonumber(ARGV[i + 1]:sub(2))
    if to > tonumber(redis.call('HGET', KEYS[2], ARGV[i]) or -1) then redis.call('HSET', KEYS[2], ARGV[i], to) end
  else
    redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
return 1
"""


class Data(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    cached: bool = True
    seconds: float = 0
    context: int = 0


class Event(msgspec.Struct):
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: Data


def readings(event: Event) -> Iterator[tuple[str, str]]:
    """Meter and amount in thousandths; of a maximum with an m before."""
    data = event.data
    if event.type == "llm.completion":
        if not data.cached:
            yield "tokens_in", str(data.input_tokens * 1000)
        yield "tokens_out", str(data.output_tokens * 1000)
        yield "requests", "1000"
    elif event.type == "gpu.job":
        yield "gpu_seconds", str(round(data.seconds * 1000))
    elif event.type == "llm.session":
        yield "context", f"m{data.context * 1000}"


def arguments(event: Event) -> list[str]:
    """Fields and amounts, of each reading in its hour, day and month."""
    at = event.time
    windows = (f"hour {at:%Y-%m-%dT%H}", f"day {at:%Y-%m-%d}", f"period {at:%Y-%m}")
    return [
        text
        for meter, amount in readings(event)
        for window in windows
        for text in (f"{meter} {window}", amount)
    ]


def meter(brokers: str, topic: str, partitions: list[int], port: int) -> int:
    """Meters the partitions up to where they end now; how many messages there were."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "by-hand",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
        }
    )
    store = redis.Redis(port=port)
    sha = store.script_load(SCRIPT)
    places = [TopicPartition(topic, partition, 0) for partition in partitions]
    left = sum(consumer.get_watermark_offsets(place)[1] for place in places)
    consumer.assign(places)
    decode = msgspec.json.Decoder(Event).decode
    done = 0
    while done < left:
        messages: list[Message] = consumer.consume(BATCH, 0.5)
        pipeline = store.pipeline(transaction=False)
        for message in messages:
            event = decode(message.value() or b"")
            identity = f"i:{event.subject}:{event.source}:{event.id}"
            pipeline.evalsha(sha, 2, identity, f"t:{event.subject}", *arguments(event))
        pipeline.execute()
        if messages:
            consumer.commit(asynchronous=True)
        done += len(messages)
    consumer.close()
    return done


def stored(port: int) -> Iterator[Row]:
    """Every total that it left, without the number of events, which it does not count."""
    store: Any = redis.Redis(port=port)
    for key in store.scan_iter("t:*", count=10_000):
        for name, amount in store.hgetall(key).items():
            which, window, start = name.decode().split(" ")
            at = datetime.fromisoformat(f"{start}-01" if window == "period" else start).replace(tzinfo=UTC)
            thousandths = int(amount)
            text = f"{thousandths // 1000}.{thousandths % 1000:03}".rstrip("0").rstrip(".")
            yield Row(key[2:].decode(), which, window, round(at.timestamp()) * 1_000_000, text, 0)


if __name__ == "__main__":
    print(meter(sys.argv[1], sys.argv[2], [int(each) for each in sys.argv[3].split(",")], int(sys.argv[4])))
