"""Holds: what a store decides about a hold by itself, whether there is room. Pure, and the same in every store.

A hold's quantity counts from its reserve until its event's total counts instead, or until it ends.
"""

from collections.abc import Mapping

from tidegate.operators.model.ports import Account

REMEMBERED = 3_600_000_000
"""How long past its expiry an ended hold is remembered (µs), so that late retries change nothing."""

ONLY_METER = ""
"""The key that stands for the only meter of a hold."""


def has_room(account: Account, quantities: Mapping[str, int], ceilings: Mapping[str, int]) -> bool:
    """Return whether used, held and requested stay within the ceiling of each meter that has one; all times 10²⁴."""
    for meter, ceiling in ceilings.items():
        used = account.used.get(meter)
        if (used.total if used else 0) + account.held.get(meter, 0) + quantities.get(meter, 0) > ceiling:
            return False
    return True


def find_final_quantities(asked: Mapping[str, int], given: Mapping[str, int] | None) -> dict[str, int] | None:
    """Return the quantities that a commit of `given` makes final; None if its meters are not the reserved ones."""
    if given is None:
        return dict(asked)
    if set(given) == {ONLY_METER} and len(asked) == 1:
        return dict.fromkeys(asked, given[ONLY_METER])
    return {**asked, **given} if given.keys() <= asked.keys() else None
