"""What is asked of a gate, checked: a wrong argument is an error of the caller, not a decision."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from tidegate.operators.columns.quantity import QUANTITY_MAX, SCALE, scale
from tidegate.operators.model.errors import TidegateError

Quantity = int | Decimal
"""Whole or decimal, from 0 to 10¹⁵ with at most 24 decimal places; never a float, which is not what it shows."""

CUSTOMER_MAX: Final = 256
ID_MAX: Final = 1024
NAMES_SHOWN: Final = 10


class UnknownMeter(TidegateError, ValueError):
    """The catalog has no such meter, so no cap could ever apply; `catalog` is the version that was asked."""

    def __init__(self, meter: str, known: Iterable[str], catalog: int) -> None:
        names = sorted(known)
        near = get_close_matches(meter, names, 1)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names[:NAMES_SHOWN]) or 'none'}"
        )
        super().__init__(f"meter: the catalog has no {meter[:60]!r}{hint}")
        self.meter, self.catalog = meter, catalog


def asked_of(customer: str, quantities: Mapping[str, Quantity]) -> dict[str, int]:
    """Return the quantities times 10²⁴, by meter. ValueError or TypeError says what cannot be asked."""
    if not isinstance(customer, str) or not 0 < len(customer) <= CUSTOMER_MAX:
        raise ValueError(
            f"customer: needs a text of 1 to {CUSTOMER_MAX} characters, got {str(customer)[:60]!r}"
        )
    if not quantities:
        raise ValueError("quantities: need at least one meter")
    return {meter: _whole(quantity) for meter, quantity in quantities.items()}


def final_of(quantity: Quantity | Mapping[str, Quantity] | None, only: str) -> dict[str, int] | None:
    """Return the committed quantities times 10²⁴, by meter; a single quantity stands under `only`."""
    if quantity is None:
        return None
    if isinstance(quantity, Mapping):
        return {meter: _whole(one) for meter, one in quantity.items()}
    return {only: _whole(quantity)}


def check_identity(customer: str, source: str, id: str) -> None:
    """ValueError where no event could have this identity."""
    parts = (("customer", customer, 1, CUSTOMER_MAX), ("source", source, 0, ID_MAX), ("id", id, 1, ID_MAX))
    for name, part, least, most in parts:
        if not isinstance(part, str) or not least <= len(part) <= most:
            raise ValueError(f"{name}: needs a text of {least} to {most} characters, got {str(part)[:60]!r}")
        # Half a surrogate pair is no text that an event could bring.
        part.encode()


def _whole(quantity: Quantity) -> int:
    if type(quantity) is int:
        if 0 <= quantity <= QUANTITY_MAX:
            return quantity * SCALE
    elif isinstance(quantity, Decimal):
        whole = scale(quantity)
        if 0 <= whole <= QUANTITY_MAX * SCALE:
            return whole
    raise ValueError(
        f"quantity: needs an int or Decimal from 0 to {QUANTITY_MAX}, got {str(quantity)[:60]!r}"
    )
