"""Files of one event per line (NDJSON) as a source, and files of one record per line as sinks.

`FileSource` hands out blocks of whole lines, as they stand in the file, at most one block per poll. A
partition is a file; its position is the byte offset of the next unread line, with a digest of what
stands around it, so that resuming on a file that was truncated or replaced is an error and not a bill.
Guarantee: each line once, resumed anywhere. Limits: a line of `line_bytes_max`; a file only grows, so a
log that is renamed under us is an error: rotate by beginning a file of a new name; a glob is looked at
once, at the start; standard input (`-`) has no position: a restart reads what comes next, and what was
handed out after the last snapshot does not come again.

`FileSink` and `DirSink` append lines and truncate, on resume, to the length recorded in the snapshot, so
that a replay leaves each line once. Before the first snapshot there is nothing to truncate to, hence
`PATH.start`: the length found when this lineage (one recovery store) first opened the file.
Limits: one flow writes a file; all workers that may get a partition must see the same file system.
"""

import glob
import hashlib
import os
import select
import stat
from abc import abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from connectors.clock import wall_clock
from operators.ports import Payloads

STDIN = "-"
PAUSE_ACTIVE_US = 1_000
PAUSE_IDLE_US = 5_000
ACTIVE_FOR_US = 1_000_000
LINE_SPAN = 64 << 10
DIGEST_SPAN = 4096
# A pipe gives 64 KiB a read at most, so this fills a block of 1 MiB and bounds a poll of tiny writes.
STDIN_READS_MAX = 16


class FileError(Exception):
    """A file is not as it was left, or cannot be read or written as promised; says what to do."""


class FilePosition(NamedTuple):
    """Where to read on: `offset` of the next unread line in a file seen with `size` bytes.

    `digest` is over the first and the last 4 KiB before `offset`.
    """

    offset: int
    size: int
    digest: str


class Written(NamedTuple):
    """What a sink partition has written: the file's length, and the number of partitions it is one of."""

    length: int
    parts: int


class FileSource(FixedPartitionedSource[Payloads, FilePosition | None]):
    """One file, a glob with a partition per file, or standard input (`-`).

    `follow` waits for growth instead of ending, for a plain path also for the file to appear; an
    unfinished last line waits for its newline. Without `follow` a last line without newline is a line.
    """

    def __init__(
        self,
        path: str,
        follow: bool = False,
        poll_bytes: int = 1 << 20,
        line_bytes_max: int = 16 << 20,
        *,
        clock: Callable[[], int] = wall_clock,
        stdin: int = 0,
    ) -> None:
        if not 0 < poll_bytes <= line_bytes_max:
            raise ValueError(f"poll_bytes: needs 1 to line_bytes_max ({line_bytes_max}), got {poll_bytes}")
        self._path = path
        self._follow = follow
        self._limits = _Limits(poll_bytes, line_bytes_max)
        self._clock = clock
        self._stdin = stdin

    def list_parts(self) -> list[str]:
        if self._path == STDIN or not any(c in self._path for c in "*?["):
            return [self._path]
        found = sorted(p for p in glob.glob(self._path, recursive=True) if os.path.isfile(p))
        if not found:
            raise FileError(f"files {self._path!r}: none found in {os.getcwd()!r}; check the pattern")
        return found

    def build_part(self, step_id: str, for_part: str, resume_state: FilePosition | None) -> "_LinesRead":
        if for_part == STDIN:
            return _StdinPartition(self._stdin, self._limits, self._clock)
        return _FilePartition(for_part, self._follow, self._limits, self._clock, resume_state)


class _Limits(NamedTuple):
    poll_bytes: int
    line_bytes_max: int


class _LinesRead(StatefulSourcePartition[Payloads, FilePosition | None]):
    """Cuts the bytes that `_read` gives into blocks of whole lines."""

    def __init__(self, name: str, limits: _Limits, clock: Callable[[], int], offset: int = 0) -> None:
        self._name = name
        self._limits = limits
        self._clock = clock
        self._offset = offset
        # The unfinished line, in pieces: looked through once, joined once.
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._ended = False
        self._active_at = 0
        self._awake: datetime | None = None

    @abstractmethod
    def _read(self, size: int) -> bytes | None:
        """Up to `size` bytes behind the unfinished line; None where none are there yet, b"" at the end."""

    def next_batch(self) -> list[Payloads]:
        now = self._clock()
        poll_bytes = self._limits.poll_bytes
        chunk = b"" if self._ended else self._read(poll_bytes - self._rest_bytes % poll_bytes)
        self._pace(now, waiting=chunk is None)
        if chunk is None:
            return []
        block = self._cut(chunk) if chunk else self._finish()
        if not block:
            return []
        origin = f"{self._name}:{self._offset}"
        self._advance(block)
        return [Payloads(block, now, None, origin)]

    def next_awake(self) -> datetime | None:
        return self._awake

    def _pace(self, now: int, waiting: bool) -> None:
        if not waiting:
            self._active_at = now
            self._awake = None
            return
        pause = PAUSE_ACTIVE_US if now - self._active_at < ACTIVE_FOR_US else PAUSE_IDLE_US
        self._awake = datetime.fromtimestamp((now + pause) / 1e6, UTC)

    def _cut(self, chunk: bytes) -> bytes:
        """The whole lines that end in `chunk`, b"" if none does; what follows them is kept."""
        first = chunk.find(b"\n")
        line_bytes = self._rest_bytes + (first if first >= 0 else len(chunk))
        if line_bytes > self._limits.line_bytes_max:
            raise FileError(
                f"file {self._name!r}: the line at byte {self._offset} is longer than"
                f" {self._limits.line_bytes_max} bytes; is this a file of one JSON object per line?"
            )
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            self._keep(chunk)
            return b""
        block = chunk[:cut]
        if self._rest:
            block = b"".join((*self._rest, block))
            self._rest.clear()
            self._rest_bytes = 0
        self._put_back(chunk, cut)
        return block

    def _put_back(self, chunk: bytes, cut: int) -> None:
        """Sees to it that what follows `cut` comes again before anything else."""
        if cut < len(chunk):
            self._keep(chunk[cut:])

    def _keep(self, piece: bytes) -> None:
        self._rest.append(piece)
        self._rest_bytes += len(piece)

    def _finish(self) -> bytes:
        # Once ended it stays so: what is appended now would belong to the line already handed out.
        self._ended = True
        if not self._rest:
            raise StopIteration
        block = b"".join(self._rest)
        self._rest.clear()
        return block

    def _advance(self, block: bytes) -> None:
        self._offset += len(block)


class _FilePartition(_LinesRead):
    def __init__(
        self,
        path: str,
        follow: bool,
        limits: _Limits,
        clock: Callable[[], int],
        resume: FilePosition | None,
    ) -> None:
        super().__init__(path, limits, clock, resume.offset if resume else 0)
        self._follow = follow
        self._fd: int | None = None
        self._size = resume.size if resume else 0
        self._head = self._tail = b""
        self._open()
        if resume and resume.offset:
            self._recall(resume)
        self._midline = bool(self._tail) and not self._tail.endswith(b"\n")

    def snapshot(self) -> FilePosition:
        return FilePosition(self._offset, self._size, _digest(self._head, self._tail))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def behind(self) -> int:
        """Bytes of the file that were not handed out yet."""
        return 0 if self._fd is None else max(0, os.fstat(self._fd).st_size - self._offset)

    def _read(self, size: int) -> bytes | None:
        if self._fd is None:
            self._open()
            if self._fd is None:
                return None
        # Asked before reading, so that all of the old file has been read when it is answered.
        replaced = self._follow and self._is_replaced(self._fd)
        at = self._offset + self._rest_bytes
        chunk = os.pread(self._fd, self._whole_lines(self._fd, size, at), at)
        found = os.fstat(self._fd).st_size
        if found < self._size:
            raise self._changed(f"has {found} bytes where {self._size} were seen")
        self._size = found
        if chunk:
            self._check_newline(chunk)
            return chunk
        if replaced:
            raise self._changed("was replaced by another file while it was followed")
        return None if self._follow else b""

    def _whole_lines(self, fd: int, size: int, at: int) -> int:
        """How much of the next `size` bytes ends with a line: cutting megabytes later would copy them."""
        size = min(size, os.fstat(fd).st_size - at)
        if size <= LINE_SPAN:
            return max(size, 1)
        last = os.pread(fd, LINE_SPAN, at + size - LINE_SPAN).rfind(b"\n") + 1
        return size - LINE_SPAN + last if last else size

    def _put_back(self, chunk: bytes, cut: int) -> None:
        pass  # It is read again from where the block ended, which saves copying the next block together.

    def _open(self) -> None:
        try:
            # Without O_NONBLOCK a named pipe would wait here for its writer.
            fd = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if self._offset:
                raise self._changed("is gone") from None
            if self._follow:
                return
            raise FileError(
                f"file {self._name!r}: not found in {os.getcwd()!r}; check the path, or wait for it"
                " with follow=true"
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileError(f"file {self._name!r}: not a regular file; pipe it into standard input, `file:-`")
        self._fd = fd

    def _recall(self, resume: FilePosition) -> None:
        assert self._fd is not None
        span = min(resume.offset, DIGEST_SPAN)
        self._head = os.pread(self._fd, span, 0)
        self._tail = os.pread(self._fd, span, resume.offset - span)
        found = os.fstat(self._fd).st_size
        if found < resume.size:
            raise self._changed(f"has {found} bytes where {resume.size} were seen")
        if _digest(self._head, self._tail) != resume.digest:
            raise self._changed("holds other bytes than those that were read")

    def _advance(self, block: bytes) -> None:
        super()._advance(block)
        if len(self._head) < DIGEST_SPAN:
            self._head = (self._head + block[:DIGEST_SPAN])[:DIGEST_SPAN]
        self._tail = (self._tail + block[-DIGEST_SPAN:])[-DIGEST_SPAN:]

    def _check_newline(self, chunk: bytes) -> None:
        if self._midline and chunk[:1] not in (b"\n", b"\r"):
            raise self._changed("has grown within a last line that was already read without its newline")
        self._midline = False

    def _is_replaced(self, fd: int) -> bool:
        try:
            return not os.path.samestat(os.stat(self._name), os.fstat(fd))
        except FileNotFoundError:
            return False  # Moved away: its writer may still be writing.

    def _changed(self, what: str) -> FileError:
        return FileError(
            f"file {self._name!r}: read up to byte {self._offset}, but the file {what}; bring the old file"
            " back, or start with a new recovery store to read this one from its beginning"
        )


def _digest(head: bytes, tail: bytes) -> str:
    return hashlib.blake2b(head + tail, digest_size=16).hexdigest()


class _StdinPartition(_LinesRead):
    def __init__(self, fd: int, limits: _Limits, clock: Callable[[], int]) -> None:
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
    and each start appends. With `fsync`, what a snapshot counts survives a power cut.
    """

    def __init__(self, path: str, lineage: str = "", fsync: bool = True) -> None:
        self._path = path
        self._lineage = lineage
        self._fsync = fsync

    def list_parts(self) -> list[str]:
        return ["0"]

    def part_fn(self, item_key: str) -> int:
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: Written | None) -> "_LinesWritten":
        run = _run(self._lineage, step_id)
        return _LinesWritten(Path(self._path), run, 1, self._fsync, resume_state)


class DirSink(FixedPartitionedSink[bytes, Written]):
    """Appends each value of `(shard, line)` to `DIRECTORY/NN.ndjson`, NN = shard modulo `parts`.

    As `FileSink`, file by file. `parts` stays as long as the recovery store does.
    """

    def __init__(self, directory: str, parts: int, lineage: str = "", fsync: bool = True) -> None:
        if parts < 1:
            raise ValueError(f"parts: needs 1 or more, got {parts}")
        self._directory = directory
        self._parts = parts
        self._lineage = lineage
        self._fsync = fsync

    def list_parts(self) -> list[str]:
        # Bytewax routes by place among the sorted names, so these must sort as numbers do.
        width = max(2, len(str(self._parts - 1)))
        return [f"{part:0{width}d}" for part in range(self._parts)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key) % self._parts

    def build_part(self, step_id: str, for_part: str, resume_state: Written | None) -> "_LinesWritten":
        path = Path(self._directory) / f"{for_part}.ndjson"
        return _LinesWritten(path, _run(self._lineage, step_id), self._parts, self._fsync, resume_state)


def _run(lineage: str, step_id: str) -> str:
    # With the step, for a renamed step starts without state though its lines are settled.
    return f"{lineage}/{step_id}" if lineage else ""


class _Start(msgspec.Struct, frozen=True):
    """What `PATH.start` holds: the length of PATH when `run` first opened it."""

    run: str
    length: int


class _LinesWritten(StatefulSinkPartition[bytes, Written]):
    def __init__(self, path: Path, run: str, parts: int, fsync: bool, resume: Written | None) -> None:
        self._path = path
        self._parts = parts
        self._fsync = fsync
        self._unsynced = True
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
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
        if self._fsync and self._unsynced:
            os.fsync(self._fd)
            self._unsynced = False

    def _error(self, what: str) -> FileError:
        return FileError(
            f"file {str(self._path)!r}: {what}; bring the old state back, or start with a new recovery store"
        )
