"""Accepted events that no meter reads: why not, how they are counted, and within which bounds."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import msgspec
import pytest

from tidegate.operators.billing.outgoing import BillingRules, OutgoingEvent
from tidegate.operators.billing.provider import MeterReader
from tidegate.operators.billing.rollup import RollupReader
from tidegate.operators.columns.quantity import scale
from tidegate.operators.events.decode import Decoder
from tidegate.operators.events.unmetered import NOTHING_MISSED, Cause
from tidegate.operators.metering import unmetered_rows
from tidegate.operators.metering.shard import Shard
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.metering.unmetered_rows import (
    CUSTOMERS_OF_ONE_CAUSE,
    NAMES_MAX,
    NAMES_OF_ONE,
    NOTES_AT_ONCE,
    OTHER,
)
from tidegate.operators.model.alert_text import write_sentence, write_title
from tidegate.operators.model.catalog import Catalog, Condition, Filter, Meter
from tidegate.operators.model.ports import Payloads
from tidegate.operators.model.records import Alert
from tidegate.operators.model.wire import encode_alert

NOON = 1_768_046_400_000_000
CATALOG = Catalog(
    (
        Meter("tokens", "llm.tokens", "sum", "tokens"),
        Meter("peak", "job", "max", "n", Filter("and", (Condition("region", "equals", "eu"),))),
        Meter("users", "login", "unique", "user"),
        Meter("calls", "call", "count"),
        Meter("size", "call", "sum", "size"),
        Meter("both", "two", "sum", "a"),
        Meter("other", "two", "sum", "b"),
        Meter("us", "two", "sum", "c", Filter("and", (Condition("region", "equals", "us"),))),
    )
)
LATENESS = timedelta(days=1)


def event(id: str, name: str, data: object, customer: str = "acme") -> bytes:
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": id,
            "source": "s",
            "type": name,
            "subject": customer,
            "time": "2026-01-10T12:00:00Z",
            "data": data,
        }
    )


class One:
    """A decoder and a shard."""

    def __init__(self, frames: Iterable[Frame] = ()) -> None:
        self.decoder = Decoder(CATALOG, shards=1, clock="wall")
        self.shard = Shard.restore(0, CATALOG, LATENESS, "wall", frames)

    def send(self, *events: bytes) -> list[Alert]:
        """Apply one poll; the alerts of it."""
        chunks = self.decoder.decode(Payloads(b"\n".join(events), NOON, None, "test"))
        return [alert for _, chunk in chunks for alert in self.shard.apply(chunk).alerts]

    def causes(self, customer: str = "") -> dict[Cause, int]:
        return {cause: row.events for (of, cause), row in self.shard.unmetered.rows.items() if of == customer}


CASES = [
    ("llm.tokenz", {"tokens": 5}, Cause("llm.tokenz", "unknown_name")),
    ("llm.tokens", {}, Cause("llm.tokens", "key_missing", "tokens", "tokens")),
    ("llm.tokens", None, Cause("llm.tokens", "key_missing", "tokens", "tokens")),
    ("llm.tokens", {"Tokens": 5}, Cause("llm.tokens", "key_missing", "tokens", "tokens")),
    ("llm.tokens", {"tokens": "900"}, Cause("llm.tokens", "text_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": "-9.5e3"}, Cause("llm.tokens", "text_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": " 900"}, Cause("llm.tokens", "not_a_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": "١٢"}, Cause("llm.tokens", "not_a_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": "1\n"}, Cause("llm.tokens", "not_a_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": None}, Cause("llm.tokens", "not_a_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": True}, Cause("llm.tokens", "not_a_number", "tokens", "tokens")),
    ("llm.tokens", {"tokens": [5]}, Cause("llm.tokens", "not_a_number", "tokens", "tokens")),
    ("job", {"n": 5, "region": "us"}, Cause("job", "no_filter_matched", "peak")),
    ("job", {"n": "5", "region": "eu"}, Cause("job", "text_number", "peak", "n")),
    ("login", {"user": None}, Cause("login", "not_a_value", "users", "user")),
    ("call", {"size": "1"}, Cause("call", "text_number", "size", "size", partly=True)),
    ("two", {"region": "eu"}, Cause("two", "key_missing", "both", "a")),
    ("two", {"b": "1"}, Cause("two", "text_number", "other", "b")),
    ("two", {"b": 1}, Cause("two", "key_missing", "both", "a", partly=True)),
]


@pytest.mark.parametrize(("name", "data", "cause"), CASES)
def test_an_event_that_is_not_read_has_one_cause(name: str, data: object, cause: Cause) -> None:
    """Also beside events that are read; and its alert says so, under an id of the cause."""
    one = One()
    good = event("good", "llm.tokens", {"tokens": 1})
    alerts = one.send(good, event("bad", name, data), event("fine", "call", {"size": 2}))
    assert one.causes() == one.causes("acme") == {cause: 1}
    assert one.shard.counts["accepted"] == 3
    assert one.shard.counts["metered"] == (3 if cause.partly else 2)
    assert one.shard.counts.get("unmetered", 0) == one.shard.counts.get(f"unmetered:{cause.reason}", 0)
    assert one.shard.counts.get("unmetered", 0) == (0 if cause.partly else 1)
    told = [(a.kind, a.state, a.level, a.meter, a.event_name) for a in alerts]
    # A property that only some meters need may be left out on purpose.
    is_optional = cause.partly and cause.reason == "key_missing"
    announced = ("unmetered", "announced", cause.reason, cause.meter, name)
    assert told == ([] if is_optional else [announced])
    assert one.send(event("again", name, data)) == []
    (row,) = [row for key, row in one.shard.unmetered.rows.items() if key == ("", cause)]
    assert (row.events, row.customer, row.event_id) == (2, "acme", "again")


def test_where_everything_is_read_nothing_is_looked_at() -> None:
    decoder = Decoder(CATALOG, shards=1, clock="wall")
    block = b"\n".join(event(str(i), "llm.tokens", {"tokens": i}) for i in range(5))
    ((_, chunk),) = decoder.decode(Payloads(block, NOON, None, "test"))
    assert chunk.missed is NOTHING_MISSED


def test_repeats_and_rejects_are_not_counted_as_unmetered() -> None:
    one = One()
    one.send(event("1", "x", {}), event("1", "x", {}), event("2", "llm.tokens", {"tokens": -1}), b"{}")
    one.send(event("1", "x", {}), event("1", "x", {"other": 1}))
    assert one.causes() == {Cause("x", "unknown_name"): 1}
    assert one.shard.counts["unmetered"] == 1


def test_one_customer_cannot_take_the_place_of_others_names() -> None:
    """A customer who invents names has NAMES_OF_ONE of them; all events are counted all the same."""
    one = One()
    alerts = one.send(*(event(str(i), f"<b>{i}\u0000", {}) for i in range(3_000)))
    assert len(alerts) == NAMES_OF_ONE + 1 and len({alert.id for alert in alerts}) == NAMES_OF_ONE + 1
    assert one.causes()[Cause(OTHER, "unknown_name")] == 3_000 - NAMES_OF_ONE
    one.send(event("typo", "llm.tokenz", {}, "other"))
    assert one.causes()[Cause("llm.tokenz", "unknown_name")] == 1
    assert sum(one.causes().values()) == one.shard.counts["unmetered"] == 3_001


def test_names_and_customers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, across restarts too; what meters can't read keeps its rows."""
    monkeypatch.setattr(unmetered_rows, "NAMES_MAX", 100)
    monkeypatch.setattr(unmetered_rows, "CUSTOMER_ROWS_MAX", 200)
    one, frames = One(), list[Frame]()
    for start in range(0, 600, 200):
        one.send(
            *(event(f"{i}", f"name {i}", {}, f"customer {i}") for i in range(start, start + 200)),
            *(event(f"{i}", "llm.tokens", {}, f"reader {i}") for i in range(start, start + 200)),
        )
        frames += one.shard.take_delta()
        one = One(frames)
    causes = one.causes()
    assert len(causes) == 100 + 2
    assert causes[Cause(OTHER, "unknown_name")] == 500
    missing = Cause("llm.tokens", "key_missing", "tokens", "tokens")
    assert causes[missing] == 600
    rows = one.shard.unmetered.rows
    assert sum(1 for customer, _ in rows if customer) <= 200
    assert sum(1 for customer, cause in rows if customer and cause == missing) == CUSTOMERS_OF_ONE_CAUSE
    assert sum(causes.values()) == one.shard.counts["unmetered"] == 1_200
    assert NAMES_MAX == 1_000


def test_what_was_counted_survives_a_restart_and_is_written_again() -> None:
    """All rows go to the store after it, as the last ones before it may not have; a few at a time."""
    one = One()
    one.send(*(event(f"{i}", f"name {i}", {}, f"customer {i}") for i in range(300)))
    written = {note.id for note in one.shard.unmetered.drain_notes(0)}
    assert len(written) == NOTES_AT_ONCE and one.shard.unmetered.is_behind
    frames = one.shard.take_delta()
    one.send(event("later", "name 1", {}, "customer 1"))
    frames += one.shard.take_delta()
    again = One(frames)
    assert again.causes() == one.causes() and again.shard.counts == one.shard.counts
    assert again.send(event("even later", "name 1", {}, "customer 1")) == []
    notes = again.shard.unmetered.drain_notes(0, all=True)
    assert len(notes) == len({note.id for note in notes}) == len(again.shard.unmetered.rows)
    assert written < {note.id for note in notes} and not again.shard.unmetered.is_behind
    (body,) = [
        msgspec.json.decode(note.body)
        for note in notes
        if note.kind == "unmetered" and b'"name 1"' in note.body
    ]
    assert body == {
        "event_name": "name 1",
        "reason": "unknown_name",
        "meter": "",
        "key": "",
        "partly": False,
        "events": 3,
        "first_at": "2026-01-10T12:00:00.000000Z",
        "last_at": "2026-01-10T12:00:00.000000Z",
        "customer": "customer 1",
        "event_id": "even later",
    }


def test_a_state_of_the_version_before_says_that_it_did_not_tell() -> None:
    """What it accepted is neither metered nor unmetered, and the counters balance."""
    one = One()
    one.send(event("1", "llm.tokens", {"tokens": 1}), event("2", "x", {}))
    old = []
    for frame in one.shard.take_delta():
        if frame.stream == "state":
            fields = msgspec.msgpack.decode(frame.body, strict=False)
            del fields["unmetered"]
            fields["counts"] = {
                name: n for name, n in fields["counts"].items() if not name.startswith(("metered", "unmet"))
            }
            frame = frame._replace(body=msgspec.msgpack.encode(fields))
        old.append(frame)
    again = One(old)
    assert again.shard.counts["unclassified"] == 2
    again.send(event("3", "llm.tokens", {"tokens": 1}), event("4", "x", {}))
    newer = One([*old, *again.shard.take_delta()])
    counts = newer.shard.counts
    assert counts["accepted"] == counts["metered"] + counts["unmetered"] + counts["unclassified"] == 4


TEXTS = Catalog(
    (Meter("tokens", "llm", "sum", "n", numbers="text"), Meter("peak", "llm", "max", "n", numbers="text")),
    on_unmetered="dead_letter",
)
"""Both meters read texts, and what no meter reads is refused."""


@pytest.mark.parametrize(
    ("value", "total", "reason"),
    [
        ("900", 900, None),
        (900, 900, None),
        ("0.1", "0.1", None),
        ("1E+2", 100, None),
        ("-0", 0, None),
        ("1000000000000000", 10**15, None),
        ("1e-24", "0." + "0" * 23 + "1", None),
        ("-1", 0, "quantity_out_of_range"),
        ("1e16", 0, "quantity_out_of_range"),
        ("1e-25", 0, "quantity_out_of_range"),
        ("1e999999999", 0, "quantity_out_of_range"),
        ("9" * 5000, 0, "quantity_out_of_range"),
        ("1,000", 0, "unmetered"),
        ("٣", 0, "unmetered"),
        ("0x10", 0, "unmetered"),
        ("01", 0, "unmetered"),
        ("NaN", 0, "unmetered"),
        ("", 0, "unmetered"),
        (None, 0, "unmetered"),
    ],
)
def test_texts_count_as_numbers_where_a_meter_says_so(
    value: object, total: object, reason: str | None
) -> None:
    """As JSON writes numbers and within the same bounds, in every place that reads quantities."""
    payload = event("1", "llm", {"n": value})
    decoder, shard = Decoder(TEXTS, shards=1, clock="wall"), Shard(0, TEXTS, LATENESS, "wall")
    ((_, chunk),) = decoder.decode(Payloads(payload, NOON, None, "test"))
    dead = shard.apply(chunk).dead
    assert [letter.reason for letter in dead] == ([] if reason is None else [reason])
    found = {each.meter: each.total for each in shard.drain_totals() if each.window == "hour"}
    assert found == ({} if reason else {"tokens": total, "peak": total})
    assert shard.counts.get("accepted", 0) == shard.counts.get("metered", 0) == (0 if reason else 1)
    assert "unmetered" not in shard.counts
    if reason is None:
        whole = scale(Decimal(str(total)))
        rolled = {meter: quantity for _, meter, quantity in RollupReader(TEXTS).read([payload])}
        assert rolled == {"tokens": whole}
        out = BillingRules(TEXTS).build_event("id", "cus_1", NOON, payload)
        # What the provider is sent is a number, as it would not read the text; where that is not exact, it says so.
        if isinstance(out, OutgoingEvent):
            sent = json.loads(out.body, parse_float=Decimal)["metadata"]["n"]
            assert type(sent) is not str and scale(sent) == whole
        assert MeterReader(TEXTS.meters[0]).read([{"n": value}]) == [whole]


def test_a_dead_letter_of_what_no_meter_reads_says_why_and_may_come_again() -> None:
    """It is no accepted event, so once a catalog meters it, the same event counts."""
    strict = replace(TEXTS, meters=(replace(TEXTS.meters[0], numbers="strict"),))
    decoder, shard = Decoder(strict, shards=1, clock="wall"), Shard(0, strict, LATENESS, "wall")
    payload = event("1", "llm", {"n": "900"})
    ((_, chunk),) = decoder.decode(Payloads(payload, NOON, None, "test"))
    (letter,) = shard.apply(chunk).dead
    assert (letter.reason, letter.payload) == ("unmetered", payload)
    assert letter.detail == "'n' is a number written as text, which the meter 'tokens' does not read"
    shard.adopt_catalog(1, TEXTS, 0, 0)
    ((_, chunk),) = Decoder(TEXTS, shards=1, clock="wall", number=1).decode(
        Payloads(payload, NOON, None, "test")
    )
    assert shard.apply(chunk).dead == []
    assert shard.counts["rejects"] == shard.counts["accepted"] == shard.counts["metered"] == 1


def test_the_sample_of_a_cause_is_the_last_event_whoever_sent_it() -> None:
    """Also where a poll has events of other customers in between, and whatever their times are."""
    one = One()
    one.send(
        event("1", "x", {}, "b"), event("2", "x", {}, "a"), event("3", "y", {}), event("4", "x", {}, "b")
    )
    rows = one.shard.unmetered.rows
    cause = Cause("x", "unknown_name")
    assert (rows["", cause].customer, rows["", cause].event_id, rows["", cause].first_customer) == (
        "b",
        "4",
        "b",
    )
    assert [rows[customer, cause].event_id for customer in ("a", "b")] == ["2", "4"]
    one.send(event("5", "x", {}, "a"))
    assert (rows["", cause].customer, rows["", cause].event_id, rows["", cause].events) == ("a", "5", 4)
    assert rows["b", cause].event_id == "4"


def test_a_snapshot_holds_what_changed_since_the_one_before() -> None:
    one = One()
    one.send(event("1", "x", {}), event("2", "y", {}))

    def saved() -> list[str]:
        (state,) = [frame for frame in one.shard.take_delta() if frame.stream == "state"]
        return sorted(
            cause[0] for _, cause, _ in msgspec.msgpack.decode(state.body, strict=False)["unmetered"]
        )

    assert saved() == ["x", "x", "y", "y"]
    assert saved() == []
    one.send(event("3", "y", {}))
    assert saved() == ["y", "y"]


def test_the_alert_is_a_sentence_in_mail_and_chat() -> None:
    """Which names the property as it is."""
    catalog = Catalog((Meter("tokens", "llm.tokens", "sum", "input_tokens"),))
    decoder, shard = Decoder(catalog, shards=1, clock="wall"), Shard(0, catalog, LATENESS, "wall")
    ((_, chunk),) = decoder.decode(Payloads(event("1", "llm.tokens", {}), NOON, None, "test"))
    (alert,) = shard.apply(chunk).alerts
    line = json.loads(encode_alert(alert))
    assert (line["event_name"], line["customer"], line["level"]) == ("llm.tokens", "", "key_missing")
    assert write_sentence(line) == (
        "Tidegate · tokens: An event is not metered: "
        "it has no property 'input_tokens', which the meter 'tokens' reads"
    )
    assert write_title(line) == "Unmetered: tokens"


def test_shards_and_replays_give_a_cause_one_alert() -> None:
    """Whichever customer sends the first event of it, so that receivers may drop what they have by its id."""

    def alert(customer: str, id: str) -> Alert:
        (alert,) = One().send(event(id, "llm.tokenz", {}, customer))
        return alert

    assert alert("acme", "1") == alert("globex", "2")
