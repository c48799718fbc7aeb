"""A flow grows from one process to three and shrinks to two in mid-stream, killed each time, with the same totals."""

import random
from collections import Counter
from contextlib import ExitStack

from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import eventually
from tests.support.ports import free_addresses

FILES, CUSTOMERS, PER_STAGE = 4, 40, 3000
SETTINGS = {
    "SOURCE": "file:in-*.ndjson?follow=true",
    "RECOVERY_PARTS": "3",
    "EPOCH": "1s",
    "SHARDS": "16",
    "BRANCHES": "store,alerts",
}


class Feed:
    """Events of made-up customers, a file for each of FILES groups of them, and what their totals come to."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._random = random.Random(7)
        self.sent = 0
        self.expected: Counter[tuple[str, str]] = Counter()

    def send(self, count: int) -> None:
        """So many more events, with a repeat of every fiftieth."""
        lines: dict[int, list[str]] = {number: [] for number in range(FILES)}
        for _ in range(count):
            customer, tokens = self._random.randrange(CUSTOMERS), self._random.randrange(100)
            minute = self._random.randrange(60)
            line = (
                f'{{"specversion":"1.0","id":"{self.sent}","source":"api","type":"call","subject":"c{customer}",'
                f'"time":"2026-06-17T10:{minute:02}:00Z","data":{{"tokens":{tokens}}}}}\n'
            )
            lines[customer % FILES] += [line] * (2 if self.sent % 50 == 0 else 1)
            self.sent += 1
            self.expected[f"c{customer}", "calls"] += 1
            self.expected[f"c{customer}", "tokens"] += tokens
        for number, written in lines.items():
            with (self._place.folder / f"in-{number}.ndjson").open("a") as file:
                file.writelines(written)

    def is_metered(self) -> bool:
        store = self._place.folder / "store.db"
        return store.exists() and self._place.counters()["accepted"] == self.sent


def test_any_number_of_processes_goes_on_with_the_same_totals(place: Place) -> None:
    feed = Feed(place)
    for number, processes in enumerate((1, 3, 2)):
        feed.send(PER_STAGE)
        with ExitStack() as cluster:
            addresses = ";".join(free_addresses(processes))
            for process in range(processes):
                options = ("-i", str(process), "-a", addresses) if processes > 1 else ()
                cluster.enter_context(place.running(*options, **SETTINGS))
            eventually(feed.is_metered)
            # What comes now is in flight when they are killed, half of it perhaps metered.
            feed.send(PER_STAGE)
            if number == 2:
                eventually(feed.is_metered)
            else:
                eventually(lambda: place.counters()["accepted"] > feed.sent - PER_STAGE)
    totals = {key: int(total) for key, total in place.periods().items()}
    assert totals == dict(feed.expected)
    counters = place.counters()
    assert counters["events"] == counters["accepted"] + counters["duplicates"]
    assert counters["accepted"] == feed.sent == 6 * PER_STAGE
