"""A Bloom filter over identities: it tells which of a batch are certainly not in a set.

All bits of a key are in one 64-bit word, so a key costs one memory access. The key's first word selects the filter's
word, its second word the bits. Keys are added in ascending order, so that keys of one filter word are neighbours.
With 20 to 30 bits per key, one or two in a thousand keys that are not in the set pass nevertheless.

Source: register-blocked filters, Lang and others, https://www.vldb.org/pvldb/vol12/p502-lang.pdf
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_BITS_PER_KEY = 20
_BITS = 6
_PATTERN_BITS = 14
_ROOM = 1.5
_SMALL = 1 << 10
_HALF = np.uint64(32)


def _build_patterns() -> Words:
    """Return words with few bits set, one for each ending of a key's second word."""
    places = np.random.default_rng(1).integers(0, 64, (1 << _PATTERN_BITS, _BITS), np.uint64)
    patterns: Words = np.bitwise_or.reduce(np.uint64(1) << places, axis=1)
    return patterns


_PATTERNS = _build_patterns()


class Bloom:
    """A filter over sorted batches of keys, `lo` ascending.

    It has room for half as many more keys as it was built with.
    """

    def __init__(self, batches: Iterable[tuple[Words, Words]] = ()) -> None:
        batches = list(batches)
        self._room = max(_SMALL, int(sum(len(lo) for lo, _ in batches) * _ROOM))
        self._left = self._room
        self._words = np.zeros(self._room * _BITS_PER_KEY // 64, np.uint64)
        for lo, hi in batches:
            self.add(lo, hi)

    @property
    def nbytes(self) -> int:
        """The memory held, in bytes."""
        return self._words.nbytes

    def has_room(self, keys: int) -> bool:
        """Return whether this many keys can be added before too many others pass."""
        return keys <= self._left

    def is_wasteful(self, keys: int) -> bool:
        """Return whether the filter takes several times the memory that this many keys need."""
        return self._room > max(_SMALL, 4 * keys)

    def add(self, lo: Words, hi: Words) -> None:
        """Add keys, `lo` ascending."""
        if not len(lo):
            return
        self._left -= len(lo)
        at, pattern = self._find_places(lo), _find_patterns(hi)
        first = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
        self._words[at[first]] |= np.bitwise_or.reduceat(pattern, first)

    def passes(self, lo: Words, hi: Words) -> NDArray[np.bool_]:
        """Return True for each key that was added, and for a few others."""
        pattern = _find_patterns(hi)
        found: NDArray[np.bool_] = self._words[self._find_places(lo)] & pattern == pattern
        return found

    def _find_places(self, lo: Words) -> NDArray[np.int64]:
        return (((lo >> _HALF) * np.uint64(len(self._words))) >> _HALF).view(np.int64)


def _find_patterns(hi: Words) -> Words:
    return _PATTERNS[(hi & np.uint64((1 << _PATTERN_BITS) - 1)).view(np.int64)]
