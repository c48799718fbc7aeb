import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from tests.support import servers
from tests.support.options import hide_variables, option

hide_variables()
# Hundreds of processes of these tests import the application: compiled once, whatever the environment says, and
# without a thread per core for linear algebra, which nothing here does.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A shell's background job ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The suite tries the same examples each time, so that a change is judged by what it changed; TIDEGATE_RANDOM=1 looks
# for new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
if not option("TIDEGATE_RANDOM"):
    hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def kafka() -> Iterator[Any]:
    """The session's Kafka, whichever is to be had."""
    from tests.support.kafka_server import any_kafka

    found = any_kafka()
    servers.ran(found.described)
    yield found
    found.close()


@pytest.fixture(scope="session")
def brokers(kafka: Any) -> Any:
    """The session's Kafka where its brokers are ours, to be stopped and given users."""
    from tests.support.kafka_server import Brokers

    if not isinstance(kafka, Brokers):
        servers.lacking(f"needs brokers of our own, not {kafka.described}")
    return kafka


# What starts processes goes first, so that workers end together, on files of milliseconds.
LONG = ("kafka", "dashboard", "faults", "flows", "serving", "connectors")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONG) if name in item.nodeid.partition("::")[0]), len(LONG))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores, as much of a test's time is waiting for what it started."""
    return (os.cpu_count() or 1) + 1


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
