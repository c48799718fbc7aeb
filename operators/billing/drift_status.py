"""The drift status of a total across comparisons: a first miss makes it suspect, a second one in a row drifted."""

from typing import Literal, NamedTuple

from tidegate.operators.billing.drift import Span

Status = Literal["ok", "undecided", "suspect", "drift", "acknowledged", "conflict"]
MISSES_TO_CONFIRM = 2


class DriftStatus(NamedTuple):
    """The state of one total.

    `misses` counts consecutive comparisons that found it off, `first_at` is when the first of them was made and
    `compared_at` the last (µs), `turn` counts how often the total became drifted; `findings` is a JSON object of the
    findings.
    """

    customer: str
    meter: str
    span: Span
    status: Status
    misses: int
    compared_at: int
    first_at: int | None
    turn: int
    findings: bytes


def update_status(
    before: DriftStatus | None, customer: str, meter: str, span: Span, off: int | None, now: int, apart: int
) -> DriftStatus:
    """Return the status of a total after a comparison that found it `off` by this much, or could not decide (None).

    Two misses count separately only if they are at least `apart` (µs): a slow provider would be off both times
    otherwise.
    """
    old = before or DriftStatus(customer, meter, span, "ok", 0, now, None, 0, b"{}")
    if off is None:
        return old._replace(status="undecided" if old.status == "ok" else old.status, span=span)
    if off == 0:
        return old._replace(status="ok", misses=0, compared_at=now, first_at=None, span=span)
    if old.misses and now - old.compared_at < apart:
        return old._replace(span=span)
    misses = old.misses + 1
    status: Status = "drift" if misses >= MISSES_TO_CONFIRM else "suspect"
    turn = old.turn + (status == "drift" and old.status != "drift")
    first_at = now if old.first_at is None else old.first_at
    return old._replace(
        status=status, misses=misses, compared_at=now, first_at=first_at, turn=turn, span=span
    )
