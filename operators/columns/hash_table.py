"""A hash table in flat numpy columns that looks up and inserts whole batches.

Python's sets and dicts cost over 100 bytes an entry and must be copied and pickled object by object. Here an entry is
a row across columns, appended in order of arrival and found through an open-addressing index of 32-bit row numbers. A
snapshot therefore writes only the rows that were appended or changed, as bytes, and a lookup of a thousand keys takes
a dozen numpy calls instead of a thousand Python calls.

Source: linear probing with multiplicative (Fibonacci) hashing, Knuth, TAOCP vol. 3, 6.4; the hash is mapped to a slot
by multiplication instead of division: https://lemire.me/blog/2016/06/27/a-fast-alternative-to-the-modulo-reduction/
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Rows = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_FULL = 0.5  # of the index: linear probing then needs at most 2.5 probes on average for a new key
_INDEX_GROWTH = 1.5  # the index holds 4 bytes for each of 2 to 3 slots a row; doubling would make it 4
_SMALL = 64
_FEW = 12  # up to this many keys are looked up faster one by one
_WORD = 2**64 - 1
# The index has 32 bits for a row, of which it uses one for "none".
ROWS_MAX = 2**30


class Table:
    """Rows with unique keys of one or two 64-bit words, and further columns beside them.

    `columns` maps a name to a dtype; new rows are zeros there. Rows are numbered from 0 in order of insertion. A full
    column is made `growth` times as long: a small factor saves memory, a large one saves time. Not thread-safe.
    """

    def __init__(self, words: int, columns: Mapping[str, Any], growth: float = 1.5) -> None:
        self.size = 0
        self._growth = growth
        self.keys: list[Words] = [np.empty(_SMALL, np.uint64) for _ in range(words)]
        self.columns: dict[str, NDArray[Any]] = {
            name: np.zeros(_SMALL, dtype) for name, dtype in columns.items()
        }
        self._index = np.full(2 * _SMALL, -1, np.int32)

    def __len__(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        """The memory held by keys, columns and index, in bytes."""
        arrays = (*self.keys, *self.columns.values(), self._index)
        return sum(array.nbytes for array in arrays)

    def find(self, *keys: Words) -> Rows:
        """Return the row of each key, -1 if it is not in the table."""
        if len(keys[0]) <= _FEW:
            words = zip(*(key.tolist() for key in keys), strict=True)
            return np.array([self._seek(word, self._find_slot(word))[0] for word in words], np.int64)
        found = np.full(len(keys[0]), -1, np.int64)
        slots = self._find_slots(keys[0])
        pending = np.arange(len(slots))
        while len(pending) > _FEW:
            rows = self._index[slots[pending]]
            taken = rows >= 0
            pending, rows = pending[taken], rows[taken]
            same = self._compare_keys(rows, pending, keys)
            found[pending[same]] = rows[same]
            pending = pending[~same]
            slots[pending] = self._advance_slots(slots[pending])
        for i, word in self._list_pending(pending, keys):
            found[i] = self._seek(word, int(slots[i]))[0]
        return found

    def claim(self, *keys: Words) -> tuple[Rows, NDArray[np.bool_]]:
        """Return the row of each key, and whether this position of the batch added it.

        A key that occurs twice in the batch is new at its first position only. Columns of new rows are zeros.
        """
        count, base = len(keys[0]), self.size
        self._reserve(base + count)
        if count <= _FEW:
            return self._claim_few(keys)
        for column, key in zip(self.keys, keys, strict=True):
            column[base : base + count] = key
        slots = self._find_slots(keys[0])
        rows = np.empty(count, np.int64)
        new = np.zeros(count, np.bool_)
        pending = np.arange(count)
        index = self._index
        while len(pending) > _FEW:
            at = slots[pending]
            found = index[at]
            empty = found < 0
            if empty.any():
                bidders = pending[empty]
                # Written backwards, so that the first of several bidders for one slot wins.
                index[at[empty][::-1]] = base + bidders[::-1]
                found = index[at]
            same = self._compare_keys(found, pending, keys)
            done = pending[same]
            rows[done] = found[same]
            new[done] = rows[done] == base + done
            pending = pending[~same]
            slots[pending] = self._advance_slots(slots[pending])
        for i, word in self._list_pending(pending, keys):
            row, slots[i] = self._seek(word, int(slots[i]))
            if row < 0:
                row, new[i] = base + i, True
                index[slots[i]] = row
            rows[i] = row
        return self._close_ranks(rows, new, slots, base), new

    def extend(self, keys: list[Words], columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows whose keys are known to be new, as read back from a snapshot."""
        rows, new = self.claim(*keys)
        assert new.all(), "a snapshot repeats a key"
        for name, values in columns.items():
            self.columns[name][rows] = values

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the rows that are not marked; the remaining rows are renumbered without gaps."""
        chosen = np.flatnonzero(kept[: self.size])
        self.size = len(chosen)
        room = max(_SMALL, int(self.size * self._growth))
        self.keys = [_resize(column[chosen], room) for column in self.keys]
        self.columns = {name: _resize(column[chosen], room) for name, column in self.columns.items()}
        self._reindex(max(2 * _SMALL, int(self.size / _FULL * _INDEX_GROWTH)))

    def add_column(self, name: str, dtype: Any) -> None:
        """Add a column of zeros."""
        self.columns[name] = np.zeros(len(self.keys[0]), dtype)

    def _claim_few(self, keys: tuple[Words, ...]) -> tuple[Rows, NDArray[np.bool_]]:
        rows, new = [], []
        for word in zip(*(key.tolist() for key in keys), strict=True):
            row, slot = self._seek(word, self._find_slot(word))
            new.append(row < 0)
            if row < 0:
                row = self._index[slot] = self.size
                for column, part in zip(self.keys, word, strict=True):
                    column[row] = part
                for values in self.columns.values():
                    values[row] = 0
                self.size += 1
            rows.append(row)
        return np.array(rows, np.int64), np.array(new, np.bool_)

    def _list_pending(self, pending: Rows, keys: tuple[Words, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Return the last few positions of a batch and their keys, which are cheaper one by one than in columns."""
        words = zip(*(key[pending].tolist() for key in keys), strict=True)
        return zip(pending.tolist(), words, strict=True)

    def _find_slot(self, word: tuple[int, ...]) -> int:
        return (((word[0] * int(_GOLDEN)) & _WORD) >> 32) * len(self._index) >> 32

    def _seek(self, word: tuple[int, ...], slot: int) -> tuple[int, int]:
        """Return the row of one key, or -1, and the slot where the search ended, starting at `slot`."""
        index, length = self._index, len(self._index)
        while (row := int(index[slot])) >= 0:
            if all(int(column[row]) == part for column, part in zip(self.keys, word, strict=True)):
                break
            slot = (slot + 1) % length
        return row, slot

    def _compare_keys(self, rows: NDArray[Any], wanted: Rows, keys: tuple[Words, ...]) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self.keys[0][rows] == keys[0][wanted]
        for column, key in zip(self.keys[1:], keys[1:], strict=True):
            same &= column[rows] == key[wanted]
        return same

    def _find_slots(self, key: Words) -> Rows:
        return ((((key * _GOLDEN) >> _HALF) * np.uint64(len(self._index))) >> _HALF).astype(np.int64)

    def _advance_slots(self, slots: Rows) -> Rows:
        slots = slots + 1
        slots[slots == len(self._index)] = 0
        return slots

    def _close_ranks(self, rows: Rows, new: NDArray[np.bool_], slots: Rows, base: int) -> Rows:
        fresh = int(np.count_nonzero(new))
        if fresh < len(rows):
            winners = np.flatnonzero(new)
            for column in self.keys:
                column[base : base + fresh] = column[base + winners]
            final = np.cumsum(new) - 1 + base
            self._index[slots[winners]] = final[winners]
            ours = rows >= base
            rows[ours] = final[rows[ours] - base]
        for column in self.columns.values():
            column[base : base + fresh] = 0
        self.size = base + fresh
        return rows

    def _reserve(self, size: int) -> None:
        room = len(self.keys[0])
        if size > room:
            if size > ROWS_MAX:
                raise OverflowError(f"a table has room for {ROWS_MAX} rows, needs {size}; use more shards")
            room = max(size, int(room * self._growth) + _SMALL)
            self.keys = [_resize(column[: self.size], room) for column in self.keys]
            self.columns = {n: _resize(c[: self.size], room) for n, c in self.columns.items()}
        if size > _FULL * len(self._index):
            self._reindex(max(int(size / _FULL) + 1, int(len(self._index) * _INDEX_GROWTH)))

    def _reindex(self, length: int) -> None:
        self._index = np.full(length, -1, np.int32)
        slots = self._find_slots(self.keys[0][: self.size])
        pending = np.arange(self.size)
        while len(pending):
            at = slots[pending]
            free = self._index[at] < 0
            self._index[at[free][::-1]] = pending[free][::-1]
            pending = pending[self._index[at] != pending]
            slots[pending] = self._advance_slots(slots[pending])


def _resize(column: NDArray[Any], room: int) -> NDArray[Any]:
    wider = np.zeros(room, column.dtype)
    wider[: len(column)] = column
    return wider
