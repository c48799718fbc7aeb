"""docs/tutorials/kafka.md is followed to the letter; only ports and names of topics are others."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import redis_server
from tests.support.kafka_server import Mock
from tests.support.places import ROOT
from tests.support.ports import free_ports
from tests.support.walkthrough import Shell, follow, open_shell

PAGE = ROOT / "docs" / "tutorials" / "kafka.md"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    found = open_shell(tmp_path)
    yield found
    found.close()


def elsewhere(text: str, kafka: Any, ports: list[int], topics: Mapping[str, str]) -> str:
    text = text.replace("localhost:9092", kafka.bootstrap)
    for shown, port in zip(("localhost:8080", "localhost:2101", "localhost:2102"), ports, strict=True):
        text = text.replace(shown, f"127.0.0.1:{port}")
    text = text.replace("tidegate serve", f"tidegate serve --listen 127.0.0.1:{ports[0]}")
    for name, topic in topics.items():
        text = text.replace(name, topic)
    return text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_is_followed_from_topics_to_the_dashboard(kafka: Any, shell: Shell, tmp_path: Path) -> None:
    if isinstance(kafka, Mock):
        pytest.skip(f"creates topics: {kafka.described}")
    topics = {name: kafka.unused() for name in ("usage-events", "dead-letters")} | {
        "/alerts": f"/{(alerts := kafka.unused())}",
        "consume.py alerts": f"consume.py {alerts}",
        "alerts: ": f"{alerts}: ",
    }
    ports = free_ports(3)
    with redis_server.single() as redis:

        def adapt(text: str) -> str:
            return elsewhere(text, kafka, ports, topics).replace("localhost:6379", f"127.0.0.1:{redis.port}")

        steps = follow(PAGE.read_text(), shell, tmp_path, adapt)
    assert steps > 20
