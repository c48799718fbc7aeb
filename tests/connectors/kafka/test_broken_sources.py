"""The contract fails Kafka sources that are broken in the ways they are: else it proves nothing."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.connectors.contracts.source import HANGS_AFTER_S, SourceContract, payload_lists
from tests.connectors.kafka.test_source import TestContract as KafkaContract
from tests.support.kafka_server import Kafka
from tidegate.connectors.kafka import source as connector
from tidegate.connectors.kafka.consumer import MESSAGES_MIN
from tidegate.connectors.kafka.source import KafkaPosition, _Partition
from tidegate.operators.model.ports import Payloads

# Shrinking what fails would take minutes, against brokers.
brief = settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LIVES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=6)


class _SkipsWhatItReadAhead(_Partition):
    def snapshot(self) -> KafkaPosition:
        found = super().snapshot()
        return found._replace(offset=found.offset + len(self._feed._waiting[self._partition]) + 1)


class _RepeatsTheLastMessage(_Partition):
    def snapshot(self) -> KafkaPosition:
        found = super().snapshot()
        return found._replace(offset=max(self._first, found.offset - 1))

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._first = self._position.offset


class _LosesTheLastMessageOfAPoll(_Partition):
    def _payloads(self, messages: list[Message], now: int) -> list[Payloads]:
        found = super()._payloads(messages, now)
        super()._payloads(messages[:-1], now) if len(messages) > 1 else None
        self._position = self._position._replace(offset=(messages[-1].offset() or 0) + 1)
        return [Payloads(found[0].block.rpartition(b"\n")[0] or b" ", now, None, "x")] if found else []


class _ForgetsLineBreaks(_Partition):
    def _payloads(self, messages: list[Message], now: int) -> list[Payloads]:
        return [
            Payloads(poll.block.replace(b"\n", b""), now, None, "x")
            for poll in super()._payloads(messages, now)
        ]


class _BeginsAnew(_Partition):
    def __init__(
        self, reading: Any, feed: Any, topic: str, partition: int, at: Any, *rest: Any, **more: Any
    ) -> None:
        super().__init__(reading, feed, topic, partition, at._replace(offset=0), *rest, **more)


class _EndsWhenNothingIsThere(_Partition):
    def next_batch(self) -> list[Payloads]:
        found = super().next_batch()
        if not found and not self._feed._waiting[self._partition]:
            raise StopIteration
        return found


class _Waits(_Partition):
    def next_batch(self) -> list[Payloads]:
        found = super().next_batch()
        if not found:
            threading.Event().wait(HANGS_AFTER_S + 1)
        return found


BROKEN: dict[type[_Partition], Callable[[SourceContract], None]] = {
    _SkipsWhatItReadAhead: SourceContract.test_it_resumes_anywhere,
    _RepeatsTheLastMessage: SourceContract.test_it_resumes_anywhere,
    _LosesTheLastMessageOfAPoll: SourceContract.test_every_payload_comes_once,
    _ForgetsLineBreaks: SourceContract.test_every_payload_comes_once,
    _BeginsAnew: SourceContract.test_it_resumes_anywhere,
    _EndsWhenNothingIsThere: SourceContract.test_no_poll_blocks,
    _Waits: SourceContract.test_no_poll_blocks,
}


def inner_test(test: Any) -> Callable[..., None]:
    """What a property does with one example."""
    inner: Callable[..., None] = test.hypothesis.inner_test
    return inner


def run(contract: SourceContract, test: Callable[..., None]) -> None:
    """One test of the contract, briefly."""
    if test is SourceContract.test_no_poll_blocks:
        test(contract)
    elif test is SourceContract.test_every_payload_comes_once:
        act = inner_test(test)
        brief(given(payload_lists)(lambda payloads: act(contract, payloads)))()
    else:
        act = inner_test(test)
        # Chance may stop at the very end each time, where some of these do nothing wrong; a poll has a third of these.
        act(contract, [b'{"n":%d}' % n for n in range(3 * MESSAGES_MIN)], [(1, 0), (1, 1), (1, 0)])
        brief(given(payload_lists, LIVES)(lambda payloads, lives: act(contract, payloads, lives)))()


@pytest.mark.parametrize("broken", BROKEN, ids=[each.__name__.strip("_") for each in BROKEN])
def test_the_contract_fails_a_broken_source(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, broken: type[_Partition]
) -> None:
    monkeypatch.setattr(connector, "_Partition", broken)
    contract = KafkaContract()
    contract.kafka, contract.topic = kafka, kafka.topic()
    with pytest.raises((AssertionError, StopIteration, RuntimeError)):
        run(contract, BROKEN[broken])
