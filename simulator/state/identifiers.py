"""Ids and random draws that repeat for the same seed."""

import string
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

_DIGITS: Final = string.ascii_letters + string.digits
_LENGTH: Final = 21


def make_identifier(prefix: str, seed: int, number: int) -> str:
    """Return the `number`-th id with this prefix: `cus_` and 21 letters or digits."""
    left, text = xxh3_128_intdigest(f"{seed}/{prefix}/{number}".encode()), ""
    for _ in range(_LENGTH):
        left, digit = divmod(left, len(_DIGITS))
        text += _DIGITS[digit]
    return f"{prefix}_{text}"


def draw_chance(seed: int, name: str, number: int) -> float:
    """Return the `number`-th draw of `name`, in [0, 1)."""
    return xxh3_64_intdigest(f"{seed}/{name}/{number}".encode()) / 2**64
