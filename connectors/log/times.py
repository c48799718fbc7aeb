"""When the lines of a log's segment were taken: entries of an offset in the segment and a time, beside it.

An entry is written before the bytes that it is about, so a reader that has a line finds its time. Lines whose entries a
power cut took have the time of the entry before them; where there is none, as in segments of earlier versions, that of
the segment's last change.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import numpy as np

from tidegate.connectors.clock import wall_clock
from tidegate.operators.model.ports import Ints

SYNC_EVERY = 1.0

_ENTRY = struct.Struct("<qq")


def times_path(segment: Path) -> Path:
    return segment.with_suffix(".times")


class TimesWriter:
    """Writes the entries of a new segment; those of the last second may be lost with `sync`, else more."""

    def __init__(self, segment: Path, sync: bool = True, clock: Callable[[], int] = wall_clock) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(times_path(segment), flags, 0o600)
        self._sync, self._clock = sync, clock
        self._synced_at = 0.0

    def note(self, offset: int) -> None:
        """Say that what is written from this byte on is taken now."""
        os.write(self._fd, _ENTRY.pack(offset, self._clock()))
        if self._sync and monotonic() - self._synced_at >= SYNC_EVERY:
            os.fdatasync(self._fd)
            self._synced_at = monotonic()

    def close(self) -> None:
        os.close(self._fd)


class Times:
    """The entries of a segment, as they are added."""

    def __init__(self, segment: Path) -> None:
        self._segment = segment
        self._read = 0
        self._entries: Ints = np.empty((0, 2), np.int64)

    def of(self, block_at: int) -> Callable[[Ints], Ints]:
        """Return what gives the times of the lines at these bytes of a block, which stands at `block_at`."""
        self._read_on(block_at)
        entries = self._entries
        if not len(entries):
            taken = self._segment.stat().st_mtime_ns // 1000
            return lambda starts: np.full(len(starts), taken, np.int64)
        offsets, times = entries.T
        return lambda starts: times[
            np.maximum(np.searchsorted(offsets, starts + block_at, side="right") - 1, 0)
        ]

    def _read_on(self, block_at: int) -> None:
        """Take in entries that are new, and let go of those before the block."""
        try:
            with times_path(self._segment).open("rb") as file:
                file.seek(self._read)
                raw = file.read()
        except FileNotFoundError:
            return
        raw = raw[: len(raw) - len(raw) % _ENTRY.size]
        self._read += len(raw)
        added = np.frombuffer(raw, "<i8").astype(np.int64).reshape(-1, 2)
        kept = max(int(np.searchsorted(self._entries[:, 0], block_at, side="right")) - 1, 0)
        self._entries = np.concatenate((self._entries[kept:], added))
