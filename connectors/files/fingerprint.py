"""What a file held before a position, small enough for a snapshot: is it still the file that was read?"""

import hashlib
import os
from enum import Enum
from typing import NamedTuple

from xxhash import xxh3_128

ENDS = 4096
# All bytes are compared up to here; of a longer file the last so many, which takes a fraction of a second.
WHOLE_MAX = 256 << 20
_READ = 1 << 20


class Found(Enum):
    """How a file compares with what was read of it; CHANGED: only somewhere inside, so a position still counts."""

    SAME = "same"
    CHANGED = "changed"
    OTHER = "other"


class Marks(NamedTuple):
    """`ends` is over the first and the last 4 KiB before a position, `whole` over all from `begin` on."""

    ends: str
    begin: int
    whole: str


class Fingerprint:
    """Grows by the blocks that are read."""

    def __init__(self) -> None:
        self._size = self._begin = 0
        self._head = self.tail = b""
        self._whole = xxh3_128()

    def add(self, block: bytes) -> None:
        if self._size - self._begin > WHOLE_MAX:
            self._begin, self._whole = self._size, xxh3_128()
        self._size += len(block)
        self._whole.update(block)
        if len(self._head) < ENDS:
            self._head = (self._head + block[:ENDS])[:ENDS]
        self.tail = (self.tail + block[-ENDS:])[-ENDS:]

    def marks(self) -> Marks:
        return Marks(_digest(self._head, self.tail), self._begin, self._whole.hexdigest())

    @classmethod
    def of(cls, fd: int, offset: int, begin: int) -> "Fingerprint":
        """Read again what stands before `offset`, from `begin` on as far as it is compared."""
        made = cls()
        made._head = os.pread(fd, min(offset, ENDS), 0)
        made._begin = begin if offset - begin <= 2 * WHOLE_MAX else offset
        made._size = made._begin
        while made._size < offset:
            block = os.pread(fd, min(_READ, offset - made._size), made._size)
            if not block:
                break
            made._whole.update(block)
            made._size += len(block)
        made._size = offset
        made.tail = os.pread(fd, min(offset, ENDS), max(0, offset - ENDS))
        return made

    def compare(self, marks: Marks) -> Found:
        """Compare with what a snapshot says of the same position."""
        mine = self.marks()
        if mine.ends != marks.ends:
            return Found.OTHER
        # A snapshot of an earlier version has the ends alone; of a file that is too long the middle is not read again.
        comparable = marks.whole and marks.begin == mine.begin
        return Found.CHANGED if comparable and mine.whole != marks.whole else Found.SAME


def _digest(head: bytes, tail: bytes) -> str:
    return hashlib.blake2b(head + tail, digest_size=16).hexdigest()
