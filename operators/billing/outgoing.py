"""Outgoing events: what may be sent to the billing provider, in which form, and in what batches.

An accepted event becomes an ingest event: a safe id, the provider's customer, the time in UTC and a flat `metadata`.
The properties that a meter of the catalog reads must arrive exactly, or the event is refused with a reason. Properties
that no meter reads are left out if the provider could not take them, because they bill nothing.
Source: Dodo Payments, events; the limits are those of the API reference, with a margin on ages.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec

from tidegate.operators.events.filters import keys_of
from tidegate.operators.events.readings import decode_value, to_number
from tidegate.operators.events.validate import read_data
from tidegate.operators.model.aggregates import ORDERED
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.periods import find_exact_period
from tidegate.operators.model.records import Accepted
from tidegate.operators.model.wire import format_instant

EVENTS_MAX = 1000
BYTES_MAX = 1 << 20
ENVELOPE_BYTES = len(b'{"events":[]}')
PAIRS_MAX, KEY_MAX, VALUE_MAX = 50, 100, 500
INT_MIN, INT_MAX = -(2**63), 2**63 - 1

SECOND = 1_000_000
MINUTE = 60 * SECOND
# The provider accepts times from an hour ago to five minutes ahead; the margin allows for time in flight.
AGE_MAX, AHEAD_MAX = 55 * MINUTE, 4 * MINUTE
# A restamped event is billed in the period in which it arrives, so it must not be sent shortly before the end.
PERIOD_MARGIN = 2 * MINUTE
# How far the provider's clock may differ from ours until it has been measured.
CLOCK_SKEW_MAX = 5 * MINUTE
ORIGINAL_TIME = "orig_ts"
PROVIDER_ID_PREFIX = "cus_"

Late = Literal["restamp", "park"]
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PACK, _UNPACK = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Accepted])
_NO_DATA = msgspec.Raw(b"{}")


class Refusal(NamedTuple):
    """Why an event cannot be billed: a code of docs/semantics.md, and what was expected and found."""

    reason: str
    detail: str


class BillableFields(NamedTuple):
    """The fields that billing reads from an event of either form."""

    name: str
    properties: msgspec.Raw


class OutgoingEvent(NamedTuple):
    """An event in the form in which it is sent. `trimmed` is the number of unread properties that were left out."""

    body: bytes
    trimmed: int


class BillingRules:
    """The catalog's rules for billing: what is read, which provider customer is billed, in which period."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._needed: dict[str, frozenset[str]] = {}
        self._texts: dict[str, frozenset[str]] = {}
        self._ordered = {meter.event_name for meter in catalog.meters if meter.kind in ORDERED}
        for meter in catalog.meters:
            keys = {meter.key} if meter.key is not None else set()
            keys |= keys_of(meter.filter) if meter.filter else set()
            self._needed[meter.event_name] = self._needed.get(meter.event_name, frozenset()) | keys
            if meter.numbers == "text":
                texts = self._texts.get(meter.event_name, frozenset())
                self._texts[meter.event_name] = texts | {meter.key or ""}

    def find_billing_id(self, customer: str) -> str | None:
        """Return the provider's id of a customer: the catalog's, or the customer's own id if it has its prefix."""
        known = self._catalog.customers.get(customer)
        if known and known.billing_id:
            return known.billing_id
        return customer if customer.startswith(PROVIDER_ID_PREFIX) else None

    def may_restamp(self, customer: str, at: int, now: int, ahead: int | None = 0) -> bool:
        """Return whether an event of time `at` is billed in the same period if it takes the time `now` instead.

        `ahead` is how far the provider's clock is ahead of ours (µs), None if unknown.
        """
        catalog = self._catalog
        start, end = find_exact_period(catalog.period_of(customer), catalog.zone_of(customer), at)
        if ahead is None:
            return start + CLOCK_SKEW_MAX <= now < end - PERIOD_MARGIN - CLOCK_SKEW_MAX
        return start <= now + ahead < end - PERIOD_MARGIN

    def is_ordered(self, payload: bytes) -> bool:
        """Return whether a `last` meter may read the event, so that a later time would make it the newest value."""
        return bool(self._ordered) and read_fields(payload).name in self._ordered

    def build_event(
        self, id: str, billing_id: str, at: int, payload: bytes, *, restamp: bool = False
    ) -> OutgoingEvent | Refusal:
        """Return the event as bytes to send, or why it is refused.

        A restamped event has no time, so the provider assigns one; its original time becomes a property.
        """
        name, properties = read_fields(payload)
        needed = self._needed.get(name, frozenset())
        metadata, trimmed = _select_metadata(properties, needed, self._texts.get(name, frozenset()))
        if isinstance(metadata, Refusal):
            return metadata
        event: dict[str, Any] = {"event_id": id, "customer_id": billing_id, "event_name": name}
        if restamp:
            if ORIGINAL_TIME in needed or (len(metadata) == PAIRS_MAX and needed.issuperset(metadata)):
                detail = (
                    f"needs room for {ORIGINAL_TIME!r} among {PAIRS_MAX} properties, which meters read all"
                )
                return Refusal("no_room_for_original_time", detail)
            trimmed += _make_room(metadata, needed)
            metadata[ORIGINAL_TIME] = format_instant(at)
        else:
            event["timestamp"] = format_instant(at)
        event["metadata"] = metadata
        return OutgoingEvent(msgspec.json.encode(event), trimmed)


def pack(events: Sequence[Accepted]) -> bytes:
    """Encode accepted events as one byte string, for the exchange between workers."""
    return _PACK.encode(events)


def unpack(packed: bytes) -> list[Accepted]:
    """Decode what `pack` encoded."""
    return _UNPACK.decode(packed)


def read_fields(payload: bytes) -> BillableFields:
    """Return the name and properties of an accepted event, which is known to have them."""
    event = _MEMBERS.decode(payload)
    cloud = "specversion" in event
    name, properties = (
        ("type", read_data(event)) if cloud else ("event_name", event.get("metadata", _NO_DATA))
    )
    return BillableFields(decode_value(event[name]), properties if bytes(properties) != b"null" else _NO_DATA)


def to_exact_number(value: int | Decimal) -> int | float | None:
    """Return the number as JSON carries it to the provider, or None if it would not arrive exactly.

    A decimal arrives exactly if the shortest text of its double is the same number, which holds for up to 15 digits.
    """
    if isinstance(value, int):
        return value if INT_MIN <= value <= INT_MAX else None
    if not value.is_finite() or value.adjusted() > 300:
        return None
    number = float(value)
    return number if Decimal(repr(number)) == value else None


def split_batches(
    sizes: Sequence[int], events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX
) -> list[slice]:
    """Return slices of events of these sizes in bytes, within both limits; a larger event stands alone."""
    parts: list[slice] = []
    start, total = 0, ENVELOPE_BYTES
    for place, size in enumerate(sizes):
        if place > start and (place - start == events_max or total + size + 1 > bytes_max):
            parts.append(slice(start, place))
            start, total = place, ENVELOPE_BYTES
        total += size + 1
    return [*parts, slice(start, len(sizes))] if sizes else []


def _select_metadata(
    properties: msgspec.Raw, needed: frozenset[str], texts: frozenset[str]
) -> tuple[dict[str, Any] | Refusal, int]:
    """Return the properties to send, those that meters read first, and how many are left out.

    Numbers written as text under a key in `texts` are sent as numbers, because our meters read them and the provider's
    would not.
    """
    members = _MEMBERS.decode(properties)
    # Stable, so that the others keep their order.
    ordered = sorted(members, key=lambda key: key not in needed)
    metadata: dict[str, Any] = {}
    for key in ordered:
        value = _convert_property(key, members[key], as_number=key in texts)
        if not isinstance(value, Refusal) and len(metadata) == PAIRS_MAX:
            value = Refusal("too_many_properties", f"needs {PAIRS_MAX} properties at most that meters read")
        if not isinstance(value, Refusal):
            metadata[key] = value
        elif key in needed and value.reason != "not_scalar":
            return value, 0
    return metadata, len(members) - len(metadata)


def _convert_property(
    key: str, raw: msgspec.Raw, *, as_number: bool = False
) -> str | int | float | bool | Refusal:
    """Return a property as it is sent, or why it cannot be. A null, a list or an object is no value to any meter."""
    if bytes(raw)[:1] in (b"{", b"[", b"n"):
        return Refusal("not_scalar", f"{key}: needs a text, a number or a boolean")
    if not 0 < len(key) <= KEY_MAX:
        return Refusal("key_too_long", f"{key[:40]}…: needs 1 to {KEY_MAX} characters, got {len(key)}")
    value = to_number(decode_value(raw)) if as_number else decode_value(raw)
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) <= VALUE_MAX:
            return value
        return Refusal("value_too_long", f"{key}: needs {VALUE_MAX} characters at most, got {len(value)}")
    number = to_exact_number(value)
    if number is None:
        return Refusal(
            "number_not_exact", f"{key}: {str(value)[:40]} fits neither 64 bits nor a double exactly"
        )
    return number


def _make_room(metadata: dict[str, Any], needed: Mapping[str, Any] | frozenset[str]) -> int:
    """Drop the last unread property if there is no room for another one; return how many were dropped."""
    if ORIGINAL_TIME in metadata or len(metadata) < PAIRS_MAX:
        return 0
    del metadata[next(key for key in reversed(metadata) if key not in needed)]
    return 1
