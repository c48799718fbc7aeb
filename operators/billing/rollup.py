"""Rollup: exact usage for the provider as one event per customer, meter and window of one or five minutes.

A window is cut at the end of the customer's billing period, and its event lies in the window's last millisecond, so in
the same period. A later change of a window is sent as another event for the difference. Only sums and counts can be
rolled up: the provider has no `unique` meters, and neither `max` nor `last` adds up.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from tidegate.operators.billing.outgoing import INT_MAX, read_fields, to_exact_number
from tidegate.operators.columns.quantity import QUANTITY_MAX, SCALE, scale, to_decimal
from tidegate.operators.events.readings import NameReader, to_number
from tidegate.operators.model.aggregates import ADDITIVE, AGGREGATES, AT_PROVIDER
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.periods import find_exact_period
from tidegate.operators.model.wire import format_instant

SUFFIX = ".rollup"
# The distance from the end of a window, so that a time cut to milliseconds stays inside it.
BEFORE_END = 1_000
# Any double keeps this many decimal digits.
DIGITS = 15


class RollupWindow(NamedTuple):
    """A window of a customer and meter: start and length in µs, and the start of its part within one billing period."""

    customer: str
    meter: str
    start: int
    length: int
    at: int


def list_unfit_meters(catalog: Catalog) -> list[str]:
    """Return the names of the meters that the provider would bill and that cannot be rolled up."""
    return [meter.name for meter in catalog.meters if meter.kind in AT_PROVIDER - ADDITIVE]


class RollupReader:
    """Reads the quantities of a catalog's sums and counts from accepted events."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._meters = catalog.meters
        fed: dict[str, list[tuple[int, Meter]]] = {}
        for place, meter in enumerate(catalog.meters):
            if meter.kind in ADDITIVE:
                fed.setdefault(meter.event_name, []).append((place, meter))
        self._names = {name: NameReader(name, meters) for name, meters in fed.items()}

    def read(self, payloads: Sequence[bytes]) -> Iterator[tuple[int, str, int]]:
        """Yield the event's index, the meter's name and the quantity times 10²⁴ of each reading."""
        by_name: dict[str, list[tuple[int, msgspec.Raw]]] = {}
        for place, payload in enumerate(payloads):
            name, properties = read_fields(payload)
            if name in self._names:
                by_name.setdefault(name, []).append((place, properties))
        for name, events in by_name.items():
            known = self._names[name]
            columns = known.build_columns(known.decode_properties([properties for _, properties in events]))
            for feed in known.feeds:
                passed = feed.passes(columns).tolist() if feed.passes else [True] * len(events)
                values = columns(feed.key) if AGGREGATES[feed.kind].reads == "number" else [1] * len(events)
                if feed.takes_text:
                    values = list(map(to_number, values))
                for (place, _), takes, value in zip(events, passed, values, strict=True):
                    if takes and (quantity := _to_quantity(value)) is not None:
                        yield place, self._meters[feed.meter].name, quantity

    def find_window(self, customer: str, meter: str, at: int, length: int) -> RollupWindow:
        """Return the window that contains an event of time `at`."""
        catalog = self._catalog
        start = at - at % length
        begun, _ = find_exact_period(catalog.period_of(customer), catalog.zone_of(customer), at)
        return RollupWindow(customer, meter, start, length, max(start, begun))

    def compute_event_time(self, window: RollupWindow) -> int:
        """Return the time (µs) of the window's events: just before its end, or its part of the period's."""
        catalog = self._catalog
        policy, zone = catalog.period_of(window.customer), catalog.zone_of(window.customer)
        _, period_end = find_exact_period(policy, zone, window.at)
        return max(window.at, min(window.start + window.length, period_end) - BEFORE_END)


def split_exact(whole: int) -> list[int | float]:
    """Split a positive quantity times 10²⁴ into numbers that arrive exactly and add up to it; nearly always one."""
    number = to_exact_number(_to_number(whole))
    if number is not None:
        return [number]
    units, rest = divmod(whole, SCALE)
    found: list[int | float] = []
    while units:
        some = min(units, INT_MAX)
        found.append(some)
        units -= some
    while rest:
        # Each step takes the leading digits of the rest.
        cut = 10 ** max(len(str(rest)) - DIGITS, 0)
        head = rest - rest % cut
        found.append(float(to_decimal(head)))
        rest -= head
    return found


def build_event(window: RollupWindow, quantity: int | float, count: int, revision: int) -> tuple[str, bytes]:
    """Return the id and the bytes, in Dodo's form, of the event that adds this quantity to a window."""
    id = xxh3_128_hexdigest(msgspec.msgpack.encode((*window, revision))) + f"-r{revision}"
    metadata = {
        "sum": quantity,
        "count": count,
        "window": format_instant(window.start),
        "seconds": window.length // 1_000_000,
        "revision": revision,
    }
    name = window.meter + SUFFIX
    body = {"event_id": id, "customer_id": window.customer, "event_name": name, "metadata": metadata}
    return id, msgspec.json.encode(body)


def _to_quantity(value: object) -> int | None:
    """Return a reading times 10²⁴, None if it is not a quantity.

    That includes values that only a later catalog reads, and would reject.
    """
    if type(value) is not int and type(value) is not Decimal:
        return None
    try:
        whole = scale(value)
    except ValueError:
        return None
    return whole if 0 <= whole <= QUANTITY_MAX * SCALE else None


def _to_number(whole: int) -> int | Decimal:
    return whole // SCALE if whole % SCALE == 0 else to_decimal(whole)
