"""The header `Retry-After`, which a receiver writes as it likes.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

WAIT_MIN, WAIT_MAX = 1.0, 3600.0
_DIGITS_MAX: Final = 9


def read_retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds to wait, from WAIT_MIN to WAIT_MAX; None where the header is absent or neither form of it."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        # More digits than this are more than the limit, and enough of them are infinity.
        seconds = float(text) if len(text.lstrip("0")) <= _DIGITS_MAX else WAIT_MAX
        return _bounded(seconds)
    try:
        until = parsedate_to_datetime(text)
        # A date without a zone is in UTC, as HTTP's dates always are.
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return _bounded((until - now).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(seconds, WAIT_MIN), WAIT_MAX)
