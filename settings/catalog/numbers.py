"""Numbers of the catalog: exact, from the text that was written, within bounds."""

import re
from decimal import Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator

from tidegate.settings.catalog.yaml_nodes import Plain

MOST: Final = Decimal(10**15)
DECIMALS_MAX: Final = 12
TEXT_MAX: Final = 500
# No leading zeros, as 0100 is 64 to some readers of YAML and 100 to others; no inf, nan, 0x or 1_000.
NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?")
DIGITS_MAX: Final = 100


def read_number(value: object) -> Decimal:
    """Return the number in its shortest plain form (`1e3` and `1000.0` are 1000); ValueError for anything else."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > DIGITS_MAX or not NUMBER.fullmatch(value):
        raise ValueError("needs a number")
    plain = f"{Decimal(value):f}"
    number = Decimal(plain.rstrip("0").rstrip(".") if "." in plain else plain)
    # Not -0, which is equal to 0 and looks like another limit.
    return number if number else Decimal(0)


def bounded(value: object, least: Decimal, most: Decimal) -> Decimal:
    """Return a number from `least` to `most` with no more than twelve decimals; ValueError says which it is not."""
    number = read_number(value)
    if number < least:
        raise ValueError(f"needs a number of {least} or more")
    if number > most:
        raise ValueError(f"needs a number of {most} or less")
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and -exponent > DECIMALS_MAX:
        raise ValueError(f"needs {DECIMALS_MAX} decimals or less")
    return number


def read_constant(value: object) -> str | int | Decimal | bool:
    """Return what a filter compares with: quoted it is text, unquoted a number, true, false or else text."""
    if isinstance(value, Plain):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        if NUMBER.fullmatch(value):
            number = bounded(value, -MOST, MOST)
            return int(number) if number == number.to_integral_value() else number
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise ValueError(f"needs a number, true, false or text of up to {TEXT_MAX} characters")
    return str(value)


def read_count(value: object) -> int:
    """Return a whole number of 1 or more; ValueError for anything else."""
    number = bounded(value, Decimal(1), MOST)
    if number != number.to_integral_value():
        raise ValueError("needs a whole number")
    return int(number)


def _up_to(most: Decimal) -> BeforeValidator:
    return BeforeValidator(lambda value: bounded(value, Decimal(0), most))


Quantity = Annotated[Decimal, _up_to(MOST)]
Percent = Annotated[Decimal, _up_to(Decimal(100))]
Grace = Annotated[Decimal, _up_to(Decimal(1000))]
Count = Annotated[int, BeforeValidator(read_count)]
