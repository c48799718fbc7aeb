"""What a credit balance was charged beyond the usage that was rightly there: the most that may be given back.

The provider's worker takes new usage about once a minute, from credits that are there. What an empty balance cannot
give is passed over for good, so a deduction belongs to usage that arrived since the one before it, or since an empty
balance was filled again. Any more was taken for usage that should not be there.
Source: Dodo Payments, credit-based billing.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_DOWN, Context, Decimal
from functools import reduce
from itertools import accumulate

# How long the worker may take, and how far its clock may be apart from ours.
WORKER_TAKES, CLOCKS_APART = 10 * 60_000_000, 5 * 60_000_000
# Decimal's own operators round to 28 digits, which balances outgrow. Longer amounts than this are rounded and no error,
# as they are input.
AMOUNTS = Context(prec=200, rounding=ROUND_DOWN)


def add_amounts(amounts: Iterable[Decimal]) -> Decimal:
    """Return the sum of amounts of credits, not rounded."""
    return reduce(AMOUNTS.add, amounts, Decimal(0))


def excess(
    deductions: Iterable[tuple[int, Decimal]],
    refills: Iterable[int],
    arrived: Sequence[tuple[int, int]],
    credits: Callable[[int], Decimal],
) -> Decimal:
    """Return how much of `deductions`, as (time in µs, credits), no rightful usage explains.

    `refills` are the times at which an empty balance got credits; `arrived` are the rightful events, as (time of
    arrival there, quantity ×10²⁴); `credits` gives what a total comes to.
    """
    rightful = sorted(arrived)
    times = [at for at, _ in rightful]
    totals = [0, *accumulate(quantity for _, quantity in rightful)]
    filled = sorted(refills)

    def due_until(at: int) -> Decimal:
        return credits(totals[bisect_right(times, at)])

    found, explained_until = Decimal(0), -1
    for at, amount in sorted(deductions):
        refill = bisect_right(filled, at)
        since = max(explained_until, filled[refill - 1] - WORKER_TAKES if refill else -1)
        until = max(since, at + CLOCKS_APART)
        due = AMOUNTS.subtract(due_until(until), due_until(since))
        found = AMOUNTS.add(found, max(AMOUNTS.subtract(amount, due), Decimal(0)))
        explained_until = until
    return found
