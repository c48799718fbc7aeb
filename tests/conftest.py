import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import servers

# Hundreds of processes of these tests import the application: compiled once, whatever the environment says, and
# without a thread per core for linear algebra, which nothing here does.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those of a file stay together, and all that need Kafka, which is started once."""
    for item in items:
        group = "kafka" if {"kafka", "brokers"} & set(getattr(item, "fixturenames", ())) else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["servers"] = servers.told()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker ran against, for the summary of the whole."""
    servers.hear(getattr(node, "workeroutput", {}).get("servers"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in servers.summary():
        terminalreporter.write_line(line)
