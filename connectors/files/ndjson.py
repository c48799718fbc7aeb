"""Files of one event per line (NDJSON) as a source, and files of one record per line as sinks.

`FileSource` hands out blocks of whole lines, as they stand in the file, at most one block per poll. A
partition is a file; its position is the byte offset of the next unread line, with a fingerprint of what
stands before it (connectors/files/partition.py). Guarantee: each line once, resumed anywhere, also while a
followed file is rotated. Limits: of a line longer than `line_bytes_max` only the beginning is handed out;
what is compressed by a rotation before it was read is named and not read; a glob is looked at once, at the
start; standard input (`-`) has no position: a restart reads what comes next, and what was handed out after
the last snapshot does not come again.

`FileSink` and `DirSink` append lines and truncate, on resume, to the length recorded in the snapshot, so
that a replay leaves each line once. Before the first snapshot there is nothing to truncate to, hence
`PATH.start`: the length found when this lineage (one recovery store) first opened the file.
Limits: one flow writes a file; all workers that may get a partition must see the same file system.
"""

import glob
import logging
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import FixedPartitionedSink, FixedPartitionedSource, StatefulSinkPartition
from tidegate.connectors.files.lines import Limits, LinesRead
from tidegate.connectors.files.own_files import OwnFiles
from tidegate.connectors.files.partition import FileError, FilePartition, FilePosition, Following
from tidegate.connectors.files.private_files import make_private_folder
from tidegate.operators.model.ports import Payloads

__all__ = ["DirSink", "FileError", "FilePosition", "FileSink", "FileSource", "Written"]

STDIN = "-"
# A pipe gives 64 KiB a read at most, so this fills a block of 1 MiB and bounds a poll of tiny writes.
STDIN_READS_MAX = 16

_LOG = logging.getLogger("tidegate.flow")


class Written(NamedTuple):
    """What a sink partition has written: the file's length, and the number of partitions it is one of."""

    length: int
    parts: int


class FileSource(FixedPartitionedSource[Payloads, FilePosition | None]):
    """One file, a glob with a partition per file, or standard input (`-`).

    `follow` waits for growth instead of ending, for a plain path also for the file to appear; an
    unfinished last line waits for its newline. Without `follow` a last line without newline is a line.
    With `rotates` a followed file may be rotated. Files in `own` are never read.
    """

    def __init__(
        self,
        path: str,
        follow: bool = False,
        poll_bytes: int = 1 << 20,
        line_bytes_max: int = 16 << 20,
        *,
        rotates: bool = True,
        own: OwnFiles | None = None,
        clock: Callable[[], int] = wall_clock,
        stdin: int = 0,
    ) -> None:
        if not 0 < poll_bytes <= line_bytes_max:
            raise ValueError(f"poll_bytes: needs 1 to line_bytes_max ({line_bytes_max}), got {poll_bytes}")
        self._path = path
        self._following = Following(follow, rotates, own or OwnFiles())
        self._limits = Limits(poll_bytes, line_bytes_max)
        self._clock = clock
        self._stdin = stdin

    def check(self) -> None:
        """Raise FileError where a first start would: a file is not there, can't be read, or is the flow's own."""
        for part in self._found()[0]:
            self.build_part("", part, None).close()

    def list_parts(self) -> list[str]:
        parts, own = self._found()
        if own:
            _LOG.warning(
                "files %r: the flow itself writes %s, which its source leaves out", self._path, ", ".join(own)
            )
        self._following = self._following._replace(others=frozenset(parts))
        return parts

    def _found(self) -> tuple[list[str], list[str]]:
        """Return the files that are read, and those that are left out as the flow writes them."""
        if self._path == STDIN or not any(c in self._path for c in "*?["):
            return [self._path], []
        found = sorted(p for p in glob.glob(self._path, recursive=True) if os.path.isfile(p))
        own = [path for path in found if self._following.own.has(path)]
        parts = [path for path in found if path not in own]
        if not parts:
            raise FileError(
                f"files {self._path!r}: none found in {os.getcwd()!r}"
                f"{' but what the flow itself writes' if own else ''}; check the pattern"
            )
        return parts, own

    def build_part(self, step_id: str, for_part: str, resume_state: FilePosition | None) -> LinesRead:
        if for_part == STDIN:
            return _StdinPartition(self._stdin, self._limits, self._clock)
        return FilePartition(for_part, self._following, self._limits, self._clock, resume_state)


class _StdinPartition(LinesRead):
    def __init__(self, fd: int, limits: Limits, clock: Callable[[], int]) -> None:
        super().__init__(STDIN, limits, clock)
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def snapshot(self) -> None:
        return None

    def _read(self, size: int) -> bytes | None:
        pieces: list[bytes] = []
        for _ in range(STDIN_READS_MAX):
            # Not O_NONBLOCK: that would hold for every process that shares the terminal or pipe.
            if size <= 0 or not self._poll.poll(0):
                break
            piece = os.read(self._fd, size)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces) or None


class FileSink(FixedPartitionedSink[bytes, Written]):
    """Appends each value of `(key, line)` to one file; a line holds no newline.

    `lineage` names the recovery store, for as long as it lives; without one, nothing is ever replayed
    and each start appends. With `sync`, what a snapshot counts survives a power cut.
    """

    def __init__(self, path: str, lineage: str = "", sync: bool = True) -> None:
        self._path = path
        self._lineage = lineage
        self._sync = sync

    def list_parts(self) -> list[str]:
        return ["0"]

    def part_fn(self, item_key: str) -> int:
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: Written | None) -> "_LinesWritten":
        run = _run(self._lineage, step_id)
        return _LinesWritten(Path(self._path), run, 1, self._sync, resume_state)


class DirSink(FixedPartitionedSink[bytes, Written]):
    """Appends each value of `(shard, line)` to `DIRECTORY/NN.ndjson`, NN = shard modulo `parts`.

    As `FileSink`, file by file. `parts` stays as long as the recovery store does.
    """

    def __init__(self, directory: str, parts: int, lineage: str = "", sync: bool = True) -> None:
        if parts < 1:
            raise ValueError(f"parts: needs 1 or more, got {parts}")
        self._directory = directory
        self._parts = parts
        self._lineage = lineage
        self._sync = sync

    def list_parts(self) -> list[str]:
        # Bytewax routes by place among the sorted names, so these must sort as numbers do.
        width = max(2, len(str(self._parts - 1)))
        return [f"{part:0{width}d}" for part in range(self._parts)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key) % self._parts

    def build_part(self, step_id: str, for_part: str, resume_state: Written | None) -> "_LinesWritten":
        path = Path(self._directory) / f"{for_part}.ndjson"
        return _LinesWritten(path, _run(self._lineage, step_id), self._parts, self._sync, resume_state)


def _run(lineage: str, step_id: str) -> str:
    # With the step, for a renamed step starts without state though its lines are settled.
    return f"{lineage}/{step_id}" if lineage else ""


class _Start(msgspec.Struct, frozen=True):
    """What `PATH.start` holds: the length of PATH when `run` first opened it."""

    run: str
    length: int


class _LinesWritten(StatefulSinkPartition[bytes, Written]):
    def __init__(self, path: Path, run: str, parts: int, sync: bool, resume: Written | None) -> None:
        self._path = path
        self._parts = parts
        self._must_sync = sync
        self._unsynced = True
        make_private_folder(path.parent)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise FileError(f"file {str(path)!r}: not a regular file; for the terminal use `stdout:`")
        if resume is None:
            self._begin(run)
        else:
            self._resume(run, resume)

    def write_batch(self, values: list[bytes]) -> None:
        if not values:
            return
        block = b"\n".join(values) + b"\n"
        assert block.count(b"\n") == len(values), f"file {str(self._path)!r}: a line holds a newline"
        self._write(block)

    def snapshot(self) -> Written:
        self._sync()
        return Written(os.fstat(self._fd).st_size, self._parts)

    def close(self) -> None:
        self._sync()
        os.close(self._fd)

    def _begin(self, run: str) -> None:
        size = os.fstat(self._fd).st_size
        start = self._marked()
        if start and start.run and start.run == run and start.length <= size:
            # A first try died before its first snapshot: its lines come again.
            os.ftruncate(self._fd, start.length)
            size = start.length
        else:
            self._mark(_Start(run, size))
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            self._write(b"\n")

    def _resume(self, run: str, resume: Written) -> None:
        size = os.fstat(self._fd).st_size
        start = self._marked()
        if resume.parts != self._parts:
            raise self._error(f"was written as one of {resume.parts} parts, now there are {self._parts}")
        if start and start.run != run:
            raise self._error("has since been written with another recovery store")
        if size < resume.length:
            raise self._error(f"has {size} bytes where {resume.length} were written")
        os.ftruncate(self._fd, resume.length)

    def _marked(self) -> _Start | None:
        try:
            return msgspec.json.decode(self._mark_path.read_bytes(), type=_Start)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise FileError(
                f"file {str(self._mark_path)!r}: not written by this sink ({error}); move it away"
            ) from None

    def _mark(self, start: _Start) -> None:
        new = self._mark_path.with_name(self._mark_path.name + ".new")
        with open(new, "wb") as file:
            file.write(msgspec.json.encode(start))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._mark_path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @property
    def _mark_path(self) -> Path:
        return self._path.with_name(self._path.name + ".start")

    def _write(self, block: bytes) -> None:
        self._unsynced = True
        view = memoryview(block)
        while view:
            view = view[os.write(self._fd, view) :]

    def _sync(self) -> None:
        if self._must_sync and self._unsynced:
            os.fsync(self._fd)
            self._unsynced = False

    def _error(self, what: str) -> FileError:
        return FileError(
            f"file {str(self._path)!r}: {what}; bring the old state back, or start with a new recovery store"
        )
