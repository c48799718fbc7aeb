"""The log that the HTTP service writes (connectors/log/writer.py), as a source of payloads.

Hands out blocks of whole lines, a partition per lane. Position: a segment's number, and in it as in a file
(connectors/files/ndjson.py). A lane's segments are read in order; one is done with once its successor is there, as
nothing is added to it any more, and an unfinished line at its end was never answered for and is left out. Guarantee:
each line once, resumed anywhere. Limits: as of files; segments may be deleted once a snapshot of the flow is past
them, and not before.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.connectors.files.ndjson import FileError, FilePosition, FileSource
from tidegate.connectors.log.times import Times
from tidegate.connectors.log.writer import DIGITS, log_position, number_of, segments
from tidegate.operators.model.ports import Payloads

IDLE = timedelta(milliseconds=50)


class LogPosition(NamedTuple):
    """The number of the segment, and where to read on in it."""

    segment: int
    file: FilePosition


class LogSource(FixedPartitionedSource[Payloads, LogPosition | None]):
    """The log in the folder `path`, of so many `lanes`; a lane that nobody has written yet is waited for.

    A lane that was written when there were more of them is read too. Without `follow` it ends where the log ended.
    """

    def __init__(
        self,
        path: str,
        lanes: int = 1,
        follow: bool = True,
        poll_bytes: int = 1 << 20,
        *,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._path, self._lanes, self._follow = path, lanes, follow
        self._poll_bytes, self._clock = poll_bytes, clock

    def list_parts(self) -> list[str]:
        written = [int(lane.name) for lane in Path(self._path).glob("[0-9]*") if lane.name.isdecimal()]
        return [str(lane) for lane in sorted({*range(self._lanes), *written})]

    def build_part(self, step_id: str, for_part: str, resume_state: LogPosition | None) -> "_Lane":
        files = FileSource("-", True, self._poll_bytes, rotates=False, clock=self._clock)
        return _Lane(Path(self._path) / for_part, files, self._follow, resume_state)


class _Lane(StatefulSourcePartition[Payloads, LogPosition | None]):
    def __init__(self, lane: Path, files: FileSource, follow: bool, resume: LogPosition | None) -> None:
        self._lane, self._files, self._follow = lane, files, follow
        self._number = resume.segment if resume else 0
        self._times = Times(self._segment(self._number))
        self._file = self._open(resume.file) if resume else None

    def next_batch(self) -> list[Payloads]:
        if self._file is None and not self._begin():
            if not self._follow:
                raise StopIteration
            return []
        assert self._file is not None
        waited = self._file.next_awake() is not None
        # Asked before reading: what was written before its successor began is read by the time that is known.
        followed = waited and self._segment(self._number + 1).exists()
        blocks = [self._timed(block) for block in self._file.next_batch()]
        if blocks or not waited or self._file.next_awake() is None:
            return blocks
        if followed:
            self._file.close()
            self._number += 1
            self._file = self._open(None)
        elif not self._follow:
            raise StopIteration
        return []

    def reached(self) -> int:
        """Return the position as one number that grows: the segment's, then the byte in it."""
        position = self._file.snapshot() if self._file else None
        return log_position(self._number, position.offset if position else 0)

    def next_awake(self) -> datetime | None:
        if self._file is None:
            return datetime.now(UTC) + IDLE
        return self._file.next_awake()

    def caught_up(self) -> bool:
        """Return whether all that was written is handed out, also where nobody has written yet."""
        if self._file is None:
            return not segments(self._lane)
        behind: int = getattr(self._file, "behind", lambda: 0)()
        return behind == 0 and not self._segment(self._number + 1).exists()

    def snapshot(self) -> LogPosition | None:
        position = self._file.snapshot() if self._file else None
        return LogPosition(self._number, position) if position else None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _timed(self, block: Payloads) -> Payloads:
        """Add to the block the times at which the service took its lines."""
        at = int(block.origin.rpartition(":")[2])
        return msgspec.structs.replace(block, times_of=self._times.of(at))

    def _begin(self) -> bool:
        """Open the oldest segment, if there is one."""
        found = segments(self._lane)
        if found:
            self._number = number_of(found[0])
            self._file = self._open(None)
        return bool(found)

    def _open(self, position: FilePosition | None) -> StatefulSourcePartition[Payloads, FilePosition | None]:
        path = self._segment(self._number)
        if not path.exists():
            raise FileError(
                f"log {str(self._lane)!r}: segment {path.name} is gone, and was not read to its end; bring it back"
            )
        self._times = Times(path)
        return self._files.build_part("", str(path), position)

    def _segment(self, number: int) -> Path:
        return self._lane / f"{number:0{DIGITS}d}.ndjson"
