"""Places keep steps of their own, and partitions that are gone keep their positions."""

import pickle
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from tidegate.connectors.files.ndjson import FilePosition
from tidegate.connectors.log.source import LogPosition
from tidegate.flows.runtime import recovery
from tidegate.flows.runtime.step_names import ResumedSource, StepNames

FILE = FilePosition(7, 7, "")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    recovery.prepare(tmp_path, 2, 16)
    return tmp_path


def keep(data: Path, step: str, partition: str, position: object) -> None:
    """Store a position as Bytewax does."""
    part = sorted((data / "recovery").glob("part-*.sqlite3"))[-1]
    with closing(sqlite3.connect(part)) as opened, opened:
        row = (f"metering.{step}", partition, pickle.dumps(position))
        opened.execute(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, 1, ?)", row
        )


def test_each_place_keeps_its_step(data: Path) -> None:
    """A flow that goes back to an earlier source goes on where that one was, not where the later one is."""
    for _ in range(2):
        assert StepNames(data).name("source", "file:") == "source"
        assert StepNames(data).name("source", "log:ingest") == "source_2"
        assert StepNames(data).name("source", "log:other") == "source_3"
        assert StepNames(data).name("billing", "log:ingest") == "billing"


def test_alerts_are_numbered_from_one(data: Path) -> None:
    """As they were before places were remembered; whichever place in the setting an address has now."""
    names = {
        place: StepNames(data).name("alerts", place, first="alerts_1") for place in ("stdout:", "file:a")
    }
    assert names == {"stdout:": "alerts_1", "file:a": "alerts_2"}
    assert StepNames(data).name("alerts", "file:a", first="alerts_1") == "alerts_2"


def test_without_recovery_there_is_one_step(tmp_path: Path) -> None:
    steps = StepNames(None)
    assert [steps.name("source", place) for place in ("file:", "log:ingest")] == ["source", "source"]
    assert steps.partitions("source") == []


@pytest.mark.parametrize(
    ("position", "place", "step"),
    [
        (FILE, "file:", "source"),
        (FILE, "log:ingest", "source_2"),
        (LogPosition(1, FILE), "log:ingest", "source"),
        (LogPosition(1, FILE), "file:", "source_2"),
        (None, "file:", "source"),
    ],
)
def test_a_store_of_an_earlier_version_is_known_by_its_positions(
    data: Path, position: object, place: str, step: str
) -> None:
    keep(data, "source", "in", position)
    assert StepNames(data).name("source", place) == step
    assert StepNames(data).partitions("source") == ["in"]


class _Parts(FixedPartitionedSource[Any, Any]):
    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = list(parts)

    def list_parts(self) -> list[str]:
        return self._parts

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> Any:
        return for_part, resume_state


def test_a_partition_that_is_gone_keeps_its_position_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    source = ResumedSource(_Parts(["b", "c"]), ["a", "b"])
    assert source.list_parts() == ["b", "c", "a"]
    there: Any = source.build_part("in", "b", 3)
    assert there == ("b", 3)
    gone = source.build_part("in", "a", 7)
    assert isinstance(gone, StatefulSourcePartition)
    assert gone.snapshot() == 7
    with pytest.raises(StopIteration):
        gone.next_batch()
    assert "'a' is no longer part of it" in caplog.text
