"""Times, quantities and payloads as people read them."""

from datetime import datetime, timedelta
from decimal import Decimal

US = 1_000_000
SIZES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
"""The prefixes of the International System, by thousands; Q is 10³⁰, the most that a total comes to."""
EPOCH = datetime(1970, 1, 1)


def instant(at: int) -> str:
    """Microseconds since the epoch as RFC 3339, UTC, with a fraction where there is one."""
    return f"{(EPOCH + timedelta(microseconds=at)).isoformat()}Z"


def moment(at: int) -> str:
    """Return a time for tables: `2026-11-01`, or `2026-11-01 18:15` if it is not midnight UTC."""
    when = EPOCH + timedelta(microseconds=at)
    return f"{when:%Y-%m-%d}" if at % (24 * 3600 * US) == 0 else f"{when:%Y-%m-%d %H:%M}"


def grouped(quantity: int | str) -> str:
    """`1,234,567.25`: exact, with thousands marked."""
    return f"{Decimal(quantity):,f}"


def brief(quantity: Decimal) -> str:
    """`1.23M`: three digits or so in five characters at most, cut off and never rounded up to a limit."""
    text = f"{quantity.copy_abs():f}"
    whole = text.partition(".")[0]
    size = min((len(whole) - 1) // 3, len(SIZES) - 1)
    if size:
        text = f"{whole[: -3 * size]}.{whole[-3 * size :]}".rstrip("0")
    cut = text[: max(4, len(whole) - 3 * size)].rstrip(".")
    return f"{'-' if quantity < 0 else ''}{cut}{SIZES[size]}"


def age(us: int) -> str:
    """`38 ms`, `4.2 s`, `3 min`, `2 h`."""
    if us < US:
        return f"{max(us, 0) // 1000} ms"
    if us < 60 * US:
        return f"{us / US:.1f} s"
    return f"{us // (60 * US)} min" if us < 3600 * US else f"{us // (3600 * US)} h"


def clipped(text: str, width: int) -> str:
    """Return the text on one line of `width` characters, control characters shown as such."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: width + 1])
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
