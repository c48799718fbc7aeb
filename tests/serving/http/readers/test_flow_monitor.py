"""The monitor that reports when the flow falls behind, while the store that it writes to is away."""

from datetime import timedelta
from typing import Any, cast

import pytest

from tidegate.operators.model.ports import Note, StoreError, StoreWriter
from tidegate.serving.gate import AsyncGate
from tidegate.serving.gate.freshness import FlowState
from tidegate.serving.http.readers.flow_monitor import FlowMonitor


class Gate:
    """A gate that has seen a flow that is behind."""

    state = FlowState(1, 1, 9_000_000)

    def flow_state(self, max_lag: timedelta) -> FlowState:
        return self.state


class Writer:
    """A store that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def write(self, totals: Any, counters: Any, notes: list[Note]) -> None:
        self.notes += notes

    def close(self) -> None:
        pass


def test_a_store_that_is_away_is_logged_once_and_written_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer, problem = Writer(), "there is no such file"

    def open_store() -> StoreWriter:
        if problem:
            raise StoreError(problem)
        return cast(StoreWriter, writer)

    monitor = FlowMonitor(lambda: cast(AsyncGate, Gate()), timedelta(seconds=5), open_store, lambda: 1)
    for _ in range(3):
        monitor.look()
    assert [record.getMessage().count("no such file") for record in caplog.records] == [1]
    problem = "is locked"
    monitor.look()
    assert "is locked" in caplog.text
    problem = ""
    monitor.look()
    assert [note.kind for note in writer.notes] == ["alert"]
