"""Adjustments: checked on their own, and remembered by id so that each is applied once.

The same check is made where an adjustment is accepted and again at its shard, because a control log may contain what an
older or newer program version, or a person, has written.
"""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from tidegate.operators.columns.quantity import scale
from tidegate.operators.model.periods import MAX_AT, MIN_AT
from tidegate.operators.model.ports import Acknowledgement, Adjustment, ControlRecord

NAME_MAX: Final = 256
ID_MAX: Final = 1024
REMEMBERED_MAX: Final = 100_000
USED_BEFORE: Final = (
    "its id was used before for another customer, meter, time or quantity; the first one stands"
)
FULL: Final = f"{REMEMBERED_MAX:,} adjustments of periods that are still held are remembered in this shard"


def find_fault(adjustment: Adjustment) -> str | None:
    """Return why the adjustment cannot be applied under any catalog and state, None if it may be."""
    if not 0 < len(adjustment.id) <= ID_MAX:
        return f"id: needs 1 to {ID_MAX} characters, got {len(adjustment.id)}"
    for name in ("customer", "meter"):
        if not 0 < (length := len(getattr(adjustment, name))) <= NAME_MAX:
            return f"{name}: needs 1 to {NAME_MAX} characters, got {length}"
    if not MIN_AT <= adjustment.at < MAX_AT:
        return "at: needs 2000-01-01 to 2099-12-31"
    return None


def is_same_request(one: object, other: ControlRecord) -> bool:
    """Return whether two records request the same, ignoring author and reason; 1 and 1.0 are one quantity."""
    if isinstance(one, Adjustment) and isinstance(other, Adjustment):
        return _normalize(one) == _normalize(other)
    if isinstance(one, Acknowledgement) and isinstance(other, Acknowledgement):
        return msgspec.structs.replace(one, reason="", by="", at=0) == msgspec.structs.replace(
            other, reason="", by="", at=0
        )
    return type(one) is type(other)


def compute_fingerprint(adjustment: Adjustment) -> int:
    """Return 64 bits that identify what the adjustment requests, apart from its id."""
    return xxh3_64_intdigest(msgspec.json.encode(_normalize(adjustment)))


def _normalize(adjustment: Adjustment) -> tuple[str, str, int, str]:
    try:
        quantity = str(scale(Decimal(adjustment.quantity)))
    except (ValueError, InvalidOperation):
        quantity = f"as text {adjustment.quantity}"
    return adjustment.customer, adjustment.meter, adjustment.at, quantity


class KnownAdjustment(NamedTuple):
    """An adjustment applied before: its id's digest, its fingerprint, the word of its period (0: none), its refusal."""

    id: bytes
    content: int
    word: int
    refused: str | None


class AdjustmentMemory:
    """The adjustments of a shard by id. `unsaved` are those since the last delta.

    It holds at most REMEMBERED_MAX. Beyond that, adjustments of periods that are no longer held are forgotten, because
    they would be refused.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, KnownAdjustment] = {}
        self.unsaved: list[KnownAdjustment] = []

    def find(self, adjustment: Adjustment) -> KnownAdjustment | None:
        """Return the remembered adjustment with this id, if any."""
        return self.known.get(_digest(adjustment.id))

    def add(self, adjustment: Adjustment, word: int, refused: str | None) -> None:
        """Remember an adjustment with the word of its period and its refusal."""
        known = KnownAdjustment(_digest(adjustment.id), compute_fingerprint(adjustment), word, refused)
        self.known[known.id] = known
        self.unsaved.append(known)

    def make_room(self, is_held: Callable[[int], bool]) -> bool:
        """Forget adjustments of periods that are no longer held if the memory is full; return whether one more fits."""
        if len(self.known) >= REMEMBERED_MAX:
            self.known = {id: known for id, known in self.known.items() if known.word and is_held(known.word)}
            self.unsaved = [known for known in self.unsaved if known.id in self.known]
        return len(self.known) < REMEMBERED_MAX


def _digest(id: str) -> bytes:
    return xxh3_128_digest(id.encode())
