"""Events as they come over HTTP, parted into payloads: one line of JSON each, an event.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec import Raw

BINARY: Final = "ce-"
VERSION: Final = "ce-specversion"
EVENT: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
MEDIA: Final = (EVENT, BATCH, JSON, LINES)
ATTRIBUTE: Final = re.compile(r"[a-z0-9]{1,64}")
# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


class EnvelopeError(Exception):
    """What was sent holds no events that could be told apart; says what was expected and what came."""


class Named(NamedTuple):
    """What an event is called, as far as it says so in text: for answers, and to route it by its customer."""

    id: str
    customer: str


class _Dodo(msgspec.Struct, frozen=True):
    events: list[Raw]


class _Names(msgspec.Struct, frozen=True, gc=False):
    id: object = ""
    subject: object = ""
    event_id: object = ""
    customer_id: object = ""


_LIST: Final = msgspec.json.Decoder(list[Raw])
_DODO: Final = msgspec.json.Decoder(_Dodo)
_NAMES: Final = msgspec.json.Decoder(_Names)
_RAW: Final = msgspec.json.Decoder(Raw)


def payloads(media: str, headers: Mapping[str, str], body: bytes) -> list[bytes]:
    """The events of a request, each as one line; they are not judged here. `headers` are named in lower case.

    A single CloudEvent, structured or binary; a batch of them; or, as plain JSON, an event of either shape, a list
    of them, or Dodo's `{"events": […]}`. EnvelopeError where it is none of these.
    """
    if VERSION in headers and media not in (EVENT, BATCH):
        return [_binary(media, headers, body)]
    if media == LINES:
        return [line.strip() for line in body.split(b"\n") if line.strip()]
    if media == BATCH:
        return _elements(body)
    start = body.lstrip(b" \t\r\n")[:1]
    if media == JSON and start == b"[":
        return _elements(body)
    if media == JSON and start == b"{":
        try:
            return [_line(raw) for raw in _DODO.decode(body).events]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # An event, or nothing sensible, which is judged as one.
            pass
    return [_line(body.strip(b" \t\r\n"))]


def named(payload: bytes) -> Named:
    """The event's id and customer, empty where there are none in text."""
    try:
        names = _NAMES.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Named("", "")
    id, customer = names.id or names.event_id, names.subject or names.customer_id
    return Named(id if isinstance(id, str) else "", customer if isinstance(customer, str) else "")


def _elements(body: bytes) -> list[bytes]:
    try:
        body.decode()
        return [_line(raw) for raw in _LIST.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"the batch needs to be a JSON array of events: {error}") from None


def _line(raw: bytes | Raw) -> bytes:
    raw = bytes(raw)
    if b"\n" not in raw and b"\r" not in raw:
        return raw
    try:
        # A break inside of a text is an error, and must not be mended unseen.
        _RAW.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"the event needs to be JSON: {error}") from None
    return raw.translate(_NO_BREAKS)


def _binary(media: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The event of binary mode: attributes in headers, percent-encoded; the body is its data, in JSON."""
    if media != JSON and body:
        raise EnvelopeError(
            f"content-type: needs {JSON} for the data of an event in binary mode, got {media[:100]}"
        )
    event: dict[str, object] = {}
    for header, value in headers.items():
        name = header.removeprefix(BINARY)
        if name == header:
            continue
        if not ATTRIBUTE.fullmatch(name) or name == "data":
            raise EnvelopeError(f"{header[:60]}: needs a name of lower-case letters and digits, and not data")
        try:
            event[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise EnvelopeError(f"{header[:60]}: needs percent-encoded UTF-8") from None
    if media == JSON and body:
        event["datacontenttype"] = media
        try:
            event["data"] = _RAW.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EnvelopeError(f"the data needs to be JSON: {error}") from None
    return _line(msgspec.json.encode(event))
