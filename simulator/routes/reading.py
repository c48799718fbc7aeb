"""Reading events and totals back: `GET /events`, `GET /events/{id}`, usage history."""

from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from simulator.http import views
from simulator.http.calls import Answer, Call, render_page
from simulator.state.filters import passes
from simulator.state.instants import write_instant
from simulator.state.platform import Platform
from simulator.state.problems import missing, wrong_query
from simulator.state.records import Cycle, Meter, PricedMeter, StoredEvent, Subscription
from simulator.state.usage import EXACT, ZERO, format_plain


def list_events(platform: Platform, call: Call) -> Answer:
    """Return the visible events of a customer, a name, a meter (its name and filter), between two times."""
    name, meter = call.read_text("event_name"), _meter(platform, call.read_text("meter_id"))
    if meter and name not in (None, meter.event_name):
        raise wrong_query(f"event_name: the meter reads {meter.event_name!r}, got {name!r}", 400)
    name = meter.event_name if meter else name
    switches = platform.switches
    until = platform.find_visible_since(switches.event_visibility_lag_s)

    def is_wanted(event: StoredEvent) -> bool:
        if event.stored_at > until or name not in (None, event.event_name):
            return False
        return meter is None or passes(meter.filter, event.metadata)

    start, end = call.read_instant("start"), call.read_instant("end")
    found = platform.events.list_events(
        call.read_text("customer_id"), start, end, switches.range_edges, switches.order, is_wanted
    )
    return render_page(platform, call, found, lambda event: views.render_event(platform, event))


def get_event(platform: Platform, call: Call) -> Answer:
    event = platform.events.get(call.params["event_id"])
    if event.stored_at > platform.find_visible_since(platform.switches.event_visibility_lag_s):
        raise missing("event", event.event_id)
    return Answer(200, views.render_event(platform, event))


def usage_history(platform: Platform, call: Call) -> Answer:
    """Return one item per cycle that overlaps the requested range, newest first."""
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    meter = _meter(platform, call.read_text("meter_id"))
    start, end = call.read_instant("start_date"), call.read_instant("end_date")
    if start is not None and end is not None and start > end:
        raise wrong_query("start_date: needs to be before end_date", 400)
    until = platform.find_visible_since(platform.switches.usage_visibility_lag_s)

    def items() -> Iterator[dict[str, Any]]:
        for cycle in reversed(subscription.cycles):
            is_open = cycle.closed_at is None
            if is_open and not platform.switches.open_cycle_in_history:
                continue
            if (start is None or cycle.end > start) and (end is None or cycle.start <= end):
                item = cycle_usage(platform, subscription, cycle, until, meter)
                if item["meters"]:
                    yield item

    return render_page(platform, call, items(), lambda item: item)


def cycle_usage(
    platform: Platform, subscription: Subscription, cycle: Cycle, until: int | None, only: Meter | None = None
) -> dict[str, Any]:
    """Return a cycle's item of the history, of the events stored at or before `until`, or of all."""
    return {
        "start_date": write_instant(cycle.start),
        "end_date": write_instant(cycle.end),
        "meters": [
            _meter_usage(platform, subscription, cycle, priced, until)
            for priced in cycle.meters
            if only is None or priced.meter_id == only.id
        ],
    }


def _meter_usage(
    platform: Platform, subscription: Subscription, cycle: Cycle, priced: PricedMeter, until: int | None
) -> dict[str, Any]:
    meter = platform.meters.get(priced.meter_id)
    consumed = platform.usage.compute_consumed(subscription, cycle, meter, platform.switches, until)
    consumed = EXACT.add(consumed, platform.find_skew(subscription.subscription_id, cycle.start, meter.id))
    free = priced.free_threshold or 0
    chargeable = max(EXACT.subtract(consumed, Decimal(free)), ZERO)
    price = Decimal(priced.price_per_unit or "0")
    return {
        "id": meter.id,
        "name": meter.name,
        "currency": platform.products.get(subscription.product_id).price.currency,
        "consumed_units": format_plain(consumed),
        "free_threshold": free,
        "chargeable_units": format_plain(chargeable),
        "price_per_unit": format_plain(price),
        "total_price": int(EXACT.multiply(chargeable, price).to_integral_value(ROUND_HALF_UP)),
    }


def _meter(platform: Platform, meter_id: str | None) -> Meter | None:
    return None if meter_id is None else platform.meters.get(meter_id)
