"""Requests with events over HTTP, split into payloads: one line of JSON per event.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tidegate.operators.model.errors import TidegateError

BINARY: Final = "ce-"
VERSION: Final = "ce-specversion"
EVENT: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
MEDIA: Final = (EVENT, BATCH, JSON, LINES)
ATTRIBUTE: Final = re.compile(r"[a-z0-9]{1,64}")
# RFC 7230 3.2.6, as the binding requires.
QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
ESCAPED: Final = re.compile(r"\\(.)")
# The first bytes of gzip and zstd, with which no JSON begins.
COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


class EnvelopeError(TidegateError):
    """The request has no events that could be separated; the message says what was expected and found."""


class EventIdentity(NamedTuple):
    """An event's id and customer as far as they are text: for answers, and to route the event."""

    id: str
    customer: str


class _Batch(msgspec.Struct, frozen=True):
    """Dodo's batch request, or an event, which has no `events`."""

    events: list[Raw] | None = None
    event_id: Raw | UnsetType = UNSET
    specversion: Raw | UnsetType = UNSET


class _Names(msgspec.Struct, frozen=True, gc=False):
    id: object = ""
    subject: object = ""
    event_id: object = ""
    customer_id: object = ""


_LIST: Final = msgspec.json.Decoder(list[Raw])
_BATCH: Final = msgspec.json.Decoder(_Batch)
_NAMES: Final = msgspec.json.Decoder(_Names)
_RAW: Final = msgspec.json.Decoder(Raw)


def split_request(media: str, headers: Mapping[str, str], body: bytes) -> list[bytes]:
    """Return the events of a request, each as one line; they are not judged here. `headers` are named in lower case.

    A request has a single CloudEvent, structured or binary; a batch of them; or, as plain JSON, an event of either
    form, a list of them, or Dodo's `{"events": […]}`.

    Raises:
        EnvelopeError: the request has none of these forms.
    """
    if body.startswith(COMPRESSED):
        raise EnvelopeError("the body is compressed; name the compression in content-encoding")
    if media != LINES:
        body = body.removeprefix(BOM_UTF8)
    if VERSION in headers and media not in (EVENT, BATCH):
        return [_build_binary_event(media, headers, body)]
    found = _split_body(media, body)
    if not found:
        raise EnvelopeError("the request needs at least one event, got none")
    return found


def _split_body(media: str, body: bytes) -> list[bytes]:
    if media == LINES:
        return [line for line in (line.removeprefix(BOM_UTF8).strip() for line in body.split(b"\n")) if line]
    if media == BATCH:
        return _split_array(body)
    start = body.lstrip(b" \t\r\n")[:1]
    if media == JSON and start == b"[":
        return _split_array(body)
    if media == JSON and start == b"{" and (events := _split_batch(body)) is not None:
        return events
    return [_to_line(body.strip(b" \t\r\n"))]


def _split_batch(body: bytes) -> list[bytes] | None:
    """Return the events of Dodo's request; None if it is a single event, or invalid, which is judged as an event."""
    try:
        batch = _BATCH.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if batch.events is None:
        return None
    if batch.event_id is UNSET and batch.specversion is UNSET:
        return [_to_line(raw) for raw in batch.events]
    if batch.events:
        raise EnvelopeError("the request needs to be an event or to have `events`, got both in one object")
    return None


def read_identity(payload: bytes) -> EventIdentity:
    """Return the event's id and customer, empty if they are missing or not text."""
    try:
        names = _NAMES.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return EventIdentity("", "")
    id, customer = names.id or names.event_id, names.subject or names.customer_id
    return EventIdentity(id if isinstance(id, str) else "", customer if isinstance(customer, str) else "")


def _split_array(body: bytes) -> list[bytes]:
    try:
        body.decode()
        return [_to_line(raw) for raw in _LIST.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"the batch needs to be a JSON array of events: {error}") from None


def _to_line(raw: bytes | Raw) -> bytes:
    raw = bytes(raw)
    if b"\n" not in raw and b"\r" not in raw:
        return raw
    try:
        # A line break inside a string is an error, and must not be repaired silently.
        _RAW.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"the event needs to be JSON: {error}") from None
    return raw.translate(_NO_BREAKS)


def _build_binary_event(media: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the event of binary mode: headers are its attributes, the body its data, in JSON.

    Source: 3.1 of the binding.
    """
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
        event[name] = _decode_attribute(header, value)
    if media == JSON and body:
        event["datacontenttype"] = media
        try:
            event["data"] = _RAW.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EnvelopeError(f"the data needs to be JSON: {error}") from None
    return _to_line(msgspec.json.encode(event))


def _decode_attribute(header: str, value: str) -> str:
    """Return an attribute's text from its header, which is read as Latin-1: unquoted, then percent-decoded."""
    if value.startswith('"'):
        quoted = QUOTED.fullmatch(value)
        if quoted is None:
            raise EnvelopeError(
                f"{header[:60]}: needs a closing quote, and a backslash before each quote inside the value"
            )
        value = ESCAPED.sub(r"\1", quoted[1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise EnvelopeError(f"{header[:60]}: needs UTF-8, percent-encoded") from None
