"""Seeded random traffic: a catalog, and payload lines that try everything docs/semantics.md speaks of.

Everything follows from the seed, so a disagreement is told by one number. Values are kept as JSON text
until a line is written; that way an event can be written again in another form, or just not quite the same.
"""

import json
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple

from tests.reference.malformed import MALFORMED, plain_event
from tidegate.operators.model.aggregates import Kind
from tidegate.operators.model.catalog import (
    Catalog,
    Condition,
    Customer,
    Filter,
    Limit,
    Meter,
    Numbers,
    OnUnmetered,
    Operator,
    Plan,
    Threshold,
    Tier,
)
from tidegate.operators.model.periods import Anchored, Billing, Calendar, Never, Policy

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ZONES = (
    "UTC",
    "UTC",
    "Europe/Berlin",
    "Asia/Kathmandu",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Havana",
)
# Changes of the clock in those zones, ends of months and years, a leap day; and one quiet day.
MOMENTS = (
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 3, 8, 7, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC),
    datetime(2026, 1, 31, 23, tzinfo=UTC),
    datetime(2024, 2, 29, 12, tzinfo=UTC),
    datetime(2025, 12, 31, 20, tzinfo=UTC),
    datetime(2026, 6, 17, 12, tzinfo=UTC),
)
LATENESSES = (1, 6, 24, 24, 24 * 7, 24 * 35)
NAMES = ("call", "token.used", "job", "größe")
UNKNOWN = ("unmetered", "Call", "call ", "job\u0000", "größe" * 50)
SOURCES = ("api", "api/eu", "a,b")
# Beyond the exponents that Decimal holds; the last one is 0.
FAR = (
    "1e99999999999999999999",
    "-10e99999999999999999998",
    "1e-99999999999999999999",
    "0e99999999999999999999",
)
CUSTOMERS = ("acme", "a-b,c", "a", "Zoë", "客户", "x" * 256, "with space", 'quo"te', "back\\slash", "😀")


class Case(NamedTuple):
    """A catalog and what is sent under it; `sent_at` is the moment (µs) at which each line was sent."""

    catalog: Catalog
    lines: list[bytes]
    lateness: timedelta
    sent_at: list[int]


def micros(at: datetime) -> int:
    """Microseconds since the epoch."""
    return (at - EPOCH) // timedelta(microseconds=1)


# Catalogs


def random_catalog(rng: random.Random) -> Catalog:
    """Meters of every aggregation, several per event name; plans, overrides and a default plan or none.

    `calls` sums `n` of every `call`, so that a bad `n` there is always a bad quantity.
    """
    meters = [Meter("calls", "call", "sum", "n")]
    for name in NAMES[: rng.randint(2, 4)]:
        for i in range(rng.randint(1, 4)):
            kind: Kind = rng.choice(("count", "sum", "max", "min", "last", "last", "unique"))
            key = None if kind == "count" else rng.choice(("n", "n", "size", "region", "paid"))
            filter = random_filter(rng, 3) if rng.random() < 0.5 else None
            reads_numbers = kind in ("sum", "max", "min", "last")
            numbers: Numbers = "text" if reads_numbers and rng.random() < 0.25 else "strict"
            meters.append(Meter(f"{name}/{kind}{i}", name, kind, key, filter, numbers=numbers))
    rng.shuffle(meters)
    plans = {name: random_plan(rng, name, meters) for name in ("free", "pro")}
    named = rng.sample(CUSTOMERS, rng.randint(1, len(CUSTOMERS)))
    customers = {name: random_customer(rng, name, meters) for name in named}
    on_unmetered: OnUnmetered = "dead_letter" if rng.random() < 0.2 else "count"
    return Catalog(tuple(meters), plans, customers, rng.choice((None, "free", "pro")), on_unmetered)


def changed_catalog(rng: random.Random, catalog: Catalog) -> Catalog:
    """The same meters under other plans: periods whose ends or starts move, other zones, other limits."""
    meters = list(catalog.meters)
    plans = {name: changed_plan(rng, plan, meters) for name, plan in catalog.plans.items()}
    customers = {
        name: random_customer(rng, name, meters) if rng.random() < 0.3 else customer
        for name, customer in catalog.customers.items()
    }
    return Catalog(catalog.meters, plans, customers, rng.choice((None, "free", "pro")))


def changed_plan(rng: random.Random, plan: Plan, meters: list[Meter]) -> Plan:
    """One thing or another."""
    match rng.randrange(4):
        case 0:
            return replace(plan, zone=rng.choice((None, *ZONES)))
        case 1:
            return replace(plan, limits=random_limits(rng, meters, 0.7))
        case _:
            return replace(plan, period=changed_policy(rng, plan.period))


def changed_policy(rng: random.Random, policy: Policy) -> Policy:
    """Often one whose periods begin where they did and end elsewhere."""
    match policy:
        case Anchored(every, unit, anchor) if rng.random() < 0.7:
            return Anchored(min(rng.choice((every * 2, every * 3, 1)), 120), unit, anchor)
        case Billing(edges) if edges and rng.random() < 0.7:
            last = edges[-1] + timedelta(minutes=rng.randint(1, 2000))
            return Billing(rng.choice((edges[:-1], (*edges, last), (*edges[:-1], last))))
    return random_policy(rng)


def random_filter(rng: random.Random, depth: int) -> Filter:
    """Up to three levels of and/or over conditions of every operator."""
    clauses: list[Condition | Filter] = []
    for _ in range(rng.randint(1, 3)):
        nested = depth > 1 and rng.random() < 0.3
        clauses.append(random_filter(rng, depth - 1) if nested else random_condition(rng))
    return Filter(rng.choice(("and", "or")), tuple(clauses))


def random_condition(rng: random.Random) -> Condition:
    """A condition that real properties often meet and often miss."""
    operator: Operator
    match rng.randrange(4):
        case 0:
            operator = rng.choice(("equals", "not_equals", "contains", "does_not_contain"))
            return Condition(rng.choice(("region", "n")), operator, rng.choice(("eu", "us", "u", "EU", "")))
        case 1:
            return Condition("paid", rng.choice(("equals", "not_equals")), rng.random() < 0.5)
        case _:
            operator = rng.choice(
                ("equals", "not_equals", "greater_than", "greater_than_or_equals", "less_than",
                 "less_than_or_equals")
            )  # fmt: skip
            value = rng.choice((0, 1, 5, Decimal("0.1"), Decimal("1.50"), 10, Decimal("9007199254740993")))
            return Condition(rng.choice(("n", "size", "region")), operator, value)


def random_plan(rng: random.Random, name: str, meters: list[Meter]) -> Plan:
    zone = rng.choice((None, *ZONES))
    return Plan(name, random_policy(rng), zone, random_limits(rng, meters, 0.7))


def random_customer(rng: random.Random, name: str, meters: list[Meter]) -> Customer:
    return Customer(
        name,
        plan=rng.choice(("free", "pro")),
        zone=rng.choice((None, *ZONES)),
        period=random_policy(rng) if rng.random() < 0.6 else None,
        limits=random_limits(rng, meters, 0.3),
    )


def random_policy(rng: random.Random) -> Policy:
    """Mostly short periods, as only what closes can be late for it."""
    match rng.randrange(8):
        case 0 | 1 | 2:
            return Calendar(rng.choice(("hour", "day")))
        case 3 | 4:
            return Calendar(rng.choice(("month", "week")))
        case 5:
            # Half past each hour is skipped or repeated somewhere when a clock changes.
            anchor = datetime(2025, 12, 31, 23, 30, 15, tzinfo=UTC) - timedelta(hours=rng.randint(0, 1500))
            unit: Literal["day", "month"] = rng.choice(("day", "month"))
            return Anchored(rng.randint(1, 10), unit, anchor)
        case 6:
            moment = rng.choice(MOMENTS)
            steps = sorted(rng.sample(range(-2000, 2000), rng.randint(0, 5)))
            return Billing(tuple(moment + timedelta(minutes=step) for step in steps))
        case _:
            return Never()


def random_limits(rng: random.Random, meters: list[Meter], share: float) -> dict[str, Limit]:
    return {meter.name: random_limit(rng) for meter in meters if rng.random() < share}


def random_limit(rng: random.Random) -> Limit:
    """A limit that a few dozen events pass and corrections fall below; thresholds at distinct values."""
    cap = rng.choice((None, Decimal(rng.randint(0, 60)), Decimal("12.5"), Decimal("1000")))
    included = rng.choice((None, Decimal(rng.randint(0, 40)), Decimal("7.25")))
    whole = cap if cap is not None else included
    values: dict[Decimal, Threshold] = {}
    for _ in range(rng.randint(0, 4)):
        if whole is not None and rng.random() < 0.6:
            percent = Decimal(rng.choice((10, 25, 50, 80, 90, 100, 120)))
            values[percent / 100 * whole] = Threshold(percent=percent)
        else:
            absolute = Decimal(rng.choice((0, 1, 3, 9, 30, 200))) / rng.choice((1, 1, 4))
            values[absolute] = Threshold(absolute=absolute)
    thresholds = list(values.values())
    rng.shuffle(thresholds)
    return Limit(
        included=included,
        cap=cap,
        thresholds=tuple(thresholds),
        hysteresis_pct=Decimal(rng.choice((0, 0, 5, 20, 100))),
        tiers=(Tier(None, Decimal("0.01")),) if included is not None else (),
    )


# Events


@dataclass
class Sent:
    """An event as someone means to send it; `properties` are JSON texts, None is no data at all.

    `data` is the text that was sent for the properties once, so that a retry sends the same. `timed` says whether it
    carries its time, or leaves that to the transport.
    """

    cloud: bool
    customer: str
    source: str
    id: str
    name: str
    at: int
    properties: dict[str, str] | None = field(default_factory=dict)
    data: str | None = None
    timed: bool = True

    def with_data(self, rng: random.Random, plain: bool = False) -> "Sent":
        """The same with its properties written down."""
        if self.properties is None:
            return replace(self, data="null")
        return replace(self, data=json_object(rng, list(self.properties.items()), plain))


def written(rng: random.Random, sent: Sent, plain: bool = False) -> bytes:
    """The event as JSON; unless plain, in any order, spacing and spelling that means the same."""
    data = sent.data or sent.with_data(rng, plain).data or ""
    time = json.dumps(spelled(rng, sent.at, plain))
    if sent.cloud:
        fields = [
            ("specversion", '"1.0"'), ("id", quoted(rng, sent.id, plain)),
            ("source", quoted(rng, sent.source, plain)), ("type", quoted(rng, sent.name, plain)),
            ("subject", quoted(rng, sent.customer, plain)), ("time", time), ("data", data),
        ]  # fmt: skip
    else:
        fields = [
            ("event_id", quoted(rng, sent.id, plain)), ("customer_id", quoted(rng, sent.customer, plain)),
            ("event_name", quoted(rng, sent.name, plain)), ("timestamp", time), ("metadata", data),
        ]  # fmt: skip
    if not sent.timed:
        fields = [(key, value) for key, value in fields if key not in ("time", "timestamp")]
    if rng.random() < 0.1:
        unknown = rng.choice(('"application/json"', "null", "[1, 2.50]", '{"a":{}}'))
        fields.append(("datacontenttype", unknown))
    return json_object(rng, fields, plain).encode()


def json_object(rng: random.Random, members: list[tuple[str, str]], plain: bool) -> str:
    """An object of these members; unless plain, shuffled, spaced and with a key said twice."""
    if plain:
        return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in members) + "}"
    members = rng.sample(members, len(members))
    if members and rng.random() < 0.1:
        members.insert(0, (rng.choice(members)[0], rng.choice(("0", '"before"', "null", "{}"))))

    def gap() -> str:
        return rng.choice(("", "", " ", "\t", "  ", "\r"))

    spaced = (f"{gap()}{quoted(rng, key, False)}{gap()}:{gap()}{value}{gap()}" for key, value in members)
    return "{" + ",".join(spaced) + "}"


def quoted(rng: random.Random, text: str, plain: bool) -> str:
    """The text in JSON, with or without escapes."""
    if not plain and text and rng.random() < 0.2 and ord(text[0]) < 0x10000:
        return f'"\\u{ord(text[0]):04x}' + json.dumps(text[1:])[1:]
    return json.dumps(text, ensure_ascii=plain or rng.random() < 0.5)


def spelled(rng: random.Random, at: int, plain: bool = False) -> str:
    """RFC 3339 of an instant, in any offset and with any number of digits that name it."""
    offset = 0 if plain else rng.choice((0, 0, 60, -300, 345, 1439, -1439, -210))
    wall = EPOCH + timedelta(microseconds=at, minutes=offset)
    text = wall.strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{wall.microsecond:06}"
    if not plain:
        text = rng.choice((text, text, text.lower()))
        digits = digits.rstrip("0") if rng.random() < 0.5 else digits + rng.choice(("", "000", "9", "123456"))
    text += f".{digits}" if digits else ""
    if offset:
        return f"{text}{'+' if offset > 0 else '-'}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    return text + ("Z" if plain else rng.choice(("Z", "Z", "z", "+00:00", "-00:00")))


def random_number(rng: random.Random) -> str:
    """A JSON number, mostly a small quantity."""
    match rng.randrange(12):
        case 0 | 1 | 2 | 3:
            return str(rng.randint(0, 12))
        case 4 | 5:
            return rng.choice(
                ("0.1", "0.2", "0.3", "1.5", "2.50", "1.0", "1e0", "1E+1", "10e-1", "-0", "0.0")
            )
        case 6:
            return repr(rng.random())
        case 7:
            return repr(rng.random() * 10 ** rng.randint(-5, 14))
        case 8:
            return str(rng.randint(0, 10**15))
        case 9:
            return rng.choice(("1000000000000000", "999999999999999." + "9" * 24, "1e-24", "1e15", "10e-25"))
        case _:
            return f"{rng.randint(0, 99)}.{rng.randint(0, 10**9):09}"


TEXTS = (
    '"1"', '"0.1"', '"2.50"', '"1E+1"', '"-1"', '"1e16"', '"1e999999999"', '"\\u0031"', '" 1"', '"+1"', '"01"',
    '"1."', '"٣"', f'"{"9" * 5000}"',
)  # fmt: skip
"""Numbers as texts, and texts that are nearly numbers."""


def random_value(rng: random.Random) -> str:
    """Anything that a property may be."""
    text = rng.choice(TEXTS)
    return rng.choice(
        (random_number(rng), text, text, '"eu"', '""', "true", "false", "null", "[]", "[1,2]", '{"n":1}',
         '"\\u0000"', '"😀"')
    )  # fmt: skip


def random_properties(rng: random.Random) -> dict[str, str] | None:
    """Mostly numbers where numbers belong; now and then a quantity out of range."""
    if rng.random() < 0.02:
        return rng.choice((None, {}))
    properties = {}
    if rng.random() < 0.95:
        properties["n"] = random_number(rng) if rng.random() < 0.93 else random_value(rng)
    if rng.random() < 0.6:
        properties["size"] = random_number(rng) if rng.random() < 0.8 else random_value(rng)
    if rng.random() < 0.7:
        properties["region"] = rng.choice(
            ('"eu"', '"us"', '"eu-west"', '"EU"', '"\\u0065u"', "5", "null", "0", rng.choice(FAR))
        )
    if rng.random() < 0.5:
        properties["paid"] = rng.choice(("true", "false", '"true"', "1", "null"))
    if rng.random() < 0.01:
        bad = (
            "-1",
            "-0.5",
            "1e16",
            "1000000000000000.1",
            "1e-25",
            "1e999999999",
            "-1e999999999",
            "9" * 4000,
            *FAR[:3],
        )
        properties[rng.choice(("n", "size"))] = rng.choice(bad)
    return properties


class Traffic:
    """A stream that moves on in time and, as streams do, repeats itself, falls behind and breaks."""

    def __init__(self, rng: random.Random, n: int) -> None:
        self.rng = rng
        self.catalog = random_catalog(rng)
        self.lateness = timedelta(hours=rng.choice(LATENESSES))
        span = rng.choice((6 * HOUR, DAY, 3 * DAY, 40 * DAY))
        self.clock = micros(rng.choice(MOMENTS)) - rng.randrange(span)
        self.pace = span / n
        strangers = [f"stranger {i}" for i in range(rng.randint(2, 30))]
        self.customers = [*self.catalog.customers, *strangers]
        self.sent: list[Sent] = []
        self.latest: dict[str, int] = {}
        self.serial = 0

    def line(self) -> bytes:
        """The next payload: one event, an array of a few, or something broken."""
        self.clock += int(self.rng.expovariate(1) * self.pace)
        dice = self.rng.random()
        if dice < 0.01:
            return self._malformed()
        if dice < 0.06:
            inner = [self._event() for _ in range(self.rng.randint(0, 5))]
            if self.rng.random() < 0.2:
                bad = self.rng.choice((b"1", b"{}", b"[]", b'"x"', b"null", b"[{}]"))
                inner.insert(self.rng.randint(0, len(inner)), bad)
            comma, gap = self.rng.choice(((b",", b""), (b" , ", b" "), (b",\t", b" \r")))
            return b"[" + gap + comma.join(inner) + gap + b"]"
        blank = self.rng.choice((b"",) * 9 + (b" ", b"\r", b"\t "))
        return blank + self._event() + blank

    def _malformed(self) -> bytes:
        row = self.rng.choice(MALFORMED)
        self.serial += 1
        return row.make(plain_event(f"malformed {self.serial}", self.rng.choice(self.customers), self.clock))

    def _event(self) -> bytes:
        rng = self.rng
        if self.sent and rng.random() < 0.12:
            near = rng.random() < 0.8
            sent = rng.choice(self.sent[-300:] if near else self.sent)
            return written(rng, self._repeated(sent), plain=rng.random() < 0.3)
        self.serial += 1
        cloud = rng.random() < 0.6
        customer = rng.choice(self.customers) if rng.random() < 0.7 else self.customers[0]
        # Now and then one of few ids: the same under another customer or source is another event.
        id = f"{self.serial}" if rng.random() < 0.95 else rng.choice(("7", "a", "acme", *SOURCES))
        sent = Sent(
            cloud,
            customer,
            source=rng.choice(SOURCES) if cloud else "",
            id=id,
            name=rng.choice(NAMES) if rng.random() < 0.96 else rng.choice(UNKNOWN),
            at=self._moment(customer),
            properties=random_properties(rng),
        )
        self.latest[customer] = max(sent.at, self.latest.get(customer, sent.at))
        plain = rng.random() < 0.7
        sent = sent.with_data(rng, plain)
        self.sent.append(sent)
        return written(rng, sent, plain)

    def _moment(self, customer: str) -> int:
        """When the next event happened: mostly just now, sometimes longer ago than is allowed."""
        rng = self.rng
        lateness = self.lateness // timedelta(microseconds=1)
        latest = self.latest.get(customer, self.clock)
        if rng.random() < 0.004:
            # A date that is wrong by days or years, as a clock is that was never set.
            return self.clock + rng.choice((2, 365, 73 * 365, -400)) * DAY
        match rng.randrange(22):
            case 0:
                return self.clock - rng.randrange(3 * HOUR)
            case 1:
                return self.clock - rng.randrange(2 * lateness)
            case 2:
                return latest - lateness + rng.choice((-1, 0, 1, rng.randrange(-HOUR, HOUR)))
            case 3:
                return self.clock - self.clock % HOUR + rng.choice((-1, 0, 1))
            case 4 | 5 | 6:
                return self.clock - rng.randrange(10 * MINUTE)
            case 7:
                return self.clock + rng.randrange(10 * MINUTE)
            case 8 | 9:
                return latest
            case _:
                return self.clock - rng.randrange(5 * SECOND)

    def _repeated(self, sent: Sent) -> Sent:
        """The same event, one of the same identity at another time, or one that says otherwise."""
        rng = self.rng
        if rng.random() < 0.5:
            sent = self._moved(sent)
        match rng.randrange(12):
            case 0 | 1:
                changed = {**(sent.properties or {}), "n": random_value(rng)}
                return replace(sent, properties=changed, data=None)
            case 2:
                return replace(sent, name=rng.choice(NAMES))
            case 3:
                return replace(sent, source="api" if sent.cloud else "")
            case 4:
                return replace(sent, data=None)
            case _:
                return sent

    def _moved(self, sent: Sent) -> Sent:
        """The event as a client sends it again that stamps it with a new time, or not at all."""
        rng = self.rng
        lateness = self.lateness // timedelta(microseconds=1)
        latest = self.latest.get(sent.customer, self.clock)
        match rng.randrange(8):
            case 0 | 1:
                return replace(sent, timed=False)
            case 2:
                return replace(sent, at=sent.at + rng.choice((-1, 1, 1000, SECOND, -MINUTE)))
            case 3:
                return replace(sent, at=sent.at + rng.choice((-25, -5, -2, -1, 1, 2, 3, 30)) * HOUR)
            case 4:
                return replace(sent, at=latest - rng.randrange(lateness))
            case 5:
                return replace(sent, at=latest - lateness + rng.choice((-1, 0, 1)))
            case _:
                return replace(sent, at=self.clock)


def traffic(seed: int, n: int = 5000) -> Case:
    """A catalog and `n` lines sent under it, all from the seed."""
    rng = random.Random(seed)
    stream = Traffic(rng, n)
    lines, sent_at = [], []
    for _ in range(n):
        lines.append(stream.line())
        sent_at.append(stream.clock)
    return Case(stream.catalog, lines, stream.lateness, sent_at)
