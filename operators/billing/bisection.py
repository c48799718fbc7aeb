"""Bisection: find the events that make the provider refuse a batch, in few requests.

The provider refuses a batch as a whole and does not say which event is at fault. Halving the batch finds one culprit
among 1,000 events in 12 requests, and k culprits among n events in at most `max_requests(n, k)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
BatchResult = Literal["good", "bad", "too_large"]
# While culprits are few, all undecided events are sent as one batch, because that batch is usually good.
MERGES_MAX = 2


@dataclass(slots=True)
class _Piece(Generic[T]):
    items: list[T]
    # Whether the next piece must be bad if this one is good.
    implicates_next: bool = False
    is_bad: bool = False


class Bisection(Generic[T]):
    """Chooses which events to send next from the results so far. `culprits` were refused when sent alone."""

    def __init__(self, items: Sequence[T]) -> None:
        self.culprits: list[T] = []
        self._pieces = [_Piece(list(items))] if items else []

    def next_batch(self) -> list[T]:
        """Return the events to send next: the same until `report` is called, empty when the search is over."""
        while self._pieces and self._pieces[-1].is_bad and len(self._pieces[-1].items) > 1:
            self._halve(self._pieces.pop(), tells=True)
        return self._pieces[-1].items if self._pieces else []

    def report(self, verdict: BatchResult) -> None:
        """Record the provider's answer to `next_batch()`. An event becomes a culprit only when it is refused alone."""
        piece = self._pieces.pop()
        if verdict == "good":
            if piece.implicates_next:
                self._pieces[-1].is_bad = True
        elif len(piece.items) > 1:
            # If the batch was only too large, both halves may be good.
            self._halve(piece, tells=verdict == "bad")
        else:
            self.culprits += piece.items
            if len(self.culprits) <= MERGES_MAX:
                self._merge(set())

    def exclude(self, gone: set[T]) -> None:
        """Leave out events that were settled in another way, and forget what is known about the rest."""
        if gone:
            self._merge(gone)

    def _halve(self, piece: _Piece[T], tells: bool) -> None:
        middle = (len(piece.items) + 1) // 2
        self._pieces += [_Piece(piece.items[middle:]), _Piece(piece.items[:middle], tells)]

    def _merge(self, gone: set[T]) -> None:
        rest = [item for piece in self._pieces for item in piece.items if item not in gone]
        self._pieces = [_Piece(rest)] if rest else []


def max_requests(items: int, culprits: int) -> int:
    """Return the greatest number of requests that a bisection takes."""
    depth = (items - 1).bit_length()
    merged = min(culprits, MERGES_MAX)
    rest = culprits - merged
    return 1 + merged * (depth + 2) + min(2 * rest * (depth + 1), 2 * items)
