"""Where the HTTP service puts events: a Kafka topic, keyed by customer, delivered before anybody is told so.

All events of a customer lie in one partition, in the order in which they were put, as Java's clients would choose it.
Guarantee: when `put` returns, all replicas in sync have each payload, once for this put, however often the client
tried (`enable.idempotence`). Where it raises, some may be there; put again, they are duplicates to the flow. Limits:
librdkafka's queue, then it refuses; `delivery.timeout.ms`, 30 s unless said otherwise.
Source: https://docs.confluent.io/platform/current/clients/confluent-kafka-python/html/index.html#producer
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import Event, Thread

import confluent_kafka as rd
from confluent_kafka import Message, Producer

from tidegate.connectors.kafka.client import Cluster
from tidegate.connectors.kafka.producer import OURS, OWN
from tidegate.operators.model.ports import IngestError, Place

_POLL_S = 0.1
_CLOSE_S = 30.0


class KafkaIngest:
    """Puts payloads into the topic `path` at the brokers `hosts`; `put` is for one event loop.

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
    ) -> None:
        self._cluster = Cluster(hosts, user=user, password=password, sasl=sasl, tls=tls, config=config)
        self._topic = path
        settings = self._cluster.settings({**OURS, "delivery.timeout.ms": 30_000}, OWN)
        self._producer: Producer = self._cluster.made(Producer, settings)
        self._ended = Event()
        # Delivery reports are handed over by whoever polls.
        self._thread = Thread(target=self._poll, name="tidegate-kafka-ingest", daemon=True)
        self._thread.start()

    async def put(self, payloads: Sequence[bytes], customers: Sequence[str]) -> list[Place]:
        """Deliver these payloads, each of the customer at its index, and return where they are.

        IngestError where not all could be delivered.
        """
        if not payloads:
            return []
        put = _Put(len(payloads), asyncio.get_running_loop())
        for sent, (payload, customer) in enumerate(zip(payloads, customers, strict=True)):
            try:
                self._producer.produce(
                    self._topic, payload, customer, on_delivery=partial(put.on_delivery, sent)
                )
            except BufferError:
                raise self._refused("as many events as its queue holds wait already; send later") from None
            except rd.KafkaException as error:
                raise self._refused(f"event {sent + 1}: {self._cluster.safe(error.args[0].str())}") from None
        failed = await asyncio.shield(put.done)
        if failed is not None:
            raise IngestError(
                str(self._cluster.error(failed, f"topic {self._topic!r}, an event is not delivered"))
            )
        return [Place(f"{self._topic}/{partition}", offset + 1) for partition, offset in put.places]

    async def close(self) -> None:
        """Delivers what waits; IngestError where that takes too long."""
        left = await asyncio.get_running_loop().run_in_executor(None, self._producer.flush, _CLOSE_S)
        self._ended.set()
        self._thread.join()
        if left:
            raise self._refused(
                f"{left} events are not delivered; whoever sent them was not told that they are"
            )

    def _refused(self, why: str) -> IngestError:
        return IngestError(f"{self._cluster.name}: topic {self._topic!r}: {why}")

    def _poll(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(_POLL_S)


class _Put:
    """The payloads of one `put`: `done` is set when the last is answered for, to the first error or None."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._left = count
        self.places = [(0, 0)] * count
        self._loop = loop
        self._failed: rd.KafkaError | None = None
        self.done: asyncio.Future[rd.KafkaError | None] = loop.create_future()

    def on_delivery(self, index: int, error: rd.KafkaError | None, message: Message) -> None:
        """Note where a payload went, on the thread that polls."""
        self.places[index] = (message.partition() or 0, message.offset() or 0)
        self._left -= 1
        self._failed = self._failed or error
        if not self._left:
            # The loop may be gone, and with it whoever waited.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if not self.done.done():
            self.done.set_result(self._failed)
