"""The catalog's field types that are not numbers: names, zones, instants, thresholds."""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final

from pydantic import AfterValidator, PlainValidator, StringConstraints

from tidegate.operators.model.catalog import Threshold
from tidegate.operators.model.periods import is_zone
from tidegate.settings.catalog.numbers import MOST, bounded

CHARSET: Final = re.compile(r"[A-Za-z0-9_.-]+")
# Control characters and line breaks, which no page and no log line shows as they are; joiners of emoji are text.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
INSTANT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{8}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})")


def _safe(name: str) -> str:
    if not CHARSET.fullmatch(name):
        raise ValueError("needs letters, digits and _ . - only")
    return name


def _text(name: str) -> str:
    """Any text that a stream can carry. YAML's escapes can write half of a character, which no UTF-8 has."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("needs whole characters, got half of a surrogate pair") from None
    return name


def _printable(name: str) -> str:
    if CONTROL.search(name):
        raise ValueError("needs printable characters only")
    return _text(name)


def _zone(name: str) -> str:
    if not is_zone(name):
        raise ValueError("needs an IANA zone such as Europe/Berlin")
    return name


def _instant(value: object) -> datetime:
    """Return an aware instant; periods check the rest: whole seconds, and the years that they know."""
    try:
        if isinstance(value, str) and INSTANT.fullmatch(value):
            return datetime.fromisoformat(value)
    except ValueError:
        # The pattern fits, the date does not exist.
        pass
    raise ValueError("needs a time with its offset, such as 2026-01-31T00:00:00Z")


def _threshold(value: object) -> Threshold:
    """`80%` of the limit, or a quantity."""
    text = value.removesuffix("%") if isinstance(value, str) else value
    try:
        level = bounded(text, Decimal(0), MOST)
    except ValueError as error:
        raise ValueError(f"{error}, with a % if it is percent of the limit") from None
    if not level:
        raise ValueError("needs more than 0, as 0 is always reached")
    return Threshold(absolute=level) if text == value else Threshold(percent=level)


Name = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_printable)]
MeterName = Annotated[Name, AfterValidator(_safe)]
# All that an event may name, so that each customer of the stream can have a plan.
CustomerName = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_text)]
Label = Annotated[str, StringConstraints(max_length=100), AfterValidator(_printable)]
Zone = Annotated[str, AfterValidator(_zone)]
Instant = Annotated[datetime, PlainValidator(_instant)]
Level = Annotated[Threshold, PlainValidator(_threshold)]
