"""RFC 3339 instants, parsed a column at a time.

A producer writes its times in one or two fixed shapes, so the texts of a batch are grouped by length, laid out
as a matrix of bytes and read with column arithmetic. The result is microseconds since the Unix epoch, UTC;
digits past the sixth of a fraction are cut.

Source: RFC 3339 section 5.6; days from civil date: Howard Hinnant, chrono-compatible date algorithms.
"""

import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.model.periods import MAX_AT, MIN_AT

INVALID = -(2**62)
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_SHAPE = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_FRACTION = 10 ** np.arange(5, -1, -1)


def parse(text: str) -> int:
    """Return one instant in µs since the epoch.

    Raises:
        ValueError: the text is not RFC 3339.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"needs RFC 3339 such as 2026-11-22T10:00:00.250Z, got {text[:40]!r}")
    *fields, fraction, sign, ahead_hours, ahead_minutes = match.groups()
    year, month, day, hour, minute, second = map(int, fields)
    leap = second == 60
    try:
        # Python has no year 0, which was a leap year as 2000 was; 400 years are whole days.
        local = datetime(year or 400, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"needs an existing date and time, got {text[:40]!r} ({error})") from None
    offset = 0
    if sign:
        if int(ahead_hours) > 23 or int(ahead_minutes) > 59:
            raise ValueError(f"needs an offset within ±23:59, got {text[:40]!r}")
        offset = int(sign + "1") * (int(ahead_hours) * HOUR + int(ahead_minutes) * MINUTE)
    at = int((local - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * SECOND - offset
    if leap:
        if at % DAY // MINUTE != 23 * 60 + 59:
            raise ValueError(f"needs second 60 only at 23:59 UTC, got {text[:40]!r}")
        return at + SECOND - 1
    return at + int((fraction or "0")[:6].ljust(6, "0"))


def parse_column(texts: list[str]) -> NDArray[np.int64]:
    """Return every text as µs since the epoch; `INVALID` if it is not RFC 3339 or outside [2000, 2100).

    Callers pass the invalid ones to `parse`, which says what is wrong.
    """
    if not texts:
        return np.empty(0, np.int64)
    lengths = set(map(len, texts))
    if len(lengths) == 1:
        return _parse_same_length(texts, lengths.pop())
    at = np.full(len(texts), INVALID, np.int64)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    for length in lengths:
        where = np.flatnonzero(sizes == length)
        at[where] = _parse_same_length([texts[i] for i in where.tolist()], length)
    return at


def _parse_same_length(texts: list[str], length: int) -> NDArray[np.int64]:
    joined = "".join(texts)
    if not 20 <= length <= 64 or not joined.isascii():
        return np.fromiter(map(_parse_or_invalid, texts), np.int64, len(texts))
    matrix = np.frombuffer(joined.encode(), np.uint8).reshape(len(texts), length)
    zulu = (matrix[:, -1] | 0x20) == ord("z")
    if zulu.all():
        return _parse_matrix(matrix, length - 1, None)
    if not zulu.any() and length >= 25:
        return _parse_matrix(matrix, length - 6, length - 6)
    return np.fromiter(map(_parse_or_invalid, texts), np.int64, len(texts))


def _parse_or_invalid(text: str) -> int:
    try:
        at = parse(text)
    except ValueError:
        return INVALID
    return at if MIN_AT <= at < MAX_AT else INVALID


def _parse_matrix(matrix: NDArray[np.uint8], end: int, offset: int | None) -> NDArray[np.int64]:
    """Return the instants of rows whose date, time and fraction end before `end`; second 60 is left to `parse`."""
    # Transposed, so that each position of the text is one contiguous row of bytes.
    chars = np.ascontiguousarray(matrix.T)
    digits = chars - np.uint8(ord("0"))  # wraps below "0", so one comparison finds every non-digit
    fraction = end - 20
    good = (chars[4] == ord("-")) & (chars[7] == ord("-")) & ((chars[10] | 0x20) == ord("t"))
    good &= (chars[13] == ord(":")) & (chars[16] == ord(":"))
    numbers = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, *range(20, end)]
    if fraction > 0:
        good &= chars[19] == ord(".")
    elif fraction == 0 or end < 19:
        good[:] = False
    ahead: Any = 0
    if offset is not None:
        sign = chars[offset]
        good &= ((sign == ord("+")) | (sign == ord("-"))) & (chars[offset + 3] == ord(":"))
        numbers += [offset + 1, offset + 2, offset + 4, offset + 5]
        hours, minutes = _read_pair(digits, offset + 1), _read_pair(digits, offset + 4)
        good &= (hours <= 23) & (minutes <= 59)
        ahead = np.where(sign == ord("-"), -60, 60) * (hours * 60 + minutes)
    good &= (digits[numbers] <= 9).all(axis=0)
    hour, minute, second = _read_pair(digits, 11), _read_pair(digits, 14), _read_pair(digits, 17)
    good &= (hour <= 23) & (minute <= 59) & (second <= 59)
    # Nearly always all texts have the same date, which is then read once.
    dates = digits[:10, :1] if (chars[:10] == chars[:10, :1]).all() else digits[:10]
    year = _read_pair(dates, 0) * 100 + _read_pair(dates, 2)
    month, day = _read_pair(dates, 5), _read_pair(dates, 8)
    exists = (month >= 1) & (month <= 12)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    month = np.where(exists, month, 1)
    good &= exists & (day >= 1) & (day <= _MONTH_DAYS[month] + (leap & (month == 2)))
    at = (_count_days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - ahead) * SECOND
    for place in range(min(fraction, 6)):
        at += digits[20 + place] * _FRACTION[place]
    good &= (at >= MIN_AT) & (at < MAX_AT)
    if not good.all():
        for row in np.flatnonzero(~good).tolist():
            at[row] = _parse_or_invalid(matrix[row].tobytes().decode())
    return np.asarray(at, np.int64)


def _read_pair(digits: NDArray[np.uint8], at: int) -> NDArray[np.int64]:
    return np.asarray(digits[at] * np.int64(10) + digits[at + 1], np.int64)


def _count_days(
    year: NDArray[np.int64], month: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the days since 1970-01-01 of a Gregorian date."""
    year = year - (month <= 2)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    return np.asarray(days, np.int64)
