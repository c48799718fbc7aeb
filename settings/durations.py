"""Durations as people write them: `500ms`, `10s`, `1h30m`, `35d`, or ISO 8601 such as `PT10S`."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator

UNITS: Final = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
# Twelve digits: past the ages of the world in any unit, and far from overflow in the sum below.
PART: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
WHOLE: Final = re.compile(rf"(?:{PART.pattern})+")
NEEDS: Final = "needs a duration with its unit, such as 500ms, 10s, 5m, 24h or 35d"


def read_duration(text: str) -> timedelta:
    """Return the duration that `text` says, to the microsecond; ValueError for anything else.

    A bare number is refused, as nobody can tell its unit; `0` needs none.
    """
    if text == "0":
        return timedelta(0)
    if not WHOLE.fullmatch(text):
        raise ValueError(NEEDS)
    micros = timedelta(microseconds=1)
    total = sum(Decimal(number) * (UNITS[unit] // micros) for number, unit in PART.findall(text))
    try:
        return timedelta(microseconds=int(total))
    except OverflowError:
        raise ValueError(NEEDS) from None


def format_duration(duration: timedelta) -> str:
    """Return the duration as it would be written; `read_duration` gives it back, to the millisecond."""
    words, rest = [], duration
    for unit, length in UNITS.items():
        count, rest = divmod(rest, length)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words) or "0"


def _read(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        # ISO 8601 is read by pydantic.
        return value if value.startswith("P") else read_duration(value.strip())
    raise ValueError(NEEDS)


def between(least: str, most: str) -> AfterValidator:
    """Return a validator that a duration lies in this range, both ends included."""
    low, high = read_duration(least), read_duration(most)

    def check(duration: timedelta) -> timedelta:
        if not low <= duration <= high:
            raise ValueError(f"needs {least} to {most}")
        return duration

    return AfterValidator(check)


Duration = Annotated[timedelta, BeforeValidator(_read)]
