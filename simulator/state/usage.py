"""A customer's usage in a cycle, folded event by event as events become visible."""

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

from simulator.state.events import EventBook, read_number
from simulator.state.filters import passes
from simulator.state.records import Cycle, Meter, StoredEvent, Subscription
from simulator.state.switches import Switches

# A double may have 1074 digits after the point, and sums must not round.
EXACT: Final = Context(prec=2000, traps=[Inexact, InvalidOperation])
ZERO: Final = Decimal(0)


class Tally:
    """The total of one meter in one cycle, of the events folded so far. `position` counts the arrivals seen."""

    def __init__(self, meter: Meter, cycle: Cycle, switches: Switches) -> None:
        self._meter, self._cycle, self._switches = meter, cycle, switches
        self.position = 0
        self.total = ZERO
        self._latest: int | None = None

    def fold(self, event: StoredEvent) -> None:
        self.position += 1
        if self._counts(event):
            self._add(event)

    def _counts(self, event: StoredEvent) -> bool:
        cycle, meter = self._cycle, self._meter
        return (
            cycle.start <= event.at < cycle.end
            and not self._is_shut_out(event)
            and (self._switches.retroactive_meters or event.stored_at >= meter.created_at)
            and not any(_holds(span, event.stored_at) for span in meter.archived)
            and passes(meter.filter, event.metadata)
        )

    def _is_shut_out(self, event: StoredEvent) -> bool:
        """Return whether the cycle had closed for good when the event arrived."""
        closed_at = self._cycle.closed_at
        return (
            self._switches.closed_cycles == "frozen" and closed_at is not None and event.stored_at > closed_at
        )

    def _add(self, event: StoredEvent) -> None:
        kind = self._meter.aggregation.type
        if kind == "count":
            self.total += 1
            return
        number = read_number(event.metadata, self._meter.aggregation.key)
        if number is None:
            return
        # The shortest decimal of this double is used: 0.1 is 0.1.
        value = Decimal(repr(number))
        if kind == "sum":
            if value >= 0 or self._switches.negative_sum == "accept":
                self.total = EXACT.add(self.total, value)
        elif kind == "max":
            self.total = value if self._latest is None else max(self.total, value)
            self._latest = event.at
        elif self._latest is None or event.at >= self._latest:
            self.total, self._latest = value, event.at


class Usage:
    """Totals by subscription, cycle and meter, cached between reads. Call `forget` after anything but new events."""

    def __init__(self, events: EventBook) -> None:
        self._events = events
        self._tallies: dict[tuple[str, int, str, bool], Tally] = {}

    def compute_consumed(
        self, subscription: Subscription, cycle: Cycle, meter: Meter, switches: Switches, until: int | None
    ) -> Decimal:
        """Return the units of the events stored at or before `until`, or of all."""
        key = (subscription.subscription_id, cycle.start, meter.id, until is None)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(meter, cycle, switches)
        arrivals = self._events.arrivals.get((subscription.customer_id, meter.event_name), [])
        for index in range(tally.position, len(arrivals)):
            if until is not None and arrivals[index].stored_at > until:
                break
            tally.fold(arrivals[index])
        return tally.total

    def forget(self) -> None:
        self._tallies.clear()


def _holds(span: tuple[int, int | None], at: int) -> bool:
    start, end = span
    return start <= at and (end is None or at < end)


def format_plain(value: Decimal) -> str:
    """Return decimal digits without exponent or trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
