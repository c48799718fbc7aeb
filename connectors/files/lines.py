"""Bytes as they are read, cut into blocks of whole lines: what files and standard input have in common."""

import logging
from abc import abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tidegate.connectors.engine import StatefulSourcePartition
from tidegate.operators.model.ports import Payloads

PAUSE_ACTIVE_US = 1_000
PAUSE_IDLE_US = 5_000
ACTIVE_FOR_US = 1_000_000

_LOG = logging.getLogger("tidegate.flow")


class Limits(NamedTuple):
    """How much a poll hands out, and the longest line that is handed out whole, in bytes."""

    poll_bytes: int
    line_bytes_max: int


class LinesRead(StatefulSourcePartition[Payloads, Any]):
    """Cuts the bytes that `_read` gives into blocks of whole lines.

    Of a line that is too long only the beginning is handed out, one byte more than may be, so that it is rejected as
    what it is.
    """

    def __init__(self, name: str, limits: Limits, clock: Callable[[], int], offset: int = 0) -> None:
        self._name = name
        self._limits = limits
        self._clock = clock
        self._offset = offset
        # What follows the last block, in pieces: looked through once, joined once.
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._line_bytes = 0
        self._skipping = False
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
        """Return the whole lines that end in `chunk`, b"" if none does; what follows them is kept."""
        if self._skipping:
            return self._skip(chunk)
        first = chunk.find(b"\n")
        if self._line_bytes + (first if first >= 0 else len(chunk)) > self._limits.line_bytes_max:
            return self._cut_long(chunk)
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            self._keep(chunk)
            return b""
        block = chunk[:cut]
        if self._rest:
            block = self._take_rest() + block
        self._put_back(chunk, cut)
        return block

    def _cut_long(self, chunk: bytes) -> bytes:
        """Return the beginning of a line that is too long, whose rest is skipped; lines before it are in the rest."""
        whole = self._take_rest() + chunk
        line = whole.rfind(b"\n", 0, len(whole) - len(chunk)) + 1
        size = line + self._limits.line_bytes_max + 1
        _LOG.warning(
            "file %r: the line at byte %d is longer than %d bytes; its beginning is a dead letter, the rest of it is"
            " passed over",
            self._name,
            self._offset + line,
            self._limits.line_bytes_max,
        )
        self._skipping = True
        self._put_back(whole, size)
        return whole[:size]

    def _skip(self, chunk: bytes) -> bytes:
        whole = self._take_rest() + chunk
        end = whole.find(b"\n") + 1
        self._skipping = not end
        self._advance(whole[:end] if end else whole)
        if end:
            self._put_back(whole, end)
        return b""

    def _take_rest(self) -> bytes:
        rest = b"".join(self._rest)
        self._rest.clear()
        self._rest_bytes = self._line_bytes = 0
        return rest

    def _put_back(self, chunk: bytes, cut: int) -> None:
        """Sees to it that what follows `cut` comes again before anything else."""
        if cut < len(chunk):
            self._keep(chunk[cut:])

    def _keep(self, piece: bytes) -> None:
        self._rest.append(piece)
        self._rest_bytes += len(piece)
        last = piece.rfind(b"\n") + 1
        self._line_bytes = len(piece) - last if last else self._line_bytes + len(piece)

    def _finish(self) -> bytes:
        # Once ended it stays so: what is appended now would belong to the line already handed out.
        self._ended = True
        if self._skipping:
            self._skip(b"")
        if not self._rest:
            raise StopIteration
        return self._take_rest()

    def _advance(self, block: bytes) -> None:
        self._offset += len(block)
