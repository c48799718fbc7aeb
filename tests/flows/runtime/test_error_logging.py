import logging
from typing import Any

import pytest
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, FixedPartitionedSink, StatefulSinkPartition, StatelessSinkPartition

from tidegate.connectors.files.ndjson import FileError
from tidegate.flows.runtime.error_logging import log_errors, log_sink_errors
from tidegate.flows.runtime.shutdown import Drain, DrainedSource

FULL = FileError("file 'alerts.ndjson': no space left")


def fails_with(error: BaseException) -> Any:
    def fails(*_: object) -> Any:
        raise error

    return fails


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """What was logged as an error, and whether with a traceback."""
    return [
        (record.getMessage(), bool(record.exc_info))
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


def test_an_error_of_ours_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FileError):
        log_errors(fails_with(FULL))()
    assert told(caplog) == [("the flow ends: file 'alerts.ndjson': no space left", False)]


def test_any_other_error_says_where_it_comes_from(caplog: pytest.LogCaptureFixture) -> None:
    """A failed assertion may have no words at all."""
    with pytest.raises(AssertionError):
        log_errors(fails_with(AssertionError()))()
    assert told(caplog) == [("the flow ends: AssertionError()", True)]


def test_the_end_of_a_source_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StopIteration):
        log_errors(fails_with(StopIteration()))()
    assert told(caplog) == []


class Part(StatefulSinkPartition[bytes, str], StatelessSinkPartition[Any]):
    """Both kinds: it keeps what it was given, and fails where `broken` says."""

    def __init__(self, broken: str) -> None:
        self.given: list[Any] = []
        self._broken = broken

    def write_batch(self, values: list[Any]) -> None:
        self._maybe_fail("write_batch")
        self.given += values

    def snapshot(self) -> str:
        self._maybe_fail("snapshot")
        return "all"

    def close(self) -> None:
        self._maybe_fail("close")
        self.given.append("closed")

    def _maybe_fail(self, name: str) -> None:
        if name == self._broken:
            raise FULL


class Parted(FixedPartitionedSink[bytes, str]):
    def __init__(self, broken: str) -> None:
        self.part, self._broken = Part(broken), broken
        self.built: tuple[str, str, str | None] | None = None

    def list_parts(self) -> list[str]:
        if self._broken == "list_parts":
            raise FULL
        return ["0", "1"]

    def part_fn(self, item_key: str) -> int:
        return int(item_key) + 7

    def build_part(self, step_id: str, for_part: str, resume_state: str | None) -> Part:
        if self._broken == "build_part":
            raise FULL
        self.built = step_id, for_part, resume_state
        return self.part


class Unparted(DynamicSink[Any]):
    def __init__(self, broken: str) -> None:
        self.part, self._broken = Part(broken), broken
        self.built: tuple[str, int, int] | None = None

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Part:
        if self._broken == "build":
            raise FULL
        self.built = step_id, worker_index, worker_count
        return self.part


def through_parted(sink: FixedPartitionedSink[Any, Any]) -> list[Any]:
    """What its methods give, all of them called once."""
    given: list[Any] = [sink.list_parts(), sink.part_fn("1")]
    part = sink.build_part("out", "1", "state")
    part.write_batch([b"a", b"b"])
    given.append(part.snapshot())
    part.close()
    return given


def through_unparted(sink: DynamicSink[Any]) -> None:
    part = sink.build("out", 1, 2)
    part.write_batch([b"a", b"b"])
    part.close()


def test_a_sink_does_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    parted, unparted = Parted(""), Unparted("")
    assert through_parted(log_sink_errors(parted)) == [["0", "1"], 8, "all"]
    assert (parted.built, parted.part.given) == (("out", "1", "state"), [b"a", b"b", "closed"])
    through_unparted(log_sink_errors(unparted))
    assert (unparted.built, unparted.part.given) == (("out", 1, 2), [b"a", b"b", "closed"])
    assert told(caplog) == []


@pytest.mark.parametrize("broken", ["list_parts", "build_part", "write_batch", "snapshot", "close"])
def test_what_fails_of_a_parted_sink_is_told(caplog: pytest.LogCaptureFixture, broken: str) -> None:
    with pytest.raises(FileError):
        through_parted(log_sink_errors(Parted(broken)))
    assert told(caplog) == [("the flow ends: file 'alerts.ndjson': no space left", False)]


@pytest.mark.parametrize("broken", ["build", "write_batch", "close"])
def test_what_fails_of_any_other_sink_is_told(caplog: pytest.LogCaptureFixture, broken: str) -> None:
    with pytest.raises(FileError):
        through_unparted(log_sink_errors(Unparted(broken)))
    assert told(caplog) == [("the flow ends: file 'alerts.ndjson': no space left", False)]


class Source(FixedPartitionedSource[str, str], StatefulSourcePartition[str, str]):
    """Its own and only partition."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def list_parts(self) -> list[str]:
        self._maybe_fail("list_parts")
        return ["0"]

    def build_part(self, step_id: str, for_part: str, resume_state: str | None) -> "Source":
        self._maybe_fail("build_part")
        return self

    def next_batch(self) -> list[str]:
        self._maybe_fail("next_batch")
        return ["a"]

    def snapshot(self) -> str:
        self._maybe_fail("snapshot")
        return "state"

    def close(self) -> None:
        self._maybe_fail("close")

    def _maybe_fail(self, name: str) -> None:
        if name == self._broken:
            raise FULL


@pytest.mark.parametrize("broken", ["list_parts", "build_part", "next_batch", "snapshot", "close"])
def test_what_fails_of_a_source_is_told(caplog: pytest.LogCaptureFixture, broken: str) -> None:
    source = DrainedSource(Source(broken), Drain())
    with pytest.raises(FileError):
        part = source.build_part("in", source.list_parts()[0], None)
        part.next_batch()
        part.snapshot()
        part.close()
    assert told(caplog) == [("the flow ends: file 'alerts.ndjson': no space left", False)]
