"""Credit excess: how much a credit balance was charged beyond the usage that belongs there, and so may be refunded.

The provider's worker deducts new usage about once a minute from the available credits. Usage that an empty balance
cannot cover is skipped for good. A deduction therefore belongs to usage that arrived since the previous deduction, or
since an empty balance was refilled; anything beyond that was charged for usage that should not exist.
Source: Dodo Payments, credit-based billing.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_DOWN, Context, Decimal
from functools import reduce
from itertools import accumulate

# How long the worker may take, and how far its clock may differ from ours, in µs.
WORKER_TAKES, CLOCK_SKEW_MAX = 10 * 60_000_000, 5 * 60_000_000
# Decimal's own operators round to 28 digits, which balances exceed. Amounts longer than 200 digits are rounded without
# an error, because they are input.
AMOUNTS = Context(prec=200, rounding=ROUND_DOWN)


def add_amounts(amounts: Iterable[Decimal]) -> Decimal:
    """Return the sum of amounts of credits, unrounded."""
    return reduce(AMOUNTS.add, amounts, Decimal(0))


def compute_excess(
    deductions: Iterable[tuple[int, Decimal]],
    refills: Iterable[int],
    arrived: Sequence[tuple[int, int]],
    credits: Callable[[int], Decimal],
) -> Decimal:
    """Return how much of `deductions`, given as (time in µs, credits), is not explained by legitimate usage.

    `refills` are the times at which an empty balance received credits; `arrived` are the legitimate events, as (time of
    arrival at the provider, quantity ×10²⁴); `credits` converts a total quantity into credits.
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
        until = max(since, at + CLOCK_SKEW_MAX)
        due = AMOUNTS.subtract(due_until(until), due_until(since))
        found = AMOUNTS.add(found, max(AMOUNTS.subtract(amount, due), Decimal(0)))
        explained_until = until
    return found
