from collections.abc import Iterator
from typing import Any

import pytest

from tests import servers


@pytest.fixture(scope="session")
def kafka() -> Iterator[Any]:
    """The session's Kafka, whichever is to be had."""
    from tests.kafka_server import any_kafka

    found = any_kafka()
    servers.ran(found.described)
    yield found
    found.close()


@pytest.fixture(scope="session")
def brokers(kafka: Any) -> Any:
    """The session's Kafka where its brokers are ours, to be stopped and given users."""
    from tests.kafka_server import Brokers

    if not isinstance(kafka, Brokers):
        servers.lacking(f"needs brokers of our own, not {kafka.described}")
    return kafka


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in servers.summary():
        terminalreporter.write_line(line)
