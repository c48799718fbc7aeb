"""Times as integers, microseconds since the Unix epoch in UTC, and as the RFC 3339 texts of the wire."""

import calendar
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

Interval = Literal["Day", "Week", "Month", "Year"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR


def from_datetime(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


def read_instant(text: str) -> int:
    """Return the microseconds of an RFC 3339 text.

    Raises:
        ValueError: the text is not RFC 3339, or has no offset.
    """
    try:
        at = msgspec.convert(text, datetime)
        if at.tzinfo is None:
            raise ValueError("it has no offset from UTC")
        return from_datetime(at)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise ValueError(f"needs an RFC 3339 time such as 2026-01-02T03:04:05Z, got {text!r}") from error


def write_instant(at: int) -> str:
    """Return `2026-01-02T03:04:05Z`, with six decimals if the second is not whole."""
    return (EPOCH + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")


def write_optional_instant(at: int | None) -> str | None:
    return None if at is None else write_instant(at)


def shift_instant(at: int, count: int, interval: Interval) -> int:
    """Return `count` days, weeks, months or years after `at`, at the same time of day, clamped to the month's end."""
    if interval in ("Day", "Week"):
        return at + count * DAY * (7 if interval == "Week" else 1)
    start = EPOCH + timedelta(microseconds=at)
    months = start.year * 12 + start.month - 1 + count * (12 if interval == "Year" else 1)
    year, month = divmod(months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return from_datetime(start.replace(year=year, month=month + 1, day=day))
