"""JSON numbers as exact values, however large or small their exponent is.

`Decimal` holds exponents of up to 18 digits. JSON has no limit, and two numbers beyond that limit still compare by
value.
"""

from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation

_HUGE, _TINY = Decimal("Infinity"), Decimal("1e-999999999999999999")
# `int` reads an exponent of this many digits quickly; it refuses more than 4300 digits.
_SHORT = 18


class OutOfRangeNumber(Decimal):
    """A number whose exponent no Decimal holds.

    As a Decimal it is an infinity or the least fraction, which compares with all other numbers as the number itself
    does. `key` distinguishes it from other numbers of this kind.
    """

    __slots__ = ("key",)

    key: str


def read_number(text: str) -> Decimal:
    """Return the value of a JSON number, an `OutOfRangeNumber` if no Decimal holds it."""
    try:
        return Decimal(text)
    except InvalidOperation:
        known = canonicalize_text(text)
        if known == "0":
            return Decimal(0)
        is_tiny = "E-" in text.upper()
        far = OutOfRangeNumber(
            (_TINY if is_tiny else _HUGE).copy_sign(Decimal("-1" if text[0] == "-" else "1"))
        )
        far.key = known
        return far


def canonicalize_number(value: int | Decimal) -> str:
    """Return a text that is equal for equal numbers, and for these only."""
    return value.key if isinstance(value, OutOfRangeNumber) else canonicalize_text(str(value))


def canonicalize_text(text: str) -> str:
    """Return the canonical form of a number's text: sign (1 is minus), significant digits, `e`, exponent; or 0."""
    mantissa, _, exponent = text.upper().partition("E")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    significant = (whole + fraction).lstrip("0")
    if not significant:
        return "0"
    digits = significant.rstrip("0")
    return f"{int(text[0] == '-')}{digits}e{_add_exponents(exponent, len(significant) - len(digits) - len(fraction))}"


def _add_exponents(exponent: str, more: int) -> str:
    if len(exponent) <= _SHORT:
        return str(int(exponent or "0") + more)
    exact = Context(prec=len(exponent) + _SHORT, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])
    return f"{exact.add(Decimal(exponent), Decimal(more)):f}"
