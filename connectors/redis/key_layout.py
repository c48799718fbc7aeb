"""How totals lie in Redis: which keys a customer has, and what stands in them.

Customers are spread over BUCKETS buckets, whose hash tags were chosen so that their slots lie evenly over the slots of
a cluster. All keys of a bucket are in its one slot, so that a script may write many customers, the bucket's index and
its feed at once:

    PREFIX:g:{BUCKET}:state         hash: `schema`, `born` (µs), `rebuilding` while the bucket is filled again
    PREFIX:g:{BUCKET}:p:CUSTOMER    hash: a field per meter and billing period
    PREFIX:g:{BUCKET}:m:CUSTOMER    hash: what open holds hold of each meter
    PREFIX:c:{BUCKET}:index         sorted set: each customer, by the number of its last write (µs, ever growing)
    PREFIX:c:{BUCKET}:b:CUSTOMER    hash: a field per meter and hour or day, the buckets of charts

Keys of holds are told by connectors/redis/holds.py. Behind `g` stands what gates decide by, so that they may ask to be
told when any key with that beginning changes, and of nothing else.

A field is `WINDOW START METER`, the window by its first letter, the start in minutes since the epoch (with a `u`
behind: microseconds). A row is `VERSION KIND TOTAL`, as text for the scripts, which compare it digit by digit, then a
space and the rest in MessagePack. A customer may have any name: behind the tag, a key may hold any bytes.
"""

import re
from decimal import Decimal
from functools import cache, lru_cache
from itertools import count
from typing import Any, Final

import msgspec
import numpy as np
from redis.crc import key_slot

from tidegate.operators.columns.quantity import SCALE, scale
from tidegate.operators.events.keys import shard_of
from tidegate.operators.metering.totals import ShardTotals
from tidegate.operators.metering.windows import WINDOW_NAMES, key_of, replace_key, start_of, window_of
from tidegate.operators.model.ports import StoredTotal, Used
from tidegate.operators.model.records import Total, Window

SCHEMA: Final = 1
BUCKETS: Final = 64
SLOTS: Final = 16_384
MINUTE: Final = 60_000_000
WINDOWS: Final[dict[str, Window]] = {"p": "period", "d": "day", "h": "hour"}
STEADY, FALLS = "s", "u"

_HEAD = re.compile(rb"(\d+)([su])(\S+) ")
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Any]).decode
# What most rows have, and leave out: not late, not corrected, not adjusted, total as it stands in front.
_USUAL = (0, 0, 0, None)


def bucket_of(customer: str) -> int:
    """Return the bucket, 0 ≤ bucket < BUCKETS, that keeps everything of this customer."""
    return shard_of(customer, BUCKETS)


@cache
def tag_of(bucket: int) -> str:
    """Return the hash tag of a bucket, whose slot is in the bucket's own range of SLOTS / BUCKETS."""
    tags = (f"{bucket:02}.{suffix}" for suffix in count())
    return next(tag for tag in tags if key_slot(tag.encode()) * BUCKETS // SLOTS == bucket)


@cache
def slot_of(bucket: int) -> int:
    """Return the slot of all keys of a bucket."""
    return int(key_slot(tag_of(bucket).encode()))


class Keys:
    """The names of the keys that begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.watched = f"{prefix}:g:"
        self._near = [f"{prefix}:g:{{{tag_of(bucket)}}}:" for bucket in range(BUCKETS)]
        self._far = [f"{prefix}:c:{{{tag_of(bucket)}}}:" for bucket in range(BUCKETS)]
        self.control_slot = int(key_slot(b"control"))
        self._control = f"{prefix}:c:{{control}}:"
        self.catalog_number = f"{prefix}:g:{{control}}:catalog-number"

    def state(self, bucket: int) -> str:
        return f"{self._near[bucket]}state"

    def index(self, bucket: int) -> str:
        return f"{self._far[bucket]}index"

    def waiting(self, bucket: int) -> str:
        """Return the holds of a bucket that wait for their events."""
        return f"{self._far[bucket]}holds"

    def periods(self, bucket: int, customer: str) -> str:
        return f"{self._near[bucket]}p:{customer}"

    def charts(self, bucket: int, customer: str) -> str:
        return f"{self._far[bucket]}b:{customer}"

    def holds(self, bucket: int, customer: str) -> list[str]:
        """Return what is held per meter; the holds by identity; those that count by their end; all by their end."""
        far = self._far[bucket]
        return [f"{self._near[bucket]}m:{customer}", *(f"{far}{kind}:{customer}" for kind in "hue")]

    def control(self, name: str) -> str:
        """Return a key of what belongs to no customer: counters, notes, control log, catalogs."""
        return f"{self._control}{name}"


@lru_cache(4096)
def field_of(window: Window, start: int, meter: str) -> str:
    """Return the name of a row within its customer's hash."""
    minutes, rest = divmod(start, MINUTE)
    return f"{window[0]}{start}u {meter}" if rest else f"{window[0]}{minutes} {meter}"


def fields_of(part: ShardTotals) -> list[str]:
    """Return the names of a part's rows."""
    # There are many rows of few windows and meters.
    known, at = np.unique(replace_key(part.place, part.meter), return_inverse=True)
    columns = window_of(known).tolist(), start_of(known).tolist(), key_of(known).tolist()
    names = [
        field_of(WINDOW_NAMES[window], start, part.meters[meter])
        for window, start, meter in zip(*columns, strict=True)
    ]
    return [names[row] for row in at.tolist()]


def rows_of(part: ShardTotals, written_at: int) -> list[bytes]:
    """Return a part's rows without their names."""
    start, everything = start_of(part.place), slice(0, len(part.place))
    columns = (part.end - start, part.events, part.as_of - start, written_at - start)
    times = list(zip(*(column.tolist() for column in columns), strict=True))
    amounts, versions, steady = part.list_amounts(everything), part.version.tolist(), part.steady.tolist()
    rows = [
        (b"%ds%d " if is_steady else b"%du%d ") % (version, amount) + _pack(time)
        if amount.__class__ is int
        else b""
        for is_steady, version, amount, time in zip(steady, versions, amounts, times, strict=True)
    ]
    rare = {*np.flatnonzero(part.late | part.corrected).tolist(), *part.apart}
    rare.update(row for row, amount in enumerate(amounts) if amount.__class__ is not int)
    if rare:
        adjustments = part.list_adjustments(everything)
        for row in rare:
            odd = int(part.late[row]), int(part.corrected[row]), adjustments[row]
            rows[row] = _row(versions[row], steady[row], amounts[row], times[row], odd)
    return rows


def row_of(total: Total, written_at: int) -> bytes:
    """Return the content of a total's row."""
    start = total.start
    times = total.end - start, total.events, total.as_of - start, written_at - start
    odd = total.late, total.corrected, total.adjustment
    return _row(total.version, total.steady, total.total, times, odd)


def _row(
    version: int, steady: bool, number: int | str, times: tuple[int, ...], odd: tuple[int, int, int | str]
) -> bytes:
    """Return an int as it is, decimal text in plain digits, and the original text too if it differs."""
    kept: bool | str | None = None
    if isinstance(number, str):
        plain = f"{Decimal(number):f}"
        number, kept = plain, True if plain == number else number
    rare = (*odd, kept)
    kind = STEADY if steady else FALLS
    return f"{version}{kind}{number} ".encode() + _pack(times if rare == _USUAL else times + rare)


def used_of(start: int, row: bytes) -> Used:
    """Return the values that a decision needs of the total of the period that begins at `start`."""
    head = _HEAD.match(row)
    assert head, f"no row of ours: {row!r}"
    _, _, as_of, written, *rare = _unpack(row[head.end() :])
    kept = rare[-1] if rare else None
    digits = head[3].decode() if kept is None or kept is True else kept
    total = int(digits) * SCALE if kept is None else scale(Decimal(digits))
    return Used(total, start + as_of, start + written)


def stored_of(customer: str, field: bytes, row: bytes) -> StoredTotal:
    """Return the total that stands in a field of a customer's hash."""
    name, _, meter = field.decode().partition(" ")
    start = int(name[1:-1]) if name[-1] == "u" else int(name[1:]) * MINUTE
    head = _HEAD.match(row)
    assert head, f"no row of ours: {row!r}"
    length, events, as_of, written, *rare = _unpack(row[head.end() :])
    late, corrected, adjustment, kept = rare or _USUAL
    number: int | str = int(head[3]) if kept is None else head[3].decode() if kept is True else kept
    total = Total(
        customer, WINDOWS[name[0]], meter, start, start + length, number, int(head[1]), events,
        start + as_of, late, corrected, adjustment, head[2] == b"s",
    )  # fmt: skip
    return StoredTotal(total, start + written)
