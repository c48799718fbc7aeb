"""Periods and buckets: the half-open stretch of time that an event belongs to.

Instants are integers, microseconds since the Unix epoch, UTC. Boundaries are set on the wall clock of an IANA zone: a
boundary is the first instant whose local time is the boundary's wall time or later. This one rule settles every change
of the clock: a wall time that is skipped begins where the gap ends, one that repeats begins the first time, and the
windows between boundaries tile time without gap or overlap.
"""

from bisect import bisect_left, bisect_right
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from itertools import pairwise
from typing import Final, Literal
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
from numpy.typing import NDArray

Instants = NDArray[np.int64]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
MIN_AT: Final = 10_957 * DAY  # 2000-01-01T00:00Z
MAX_AT: Final = 47_482 * DAY  # 2100-01-01T00:00Z
NEVER_END: Final = 2_932_896 * DAY  # 9999-12-31T00:00Z

# Ten years: no contract has longer billing periods, and every start stays after the epoch.
EVERY_MAX: Final = {"day": 3660, "month": 120}
ORIGINS: Final[dict[str, tuple[datetime, int, Literal["day", "month"]]]] = {
    "month": (datetime(2000, 1, 1), 1, "month"),
    "week": (datetime(2000, 1, 3), 7, "day"),
    "day": (datetime(2000, 1, 1), 1, "day"),
}
UTC_LENGTHS: Final = {"week": 7 * DAY, "day": DAY, "hour": HOUR}
FIRST_MONDAY: Final = 4 * DAY
RECENT: Final = 8


@dataclass(frozen=True, slots=True)
class Calendar:
    """Periods of the local calendar; weeks start on Monday, hours count from the start of the day."""

    unit: Literal["month", "week", "day", "hour"]

    def __post_init__(self) -> None:
        if self.unit not in ("month", "week", "day", "hour"):
            raise ValueError(f"calendar unit: needs month, week, day or hour, got {self.unit!r}")


@dataclass(frozen=True, slots=True)
class Anchored:
    """Periods of `every` local days or months, counted both ways from `anchor`'s local wall time.

    The anchor is aware, in whole seconds, from 1970 until 2100; it is stored in UTC. If its wall time repeats in the
    zone, its period begins the first time, even if the anchor was the second.
    """

    every: int
    unit: Literal["day", "month"]
    anchor: datetime

    def __post_init__(self) -> None:
        if self.unit not in EVERY_MAX:
            raise ValueError(f"anchored unit: needs day or month, got {self.unit!r}")
        most = EVERY_MAX[self.unit]
        if type(self.every) is not int or not 1 <= self.every <= most:
            raise ValueError(f"anchored every: needs 1 to {most} {self.unit}s, got {self.every!r}")
        object.__setattr__(self, "anchor", _to_utc("anchor", self.anchor, MAX_AT))


@dataclass(frozen=True, slots=True)
class Billing:
    """Periods between the boundaries of the provider's subscription; they are the same in any zone.

    Boundaries (`edges`) are aware, from 1970 on, strictly ascending by whole seconds; they are stored in UTC, to the
    microsecond. A period is identified by the second in which it starts; the events of that second are split at the
    boundary itself.
    """

    edges: tuple[datetime, ...]

    def __post_init__(self) -> None:
        edges = tuple(_to_utc("billing edge", edge, NEVER_END, is_whole=False) for edge in self.edges)
        for earlier, later in pairwise(edges):
            if earlier.replace(microsecond=0) >= later.replace(microsecond=0):
                raise ValueError(f"billing edges: need to ascend by seconds, got {later} after {earlier}")
        object.__setattr__(self, "edges", edges)


@dataclass(frozen=True, slots=True)
class Never:
    """One period that does not end."""


Policy = Calendar | Anchored | Billing | Never


def is_zone(name: str) -> bool:
    """Return whether the IANA database has a zone of exactly this name, on any machine."""
    return name in _zone_names()


def find_period(policy: Policy, zone: str, at: int) -> tuple[int, int]:
    """Return the period of `at`, in [MIN_AT, MAX_AT): the start that identifies it, in whole seconds, and its end.

    Raises:
        ValueError: the zone is unknown.
    """
    start, end = find_exact_period(policy, zone, at)
    return start - start % SECOND, end


def find_exact_period(policy: Policy, zone: str, at: int) -> tuple[int, int]:
    """Return the period [start, end) that contains `at`, to the microsecond.

    Raises:
        ValueError: the zone is unknown.
    """
    tz = _zone(zone)
    match policy:
        case Calendar(unit):
            return _find_calendar_period(unit, tz, at)
        case Anchored(every, unit, anchor):
            return _find_stepped_period(
                anchor.astimezone(tz).replace(tzinfo=None, fold=0), every, unit, tz, at
            )
        case Billing(edges):
            held = bisect_right(edges, EPOCH + timedelta(microseconds=at))
            start = _to_micros(edges[held - 1]) if held else 0
            return start, _to_micros(edges[held]) if held < len(edges) else NEVER_END
        case Never():
            return 0, NEVER_END


class Periods:
    """The periods of one policy in one zone, for many instants at once. Safe to share between threads.

    Recent periods are cached, because a stream needs the same few again and again.

    Raises:
        ValueError: the zone is unknown.
    """

    __slots__ = ("_policy", "_recent", "_zone")

    def __init__(self, policy: Policy, zone: str) -> None:
        _zone(zone)
        self._policy = policy
        self._zone = zone
        self._recent: tuple[tuple[int, int], ...] = ()

    def find(self, at: Instants) -> tuple[Instants, Instants]:
        """Return the start and end of each instant's period; `at` has one dimension, in [MIN_AT, MAX_AT)."""
        starts, ends = np.empty_like(at), np.empty_like(at)
        left = np.arange(at.size)
        while left.size:
            start, end = self._find_one(int(at[left[0]]))
            asked = at[left]
            inside = (asked >= start) & (asked < end)
            found = left[inside]
            starts[found] = start - start % SECOND
            ends[found] = end
            left = left[~inside]
        return starts, ends

    def _find_one(self, at: int) -> tuple[int, int]:
        for start, end in self._recent:
            if start <= at < end:
                return start, end
        if not MIN_AT <= at < MAX_AT:
            # The period found would not contain the instant, and the caller's loop would never end.
            raise ValueError(f"instant: needs to lie from 2000 until 2100, got {at}")
        period = find_exact_period(self._policy, self._zone, at)
        # A new tuple replaces the old one, because another thread may be iterating over it.
        self._recent = (period, *self._recent[: RECENT - 1])
        return period


class Buckets:
    """The local days of one zone and their hours, for many instants at once; `get_buckets` shares them.

    Instants lie in [MIN_AT, MAX_AT) and have one dimension. Safe to share between threads.
    """

    __slots__ = ("_edges", "_zone")

    def __init__(self, zone: str) -> None:
        self._zone = _zone(zone)
        self._edges: Instants = np.empty(0, np.int64)

    def find_days(self, at: Instants) -> tuple[Instants, Instants]:
        """Return the start and end of the local day of each instant; a day may have 23, 23.5, 25 or more hours."""
        if self._zone is UTC:
            start = at - at % DAY
            return start, start + DAY
        if not at.size:
            return at.copy(), at.copy()
        edges = self._extend_boundaries(int(at.min()), int(at.max()))
        # Searched from the right: a date that a zone skipped is two equal boundaries with nothing between them.
        after = edges.searchsorted(at, side="right")
        return edges[after - 1], edges[after]

    def find_hours(self, at: Instants) -> tuple[Instants, Instants]:
        """Return the start and end of each instant's hour, in hours elapsed since its local day began.

        Hours therefore fall on local ones if the offset is +05:45, and nest in days of any length; a day's last hour is
        cut at the end of the day.
        """
        if self._zone is UTC:
            start = at - at % HOUR
            return start, start + HOUR
        day, day_end = self.find_days(at)
        start = at - (at - day) % HOUR
        return start, np.minimum(start + HOUR, day_end)

    def _extend_boundaries(self, low: int, high: int) -> Instants:
        """Return day boundaries around both instants, in whole local years, continuous with those known before."""
        edges = self._edges
        if edges.size and edges[0] <= low and high < edges[-1]:
            return edges
        if not MIN_AT <= low <= high < MAX_AT:
            raise ValueError(f"instants: need to lie from 2000 until 2100, got {low} to {high}")
        # Two days later, so that the last boundary lies past `high` even if a year ends with a long day.
        first, last = _to_local(low, self._zone).year, _to_local(high + 2 * DAY, self._zone).year
        if edges.size:
            first = min(first, _to_local(int(edges[0]), self._zone).year)
            last = max(last, _to_local(int(edges[-1]), self._zone).year)
        origin = datetime(first, 1, 1)
        days = range((datetime(last + 1, 1, 1) - origin).days)
        grown = np.array([_find_first_instant(origin + timedelta(day), self._zone) for day in days], np.int64)
        # Replaced as a whole: another thread may be searching the old array, and would extend its own copy again.
        self._edges = grown
        return grown


@cache
def get_buckets(zone: str) -> Buckets:
    """Return the shared `Buckets` of a zone.

    Raises:
        ValueError: the zone is unknown.
    """
    return Buckets(zone)


def _find_calendar_period(unit: str, tz: tzinfo, at: int) -> tuple[int, int]:
    if tz is UTC and unit in UTC_LENGTHS:
        start = at - (at - FIRST_MONDAY) % UTC_LENGTHS[unit]
        return start, start + UTC_LENGTHS[unit]
    if unit == "hour":
        day, day_end = _find_calendar_period("day", tz, at)
        start = at - (at - day) % HOUR
        return start, min(start + HOUR, day_end)
    origin, every, step = ORIGINS[unit]
    return _find_stepped_period(origin, every, step, tz, at)


def _find_stepped_period(
    origin: datetime, every: int, unit: Literal["day", "month"], tz: tzinfo, at: int
) -> tuple[int, int]:
    """Return the period that contains `at` between boundaries `every` units apart, counted from `origin`."""

    def edge(k: int) -> int:
        return _find_first_instant(_add_units(origin, every * k, unit), tz)

    local = _to_local(at, tz)
    if unit == "day":
        k = (local - origin).days // every
    else:
        k = ((local.year - origin.year) * 12 + local.month - origin.month) // every
    start, end = edge(k), edge(k + 1)
    # The guess is off by one before the boundary's day of the month, and where the clock was set back.
    while at < start:
        k -= 1
        start, end = edge(k), start
    while at >= end:
        k += 1
        start, end = end, edge(k + 1)
    return start, end


def _add_units(wall: datetime, count: int, unit: Literal["day", "month"]) -> datetime:
    """Return `wall` moved by whole days or months; a day that the month lacks becomes the month's last."""
    if unit == "day":
        return wall + timedelta(count)
    year, month = divmod(wall.year * 12 + wall.month - 1 + count, 12)
    day = wall.day if wall.day <= 28 else min(wall.day, monthrange(year, month + 1)[1])
    return wall.replace(year, month + 1, day)


def _find_first_instant(wall: datetime, tz: tzinfo) -> int:
    """Return the first instant whose local time is `wall` (naive, whole seconds) or later.

    Source: PEP 495; in a gap `fold=0` uses the clock before the gap and lands after `fold=1`.
    """
    first = _to_micros(wall.replace(tzinfo=tz))
    if tz is UTC:
        return first
    second = _to_micros(wall.replace(tzinfo=tz, fold=1))
    if first <= second:
        return first
    gap = range(second, first + 1, SECOND)
    return gap[bisect_left(gap, wall, key=lambda at: _to_local(at, tz))]


def _to_local(at: int, tz: tzinfo) -> datetime:
    return (EPOCH + timedelta(microseconds=at)).astimezone(tz).replace(tzinfo=None)


def _to_micros(at: datetime) -> int:
    since = at - EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND + since.microseconds


def _to_utc(what: str, at: datetime, until: int, *, is_whole: bool = True) -> datetime:
    if at.utcoffset() is None:
        raise ValueError(f"{what}: needs an offset from UTC, got {at}")
    if is_whole and at.microsecond:
        raise ValueError(f"{what}: needs whole seconds, got {at}")
    if not 0 <= _to_micros(at) < until:
        raise ValueError(f"{what}: needs to lie from 1970 until {_to_local(until, UTC):%Y-%m-%d}, got {at}")
    return at.astimezone(UTC)


@cache
def _zone(name: str) -> tzinfo:
    if not is_zone(name):
        raise ValueError(f"zone: needs a name of the IANA database such as Europe/Berlin, got {name!r}")
    return UTC if name == "UTC" else ZoneInfo(name)


@cache
def _zone_names() -> frozenset[str]:
    # `localtime` differs between machines, so the same usage would be billed differently on two of them.
    return frozenset(available_timezones() - {"localtime"}) | {"UTC"}
