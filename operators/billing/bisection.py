"""Finds the events for which a batch was refused, in few requests.

The platform refuses a batch as a whole and does not say why. One event is told from good ones by halving: with one
culprit among 1,000 that takes 12 requests in all, with k among n at most `requests_max(n, k)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Verdict = Literal["good", "bad", "too_large"]
# While culprits are few, all that is still open goes out as one piece, which usually settles it.
MERGES_MAX = 2


@dataclass(slots=True)
class _Piece(Generic[T]):
    items: list[T]
    # What holds if this piece is good: that the one behind it is not.
    tells: bool = False
    is_bad: bool = False


class Bisection(Generic[T]):
    """Asks which events to send next, and is told what came of it. `culprits` were refused alone."""

    def __init__(self, items: Sequence[T]) -> None:
        self.culprits: list[T] = []
        self._pieces = [_Piece(list(items))] if items else []

    def piece(self) -> list[T]:
        """What to send next; the same until `tell`, and empty at the end."""
        while self._pieces and self._pieces[-1].is_bad and len(self._pieces[-1].items) > 1:
            self._halve(self._pieces.pop(), tells=True)
        return self._pieces[-1].items if self._pieces else []

    def tell(self, verdict: Verdict) -> None:
        """What the platform said of `piece()`. A culprit is only who was refused alone."""
        piece = self._pieces.pop()
        if verdict == "good":
            if piece.tells:
                self._pieces[-1].is_bad = True
        elif len(piece.items) > 1:
            # Too large together, both halves may be good.
            self._halve(piece, tells=verdict == "bad")
        else:
            self.culprits += piece.items
            if len(self.culprits) <= MERGES_MAX:
                self._merge(set())

    def without(self, gone: set[T]) -> None:
        """Leaves out events that are settled otherwise. Nothing is known any more of the rest."""
        if gone:
            self._merge(gone)

    def _halve(self, piece: _Piece[T], tells: bool) -> None:
        middle = (len(piece.items) + 1) // 2
        self._pieces += [_Piece(piece.items[middle:]), _Piece(piece.items[:middle], tells)]

    def _merge(self, gone: set[T]) -> None:
        rest = [item for piece in self._pieces for item in piece.items if item not in gone]
        self._pieces = [_Piece(rest)] if rest else []


def requests_max(items: int, culprits: int) -> int:
    """How many requests a bisection takes at most."""
    depth = (items - 1).bit_length()
    merged = min(culprits, MERGES_MAX)
    rest = culprits - merged
    return 1 + merged * (depth + 2) + min(2 * rest * (depth + 1), 2 * items)
