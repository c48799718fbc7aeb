"""A folder with settings, input and outputs of one metering flow, and its real command."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support.edges import lines_of
from tests.faults.support.harness import ended
from tests.support.places import ROOT
from tests.support.ports import free_addresses
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.records import Total

SCENARIOS = Path(__file__).parent / "scenarios"
SECONDS = 120


class Place:
    """Where a flow runs: everything in one folder, everything given by settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "SOURCE": "file:in.ndjson",
            "STORE": "sqlite:store.db",
            "ALERTS": "file:alerts.ndjson",
            "DEAD_LETTERS": "file:dead.ndjson",
            "BILLING": "file:billing/",
            "BRANCHES": "store,alerts,billing",
            "DATA_DIR": "state",
            "CATALOG": str(SCENARIOS / "catalog.yaml"),
            "SHARDS": "4",
            "SYNC": "false",
        }

    def append(self, scenario: str, to: str = "in.ndjson") -> None:
        """The lines of a scenario, at the end of the input."""
        with (self.folder / to).open("ab") as file:
            file.write((SCENARIOS / scenario).read_bytes())

    def environment(self, **settings: str) -> dict[str, str]:
        """This process's environment with these settings and no others."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("TIDEGATE_", "BYTEWAX_"))}
        given = {f"TIDEGATE_{name}": value for name, value in {**self.settings, **settings}.items()}
        return {**kept, **given, "PYTHONPATH": str(ROOT)}

    def started(self, *options: str, **settings: str) -> "subprocess.Popen[str]":
        """`python -m bytewax.run tidegate.flows.metering`, running."""
        return subprocess.Popen(
            [sys.executable, "-m", "bytewax.run", *options, "tidegate.flows.metering"],
            cwd=self.folder,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, **settings: str) -> str:
        """Runs it to its end, which must be a good one; what it printed."""
        with self.started(*options, **settings) as process:
            printed, complained = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, complained
        return printed

    def refused(self, **settings: str) -> str:
        """Runs it to an end that must be a bad one; what it complained of."""
        with self.started(**settings) as process:
            _, complained = process.communicate(timeout=SECONDS)
        assert process.returncode != 0
        return complained

    def run_processes(self, count: int, **settings: str) -> None:
        """As many processes, to their end, which must be a good one."""
        codes, complained = self._ended(count, settings)
        assert not any(codes), complained

    def refused_processes(self, count: int, **settings: str) -> str:
        """As many processes, to an end that must be a bad one; what they complained of."""
        codes, complained = self._ended(count, settings)
        assert all(codes), complained
        return complained

    def _ended(self, count: int, settings: dict[str, str]) -> tuple[list[int], str]:
        addresses = ";".join(free_addresses(count))
        processes = [self.started("-i", str(number), "-a", addresses, **settings) for number in range(count)]
        codes = ended(processes)  # type: ignore[arg-type]
        return codes, "\n".join(process.communicate()[1] for process in processes)

    @contextmanager
    def running(self, *options: str, **settings: str) -> "Iterator[subprocess.Popen[str]]":
        """Running as long as the block, then killed."""
        with self.started(*options, **settings) as process:
            try:
                yield process
            finally:
                process.kill()

    def totals(self) -> dict[tuple[str, str, str, int], Total]:
        """Every total in the store, by customer, window, meter and start."""
        reader = SqliteReader(self.folder / "store.db")
        try:
            return {stored.total[:4]: stored.total for stored in reader.totals()}
        finally:
            reader.close()

    def periods(self) -> dict[tuple[str, str], str]:
        """The totals of periods, by customer and meter."""
        return {(t.customer, t.meter): str(t.total) for t in self.totals().values() if t.window == "period"}

    def counters(self) -> Counter[str]:
        """Counters over all shards."""
        reader = SqliteReader(self.folder / "store.db")
        counted: Counter[str] = Counter()
        try:
            for _, name, value in reader.counters():
                counted[name] += value
        finally:
            reader.close()
        return counted

    def alerts(self) -> list[tuple[str, str, str, str]]:
        """Customer, kind, state and level of each alert in the file."""
        return alerts_in((self.folder / "alerts.ndjson").read_text())

    def dead(self) -> list[str]:
        """The reasons of dead letters."""
        return sorted(json.loads(line)["reason"] for line in lines_of(self.folder / "dead.ndjson"))

    def billed(self) -> list[str]:
        """Customer and safe id of each billed event."""
        lines: list[dict[str, Any]] = [
            json.loads(line) for path in (self.folder / "billing").glob("*.ndjson") for line in lines_of(path)
        ]
        return sorted(f"{line['customer_id']} {line['event_id']}" for line in lines)


def alerts_in(text: str) -> list[tuple[str, str, str, str]]:
    """Customer, kind, state and level of each alert."""
    alerts = [json.loads(line) for line in text.splitlines()]
    return sorted((each["customer"], each["kind"], each["state"], each["level"]) for each in alerts)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
