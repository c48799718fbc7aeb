"""The journal: a shard's state on disk, as append-only streams of frames beside the recovery store.

Bytewax writes whole states at each snapshot; so what it is given is only a position, how long each stream is, and
the streams themselves grow by what changed. On resume they are cut back to the position of the epoch that Bytewax
goes on from, whatever was appended after it.

Files: `DIR/SHARD/STREAM.log`, the stream `state` with its generation, `state-7.log`; a whole frame begins the next
generation. A file that the newest position no longer names is kept for `KEPT` more snapshots, since the run may go on
from an epoch that still does. Frame: length and CRC-32 of the body, 32 bits each, little endian, then the body.

Guarantees: what a position names survives the process's death, and with `sync` a power cut. One owner at a time,
by a lock on `DIR/SHARD/lock` that dies with its process. Limits: the folder must survive with the recovery store,
and be reached by whichever process a shard moves to.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

from operators.snapshot import Frame

KEPT = 16
SYNCED_AT_ONCE = 8

_HEAD = struct.Struct("<II")
_STATE = "state"


class JournalError(Exception):
    """The journal can't be used; says what to do."""


class Position(NamedTuple):
    """How far the journal of one shard counts: its generation, and each file's length in bytes.

    `boot` names the run of the machine that it was written in: what was given to the operating system, but
    not forced to disk, is still there as long as it is the same.
    """

    shard: int
    generation: int
    lengths: dict[str, int]
    boot: str = ""


def boot_id() -> str:
    """A name for this run of the machine, another after each reboot; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Journal:
    """The streams of one shard. Not safe for threads."""

    def __init__(self, directory: Path, shard: int, sync: bool = True) -> None:
        self._folder = directory / f"{shard:04d}"
        self._boot = boot_id()
        self._position = Position(shard, 0, {})
        self._sync = sync
        self.appended = 0
        """Bytes that the last `append` wrote."""
        self._retired: list[tuple[int, str]] = []
        self._snapshots = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise JournalError(
                f"journal {self._folder}: another process holds this shard; stop it before starting a second flow"
            ) from None

    def resume(self, position: Position | None) -> Iterator[Frame]:
        """Goes back to a position, None for the very beginning, and gives the frames up to there."""
        self._position = position or self._position
        named = self._position.lengths
        for path in self._folder.glob("*.log"):
            if path.name not in named:
                path.unlink()
        # State first, and each file's frames in their order.
        for name, length in sorted(named.items(), key=lambda item: not item[0].startswith(_STATE)):
            path = self._folder / name
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                size = -1
            if size < length:
                raise JournalError(
                    f"journal {path}: needs {length} bytes, has {max(size, 0)}; journal and recovery store must be"
                    " kept and restored together"
                )
            os.truncate(path, length)
            yield from self._read(path)

    def survived(self, position: Position) -> bool:
        """Whether the machine has run on since `position`, so that what was written by then is all there."""
        return bool(self._boot) and position.boot == self._boot

    def append(self, frames: Iterable[Frame], live: Iterable[str]) -> Position:
        """Writes frames and returns the position after them. `live` names the streams that still count."""
        generation = self._position.generation
        lengths = dict(self._position.lengths)
        blocks: dict[str, bytes] = {}
        for frame in frames:
            if frame.whole:
                generation += 1
            name = f"{_STATE}-{generation}.log" if frame.stream == _STATE else f"{frame.stream}.log"
            head = _HEAD.pack(len(frame.body), zlib.crc32(frame.body))
            blocks[name] = blocks.get(name, b"") + head + frame.body
        self.appended = sum(map(len, blocks.values()))
        self._write(blocks)
        if self._sync and blocks.keys() - lengths.keys():
            self._sync_folder()
        for name, block in blocks.items():
            lengths[name] = lengths.get(name, 0) + len(block)
        counted = {f"{stream}.log" for stream in live} | {f"{_STATE}-{generation}.log"}
        self._retire(lengths.keys() - counted)
        kept = {name: length for name, length in lengths.items() if name in counted}
        self._position = Position(self._position.shard, generation, kept, self._boot)
        return self._position

    def _write(self, blocks: dict[str, bytes]) -> None:
        with ExitStack() as opened:
            files = [opened.enter_context((self._folder / name).open("ab")) for name in blocks]
            for file, block in zip(files, blocks.values(), strict=True):
                file.write(block)
                file.flush()
            if self._sync:
                # At the same time, as the disk takes hardly longer over eight of them than over one.
                list(_syncers().map(os.fdatasync, [file.fileno() for file in files]))

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _retire(self, names: Iterable[str]) -> None:
        self._snapshots += 1
        self._retired += [(self._snapshots, name) for name in names]
        while self._retired and self._retired[0][0] + KEPT < self._snapshots:
            (self._folder / self._retired.pop(0)[1]).unlink(missing_ok=True)

    def _read(self, path: Path) -> Iterator[Frame]:
        stream = _STATE if path.name.startswith(_STATE) else path.stem
        with path.open("rb") as file:
            while head := file.read(_HEAD.size):
                length, checksum = _HEAD.unpack(head)
                body = file.read(length)
                if len(body) < length or zlib.crc32(body) != checksum:
                    raise JournalError(
                        f"journal {path}: damaged before byte {file.tell()}; restore it from a backup"
                    )
                yield Frame(stream, body, False)


@cache
def _syncers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(SYNCED_AT_ONCE, "journal-sync")
