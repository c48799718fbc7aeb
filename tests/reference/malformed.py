"""Lines that are broken, or only look so: one table, with the reason each is rejected for."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Malformed(NamedTuple):
    """A line made from a good event; `reason` is the one dead letter it leaves, None where it leaves none."""

    name: str
    make: Callable[[dict[str, Any]], bytes]
    reason: str | None


def plain_event(id: str, customer: str, at: int) -> dict[str, Any]:
    """A good CloudEvent as a dict; `calls` reads its `n`."""
    time = (EPOCH + timedelta(microseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "specversion": "1.0",
        "id": id,
        "source": "api",
        "type": "call",
        "subject": customer,
        "time": time,
        "data": {"n": 1},
    }


def dodo(event: dict[str, Any]) -> dict[str, Any]:
    """The same event in Dodo's shape."""
    return {
        "event_id": event["id"],
        "customer_id": event["subject"],
        "event_name": event["type"],
        "timestamp": event["time"],
        "metadata": event["data"],
    }


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _with(**changed: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _compact({**event, **changed})


def _without(key: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _compact({name: value for name, value in event.items() if name != key})


def _dodo_with(**changed: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _compact({**dodo(event), **changed})


def _dodo_without(key: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _compact({name: value for name, value in dodo(event).items() if name != key})


def _data(text: str | bytes) -> Callable[[dict[str, Any]], bytes]:
    """The event with this JSON text as its data, also where no JSON library would write it."""
    inner = text.encode() if isinstance(text, str) else text
    return lambda event: _compact({**event, "data": 0})[: -len(b"0}")] + inner + b"}"


def _n(text: str | bytes) -> Callable[[dict[str, Any]], bytes]:
    inner = text.encode() if isinstance(text, str) else text
    return _data(b'{"n":' + inner + b"}")


def _raw(text: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: text


def _around(before: bytes, after: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: before + _compact(event) + after


NOT_JSON = {
    "truncated": lambda event: _compact(event)[:-3],
    "half a line": lambda event: _compact(event)[:20],
    "two values": lambda event: _compact(event) + b" " + _compact(event),
    "trailing comma": _around(b"[", b",]"),
    "trailing text": _around(b"", b" x"),
    "trailing zero byte": _around(b"", b"\0"),
    "two byte order marks": _around(b"\xef\xbb\xbf\xef\xbb\xbf", b""),
    "byte order mark behind": _around(b"", b"\xef\xbb\xbf"),
    "no-break space before": _around(b"\xc2\xa0", b""),
    "utf-16": lambda event: json.dumps(event).encode("utf-16-le").replace(b"\n", b""),
    "bad utf-8 in data": _n(b'"\xff"'),
    "bad utf-8 in a key": _data(b'{"n":1,"\xc3":2}'),
    "bad utf-8 in an unknown field": lambda event: _compact(event)[:-1] + b',"x":"\xed\xa0\x80"}',
    "overlong utf-8": _n(b'"\xc0\x80"'),
    "a lone surrogate": _n('"\\ud800"'),
    "surrogates in the wrong order": _n('"\\udc00\\ud800"'),
    "a lone surrogate in a key": _data('{"n":1,"\\ud83d":2}'),
    "a control character in a text": _n(b'"a\x01b"'),
    "a tab in a text": _n(b'"a\tb"'),
    "NaN": _n("NaN"),
    "Infinity": _n("Infinity"),
    "-Infinity": _n("-Infinity"),
    "leading zero": _n("01"),
    "leading plus": _n("+1"),
    "no digit after the point": _n("1."),
    "no digit before the point": _n(".5"),
    "no digit in the exponent": _n("1e"),
    "hexadecimal": _n("0x10"),
    "digit group": _n("1_000"),
    "arabic digits": _n("\u0661"),
    "a comment": _around(b"", b"//"),
    "single quotes": lambda event: str(event).encode(),
    "an unknown escape": _n('"\\x41"'),
    "half an escape": _n('"\\u00"'),
    "a signed escape": _n('"\\u+041"'),
    "True": _n("True"),
    "a number as key": _data("{1:2}"),
    "a missing colon": _data('{"n" 1}'),
    "deep nesting in data": _n("[" * 100_000 + "]" * 100_000),
    "deep nesting of objects": _n('{"a":' * 100_000 + "1" + "}" * 100_000),
    "deep nesting": _raw(b"[" * 100_000),
    "one broken element": lambda event: b"[" + _compact({**event, "id": 1}) + b',{"id":}]',
}

BAD_TIMES = {
    "no offset": "2026-01-01T00:00:00",
    "a space": "2026-01-01 00:00:00Z",
    "an underscore": "2026-01-01_00:00:00Z",
    "a 13th month": "2026-13-01T00:00:00Z",
    "month 0": "2026-00-01T00:00:00Z",
    "30 February": "2026-02-30T00:00:00Z",
    "29 February of a common year": "2026-02-29T00:00:00Z",
    "29 February 2100": "2100-02-29T00:00:00Z",
    "31 April": "2026-04-31T00:00:00Z",
    "day 0": "2026-01-00T00:00:00Z",
    "hour 24": "2026-01-01T24:00:00Z",
    "minute 60": "2026-01-01T00:60:00Z",
    "second 61": "2026-01-01T23:59:61Z",
    "second 60 at noon": "2026-01-01T12:00:60Z",
    "second 60 at another's midnight": "2026-01-01T23:59:60+01:00",
    "offset +24:00": "2026-01-01T00:00:00+24:00",
    "offset +00:60": "2026-01-01T00:00:00+00:60",
    "offset +0100": "2026-01-01T00:00:00+0100",
    "offset +01": "2026-01-01T00:00:00+01",
    "offset +01:00:00": "2026-01-01T00:00:00+01:00:00",
    "a minus sign of Unicode": "2026-01-01T00:00:00\u221201:00",
    "Z and offset": "2026-01-01T00:00:00Z+01:00",
    "a week date": "2026-W01-1T00:00:00Z",
    "a week date alone": "2026-W01-1",
    "an ordinal date": "2026-001T00:00:00Z",
    "the basic format": "20260101T000000Z",
    "a date": "2026-01-01",
    "no seconds": "2026-01-01T00:00Z",
    "a comma": "2026-01-01T00:00:00,5Z",
    "a point alone": "2026-01-01T00:00:00.Z",
    "one-digit month": "2026-1-01T00:00:00Z",
    "a year of five digits": "12026-01-01T00:00:00Z",
    "a signed year": "+2026-01-01T00:00:00Z",
    "arabic digits": "\u0662\u0660\u0662\u0666-01-01T00:00:00Z",
    "full-width digits": "\uff12\uff1026-01-01T00:00:00Z",
    "full-width digits in the fraction": "2026-01-01T00:00:00.\uff11Z",
    "a space before": " 2026-01-01T00:00:00Z",
    "a newline after": "2026-01-01T00:00:00Z\n",
    "a zone": "2026-01-01T00:00:00Z[UTC]",
    "a zone's name": "2026-01-01T00:00:00 UTC",
    "nothing": "",
    "a long text": "2026-01-01T00:00:00." + "x" * 5000 + "Z",
    "seconds since the epoch": "1767225600",
    "an HTTP date": "Thu, 01 Jan 2026 00:00:00 GMT",
}

FAR_TIMES = {
    "1999": "1999-12-31T23:59:59.999999Z",
    "1999 by a hair": "1999-12-31T23:59:59.9999999Z",
    "1999 by its offset": "2000-01-01T00:00:00+00:01",
    "1999 by a leap second": "1999-12-31T23:59:60Z",
    "2100": "2100-01-01T00:00:00Z",
    "2100 by its offset": "2099-12-31T23:30:00-00:30",
    "1970": "1970-01-01T00:00:00Z",
    "the year 0": "0000-02-29T00:00:00Z",
    "the year 1, before by its offset": "0001-01-01T00:00:00+23:59",
    "the year 9999, after by its offset": "9999-12-31T23:59:59-23:59",
}

BASE64 = "data_base64_invalid"
TEXT_FIELDS = {
    # A field's reason, its name in either shape, and the most characters it may have.
    "id_invalid": ("id", "event_id", 1024),
    "source_invalid": ("source", None, 1024),
    "customer_invalid": ("subject", "customer_id", 256),
    "name_invalid": ("type", "event_name", 256),
}

BAD_QUANTITIES = (
    "-1",
    "-0.000001",
    "1e16",
    "1000000000000000.000001",
    "1e-25",
    "0.1000000000000000000000001",
    "1e999999999",
    "-1e999999999",
    "1e-999999999",
    "1e99999999999999999999",
    "-1e99999999999999999999",
    "1e-99999999999999999999",
    "9" * 5000,
)

FINE = {
    "nothing": _raw(b""),
    "byte order mark": _around(b"\xef\xbb\xbf", b""),
    "byte order mark alone": _raw(b"\xef\xbb\xbf"),
    "data in base64": _with(data=None, data_base64="eyJuIjogMX0="),
    "data in base64 of a type of JSON": _with(
        data=None, data_base64="IHsgIm4iOiAxfQo=", datacontenttype="application/x+json; a=b"
    ),
    "white space": _raw(b" \t\r"),
    "an empty array": _raw(b"[]"),
    "an empty array with a space": _raw(b"[ ]"),
    "a carriage return": _around(b"", b"\r"),
    "white space around": _around(b" \t", b" \r"),
    "an array of one": _around(b"[", b"]"),
    "unknown fields": _with(dataschema=None, traceparent={"deep": [1, {}]}),
    "an unknown field of a huge number": lambda event: _compact(event)[:-1] + b',"x":1e999999999}',
    "an unknown field of a huge integer": lambda event: _compact(event)[:-1] + b',"x":' + b"9" * 5000 + b"}",
    "a huge number that no meter reads": _data('{"n":1,"unread":-1e999999999}'),
    "a huge integer that no meter reads": _data('{"n":1,"unread":' + "9" * 5000 + "}"),
    "a number of many digits that is small": _n("0." + "0" * 23 + "1"),
    "the greatest quantity": _n("1e15"),
    "minus zero": _n("-0.0"),
    "a text for a number": _n('"1"'),
    "no quantity": _with(data={}),
    "data null": _with(data=None),
    "no data": _without("data"),
    "metadata null": _dodo_with(metadata=None),
    "no metadata": _dodo_without("metadata"),
    "a source in Dodo's shape": _dodo_with(source=5),
    "Dodo's fields in a CloudEvent": _with(event_id=5),
    "a zero character": _with(subject="a\0b"),
    "a DEL character": _n('"\x7f"'),
    "a pair of surrogates": _n('"\\ud83d\\ude00"'),
    "nesting of 100": _n("[" * 100 + "]" * 100),
    "the last of two ids": lambda event: b'{"id":5,' + _compact(event)[1:],
    "a long id": lambda event: _compact({**event, "id": (event["id"] + "é" * 1024)[:1024]}),
    "a long customer": _with(subject="é" * 256),
}


def _malformed() -> list[Malformed]:
    rows = [Malformed(name, make, "not_json") for name, make in NOT_JSON.items()]
    rows += [Malformed(name, make, None) for name, make in FINE.items()]
    rows += [Malformed(f"time: {name}", _with(time=text), "time_invalid") for name, text in BAD_TIMES.items()]
    rows += [
        Malformed(f"timestamp: {name}", _dodo_with(timestamp=text), "time_invalid")
        for name, text in BAD_TIMES.items()
    ]
    rows += [
        Malformed(f"far: {name}", _with(time=text), "time_out_of_range") for name, text in FAR_TIMES.items()
    ]
    wrong: Any
    for reason, (key, dodo_key, most) in TEXT_FIELDS.items():
        for wrong in (5, None, True, [], {}, "", "x" * (most + 1), "😀" * (most + 1)):
            said = f"{str(wrong)[:5]!r}"
            rows.append(Malformed(f"{key} {said}", _with(**{key: wrong}), reason))
            if dodo_key:
                rows.append(Malformed(f"{dodo_key} {said}", _dodo_with(**{dodo_key: wrong}), reason))
        rows.append(Malformed(f"no {key}", _without(key), reason))
        if dodo_key:
            shapeless = "unknown_shape" if dodo_key == "event_id" else reason
            rows.append(Malformed(f"no {dodo_key}", _dodo_without(dodo_key), shapeless))
    for wrong in (0, 1767225600, 1.5, True, [], {}):
        rows.append(Malformed(f"time {wrong!r}", _with(time=wrong), "time_invalid"))
        rows.append(Malformed(f"timestamp {wrong!r}", _dodo_with(timestamp=wrong), "time_invalid"))
    for wrong in ([], "text", 5, True):
        rows.append(Malformed(f"data {wrong!r}", _with(data=wrong), "data_not_object"))
        rows.append(Malformed(f"metadata {wrong!r}", _dodo_with(metadata=wrong), "data_not_object"))
    for encoded in ("%%", "e30", "/w==", "e30=\n", 5, ["e30="], "bm90IGpzb24="):
        rows.append(Malformed(f"data_base64 {encoded!r}", _with(data=None, data_base64=encoded), BASE64))
    rows += [
        Malformed("data and data_base64", _with(data={}, data_base64="e30="), BASE64),
        Malformed("data_base64 a list", _with(data=None, data_base64="W10="), "data_not_object"),
        Malformed(
            "data_base64 of a picture",
            _with(data=None, data_base64="e30=", datacontenttype="image/png"),
            "data_not_object",
        ),
    ]
    for wrong in ("0.3", "1", 1, 1.0, None, "", ["1.0"]):
        rows.append(Malformed(f"specversion {wrong!r}", _with(specversion=wrong), "specversion_unsupported"))
    for text in (b"1", b"-1.5e3", b'"text"', b"null", b"true", b"[[]]", b"[1]", b'["x"]', b"[null]"):
        rows.append(Malformed(f"event {text.decode()}", _raw(text), "not_an_object"))
    rows += [Malformed(f"quantity {text[:30]}", _n(text), "quantity_out_of_range") for text in BAD_QUANTITIES]
    return [
        *rows,
        Malformed("time null", _with(time=None), "time_invalid"),
        Malformed("no time", _without("time"), "time_missing"),
        Malformed("timestamp null", _dodo_with(timestamp=None), "time_missing"),
        Malformed("no timestamp", _dodo_without("timestamp"), "time_missing"),
        Malformed("an empty object", _raw(b"{}"), "unknown_shape"),
        Malformed("neither shape", _without("specversion"), "unknown_shape"),
        Malformed(
            "one bad element", lambda event: b"[" + _compact(event) + b', {"event_id" :1 } ]', "id_invalid"
        ),
        Malformed("too large", _n('"' + "x" * (1 << 20) + '"'), "too_large"),
        Malformed("too large and broken", _raw(b"[" * ((1 << 20) + 1)), "too_large"),
        Malformed(
            "everything wrong",
            _with(specversion="2", id=1, subject=1, time=1, data=1),
            "specversion_unsupported",
        ),
        Malformed("everything but the version wrong", _with(id=1, source=1, time=1, data=1), "id_invalid"),
        Malformed("time and data wrong", _with(time="x", data=1), "time_invalid"),
        Malformed("data wrong and far away", _with(time="1999-01-01T00:00:00Z", data=1), "time_out_of_range"),
    ]


MALFORMED = _malformed()
