"""Kafka as the edges of a run: a topic with a partition per part, and topics of alerts and dead letters."""

from pathlib import Path

from tests.connectors.kafka.helpers import messages
from tests.faults.support.edges import Dead, Edges, shown
from tests.support.kafka_server import Kafka


class Topics(Edges):
    """Topics of a run, named after its folder; `bootstrap` is how the flow reaches them."""

    def __init__(self, kafka: Kafka, bootstrap: str | None = None, **options: str) -> None:
        self._kafka = kafka
        self._bootstrap = bootstrap or kafka.bootstrap
        self._options = options
        self._named: dict[Path, tuple[str, str, str]] = {}

    def prepare(self, folder: Path, parts: list[list[bytes]]) -> dict[str, str]:
        events, alerts, dead = self._kafka.topic(len(parts)), self._kafka.topic(), self._kafka.topic()
        self._named[folder] = events, alerts, dead
        self.append(folder, parts)
        options = {"follow": "false", "group": events, **self._options}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return {
            "SOURCE": f"kafka://{self._bootstrap}/{events}?{query}",
            "ALERTS": f"kafka://{self._bootstrap}/{alerts}",
            "DEAD_LETTERS": f"kafka://{self._bootstrap}/{dead}",
            "CLOCK": "event",
        }

    def append(self, folder: Path, parts: list[list[bytes]]) -> None:
        for number, lines in enumerate(parts):
            self._kafka.put(self._named[folder][0], list(lines), number)

    def alerts(self, folder: Path) -> list[bytes]:
        return [message.value or b"" for message in messages(self._kafka, self._named[folder][1])]

    def dead(self, folder: Path) -> list[Dead]:
        return [
            Dead(m.headers["id"].decode(), m.headers["reason"].decode(), shown(m.value or b""))
            for m in messages(self._kafka, self._named[folder][2])
        ]
