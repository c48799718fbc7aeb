"""How a total stands from look to look: off once it is a suspect, off twice in a row it has drifted."""

from typing import Literal, NamedTuple

from tidegate.operators.billing.drift import Span

Status = Literal["ok", "undecided", "suspect", "drift", "acknowledged", "conflict"]
MISSES = 2


class Standing(NamedTuple):
    """What is known of one total.

    `misses` are looks in a row that found it off, `first_at` is when the first of them was and `looked_at` the last
    (µs), `turn` counts how often it became drift; `findings` is a JSON object of what was found.
    """

    customer: str
    meter: str
    span: Span
    status: Status
    misses: int
    looked_at: int
    first_at: int | None
    turn: int
    findings: bytes


def judged(
    before: Standing | None, customer: str, meter: str, span: Span, off: int | None, now: int, apart: int
) -> Standing:
    """How a total stands after a look that found it `off` by so much, or could not decide (None).

    Two misses count as two only if they are `apart`: what takes its time there would be seen as off both times.
    """
    old = before or Standing(customer, meter, span, "ok", 0, now, None, 0, b"{}")
    if off is None:
        return old._replace(status="undecided" if old.status == "ok" else old.status, span=span)
    if off == 0:
        return old._replace(status="ok", misses=0, looked_at=now, first_at=None, span=span)
    if old.misses and now - old.looked_at < apart:
        return old._replace(span=span)
    misses = old.misses + 1
    status: Status = "drift" if misses >= MISSES else "suspect"
    turn = old.turn + (status == "drift" and old.status != "drift")
    first_at = now if old.first_at is None else old.first_at
    return old._replace(status=status, misses=misses, looked_at=now, first_at=first_at, turn=turn, span=span)
