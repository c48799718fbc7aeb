"""Deliberate errors: events lost, doubled, or sent by nobody, and totals that are off."""

import random
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from simulator.state.identifiers import draw_chance
from simulator.state.instants import from_datetime
from simulator.state.platform import Platform, skew_key
from simulator.state.records import EventInput, StoredEvent


class Drop(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Events to lose, by id, or `count` drawn ones. `remember` keeps their ids, so that a repeat is ignored."""

    event_ids: list[str] = []
    count: Annotated[int, Meta(ge=0)] = 0
    remember: bool = False


class Double(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Events to count twice, by id or `count` drawn ones: under the same id, or each under a new one."""

    event_ids: list[str] = []
    count: Annotated[int, Meta(ge=0)] = 0
    new_ids: bool = False


class Skew(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`units`, a signed decimal, to add to the history of a cycle: the current one, or the one from `start`."""

    subscription_id: str
    meter_id: str
    units: Annotated[str, Meta(pattern=r"^-?\d+(\.\d+)?$")]
    start: Annotated[datetime, Meta(tz=True)] | None = None


def drop(platform: Platform, order: Drop) -> list[str]:
    ids = order.event_ids or _draw(platform, order.count)
    for id in ids:
        platform.events.drop(id)
    if order.remember:
        platform.events.tombstones.update(ids)
        platform.memory.tombstones = sorted(platform.events.tombstones)
    platform.note_change()
    return ids


def double(platform: Platform, order: Double) -> list[str]:
    """Double the events; return the ids that now exist twice, or the new ones."""
    ids = order.event_ids or _draw(platform, order.count)
    doubles = [msgspec.structs.replace(platform.events.get(id), stored_at=platform.now) for id in ids]
    if order.new_ids:
        for event in doubles:
            event.event_id = platform.new_id("evt")
    platform.events.store(doubles)
    return [event.event_id for event in doubles]


def insert(platform: Platform, events: list[EventInput]) -> int:
    """Store events past all rules, such as one that another producer sent, or one of last week."""
    now = platform.now
    stored = [
        StoredEvent(
            0,
            event.event_id,
            event.customer_id,
            event.event_name,
            now if event.timestamp is None else from_datetime(event.timestamp),
            now,
            event.metadata,
        )
        for event in events
        if event.event_id not in platform.events
    ]
    platform.events.store(stored)
    return len(stored)


def skew(platform: Platform, order: Skew) -> None:
    subscription = platform.subscriptions.get(order.subscription_id)
    platform.meters.get(order.meter_id)
    start = subscription.current.start if order.start is None else from_datetime(order.start)
    platform.memory.skews[skew_key(subscription.subscription_id, start, order.meter_id)] = order.units


def _draw(platform: Platform, count: int) -> list[str]:
    ids = platform.events.list_ids()
    draws = platform.memory.numbers.get("draws", 0) + 1
    platform.memory.numbers["draws"] = draws
    return random.Random(draw_chance(platform.memory.seed, "draws", draws)).sample(ids, min(count, len(ids)))
