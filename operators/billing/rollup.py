"""Usage rolled up for the biller: one event per customer, meter and window of a minute or five, exact.

A window is cut where the customer's billing period ends, and its event lies in the window's last millisecond, so in
the same period. What changes a window later goes out as a further event for the difference. Sums and counts can be
rolled up so; a `unique` meter is unknown to the platform, and neither `max` nor `last` adds up.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from tidegate.operators.billing.outgoing import INT_MAX, fields_of, instant, sendable
from tidegate.operators.columns.quantity import QUANTITY_MAX, SCALE, decimal, scaled
from tidegate.operators.events.readings import Name, number_of
from tidegate.operators.model.aggregates import ADDITIVE, AGGREGATES, AT_PROVIDER
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.periods import exact_period_of

SUFFIX = ".rollup"
# Before the end of a window, so that a time cut to milliseconds stays in it.
BEFORE_END = 1_000
# So many digits any double keeps.
DIGITS = 15


class Window(NamedTuple):
    """A window of a customer and meter: its start and length in µs, and the start of its part in one billing period."""

    customer: str
    meter: str
    start: int
    length: int
    at: int


def unfit(catalog: Catalog) -> list[str]:
    """The meters that the platform would bill and that cannot be rolled up."""
    return [meter.name for meter in catalog.meters if meter.kind in AT_PROVIDER - ADDITIVE]


class Readings:
    """What the sums and counts of a catalog read of accepted events."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._meters = catalog.meters
        fed: dict[str, list[tuple[int, Meter]]] = {}
        for place, meter in enumerate(catalog.meters):
            if meter.kind in ADDITIVE:
                fed.setdefault(meter.event_name, []).append((place, meter))
        self._names = {name: Name(name, meters) for name, meters in fed.items()}

    def of(self, payloads: Sequence[bytes]) -> Iterator[tuple[int, str, int]]:
        """For each reading the event's place, the meter's name and the quantity times 10²⁴."""
        by_name: dict[str, list[tuple[int, msgspec.Raw]]] = {}
        for place, payload in enumerate(payloads):
            name, properties = fields_of(payload)
            if name in self._names:
                by_name.setdefault(name, []).append((place, properties))
        for name, events in by_name.items():
            known = self._names[name]
            columns = known.columns(known.properties([properties for _, properties in events]))
            for feed in known.feeds:
                passed = feed.passes(columns).tolist() if feed.passes else [True] * len(events)
                values = columns(feed.key) if AGGREGATES[feed.kind].reads == "number" else [1] * len(events)
                if feed.takes_text:
                    values = list(map(number_of, values))
                for (place, _), takes, value in zip(events, passed, values, strict=True):
                    if takes and (quantity := _quantity(value)) is not None:
                        yield place, self._meters[feed.meter].name, quantity

    def window(self, customer: str, meter: str, at: int, length: int) -> Window:
        """The window that holds an event of then."""
        catalog = self._catalog
        start = at - at % length
        begun, _ = exact_period_of(catalog.period_of(customer), catalog.zone_of(customer), at)
        return Window(customer, meter, start, length, max(start, begun))

    def event_at(self, window: Window) -> int:
        """Return the time (µs) of the window's events: just before it ends, or its part of the period does."""
        catalog = self._catalog
        policy, zone = catalog.period_of(window.customer), catalog.zone_of(window.customer)
        _, period_end = exact_period_of(policy, zone, window.at)
        return max(window.at, min(window.start + window.length, period_end) - BEFORE_END)


def parts(whole: int) -> list[int | float]:
    """A quantity times 10²⁴, above 0, as numbers that arrive exactly and add up to it; nearly always one."""
    number = sendable(_plain(whole))
    if number is not None:
        return [number]
    units, rest = divmod(whole, SCALE)
    found: list[int | float] = []
    while units:
        some = min(units, INT_MAX)
        found.append(some)
        units -= some
    while rest:
        # The leading digits of what is left.
        cut = 10 ** max(len(str(rest)) - DIGITS, 0)
        head = rest - rest % cut
        found.append(float(decimal(head)))
        rest -= head
    return found


def event(window: Window, quantity: int | float, count: int, revision: int) -> tuple[str, bytes]:
    """The id and the bytes, in Dodo's shape, of the event that adds this much to a window."""
    id = xxh3_128_hexdigest(msgspec.msgpack.encode((*window, revision))) + f"-r{revision}"
    metadata = {
        "sum": quantity,
        "count": count,
        "window": instant(window.start),
        "seconds": window.length // 1_000_000,
        "revision": revision,
    }
    name = window.meter + SUFFIX
    body = {"event_id": id, "customer_id": window.customer, "event_name": name, "metadata": metadata}
    return id, msgspec.json.encode(body)


def _quantity(value: object) -> int | None:
    """A reading times 10²⁴. None where it is none, also where only a later catalog would read it and turn it down."""
    if type(value) is not int and type(value) is not Decimal:
        return None
    try:
        whole = scaled(value)
    except ValueError:
        return None
    return whole if 0 <= whole <= QUANTITY_MAX * SCALE else None


def _plain(whole: int) -> int | Decimal:
    return whole // SCALE if whole % SCALE == 0 else decimal(whole)
