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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from time import monotonic
from typing import BinaryIO, NamedTuple

from tidegate.connectors.files.private_files import make_private_folder
from tidegate.flows.runtime.error_logging import log_errors
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.model.errors import TidegateError

KEPT = 16
WRITTEN_AT_ONCE = 8

_HEAD = struct.Struct("<II")
_STATE = "state"


class JournalError(TidegateError):
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


class Appended(Position):
    """A position whose bytes are on their way.

    Pickled, which is how Bytewax stores it, it is a plain one, and that waits for them: so no epoch counts as done that
    the journal does not have, and meanwhile other shards are saved. Raises OSError for what went wrong.
    """

    writes: Sequence[Future[None]] = ()

    def wait(self) -> Position:
        """Wait until all is written, and return the position."""
        for write in self.writes:
            write.result()
        return Position._make(self)

    @log_errors
    def __reduce__(self) -> tuple[type[Position], tuple[object, ...]]:
        return Position, tuple(self.wait())


def boot_id() -> str:
    """Return a name for this run of the machine, another after each reboot; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Journal:
    """The streams of one shard, written by threads of its own. `observe` is told the seconds of each file's write.

    Not safe for threads.
    """

    def __init__(
        self,
        directory: Path,
        shard: int,
        sync: bool = True,
        observe: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        self._folder = directory / f"{shard:04d}"
        self._boot = boot_id()
        self._position = Appended(shard, 0, {})
        self._sync = sync
        self._observe = observe
        self.appended = 0
        """Bytes that the last `append` wrote."""
        self._retired: list[tuple[int, str]] = []
        self._snapshots = 0
        make_private_folder(self._folder)
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
        self._position = Appended._make(position or self._position)
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

    def append(self, frames: Iterable[Frame], live: Iterable[str]) -> Appended:
        """Write frames and return the position after them. `live` names the streams that still count.

        Waits for the frames before them. Raises OSError for what went wrong with those.
        """
        self._position.wait()
        generation = self._position.generation
        lengths = dict(self._position.lengths)
        bodies: dict[str, list[bytes]] = {}
        for frame in frames:
            if frame.whole:
                generation += 1
            name = f"{_STATE}-{generation}.log" if frame.stream == _STATE else f"{frame.stream}.log"
            bodies.setdefault(name, []).append(frame.body)
        grown = {name: sum(_HEAD.size + len(body) for body in each) for name, each in bodies.items()}
        self.appended = sum(grown.values())
        files = [(self._folder / name).open("ab") for name in bodies]
        # At the same time, as the disk takes hardly longer over eight of them than over one.
        writes = [_writers().submit(self._write, *each) for each in zip(files, bodies.values(), strict=True)]
        if self._sync and bodies.keys() - lengths.keys():
            writes.append(_writers().submit(self._sync_folder))
        for name, size in grown.items():
            lengths[name] = lengths.get(name, 0) + size
        counted = {f"{stream}.log" for stream in live} | {f"{_STATE}-{generation}.log"}
        self._retire(lengths.keys() - counted)
        kept = {name: length for name, length in lengths.items() if name in counted}
        self._position = Appended(self._position.shard, generation, kept, self._boot)
        self._position.writes = writes
        return self._position

    def _write(self, file: BinaryIO, bodies: list[bytes]) -> None:
        began = monotonic()
        with file:
            for body in bodies:
                file.write(_HEAD.pack(len(body), zlib.crc32(body)))
                file.write(body)
            file.flush()
            if self._sync:
                os.fdatasync(file.fileno())
        self._observe(monotonic() - began)

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
def _writers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WRITTEN_AT_ONCE, "journal")
