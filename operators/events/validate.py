"""Validation of one event field by field, in the order of the reasons in docs/semantics.md."""

from base64 import b64decode
from typing import NamedTuple

import msgspec

from tidegate.operators.events import rfc3339
from tidegate.operators.events.chunk import Reject
from tidegate.operators.events.readings import decode_value
from tidegate.operators.model.periods import MAX_AT, MIN_AT

NO_DATA = msgspec.Raw(b"{}")
_NULL = msgspec.Raw(b"null")
ID_MAX = 1024
NAME_MAX = 256


class Fields(NamedTuple):
    """The fields that metering needs from one event of either form. `at` is µs since the epoch."""

    customer: str
    source: str
    id: str
    name: str
    at: int
    data: msgspec.Raw


class _Unfit(Exception):
    """Carries reason code and explanation from the check that failed to `judge`."""


_ANY = msgspec.json.Decoder(msgspec.Raw)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def judge(raw: bytes, transport_time: int | None, latest: int) -> Fields | Reject:
    """Return the event's fields, or why it cannot be metered.

    `transport_time` replaces an absent time (µs since the epoch, None if there is none); an event after `latest` is in
    the future.
    """
    try:
        return _read_fields(raw, transport_time, latest)
    except _Unfit as unfit:
        reason, detail = unfit.args
        return Reject(reason, detail, raw)


def _read_fields(raw: bytes, transport_time: int | None, latest: int) -> Fields:
    event = _decode_members(raw)
    if "specversion" in event:
        version = decode_value(event["specversion"])
        if version != "1.0":
            raise _Unfit("specversion_unsupported", f"specversion: needs '1.0', got {_format_value(version)}")
        id = _read_text(event, "id", "id_invalid", ID_MAX)
        source = _read_text(event, "source", "source_invalid", ID_MAX)
        customer = _read_text(event, "subject", "customer_invalid", NAME_MAX)
        name = _read_text(event, "type", "name_invalid", NAME_MAX)
        time, stamp, data = "time", decode_value(event.get("time", _NULL)), "data"
        if "time" in event and stamp is None:
            raise _Unfit("time_invalid", "time: needs RFC 3339 text, got null")
    elif "event_id" in event:
        id = _read_text(event, "event_id", "id_invalid", ID_MAX)
        source = ""
        customer = _read_text(event, "customer_id", "customer_invalid", NAME_MAX)
        name = _read_text(event, "event_name", "name_invalid", NAME_MAX)
        time, stamp, data = "timestamp", decode_value(event.get("timestamp", _NULL)), "metadata"
    else:
        raise _Unfit("unknown_shape", "needs a CloudEvent (specversion) or Dodo's shape (event_id)")
    at = _read_time(time, stamp, transport_time)
    properties = read_data(event) if data == "data" else event.get(data, NO_DATA)
    if bytes(properties)[:1] not in (b"{", b"n"):
        raise _Unfit(
            "data_not_object", f"{data}: needs an object, got {_format_value(decode_value(properties))}"
        )
    if at > latest:
        raise _Unfit("future", f"{time}: {stamp or at} lies in the future")
    return Fields(customer, source, id, name, at, properties)


def _decode_members(raw: bytes) -> dict[str, msgspec.Raw]:
    try:
        raw.decode()
        return _MEMBERS.decode(raw)
    except msgspec.ValidationError as error:
        raise _Unfit("not_an_object", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _Unfit("not_json", str(error)) from None


def _read_text(event: dict[str, msgspec.Raw], field: str, reason: str, length: int) -> str:
    value = decode_value(event.get(field, _NULL))
    if isinstance(value, str) and 0 < len(value) <= length:
        return value
    raise _Unfit(reason, f"{field}: needs a text of 1 to {length} characters, got {_format_value(value)}")


def read_data(event: dict[str, msgspec.Raw]) -> msgspec.Raw:
    """Return a CloudEvent's data, also from JSON in `data_base64`; an event that was accepted has some.

    Source: 3.1 of CloudEvents' JSON format.
    """
    if event.get("data_base64", _NULL) == _NULL:
        return event.get("data", NO_DATA)
    media = decode_value(event.get("datacontenttype", _NULL))
    if media is not None and not _is_json(media):
        raise _Unfit("data_not_object", f"data_base64: needs JSON, got {_format_value(media)}")
    if event.get("data", _NULL) != _NULL:
        raise _Unfit("data_base64_invalid", "data_base64: needs to be without data, got both")
    encoded = decode_value(event["data_base64"])
    if not isinstance(encoded, str):
        raise _Unfit("data_base64_invalid", f"data_base64: needs a text, got {_format_value(encoded)}")
    try:
        raw = b64decode(encoded, validate=True)
        raw.decode()
        return msgspec.Raw(bytes(_ANY.decode(raw)).strip())
    except (ValueError, RecursionError) as error:
        raise _Unfit("data_base64_invalid", f"data_base64: needs JSON in base64: {error}") from None


def _is_json(media: object) -> bool:
    name = media.partition(";")[0].strip().lower() if isinstance(media, str) else ""
    return name in ("application/json", "text/json") or name.endswith("+json")


def _read_time(field: str, stamp: object, transport_time: int | None) -> int:
    if stamp is None:
        if transport_time is None:
            raise _Unfit(
                "time_missing",
                f"{field}: needs RFC 3339 text, because this transport gives no time of its own",
            )
        at = transport_time
    elif isinstance(stamp, str):
        try:
            at = rfc3339.parse(stamp)
        except ValueError as error:
            raise _Unfit("time_invalid", f"{field}: {error}") from None
    else:
        raise _Unfit("time_invalid", f"{field}: needs RFC 3339 text, got {_format_value(stamp)}")
    if not MIN_AT <= at < MAX_AT:
        raise _Unfit(
            "time_out_of_range", f"{field}: needs 2000-01-01 to 2099-12-31, got {_format_value(stamp)}"
        )
    return at


def _format_value(value: object) -> str:
    """Return a value for a message: its kind if it is large, itself if it is small."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    words = "nothing" if value is None else repr(value)
    return words if len(words) <= 40 else f"{words[:37]}... ({len(str(value))} characters)"
