"""The log that the service writes, read: the contract of sources, over segments and unfinished ends."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from tests.connectors.contracts.source import Partition, Source, SourceContract, payloads_in, read
from tidegate.connectors.clock import wall_clock
from tidegate.connectors.files.ndjson import FileError
from tidegate.connectors.log.source import LogSource
from tidegate.connectors.log.writer import DIGITS, LogWriter
from tidegate.operators.model.ports import Payloads

POLL_BYTES = 48
PER_SEGMENT = 3


def segment(folder: str | Path, number: int) -> Path:
    path = Path(folder) / "0" / f"{number:0{DIGITS}d}.ndjson"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def source(folder: str | Path, follow: bool = False) -> LogSource:
    return LogSource(str(folder), 1, follow, POLL_BYTES)


class TestLog(SourceContract):
    """Segments of a few lines, all but the last with a torn line at the end, as a killed writer leaves it."""

    @contextmanager
    def holding(self, payloads: list[bytes]) -> Iterator[Callable[[], Source]]:
        with TemporaryDirectory() as folder:
            parts = [payloads[i : i + PER_SEGMENT] for i in range(0, len(payloads), PER_SEGMENT)] or [[]]
            for number, part in enumerate(parts, 1):
                torn = b'{"torn":' if number < len(parts) else b""
                segment(folder, number).write_bytes(b"".join(line + b"\n" for line in part) + torn)
            yield lambda: source(folder)

    @contextmanager
    def waiting(self) -> Iterator[Partition]:
        with TemporaryDirectory() as folder:
            segment(folder, 1).write_bytes(b'{"id":"1"}\n')
            partition = source(folder, follow=True).build_part("in", "0", None)
            assert len(read(partition, 3)) == 1
            yield partition
            partition.close()


def test_a_new_segment_is_followed_and_what_came_before_it_is_read_first(tmp_path: Path) -> None:
    partition = source(tmp_path, follow=True).build_part("in", "0", None)
    # Nobody has written yet.
    assert read(partition, 3) == []
    segment(tmp_path, 1).write_bytes(b"one\n")
    assert payloads_in(read(partition, 3)) == [b"one"]
    with segment(tmp_path, 1).open("ab") as file:
        file.write(b"two\ntorn")
    segment(tmp_path, 2).write_bytes(b"three\n")
    assert payloads_in(read(partition, 8)) == [b"two", b"three"]
    partition.close()


def test_old_segments_may_be_deleted_once_they_are_read(tmp_path: Path) -> None:
    segment(tmp_path, 1).write_bytes(b"one\n")
    segment(tmp_path, 2).write_bytes(b"two\n")
    partition = source(tmp_path, follow=True).build_part("in", "0", None)
    assert payloads_in(read(partition, 8)) == [b"one", b"two"]
    position = partition.snapshot()
    partition.close()
    segment(tmp_path, 1).unlink()
    segment(tmp_path, 3).write_bytes(b"three\n")
    resumed = source(tmp_path).build_part("in", "0", position)
    assert payloads_in(read(resumed)) == [b"three"]
    resumed.close()


def test_a_segment_that_is_gone_before_it_was_read_is_an_error(tmp_path: Path) -> None:
    segment(tmp_path, 1).write_bytes(b"one\n")
    partition = source(tmp_path, follow=True).build_part("in", "0", None)
    read(partition, 3)
    position = partition.snapshot()
    partition.close()
    segment(tmp_path, 1).unlink()
    with pytest.raises(FileError, match="is gone"):
        source(tmp_path).build_part("in", "0", position)


def test_each_lane_is_a_partition() -> None:
    assert LogSource("log", 3).list_parts() == ["0", "1", "2"]


def test_a_lane_from_when_there_were_more_is_read_too(tmp_path: Path) -> None:
    """Lowering `lanes` leaves events in the others that were answered for."""
    (tmp_path / "2").mkdir()
    assert LogSource(str(tmp_path), 1).list_parts() == ["0", "2"]


def test_lines_are_known_with_the_time_at_which_the_service_took_them(tmp_path: Path) -> None:
    """Also after a resume in the middle of a segment, and of lines that are added while it is read."""
    asyncio.run(_put_and_read(tmp_path))


async def _put_and_read(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    await writer.put([b"1", b"2"], ["a", "a"])
    partition = source(tmp_path, follow=True).build_part("in", "0", None)
    first = times_in(read(partition, 3))
    position = partition.snapshot()
    partition.close()
    await asyncio.sleep(0.002)
    await writer.put([b"3"], ["a"])
    partition = source(tmp_path, follow=True).build_part("in", "0", position)
    (third,) = times_in(read(partition, 3))
    await asyncio.sleep(0.002)
    await writer.put([b"4"], ["a"])
    (fourth,) = times_in(read(partition, 3))
    partition.close()
    await writer.close()
    now = wall_clock()
    assert first[0] == first[1] and now - 60_000_000 < first[0] < third < fourth <= now


def test_lines_without_times_have_that_of_the_segments_last_change(tmp_path: Path) -> None:
    """As a version before this one wrote them."""
    path = segment(tmp_path, 1)
    path.write_bytes(b"1\n2\n")
    os.utime(path, (1_790_000_000, 1_790_000_000))
    partition = source(tmp_path).build_part("in", "0", None)
    assert times_in(read(partition)) == [1_790_000_000_000_000] * 2
    partition.close()


def test_a_lane_is_caught_up_where_nothing_is_left_or_was_ever_written(tmp_path: Path) -> None:
    """What it may still bring would hold up what the flow forgets."""
    partition: Any = source(tmp_path, follow=True).build_part("in", "0", None)
    read(partition, 2)
    assert partition.caught_up()
    segment(tmp_path, 1).write_bytes(b"one\n")
    assert not partition.caught_up()
    read(partition, 3)
    assert partition.caught_up()
    segment(tmp_path, 2).write_bytes(b"two\n")
    assert not partition.caught_up()
    read(partition, 8)
    assert partition.caught_up()
    partition.close()


def times_in(polls: list[Payloads]) -> list[int]:
    found = []
    for poll in polls:
        assert poll.times_of is not None
        starts = [0, *(at + 1 for at, byte in enumerate(poll.block) if byte == ord("\n"))][
            : len(poll.block.split())
        ]
        found += poll.times_of(np.array(starts)).tolist()
    return found
