"""Exact quantities in flat integer columns.

A quantity is `hi + mid·10⁻¹² + lo·10⁻²⁴` with three 64-bit integers, 0 ≤ mid, lo < 10¹². Columns of such
limbs add up in numpy without rounding, travel and pickle as plain bytes, and hold every JSON number of up to
24 decimal places, so also the 17 digits that binary floats print. Whole quantities have no
`mid` and `lo`, those of twelve places no `lo`.

Bounds: a reading lies in [0, 10¹⁵]; a total fits while it is below 9·10¹⁸, that is nine thousand
readings at the upper bound, or any number of smaller ones up to that sum. A total beyond it is an assertion.
"""

from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact

import numpy as np
from numpy.typing import NDArray

QUANTITY_MAX = 10**15
PLACES = 24
UNIT = 10**12
SCALE: int = 10**PLACES
TOTAL_MAX = 9 * 10**18

Ints = NDArray[np.int64]

_SHORT_MAX = 9_000_000
_EXACT = Context(prec=80, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])

_ROUNDING = Context(prec=2000, Emin=MIN_EMIN, Emax=MAX_EMAX)

_SHIFT, _TO_INTEGRAL, _TWELVE = _EXACT.scaleb, _EXACT.to_integral_exact, Decimal(12)


def scaled(value: int | Decimal) -> int:
    """The value times 10²⁴ as an integer. Raises ValueError where that is not whole, or over 10³⁹."""
    if isinstance(value, int):
        return int(value) * SCALE
    # First the magnitude, so that 1e999999999 costs nothing.
    if not value.is_finite() or (value and value.adjusted() > PLACES + 15):
        raise ValueError(f"needs a number of at most 10^15, got {value:.3E}")
    try:
        moved = _EXACT.scaleb(value, PLACES)
    except Inexact:
        raise ValueError(f"needs at most {PLACES} decimal places, got more digits") from None
    whole = int(moved)
    if whole != moved:
        raise ValueError(f"needs at most {PLACES} decimal places, got {value:.30E}")
    return whole


def rounded(value: int | Decimal) -> int:
    """Return the value times 10²⁴, to the nearest integer: for numbers of others, which may have more digits.

    Raises ValueError where it is no number, or over 10³⁹.
    """
    if isinstance(value, int) or not value.is_finite() or (value and value.adjusted() > PLACES + 15):
        return scaled(value)
    if value and value.adjusted() < -PLACES - 1:
        return 0
    return int(_ROUNDING.to_integral_value(_ROUNDING.scaleb(value, PLACES)))


def limbs_of(value: int | Decimal) -> tuple[int, int, int]:
    """A reading as (hi, mid, lo). Raises ValueError, which says why, where it is out of bounds."""
    whole = scaled(value)
    if not 0 <= whole <= QUANTITY_MAX * SCALE:
        raise ValueError(f"needs 0 to {QUANTITY_MAX}, got {str(value)[:40]}")
    return split(whole)


def limb_columns(values: list[int | Decimal]) -> tuple[Ints, Ints | None, Ints | None] | None:
    """A column of readings as limbs, if all are of 0 or more, below nine million and of at most twelve places.

    Those fit one 64-bit integer each, and the rest is column arithmetic. None where one does not; `limbs_of` takes any.
    """
    if min(values) < 0 or max(values) > _SHORT_MAX:
        return None
    try:
        # Without fraction before it is an integer: to_integral_exact raises where a thirteenth place is lost.
        moved = [int(_TO_INTEGRAL(_SHIFT(value, _TWELVE))) for value in values]
    except Inexact:
        return None
    hi, mid = np.divmod(np.array(moved, np.int64), UNIT)
    return hi, mid, None


def joined(hi: int, mid: int, lo: int) -> int:
    """The limbs as one integer, times 10²⁴."""
    return (hi * UNIT + mid) * UNIT + lo


def split(whole: int) -> tuple[int, int, int]:
    """The inverse of `joined`."""
    hi, rest = divmod(whole, SCALE)
    return hi, *divmod(rest, UNIT)


def text(whole: int) -> str:
    """Decimal text of a quantity given times 10²⁴: no exponent, no trailing zeros. `text(SCALE // 10)` is 0.1."""
    sign = "-" if whole < 0 else ""
    hi, rest = divmod(abs(whole), SCALE)
    return f"{sign}{hi}.{rest:024d}".rstrip("0").rstrip(".")


def text_of(hi: int, mid: int, lo: int) -> str:
    """Decimal text of a quantity of 0 or more in limbs."""
    places = f"{mid:012d}{lo:012d}" if lo else f"{mid:012d}"
    return f"{hi}.{places.rstrip('0')}" if mid or lo else str(hi)


def decimal(whole: int) -> Decimal:
    """A quantity given times 10²⁴ as a Decimal, exactly."""
    units, rest = divmod(whole, SCALE)
    return Decimal(text(whole)) if rest else Decimal(units)


def carry(limbs: list[Ints]) -> None:
    """Brings summed limbs back into their ranges, in place."""
    for place in range(len(limbs) - 1, 0, -1):
        over = np.flatnonzero(limbs[place] >= UNIT)
        if len(over):
            limbs[place - 1][over] += limbs[place][over] // UNIT
            limbs[place][over] %= UNIT
