"""Odd events and odd catalogs: as JSON, and as the oracle knows them."""

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from tests.faults.changes.oracle import HOUR, MINUTE, Meter, Sent, Value

CUSTOMERS = ("acme", "Zoë", 'quo"te', "back\\slash", "👩‍💻 dev", "a-b,c")
NAMES = ("call", "token.used", "größe", 'job "x"')
KEYS = ("n", 'quo"te', "back\\slash", "k.é")
METERS = tuple(
    Meter(f"{kind}-{number}", NAMES[number], kind, "" if kind == "count" else KEYS[number], number == 3)
    for number in range(len(NAMES))
    for kind in ("count", "sum", "max", "min", "last", "unique")
)
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 24 * HOUR
SECOND = 1_000_000

# JSON text of a property, and what it is.
ODD_VALUES: tuple[tuple[str, Value], ...] = (
    ("1000000000000000", Fraction(10**15)), ("1e15", Fraction(10**15)), ("0", Fraction(0)), ("-0", Fraction(0)),
    ("0.000000000000000000000001", Fraction(1, 10**24)), ("1e-24", Fraction(1, 10**24)), ("2.50", Fraction(5, 2)),
    ("999999999999999.999999999999999999999999", Fraction(10**39 - 1, 10**24)), ("1e16", Fraction(10**16)),
    ("-1", Fraction(-1)), ("1e-25", Fraction(1, 10**25)), ("1e99999", Fraction(10**99)),
    ("-1e400", Fraction(-(10**99))),
    ('"900"', "900"), ('""', ""), ("true", True), ("null", None), ("[1]", None), ('{"n":1}', None),
    ('"é\\u0000"', "é\0"),
)  # fmt: skip
BROKEN: tuple[tuple[str, str], ...] = (
    ("{", "not_json"), ("NaN", "not_json"), ('{"specversion":"1.0"', "not_json"), ("1", "not_an_object"),
    ("null", "not_an_object"), ("{}", "unknown_shape"), ('{"specversion":"0.3"}', "specversion_unsupported"),
    ('{"specversion":"1.0","id":"","source":"s","type":"t","subject":"u"}', "id_invalid"),
    ('{"event_id":"x","customer_id":7,"event_name":"call"}', "customer_invalid"),
    ('{"event_id":"x","customer_id":"acme","event_name":"call","timestamp":"yesterday"}', "time_invalid"),
    ('{"event_id":"x","customer_id":"acme","event_name":"call","timestamp":"1926-01-01T00:00:00Z"}',
     "time_out_of_range"),
    ('{"event_id":"x","customer_id":"acme","event_name":"call","timestamp":"2026-01-01T00:00:00Z","metadata":[]}',
     "data_not_object"),
)  # fmt: skip


def micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def written(at: int) -> str:
    """An instant in RFC 3339."""
    return (EPOCH + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")


class Events:
    """Events around a present, of which some repeat what was sent before."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._sent: list[Sent] = []
        self._serial = 0

    def elements(self, count: int, now: int) -> list[Sent]:
        """Return so many events, of which the wrong dates stand alone."""
        return [self._element(now) for _ in range(count)]

    def payload(self, elements: list[Sent]) -> bytes:
        """Return a line that holds them: itself, or an array."""
        if len(elements) == 1:
            return elements[0].raw
        return b"[" + b" , ".join(each.raw for each in elements) + b"]"

    def _element(self, now: int) -> Sent:
        rng = self._rng
        if rng.random() < 0.04:
            text, reason = rng.choice(BROKEN)
            return Sent(text.encode(), reason)
        if self._sent and rng.random() < 0.15:
            return self._repeated(rng.choice(self._sent[-60:]), now)
        self._serial += 1
        identity = rng.choice(CUSTOMERS), rng.choice(("api", "")), f"e{self._serial}"
        sent = self._made(
            identity, rng.choice(NAMES) if rng.random() < 0.93 else "unknown", self._moment(now), self._data()
        )
        self._sent.append(sent)
        return sent

    def _moment(self, now: int) -> int:
        rng = self._rng
        match rng.randrange(20):
            case 0:
                return now + rng.choice((365 * 70, 30, -400, -3)) * DAY
            case 1 | 2:
                return now - rng.randrange(20 * HOUR)
            case 3:
                return now - now % HOUR + rng.choice((-1, 0))
            case _:
                return now - rng.randrange(MINUTE)

    def _repeated(self, sent: Sent, now: int) -> Sent:
        """The same again; with another time; or with other data or another name."""
        rng = self._rng
        match rng.randrange(6):
            case 0 | 1:
                return self._made(
                    sent.identity, sent.name, now - rng.randrange(MINUTE), (sent.data, sent.values)
                )
            case 2:
                return self._made(sent.identity, sent.name, sent.at, self._data())
            case 3:
                return self._made(sent.identity, rng.choice(NAMES), sent.at, (sent.data, sent.values))
            case _:
                return sent

    def _data(self) -> tuple[str, tuple[tuple[str, Value], ...]]:
        rng = self._rng
        texts: dict[str, str] = {}
        values: dict[str, Value] = {}
        for key in KEYS:
            if rng.random() < 0.8:
                plain = str(rng.randint(0, 99))
                texts[key], values[key] = (
                    rng.choice(ODD_VALUES) if rng.random() < 0.2 else (plain, Fraction(plain))
                )
        if rng.random() < 0.7:
            texts["paid"], values["paid"] = "true", True
        members = ",".join(f"{json.dumps(key, ensure_ascii=False)}:{text}" for key, text in texts.items())
        return "{" + members + "}", tuple(values.items())

    def _made(
        self,
        identity: tuple[str, str, str],
        name: str,
        at: int,
        data: tuple[str, tuple[tuple[str, Value], ...]],
    ) -> Sent:
        customer, source, id = identity
        text, values = data
        quoted = {k: json.dumps(v, ensure_ascii=False) for k, v in (("c", customer), ("i", id), ("n", name))}
        if source:
            body = f'"data":{text}'
            if self._rng.random() < 0.1:
                # The same data; only a payload of the log and files, as the binding's headers need the service.
                body = f'"data_base64":"{base64.b64encode(text.encode()).decode()}"'
            raw = (
                f'{{"specversion":"1.0","id":{quoted["i"]},"source":"{source}","type":{quoted["n"]},'
                f'"subject":{quoted["c"]},"time":"{written(at)}",{body}}}'
            )
        else:
            raw = (
                f'{{"event_id":{quoted["i"]},"customer_id":{quoted["c"]},"event_name":{quoted["n"]},'
                f'"timestamp":"{written(at)}","metadata":{text}}}'
            )
        return Sent(raw.encode(), "", identity, name, at, text, values)


class Edition(NamedTuple):
    """A catalog: its text, its meters, and whether it may be refused (None: it must be)."""

    text: str
    meters: list[Meter]
    may_be_refused: bool = False


class Catalogs:
    """A catalog that changes step by step; whatever it was before it may become again."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.meters = rng.sample(METERS, 6)
        self._ever = {meter.name: meter for meter in self.meters}
        self._plan: dict[str, Any] = {"period": {"type": "calendar", "every": "day"}, "limits": {}}
        self._customers: dict[str, Any] = {}
        self.editions = [self._edition()]

    def change(self, now: int) -> Edition:
        """Return the next edition, or one of before, or one that is wrong; `adopt` what came into force."""
        rng = self._rng
        match rng.randrange(12):
            case 0:
                return rng.choice(self.editions)._replace(may_be_refused=True)
            case 1:
                return self._wrong()
            case 2 | 3 | 4:
                self._change_meters()
            case 5 | 6:
                self._plan["period"] = self._period(now)
            case 7 | 8:
                own: dict[str, Any] = {"period": self._period(now), "zone": rng.choice(ZONES)}
                self._customers[rng.choice(CUSTOMERS)] = {
                    key: own[key] for key in own if rng.random() < 0.7
                } | {"plan": "p"}
            case 9:
                self._plan["zone"] = rng.choice(ZONES)
            case _:
                self._change_limits()
        edition = self._edition()
        self.editions.append(edition)
        return edition

    def adopt(self, edition: Edition) -> None:
        """Go on from this edition's meters."""
        self.meters = list(edition.meters)

    def _change_meters(self) -> None:
        rng = self._rng
        gone = [meter for meter in METERS if meter not in self.meters]
        if gone and (len(self.meters) < 3 or rng.random() < 0.6):
            self.meters.append(rng.choice(gone))
        else:
            self.meters.remove(rng.choice(self.meters))
        named = {meter.name for meter in self.meters}
        for terms in (self._plan, *self._customers.values()):
            terms["limits"] = {
                name: limit for name, limit in terms.get("limits", {}).items() if name in named
            }

    def _change_limits(self) -> None:
        rng = self._rng
        cap, on_cap = rng.choice((0, 1, 50, 1e15)), rng.choice(("block", "allow", "warn"))
        limit: dict[str, Any] = {"cap": cap, "on_cap": on_cap}
        if rng.random() < 0.5:
            limit["thresholds"] = ["50%", "100%"] if cap else []
        of = rng.choice((self._plan, *self._customers.values()))
        of.setdefault("limits", {})[rng.choice(self.meters).name] = limit

    def _period(self, now: int) -> dict[str, Any]:
        """A kind of period, mostly short, some of which begin where another does and end elsewhere."""
        rng = self._rng
        midnight = now - now % DAY
        match rng.randrange(6):
            case 0 | 1:
                return {"type": "calendar", "every": rng.choice(("hour", "day", "week", "month"))}
            case 2 | 3:
                return {
                    "type": "anchored",
                    "every": rng.choice((1, 2, 3)),
                    "unit": "day",
                    "anchor": written(midnight),
                }
            case 4:
                edges = [
                    midnight - 30 * DAY,
                    midnight,
                    midnight + rng.choice((1, 2, 30)) * DAY + rng.choice((0, HOUR)),
                ]
                return {"type": "billing", "edges": [written(edge) for edge in edges]}
            case _:
                return {"type": "never"}

    def _wrong(self) -> Edition:
        """What has to be refused, in any of many ways."""
        rng = self._rng
        made = self._body()
        match rng.randrange(8):
            case 0:
                return Edition("meters: [", [], True)
            case 1:
                return Edition("", [], True)
            case 2:
                made["plans"]["p"]["zone"] = "Mars/Olympus"
            case 3:
                made["plans"]["p"]["limits"] = {"no-such-meter": {"cap": 1}}
            case 4:
                made["default_plan"] = "none"
            case 5:
                made["surprise"] = 1
            case 6:
                made["plans"]["p"]["limits"] = {self.meters[0].name: {"cap": -1}}
            case _:
                other = {"type": "max", "key": "other"}
                made["meters"][0]["aggregation"] = other
        return Edition(json.dumps(made, ensure_ascii=False), [], True)

    def _edition(self) -> Edition:
        return Edition(json.dumps(self._body(), ensure_ascii=False), list(self.meters))

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "meters": [_entry(meter) for meter in self.meters],
                    "default_plan": "p",
                    "plans": {"p": self._plan},
                    "customers": self._customers,
                }
            )
        )
        return body


def _entry(meter: Meter) -> dict[str, Any]:
    aggregation = {"type": meter.kind, "key": meter.key} if meter.key else {"type": meter.kind}
    entry: dict[str, Any] = {"name": meter.name, "event_name": meter.event_name, "aggregation": aggregation}
    if meter.paid_only:
        clause = {"key": "paid", "operator": "equals", "value": True}
        entry["filter"] = {"conjunction": "and", "clauses": [clause]}
    return entry
