"""Exact quantities in flat integer columns.

A quantity is `hi + mid·10⁻¹² + lo·10⁻²⁴` with three 64-bit integers, 0 ≤ mid, lo < 10¹². Columns of such limbs add up
in numpy without rounding, travel and pickle as plain bytes, and hold every JSON number of up to 24 decimal places,
including the 17 digits that binary floats print. Whole quantities have no `mid` and `lo`, those of twelve places no
`lo`.

Bounds: a reading lies in [0, 10¹⁵]. A total whose whole part reaches 10¹⁸ gets a fourth limb, `top`, times 10¹², so
that it is `top·10¹² + hi + …`: room for 9·10¹⁵ readings at the upper bound in one window. An adjustment that would take
a total past ±10³⁰ is refused.
"""

from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact

import numpy as np
from numpy.typing import NDArray

QUANTITY_MAX = 10**15
PLACES = 24
UNIT = 10**12
SCALE: int = 10**PLACES
TOTAL_MAX = 10**30
HI_MAX = 10**18
"""A total's `hi` stays below this; what is above goes into `top`."""

LIMBS = ("top", "hi", "mid", "lo")
"""From the most significant to the least."""

WEIGHTS = {"top": SCALE * UNIT, "hi": SCALE, "mid": UNIT, "lo": 1}
"""What one of each limb is worth, times 10²⁴."""

# With values up to 10¹⁵ in a batch, and `hi` below 10¹⁸ before it, this many add up without overflow.
_SAFE_SUM = 8 * 10**18
_SAFE_COUNT = _SAFE_SUM // QUANTITY_MAX

Ints = NDArray[np.int64]

_SHORT_MAX = 9_000_000
_DIGITS_MAX = 40
_EXACT = Context(prec=80, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])

_ROUNDING = Context(prec=2000, Emin=MIN_EMIN, Emax=MAX_EMAX)

_SHIFT, _TO_INTEGRAL, _TWELVE = _EXACT.scaleb, _EXACT.to_integral_exact, Decimal(12)


def scale(value: int | Decimal) -> int:
    """Return the value times 10²⁴ as an integer.

    Raises:
        ValueError: the value has more than 24 decimal places, or reaches 10⁴⁰.
    """
    if isinstance(value, int):
        return int(value) * SCALE
    # The magnitude is checked first, so that 1e999999999 costs nothing.
    if not value.is_finite() or (value and value.adjusted() >= _DIGITS_MAX):
        raise ValueError(f"needs a number below 10^{_DIGITS_MAX}, got {value:.3E}")
    try:
        moved = _EXACT.scaleb(value, PLACES)
    except Inexact:
        raise ValueError(f"needs at most {PLACES} decimal places, got more digits") from None
    whole = int(moved)
    if whole != moved:
        raise ValueError(f"needs at most {PLACES} decimal places, got {value:.30E}")
    return whole


def scale_rounded(value: int | Decimal) -> int:
    """Return the value times 10²⁴, rounded to the nearest integer: for foreign numbers, which may have more digits.

    Raises:
        ValueError: the value is not a number, or exceeds 10³⁹.
    """
    if isinstance(value, int) or not value.is_finite() or (value and value.adjusted() > PLACES + 15):
        return scale(value)
    if value and value.adjusted() < -PLACES - 1:
        return 0
    return int(_ROUNDING.to_integral_value(_ROUNDING.scaleb(value, PLACES)))


def to_limbs(value: int | Decimal) -> tuple[int, int, int]:
    """Return a reading as (hi, mid, lo).

    Raises:
        ValueError: the reading is out of bounds; the message says why.
    """
    if not 0 <= value <= QUANTITY_MAX:
        raise ValueError(f"needs 0 to {QUANTITY_MAX}, got {str(value)[:40]}")
    return split_limbs(scale(value))


def to_limb_columns(values: list[int | Decimal]) -> tuple[Ints, Ints | None, Ints | None] | None:
    """Return a column of readings as limbs if all are in [0, 9,000,000] and have at most twelve places, else None.

    Such readings fit one 64-bit integer each, and the rest is column arithmetic. `to_limbs` takes any reading.
    """
    if min(values) < 0 or max(values) > _SHORT_MAX:
        return None
    try:
        # to_integral_exact raises if a thirteenth place would be lost.
        moved = [int(_TO_INTEGRAL(_SHIFT(value, _TWELVE))) for value in values]
    except Inexact:
        return None
    hi, mid = np.divmod(np.array(moved, np.int64), UNIT)
    return hi, mid, None


def join_limbs(hi: int, mid: int = 0, lo: int = 0, top: int = 0) -> int:
    """Return the limbs as one integer, times 10²⁴."""
    return ((top * UNIT + hi) * UNIT + mid) * UNIT + lo


def split_limbs(whole: int) -> tuple[int, int, int]:
    """Return the limbs of a quantity that needs no `top`; the inverse of `join_limbs`."""
    hi, rest = divmod(whole, SCALE)
    return hi, *divmod(rest, UNIT)


def split_total(whole: int) -> dict[str, int]:
    """Return the limbs of a total given times 10²⁴, by name; `top` is 0 while `hi` stays within ±HI_MAX."""
    hi, mid, lo = split_limbs(whole)
    top, hi = (0, hi) if abs(hi) < HI_MAX else divmod(hi, UNIT)
    return {"top": top, "hi": hi, "mid": mid, "lo": lo}


def format_quantity(whole: int) -> str:
    """Return decimal text of a quantity given times 10²⁴, without exponent or trailing zeros: 0.1 for SCALE // 10."""
    sign = "-" if whole < 0 else ""
    hi, rest = divmod(abs(whole), SCALE)
    return f"{sign}{hi}.{rest:024d}".rstrip("0").rstrip(".")


def format_limbs(hi: int, mid: int, lo: int) -> str:
    """Return decimal text of a quantity of 0 or more, given in limbs."""
    places = f"{mid:012d}{lo:012d}" if lo else f"{mid:012d}"
    return f"{hi}.{places.rstrip('0')}" if mid or lo else str(hi)


def to_decimal(whole: int) -> Decimal:
    """Return a quantity given times 10²⁴ as an exact Decimal."""
    units, rest = divmod(whole, SCALE)
    return Decimal(format_quantity(whole)) if rest else Decimal(units)


def may_overflow(hi: Ints) -> bool:
    """Return whether the sum of these readings, and of a total before them, might not fit 64 bits."""
    return len(hi) > _SAFE_COUNT and len(hi) * int(hi.max()) > _SAFE_SUM


def carry(limbs: dict[str, Ints]) -> None:
    """Bring summed limbs of 0 or more back into their ranges, in place; add `top` if one needs it."""
    for name, above in (("lo", "mid"), ("mid", "hi")):
        if name in limbs:
            _carry(limbs[name], limbs[above], np.flatnonzero(limbs[name] >= UNIT))
    over = np.flatnonzero(limbs["hi"] >= HI_MAX)
    if len(over):
        _carry(limbs["hi"], limbs.setdefault("top", np.zeros_like(limbs["hi"])), over)


def _carry(limb: Ints, above: Ints, over: Ints) -> None:
    if len(over):
        above[over] += limb[over] // UNIT
        limb[over] %= UNIT
