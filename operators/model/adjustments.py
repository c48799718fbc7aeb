"""Adjustments judged by what they say alone, and remembered by their ids so that each is applied once.

The same judgement is made where an adjustment comes in and again at its shard, as a control log may hold what an older
or newer program, or a hand, has put there.
"""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from tidegate.operators.columns.quantity import scaled
from tidegate.operators.model.periods import MAX_AT, MIN_AT
from tidegate.operators.model.ports import Acknowledgement, Adjustment, ControlRecord

NAME_MAX: Final = 256
ID_MAX: Final = 1024
REMEMBERED_MAX: Final = 100_000
USED_BEFORE: Final = (
    "its id was used before for another customer, meter, time or quantity; the first one stands"
)
FULL: Final = f"{REMEMBERED_MAX:,} adjustments of periods that are still held are remembered in this shard"


def fault_of(adjustment: Adjustment) -> str | None:
    """Return why the adjustment can't be applied under any catalog and in any state, None if it may be."""
    if not 0 < len(adjustment.id) <= ID_MAX:
        return f"id: needs 1 to {ID_MAX} characters, got {len(adjustment.id)}"
    for name in ("customer", "meter"):
        if not 0 < (length := len(getattr(adjustment, name))) <= NAME_MAX:
            return f"{name}: needs 1 to {NAME_MAX} characters, got {length}"
    if not MIN_AT <= adjustment.at < MAX_AT:
        return "at: needs 2000-01-01 to 2099-12-31"
    return None


def is_same(one: object, other: ControlRecord) -> bool:
    """Return whether two records ask for the same, by whom and why apart; 1 and 1.0 are one quantity."""
    if isinstance(one, Adjustment) and isinstance(other, Adjustment):
        return _content(one) == _content(other)
    if isinstance(one, Acknowledgement) and isinstance(other, Acknowledgement):
        return msgspec.structs.replace(one, reason="", by="", at=0) == msgspec.structs.replace(
            other, reason="", by="", at=0
        )
    return type(one) is type(other)


def fingerprint_of(adjustment: Adjustment) -> int:
    """Return 64 bits of what the adjustment asks for, apart from its id."""
    return xxh3_64_intdigest(msgspec.json.encode(_content(adjustment)))


def _content(adjustment: Adjustment) -> tuple[str, str, int, str]:
    try:
        quantity = str(scaled(Decimal(adjustment.quantity)))
    except (ValueError, InvalidOperation):
        quantity = f"as text {adjustment.quantity}"
    return adjustment.customer, adjustment.meter, adjustment.at, quantity


class Known(NamedTuple):
    """An adjustment of before: its id's digest, what it asked for, the window of its period (0: none), its refusal."""

    id: bytes
    content: int
    word: int
    refused: str | None


class Remembered:
    """The adjustments of a shard by their ids. `unsaved` are those since the last delta.

    At most REMEMBERED_MAX: beyond that, those are forgotten whose period is no longer held, as they would be refused.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, Known] = {}
        self.unsaved: list[Known] = []

    def find(self, adjustment: Adjustment) -> Known | None:
        return self.known.get(_digest(adjustment.id))

    def add(self, adjustment: Adjustment, word: int, refused: str | None) -> None:
        known = Known(_digest(adjustment.id), fingerprint_of(adjustment), word, refused)
        self.known[known.id] = known
        self.unsaved.append(known)

    def has_room(self, is_held: Callable[[int], bool]) -> bool:
        """Return whether one more can be remembered, after those were forgotten that can be."""
        if len(self.known) >= REMEMBERED_MAX:
            self.known = {id: known for id, known in self.known.items() if known.word and is_held(known.word)}
            self.unsaved = [known for known in self.unsaved if known.id in self.known]
        return len(self.known) < REMEMBERED_MAX


def _digest(id: str) -> bytes:
    return xxh3_128_digest(id.encode())
