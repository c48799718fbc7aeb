"""Where the HTTP service puts events: an append-only log of lines, durable before anybody is told so.

What lies where: `FOLDER/LANE/NNNNNNNNNNNN.ndjson`, segments numbered without gaps, one payload a line. One service
writes a lane, which it holds by a lock; each start, and each write that failed, begins the next segment, so whatever
a death or a full disk left unfinished is the tail of a segment with a successor, and the reader
(connectors/log/source.py) leaves it out: no client was answered that it was taken. Beside each segment,
`NNNNNNNNNNNN.times` says from which byte on lines were taken when (connectors/log/times.py); it is forced to disk
once a second, which a power cut may take.

Guarantee: when `put` returns, its lines are on disk, in one piece and in order, and the folder's entry for them too.
Those who wait at the same time share a write and an fsync. Limits: `WAITING_MAX` bytes wait at most, then it refuses.
"""

import asyncio
import errno
import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tidegate.connectors.files.private_files import make_private_folder
from tidegate.connectors.log.times import TimesWriter
from tidegate.operators.model.ports import IngestError, Place

WAITING_MAX: Final = 32 << 20
DIGITS: Final = 12
BYTE_BITS: Final = 40


class LogWriter:
    """Writes one lane of the log in the folder `path`: the first of `lanes` that nobody else writes.

    `put` is for one event loop. IngestError where it cannot be written; the next `put` tries anew.
    """

    def __init__(
        self, path: str | Path, *, lanes: int = 1, segment_bytes: int = 64 << 20, sync: bool = True
    ) -> None:
        self._segment_bytes, self._sync = segment_bytes, sync
        self._lane, self._lock = _held(Path(path), lanes)
        self._number = max(map(number_of, segments(self._lane)), default=0)
        self._fd: int | None = None
        self._times: TimesWriter | None = None
        self._size = 0
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._waiting_bytes = 0
        self._thread = ThreadPoolExecutor(1, "tidegate-log")
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    async def put(self, payloads: Sequence[bytes], customers: Sequence[str]) -> list[Place]:
        """Append these payloads, none of which holds a line break, and return where they are."""
        block = b"".join(payload + b"\n" for payload in payloads)
        assert block.count(b"\n") == len(payloads), "a payload holds a line break"
        if self._closed:
            raise IngestError(f"log {str(self._lane)!r}: is closed; send to another service")
        if self._waiting_bytes + len(block) > WAITING_MAX:
            raise IngestError(
                f"log {str(self._lane)!r}: {WAITING_MAX >> 20} MiB wait to be written already; send later"
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((block, done))
        self._waiting_bytes += len(block)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        # Who stops waiting does not take it back.
        place = Place(self._lane.name, await asyncio.shield(done))
        return [place] * len(payloads)

    async def close(self) -> None:
        """Write what waits, and accept no more."""
        self._closed = True
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()
        self._end()
        os.close(self._lock)

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken, self._waiting = self._waiting, []
            block = b"".join(piece for piece, _ in taken)
            error: Exception | None = None
            end = 0
            try:
                end = await loop.run_in_executor(self._thread, self._append, block)
            except OSError as failed:
                error = IngestError(
                    f"log {str(self._lane)!r}: cannot be written ({failed}); {_advice(failed)}"
                )
            except Exception as unforeseen:
                # Whoever waits is told, whatever it was.
                error = unforeseen
            self._waiting_bytes -= len(block)
            for _, done in taken:
                if done.done():
                    continue
                if error is None:
                    done.set_result(end)
                else:
                    done.set_exception(error)
        self._writing = None

    def _append(self, block: bytes) -> int:
        """Append a block; return the position behind it."""
        try:
            fd = self._segment()
            assert self._times is not None
            self._times.note(self._size)
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
            if self._sync:
                os.fdatasync(fd)
            self._size += len(block)
        except OSError:
            # What of it is there nobody knows; and after a failed fsync no later one would tell.
            self._end()
            raise
        return log_position(self._number, self._size)

    def _segment(self) -> int:
        if self._fd is not None and self._size < self._segment_bytes:
            return self._fd
        self._end()
        make_private_folder(self._lane)
        path = self._lane / f"{self._number + 1:0{DIGITS}d}.ndjson"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._times = TimesWriter(path, self._sync)
        if self._sync:
            sync_folder(self._lane)
        return self._fd

    def _end(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd, self._size = None, 0
        if self._times is not None:
            self._times.close()
            self._times = None


def segments(lane: Path) -> list[Path]:
    """Return the segments of a lane, the oldest first; none where there is no such folder."""
    return sorted(path for path in lane.glob("*.ndjson") if len(path.stem) == DIGITS and path.stem.isdigit())


def log_position(segment: int, byte: int) -> int:
    """Return a place in a lane as one number that grows: the segment's number, then the byte in it."""
    return segment << BYTE_BITS | byte


def number_of(segment: Path) -> int:
    return int(segment.stem)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _held(folder: Path, lanes: int) -> tuple[Path, int]:
    """Return the first lane that is free, and its lock."""
    for lane in (folder / str(number) for number in range(lanes)):
        try:
            make_private_folder(lane)
            sync_folder(folder)
            lock = os.open(lane / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IngestError(
                f"log {str(folder)!r}: cannot be opened ({error}); name another folder"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        return lane, lock
    raise IngestError(
        f"log {str(folder)!r}: each of its {lanes} lanes is being written by another process; stop one, or raise "
        "lanes both here and in the flow's source"
    )


def _advice(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free space; senders may send again" if full else "see the system's log; senders may send again"
