"""The reference model: docs/semantics.md as slow, obvious code, for the flow to be held against.

One event at a time, in order of arrival. Dicts, sets and fractions; nothing is forgotten, nothing is
rounded, and every window is looked for from the wall clock anew. It shares the records and the catalog's
values with the product and none of its logic: not the periods, not the numbers, not the decoder.
"""

import base64
import json
import re
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from tests.reference.model_now import Clock, Now
from tidegate.operators.model.catalog import Catalog, Condition, Filter, Limit, Meter
from tidegate.operators.model.periods import Anchored, Billing, Calendar, Policy
from tidegate.operators.model.records import Total

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
EPOCH = datetime(1970, 1, 1)
NEVER_END = (datetime(9999, 12, 31) - EPOCH) // timedelta(microseconds=1)
FIRST_AT = (datetime(2000, 1, 1) - EPOCH) // timedelta(microseconds=1)
LAST_AT = (datetime(2100, 1, 1) - EPOCH) // timedelta(microseconds=1)
WHITE = b" \t\r\n"

Late = Literal["on_time", "late_open", "late_closed"]
Json = Any


RESOLVED = {"threshold": "threshold", "cap": "cap_released", "overage": "overage_ended"}


class Told(NamedTuple):
    """An alert without its hashes: `rule` and the whole `limited_by` stand where id and version would."""

    rule: str
    kind: str
    state: str
    customer: str
    meter: str
    period_start: int
    period_end: int
    level: str
    limit: str | None
    total: str
    at: int
    limited_by: Limit | None
    turn: int


class Unread(NamedTuple):
    """Why events of a name were not read: by any meter, or (`partly`) by one although others read them."""

    name: str
    reason: str
    meter: str
    key: str
    partly: bool


@dataclass
class Seen:
    """The accepted events of one cause, of one customer or of all; the sample is the last that arrived."""

    events: int
    first_at: int
    last_at: int
    customer: str
    id: str

    def take(self, event: "Event") -> None:
        """Count one more."""
        self.events += 1
        self.first_at, self.last_at = min(self.first_at, event.at), max(self.last_at, event.at)
        self.customer, self.id = event.customer, event.id


class Taken(NamedTuple):
    """An accepted event."""

    customer: str
    source: str
    id: str
    at: int
    late: Late
    payload: bytes


class Rejected(Exception):
    """The reason why an event is no event; never leaves the model."""


# Numbers


@dataclass(frozen=True)
class Number:
    """A JSON number as it was written; equal to what was written alike."""

    text: str

    def parts(self) -> tuple[int, int, str]:
        """Sign, power and digits of ±0.DIGITS * 10^power, the digits without zeros at either end."""
        found = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?", self.text)
        assert found, self.text
        minus, whole, fraction, exponent = found.groups("")
        digits = (whole + fraction).lstrip("0")
        power = len(whole) - (len(whole + fraction) - len(digits)) + whole_number(exponent or "0")
        return (-1 if minus else 1, power, digits.rstrip("0")) if digits else (0, 0, "")

    def places(self) -> int:
        """How many digits its value has after the point."""
        _, power, digits = self.parts()
        return max(0, len(digits) - power)

    def value(self) -> Fraction:
        """The exact value. Only for numbers of sane size: 1e999999999 would fill the memory."""
        return Fraction(self.text) if self.parts()[0] else Fraction(0)


def whole_number(text: str) -> int:
    """An integer of any number of digits, which `int` refuses past 4300."""
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    result = 0
    for i in range(0, len(digits), 1000):
        piece = digits[i : i + 1000]
        result = result * 10 ** len(piece) + int(piece)
    return sign * result


def compare(one: Number, other: Number) -> int:
    """Below, equal to or above 0, as `one` is to `other`, exactly and however large they are."""
    (sign, *size), (other_sign, *other_size) = one.parts(), other.parts()
    if sign != other_sign:
        return sign - other_sign
    return sign * ((size > other_size) - (size < other_size))


def text_of(value: Fraction) -> str:
    """Decimal text without exponent and without trailing zeros after the point, of up to 24 places."""
    if value < 0:
        return "-" + text_of(-value)
    whole, rest = divmod(value * 10**24, 10**24)
    assert rest.denominator == 1, value
    return f"{whole}.{int(rest):024}".rstrip("0").rstrip(".")


# Payloads and events


@dataclass(frozen=True)
class Event:
    """An event that can be metered, with what each meter that takes it reads (None: nothing).

    `data` is its JSON text, as it stands in the payload; `unread` says why it was not read, by whom.
    """

    customer: str
    source: str
    id: str
    name: str
    at: int
    data: str
    payload: bytes
    readings: list[tuple[Meter, Json]]
    unread: list[Unread]


def _constant(text: str) -> Json:
    raise ValueError(f"{text} is not JSON")


DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_constant)


def elements(payload: bytes) -> Iterator[tuple[Json, bytes]]:
    """The values that count as events, with their own bytes; ValueError where the payload is not JSON."""
    text = payload.decode()
    try:
        value = DECODER.decode(text)
        # Python lets lone surrogates pass, which are no text: they cannot be encoded.
        json.dumps(value, ensure_ascii=False, default=lambda number: number.text).encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, list):
        yield value, payload
        return
    at = 1
    for _ in value:
        at = skip(text, at, ",")
        element, end = DECODER.raw_decode(text, at)
        yield element, text[at:end].encode()
        at = end


def decoded(event: dict[str, Json]) -> tuple[Json, str]:
    """The data that is in base64, and its JSON text; Rejected where that is not so."""
    media = event.get("datacontenttype")
    json_media = isinstance(media, str) and re.fullmatch(
        r"(application/json|text/json|.*\+json)\s*(;.*)?", media
    )
    if media is not None and not json_media:
        raise Rejected("data_not_object")
    encoded = event["data_base64"]
    if event.get("data") is not None or not isinstance(encoded, str):
        raise Rejected("data_base64_invalid")
    try:
        text = base64.b64decode(encoded, validate=True).decode().strip(" \t\r\n")
        return DECODER.decode(text), text
    except ValueError as error:
        raise Rejected("data_base64_invalid") from error


def as_it_stands(payload: bytes, wanted: str) -> str:
    """The JSON text of an object's member as it was sent, the last of several; {} where there is none."""
    text = payload.decode()
    found = "{}"
    at = 1
    while True:
        at = skip(text, at, ",")
        if text[at] == "}":
            return found
        key, at = DECODER.raw_decode(text, at)
        at = skip(text, at, ":")
        _, end = DECODER.raw_decode(text, at)
        if key == wanted:
            found = text[at:end]
        at = end


def skip(text: str, at: int, mark: str) -> int:
    """The next place that is neither white space nor the mark."""
    while text[at] in " \t\r\n" + mark:
        at += 1
    return at


def is_text(value: Json, most: int) -> bool:
    """Whether it is a text of 1 to `most` characters."""
    return isinstance(value, str) and 1 <= len(value) <= most


def instant_of(text: Json) -> int:
    """Microseconds since the epoch of an RFC 3339 time; ValueError for anything else."""
    found = isinstance(text, str) and re.fullmatch(
        r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
        r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))",
        text,
    )
    if not found:
        raise ValueError(f"no time: {text!r}")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = found.groups("0")[6:]
    if int(offset_hours) > 23 or int(offset_minutes) > 59:
        raise ValueError("no such offset")
    # The calendar repeats every 400 years; so the years that datetime lacks are told as well.
    date = datetime(2000 + year % 400, month, day, hour, minute, min(second, 59))
    days = (year // 400 - 5) * 146_097
    offset = int(offset_hours) * HOUR + int(offset_minutes) * MINUTE
    at = micros(date) + days * 24 * HOUR + (offset if sign == "-" else -offset)
    if second < 60:
        return at + int((fraction + "00000")[:6])
    if second > 60 or at % (24 * HOUR) != 24 * HOUR - SECOND:
        raise ValueError("no such second")
    return at + 999_999


# Meters


def passes(clause: Condition | Filter, data: dict[str, Json]) -> bool:
    """Whether an event's properties satisfy the filter."""
    if isinstance(clause, Condition):
        return holds(clause, data)
    inner = [passes(each, data) for each in clause.clauses]
    return all(inner) if clause.conjunction == "and" else any(inner)


def holds(condition: Condition, data: dict[str, Json]) -> bool:
    """Whether one condition holds; never for a missing property or one of another type."""
    value = condition.value
    wanted = value if isinstance(value, str | bool) else Number(str(value))
    found = data.get(condition.key)
    if type(found) is not type(wanted):
        return False
    if isinstance(found, Number) and isinstance(wanted, Number):
        order = compare(found, wanted)
        return {
            "equals": order == 0,
            "not_equals": order != 0,
            "greater_than": order > 0,
            "greater_than_or_equals": order >= 0,
            "less_than": order < 0,
            "less_than_or_equals": order <= 0,
        }.get(condition.operator, False)
    match condition.operator:
        case "equals":
            return bool(found == wanted)
        case "not_equals":
            return bool(found != wanted)
        case "contains":
            return isinstance(found, str) and str(wanted) in found
        case "does_not_contain":
            return isinstance(found, str) and str(wanted) not in found
    return False


def reading(meter: Meter, data: dict[str, Json]) -> Json:
    """What the meter reads: a fraction, for `unique` also a text or boolean; None where there is nothing."""
    if meter.kind == "count":
        return Fraction(1)
    value = data.get(meter.key or "")
    if meter.numbers == "text" and is_number(value):
        value = Number(str(value))
    if meter.kind == "unique" and isinstance(value, Number):
        return value.parts()
    if isinstance(value, Number):
        too_large = compare(value, Number("1e15")) > 0
        if value.parts()[0] < 0 or too_large or value.places() > 24:
            raise Rejected("quantity_out_of_range")
        return value.value()
    return value if meter.kind == "unique" and isinstance(value, str | bool) else None


RANKS = ("text_number", "not_a_number", "not_a_value", "key_missing")


def is_number(value: Json) -> bool:
    """Whether it is a text in which a JSON number stands, and nothing else."""
    return isinstance(value, str) and bool(
        re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", value, re.A)
    )


def why_not(meter: Meter, data: dict[str, Json]) -> str:
    """Why a meter that takes the event reads nothing of it."""
    if meter.key not in data:
        return "key_missing"
    if meter.kind == "unique":
        return "not_a_value"
    value = data[meter.key]
    return "text_number" if is_number(value) else "not_a_number"


def causes(
    name: str, meters: list[Meter], readings: list[tuple[Meter, Json]], data: dict[str, Json]
) -> list[Unread]:
    """Why an event was not read: one cause where no meter read it, else one for each that could not."""
    could_not = [(why_not(meter, data), meter) for meter, value in readings if value is None]
    if len(could_not) < len(readings):
        return [Unread(name, reason, meter.name, meter.key or "", True) for reason, meter in could_not]
    if could_not:
        reason, meter = min(could_not, key=lambda each: RANKS.index(each[0]))
        return [Unread(name, reason, meter.name, meter.key or "", False)]
    if meters:
        return [Unread(name, "no_filter_matched", meters[0].name if len(meters) == 1 else "", "", False)]
    return [Unread(name, "unknown_name", "", "", False)]


# Windows


def micros(wall: datetime) -> int:
    """A naive time in microseconds since the epoch, as if it were UTC."""
    return (wall - EPOCH) // timedelta(microseconds=1)


def local(at: int, zone: str) -> datetime:
    """What a clock on the wall of that zone shows."""
    utc = (EPOCH + timedelta(microseconds=at)).replace(tzinfo=UTC)
    return utc.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


@cache
def first_instant(wall: datetime, zone: str) -> int:
    """The first instant at which the zone's clock shows `wall` or later, found minute by minute if clocks change."""
    near = [micros(wall) + hours * HOUR for hours in (-15, 0, 15)]
    ahead = {micros(local(at, zone)) - at for at in near}
    if len(ahead) == 1:
        return micros(wall) - ahead.pop()
    minute = micros(wall.replace(second=0)) - 15 * HOUR
    while local(minute, zone) + timedelta(minutes=1) <= wall:
        minute += MINUTE
    return max(minute, minute + micros(wall) - micros(local(minute, zone)))


def stepped(origin: datetime, every: int, unit: str, near: datetime) -> list[datetime]:
    """Wall times `every` days or months apart, counted from `origin`, from well before to well after."""
    return _stepped(origin, every, unit, near.replace(hour=0, minute=0, second=0, microsecond=0))


@cache
def _stepped(origin: datetime, every: int, unit: str, near: datetime) -> list[datetime]:
    margin = timedelta(days=3)
    reach = margin + 2 * every * timedelta(days=1 if unit == "day" else 31)
    walls = []
    k = 0
    while plus(origin, k, unit) > near - reach:
        k -= every
    while plus(origin, k, unit) < near + reach:
        if plus(origin, k, unit) > near - reach:
            walls.append(plus(origin, k, unit))
        k += every
    return walls


def plus(wall: datetime, count: int, unit: str) -> datetime:
    """Days or months later; a day that the month lacks is the month's last."""
    if unit == "day":
        return wall + timedelta(days=count)
    months = wall.year * 12 + wall.month - 1 + count
    for day in (wall.day, 30, 29, 28):
        try:
            return wall.replace(year=months // 12, month=months % 12 + 1, day=day)
        except ValueError:
            continue
    raise AssertionError(wall)


def between(edges: list[int], at: int) -> tuple[int, int]:
    """The neighbouring edges that hold `at`."""
    return max(edge for edge in edges if edge <= at), min(edge for edge in edges if edge > at)


@lru_cache(100_000)
def day_of(zone: str, at: int) -> tuple[int, int]:
    """The local day that holds `at`."""
    return between(_days_near(local(at, zone).date(), zone), at)


@cache
def _days_near(today: date, zone: str) -> list[int]:
    """Where the local days around `today` begin."""
    midnight = datetime.combine(today, time())
    return [first_instant(midnight + timedelta(days=n), zone) for n in range(-2, 4)]


@lru_cache(100_000)
def hour_of(zone: str, at: int) -> tuple[int, int]:
    """The hour since the local day's beginning that holds `at`; the day's last one may be short."""
    start, day_end = day_of(zone, at)
    while start + HOUR <= at:
        start += HOUR
    return start, min(start + HOUR, day_end)


@lru_cache(100_000)
def period_of(policy: Policy, zone: str, at: int) -> tuple[int, int]:
    """The billing period that holds `at`."""
    near = local(at, zone)
    match policy:
        case Calendar("hour"):
            return hour_of(zone, at)
        case Calendar("day"):
            return day_of(zone, at)
        case Calendar("week"):
            walls = stepped(datetime(2024, 1, 1), 7, "day", near)
        case Calendar("month"):
            walls = stepped(datetime(2024, 1, 1), 1, "month", near)
        case Anchored(every, unit, anchor):
            walls = stepped(anchor.astimezone(ZoneInfo(zone)).replace(tzinfo=None), every, unit, near)
        case Billing(edges):
            return between([0, *(micros(edge.replace(tzinfo=None)) for edge in edges), NEVER_END], at)
        case _:
            return 0, NEVER_END
    return between([first_instant(wall, zone) for wall in walls], at)


# Totals and alerts


@dataclass
class Window:
    """The readings of one customer, meter and window, summed up."""

    end: int
    total: Fraction = Fraction(0)
    events: int = 0
    as_of: int = 0
    last_at: int = 0
    late: int = 0
    corrected: int = 0
    steady: bool = True
    adjusted: Fraction = Fraction(0)
    adjustments: int = 0
    seen: set[tuple[type, Json]] = field(default_factory=set)

    def take(self, kind: str, value: Json, at: int, late: Late) -> None:
        """Take one reading in."""
        match kind:
            case "count" | "sum":
                self.total += value
            case "max":
                self.total = max(self.total, value)
            case "min":
                self.total = min(self.total, value) if self.events else value
            case "last":
                self.total = value if at >= self.last_at else self.total
                self.last_at = max(at, self.last_at)
            case "unique":
                self.seen.add((type(value), value))
                self.total = len(self.seen) + self.adjusted
        self.steady = kind not in ("min", "last") and not self.adjustments
        self.events += 1
        self.as_of = max(self.as_of, at)
        self.late += late == "late_open"
        self.corrected += late == "late_closed"


@dataclass
class RuleState:
    """How many levels of a rule hold in one period, and how many alerts told of it."""

    limit: Limit
    holds: int = 0
    turn: int = 0


class Rule(NamedTuple):
    """A rule of a limit: what it tells, and its levels by ascending value."""

    name: str
    raised: str
    resolved: str
    levels: list[tuple[Fraction, str]]

    def holding(self, total: Fraction, slack: Fraction) -> int:
        """How many levels hold when each is lowered to `slack` of its value."""
        if self.name == "overage":
            return sum(total > value * slack for value, _ in self.levels)
        return sum(total >= value * slack if value or not slack else total > 0 for value, _ in self.levels)


@cache
def rules_of(limit: Limit) -> list[Rule]:
    """The rules in the order in which they are evaluated; one without a limit has no levels."""
    whole = limit.cap if limit.cap is not None else limit.included
    thresholds = []
    for each in limit.thresholds:
        if each.absolute is not None:
            thresholds.append((Fraction(each.absolute), text_of(Fraction(each.absolute))))
        elif each.percent is not None and whole is not None:
            value = Fraction(each.percent) / 100 * Fraction(whole)
            thresholds.append((value, text_of(Fraction(each.percent)) + "%"))
    thresholds = [level for level in thresholds if limit.cap is None or level[0] != Fraction(limit.cap)]
    thresholds.sort(key=lambda level: level[0])

    def one(value: Any) -> list[tuple[Fraction, str]]:
        return [] if value is None else [(Fraction(value), text_of(Fraction(value)))]

    return [
        Rule("threshold", "threshold", "threshold", thresholds),
        Rule("cap", "cap_reached", "cap_released", one(limit.cap)),
        Rule("overage", "overage_started", "overage_ended", one(limit.included)),
    ]


class Model:
    """What metering should make of payloads, fed one by one in order of arrival."""

    def __init__(
        self,
        catalog: Catalog,
        lateness: timedelta,
        clock: Clock,
        future: timedelta = timedelta(minutes=5),
        payload_bytes_max: int = 1 << 20,
        shard_of: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self.catalog = catalog
        self.future = future // timedelta(microseconds=1)
        self.now = Now(lateness // timedelta(microseconds=1), clock, self.future, shard_of)
        self.payload_bytes_max = payload_bytes_max
        self.alerts: list[Told] = []
        self.dead: list[tuple[str, bytes]] = []
        self.accepted: list[Taken] = []
        self.counters: Counter[str] = Counter()
        self.unmetered: dict[tuple[str, Unread], Seen] = {}
        self.announced: list[tuple[int, Unread, int]] = []
        self._home = shard_of
        self._remembered: dict[tuple[str, str, str], tuple[Event, int]] = {}
        self._windows: dict[tuple[str, str, str, int], Window] = {}
        self._rules: dict[tuple[str, str, int, str], RuleState] = {}
        self.released: set[tuple[str, str, str, int]] = set()
        self._received = 0

    @property
    def totals(self) -> dict[tuple[str, str, str, int], Total]:
        """The totals as they stand, by customer, meter, window and start."""
        return {key: self._total(key) for key in self._windows}

    def _total(self, key: tuple[str, str, str, int]) -> Total:
        customer, meter, window, start = key
        found = self._windows[key]
        whole = found.total.denominator == 1 and -(2**63) <= found.total < 2**63
        even = found.adjusted.denominator == 1 and -(2**63) <= found.adjusted < 2**63
        return Total(
            customer=customer,
            window=window,  # type: ignore[arg-type]
            meter=meter,
            start=start,
            end=found.end,
            total=int(found.total) if whole else text_of(found.total),
            version=found.events + found.adjustments,
            events=found.events,
            as_of=found.as_of,
            late=found.late,
            corrected=found.corrected,
            adjustment=int(found.adjusted) if even else text_of(found.adjusted),
            steady=found.steady,
        )

    def feed(self, payload: bytes, received_at: int, transport_time: int | None, stream: str = "") -> None:
        """Meter one payload: a line or a message, with the white space around it."""
        self._received = max(self._received, received_at)
        payload = payload.removeprefix(BOM_UTF8).strip(WHITE)
        if not payload:
            return
        if len(payload) > self.payload_bytes_max:
            self._reject("too_large", payload)
            return
        try:
            found = list(elements(payload))
        except ValueError:
            self._reject("not_json", payload)
            return
        for value, own in found:
            try:
                event = self._read(value, own, transport_time or received_at, transport_time)
            except Rejected as reason:
                self._reject(str(reason), own)
            else:
                self._meter(event, stream, transport_time or received_at)

    def _reject(self, reason: str, payload: bytes) -> None:
        self.counters["events"] += 1
        self.counters["rejects"] += 1
        self.dead.append((reason, payload))

    def _read(self, value: Json, own: bytes, taken: int, transport_time: int | None) -> Event:
        """The event that a JSON value is; Rejected with the first reason that fits."""
        if not isinstance(value, dict):
            raise Rejected("not_an_object")
        cloud = "specversion" in value
        if not cloud and "event_id" not in value:
            raise Rejected("unknown_shape")
        if cloud and value["specversion"] != "1.0":
            raise Rejected("specversion_unsupported")
        id: Json = value.get("id" if cloud else "event_id")
        source: Json = value.get("source") if cloud else ""
        customer: Json = value.get("subject" if cloud else "customer_id")
        name: Json = value.get("type" if cloud else "event_name")
        if not is_text(id, 1024):
            raise Rejected("id_invalid")
        if cloud and not is_text(source, 1024):
            raise Rejected("source_invalid")
        if not is_text(customer, 256):
            raise Rejected("customer_invalid")
        if not is_text(name, 256):
            raise Rejected("name_invalid")
        at = self._at(value, cloud, transport_time)
        data = value.get("data" if cloud else "metadata")
        encoded = None
        if cloud and value.get("data_base64") is not None:
            data, encoded = decoded(value)
        if not isinstance(data, dict | None):
            raise Rejected("data_not_object")
        if self.now.clock == "wall" and at > taken + self.future:
            raise Rejected("future")
        meters = [meter for meter in self.catalog.meters if meter.event_name == name]
        taking = [meter for meter in meters if meter.filter is None or passes(meter.filter, data or {})]
        readings = [(meter, reading(meter, data or {})) for meter in taking]
        stands = encoded or as_it_stands(own, "data" if cloud else "metadata")
        unread = causes(name, meters, readings, data or {})
        if self.catalog.on_unmetered == "dead_letter" and any(not cause.partly for cause in unread):
            raise Rejected("unmetered")
        return Event(customer, source, id, name, at, stands, own, readings, unread)

    def _at(self, value: dict[str, Json], cloud: bool, transport_time: int | None) -> int:
        key = "time" if cloud else "timestamp"
        at = transport_time
        if key in value and (cloud or value[key] is not None):
            try:
                at = instant_of(value[key])
            except ValueError as error:
                raise Rejected("time_invalid") from error
        if at is None:
            raise Rejected("time_missing")
        if not FIRST_AT <= at < LAST_AT:
            raise Rejected("time_out_of_range")
        return at

    def _meter(self, event: Event, stream: str, taken: int) -> None:
        self.counters["events"] += 1
        now = self.now.of(event.customer, stream, event.at, taken)
        self.counters["outliers"] = self.now.outliers
        oldest = self.now.oldest(event.customer, now)
        if event.at < oldest:
            self.counters["too_late"] += 1
            self.dead.append(("too_late", event.payload))
            return
        match self._repeats(event, now, oldest):
            case "duplicate":
                self.counters["duplicates"] += 1
            case "conflict":
                self.counters["conflicts"] += 1
                self.dead.append(("conflict", event.payload))
            case None:
                self._accept(event, now)

    def _repeats(self, event: Event, now: int, oldest: int) -> Literal["duplicate", "conflict"] | None:
        identity = event.customer, event.source, event.id
        if identity in self._remembered:
            first, seen = self._remembered[identity]
            # The hour in which it was seen is remembered until nothing as old as that is accepted.
            if seen - seen % HOUR + HOUR > oldest:
                return "duplicate" if (first.name, first.data) == (event.name, event.data) else "conflict"
        self._remembered[identity] = event, max(event.at, now)
        return None

    def _accept(self, event: Event, now: int) -> None:
        self.counters["accepted"] += 1
        zone = self.catalog.zone_of(event.customer)
        period = period_of(self.catalog.period_of(event.customer), zone, event.at)
        hour = hour_of(zone, event.at)
        late: Late = "on_time"
        if period[1] <= now:
            late = "late_closed"
        elif hour[1] <= now:
            late = "late_open"
        self.accepted.append(Taken(event.customer, event.source, event.id, event.at, late, event.payload))
        self._account(event)
        windows = {"period": period, "day": day_of(zone, event.at), "hour": hour}
        for meter, value in event.readings:
            if value is None:
                self.counters[f"not_a_number:{meter.name}"] += 1
                continue
            self.counters[f"matching:{meter.name}"] += 1
            self.counters[f"{'corrected' if late == 'late_closed' else 'counted'}:{meter.name}"] += 1
            for window, (start, end) in windows.items():
                key = event.customer, meter.name, window, start
                self._windows.setdefault(key, Window(end)).take(meter.kind, value, event.at, late)
            self._tell(event, meter, period[0], late)

    def _account(self, event: Event) -> None:
        """Count the event as metered or not; announce a cause that is new to the customer's shard."""
        whole = [cause for cause in event.unread if not cause.partly]
        assert bool(whole) != any(value is not None for _, value in event.readings)
        self.counters["unmetered" if whole else "metered"] += 1
        for cause in whole:
            self.counters[f"unmetered:{cause.reason}"] += 1
        for cause in event.unread:
            shard = self._home(event.customer)
            optional = cause.partly and cause.reason == "key_missing"
            if not optional and not any(told[:2] == (shard, cause) for told in self.announced):
                self.announced.append((shard, cause, event.at))
            for customer in ("", event.customer):
                fresh = Seen(0, event.at, event.at, event.customer, event.id)
                self.unmetered.setdefault((customer, cause), fresh).take(event)

    def _tell(self, event: Event, meter: Meter, start: int, late: Late) -> None:
        """The alerts that one reading sets off, in their order."""
        limit = self.catalog.limit_of(event.customer, meter.name)
        for rule in rules_of(limit):
            self._evaluate(rule, limit, event.customer, meter.name, start, event.at)
        corrected = self._windows[event.customer, meter.name, "period", start].corrected
        if late == "late_closed" and corrected.bit_count() == 1:
            turn = corrected.bit_length()
            self._alert(
                "correction", "correction", "announced", event.customer, meter.name, start,
                str(corrected), None, event.at, turn,
            )  # fmt: skip

    def _evaluate(self, rule: Rule, limit: Limit, customer: str, meter: str, start: int, at: int) -> None:
        key = customer, meter, start, rule.name
        if key not in self._rules or self._rules[key].limit != limit:
            # Also an older period whose limit changed: it is judged anew when a reading comes its way.
            self._rules[key] = RuleState(limit)
        state = self._rules[key]
        total = self._windows[customer, meter, "period", start].total
        held = state.holds
        rising = rule.holding(total, Fraction(1))
        falling = rule.holding(total, 1 - Fraction(limit.hysteresis_pct) / 100)
        if rising > held:
            change, state.holds, level = "raised", rising, rule.levels[rising - 1][1]
        elif falling < held:
            change, state.holds, level = "resolved", falling, rule.levels[held - 1][1]
        else:
            return
        state.turn += 1
        kind = rule.raised if change == "raised" else rule.resolved
        self._alert(rule.name, kind, change, customer, meter, start, level, limit, at, state.turn)

    def _alert(
        self, rule: str, kind: str, state: str, customer: str, meter: str, start: int,
        level: str, limit: Limit | None, at: int, turn: int,
    ) -> None:  # fmt: skip
        window = self._windows[customer, meter, "period", start]
        whole = None if limit is None else limit.cap if limit.cap is not None else limit.included
        told = Told(
            rule=rule,
            kind=kind,
            state=state,
            customer=customer,
            meter=meter,
            period_start=start,
            period_end=window.end,
            level=level,
            limit=None if whole is None else text_of(Fraction(whole)),
            total=text_of(window.total),
            at=at,
            limited_by=limit,
            turn=turn,
        )
        self.alerts.append(told)

    def adjust(self, customer: str, meter: Meter, at: int, amount: Fraction, received_at: int) -> bool:
        """Add to the windows that hold `at`; False where the meter is no sum, the period is gone, or it is too much."""
        if meter.kind in ("max", "min", "last"):
            return False
        self.now.customers.add(customer)
        oldest = self._oldest(customer, received_at)
        zone = self.catalog.zone_of(customer)
        windows = {
            "period": period_of(self.catalog.period_of(customer), zone, at),
            "hour": hour_of(zone, at),
            "day": day_of(zone, at),
        }
        for window, (start, _) in windows.items():
            known = self._windows.get((customer, meter.name, window, start))
            if abs((known.total if known else 0) + amount) > 10**30:
                return False
        for window, (start, end) in windows.items():
            key = customer, meter.name, window, start
            if key not in self._windows and end <= oldest:
                if window == "period":
                    return False
                continue
            found = self._windows.setdefault(key, Window(end))
            found.total += amount
            found.adjusted += amount
            found.adjustments += 1
            found.steady = False
        self.counters["adjustments"] += 1
        limit = self.catalog.limit_of(customer, meter.name)
        for rule in rules_of(limit):
            self._evaluate(rule, limit, customer, meter.name, windows["period"][0], at)
        return True

    def _oldest(self, customer: str, received_at: int) -> int:
        """What counts as forgotten to an adjustment: with the wall clock by when it came, or by what came before."""
        if self.now.clock == "event":
            return self.now.oldest(customer, self.now.latest.get(customer, 0))
        return self.now.oldest(
            customer, max(received_at, self.now.judged.get(self.now.shard_of(customer), 0))
        )

    def _holding(self, received_at: int) -> dict[str, int]:
        """Now, without an event, of each customer: by the event clock, its latest event not ahead of the wall clock."""
        seen: dict[str, int] = defaultdict(int)
        for (customer, *_), found in self._windows.items():
            seen[customer] = max(seen[customer], found.as_of if found.as_of <= received_at else 0)
        if self.now.clock == "event":
            return {one: max(self.now.latest.get(one, 0), at) for one, at in seen.items()}
        return {one: max(received_at, self.now.judged.get(self.now.shard_of(one), 0)) for one in seen}

    def restart(self, catalog: Catalog, received_at: int, applied_at: int | None = None) -> None:
        """Go on under another catalog: ends of windows move, and the periods that hold now are judged by it."""
        self._release(received_at)
        before, self.catalog = self.catalog, catalog
        for key in self._windows:
            self._move_end(key)
        windows: dict[tuple[str, str], list[tuple[str, str, str, int]]] = defaultdict(list)
        for key in sorted(self._windows):
            windows[key[:2]].append(key)
        rules: dict[tuple[str, str], list[tuple[str, str, int, str]]] = defaultdict(list)
        for rule in self._rules:
            rules[rule[:2]].append(rule)
        holding = self._holding(received_at)
        for (customer, meter), keys in windows.items():
            at = received_at if applied_at is None else applied_at
            self._judge(keys, rules[customer, meter], before.limit_of(customer, meter), holding[customer], at)

    def _release(self, received_at: int) -> None:
        """Note the periods that may have been let go of: held for 31 times their length past their end, at most a year.

        Opened again by another catalog they begin at 0, where they were let go of.
        """
        for key, found in self._windows.items():
            if key[2] == "period":
                length = found.end - key[3]
                held = max(length, min(31 * length, 366 * 24 * HOUR))
                if found.end + held <= max(received_at, self._received, self.now.latest.get(key[0], 0)):
                    self.released.add(key)

    def _judge(
        self,
        windows: list[tuple[str, str, str, int]],
        rules: list[tuple[str, str, int, str]],
        before: Limit,
        now: int,
        at: int,
    ) -> None:
        """Judge the periods that are not over, of a customer's windows of a meter, by the limit in force."""
        customer, meter = windows[0][:2]
        limit = self.catalog.limit_of(customer, meter)
        held = {key[2:]: self._rules[key].holds for key in rules}
        if before != limit:
            for start, name in held:
                del self._rules[customer, meter, start, name]
        for key in (key for key in windows if key[2] == "period"):
            start, is_over = key[3], self._windows[key].end <= now
            if is_over or not self._is_boundary(key):
                continue
            for rule in rules_of(limit):
                self._evaluate(rule, limit, customer, meter, start, at)
            for name, resolved in RESOLVED.items() if before != limit else ():
                state = self._rules.setdefault((customer, meter, start, name), RuleState(limit))
                if held.get((start, name)) and not state.holds:
                    state.turn = 1
                    self._alert(name, resolved, "resolved", customer, meter, start, "none", limit, at, 1)

    def _move_end(self, key: tuple[str, str, str, int]) -> None:
        """A window whose start is a boundary of the catalog ends where that says; any other keeps its end."""
        if self._is_boundary(key):
            self._windows[key].end = self._present(key)[1]

    def _is_boundary(self, key: tuple[str, str, str, int]) -> bool:
        return self._present(key)[0] == key[3]

    def _present(self, key: tuple[str, str, str, int]) -> tuple[int, int]:
        """The window of the catalog in force that holds the start of this one."""
        customer, _, window, start = key
        zone = self.catalog.zone_of(customer)
        at = max(start, FIRST_AT)
        match window:
            case "period":
                return period_of(self.catalog.period_of(customer), zone, at)
            case "day":
                return day_of(zone, at)
        return hour_of(zone, at)
