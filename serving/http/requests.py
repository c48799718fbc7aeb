"""A request read: parameters and bodies as their types say, within their limits."""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive

from tidegate.operators.events.envelope import BINARY, VERSION
from tidegate.serving.http.connection.encoded import decompress, encoding_of
from tidegate.serving.http.problems import Fault, Problem, unavailable, unfit
from tidegate.serving.http.routing import JSON, Nothing, Route, Sent

BODY_WITHIN: Final = timedelta(seconds=30)
PARAMETERS_MAX: Final = 50
NOTHING: Final = Nothing()
# A proxy that adds a customer to the one that a client sent must not leave it to chance which one counts.
ONCE: Final = ("content-type", "x-tidegate-customer")


def headers_of(sent: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers by name, as Latin-1; a Problem if one about the body or its sender is there twice.

    A second `content-encoding` is one more encoding, which no body may have.
    """
    headers: dict[str, str] = {}
    for key, value in sent:
        name, text = key.decode("latin-1"), value.decode("latin-1")
        if name in headers and (name.startswith(BINARY) or name in ONCE):
            raise Problem(400, "malformed", f"{name[:60]}: needs to be there once")
        if name in headers and name == "content-encoding":
            text = f"{headers[name]}, {text}"
        headers[name] = text
    return headers


def before_appended(query: bytes) -> bytes:
    """Return the parameters of the proxy's own address: a path is appended to them, perhaps with its parameters."""
    return re.split(rb"[/?]", query, maxsplit=1)[0]


def parameters(shape: type[Nothing], query: bytes) -> Nothing:
    """Return the query's parameters; a Problem where one is unknown, there twice or wrong."""
    if not query:
        return _converted(shape, {}) if shape is not Nothing else NOTHING
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=PARAMETERS_MAX,
        )
    except ValueError as error:
        raise Problem(400, "malformed", f"query: needs name=value, percent-encoded UTF-8 ({error})") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        raise unfit("query: needs each parameter once")
    return _converted(shape, found)


def path_parts(route: Route, parts: tuple[str, ...]) -> Nothing:
    """Return the variable parts of a path."""
    if not parts:
        return NOTHING
    return _converted(route.at, dict(zip(route.at.__struct_fields__, parts, strict=True)))


def sent_as(route: Route, headers: Mapping[str, str]) -> Sent:
    """Which of the bodies that a route takes this one is, else a Problem of status 415.

    None is guessed: a page elsewhere may send what has no type without being asked about. A CloudEvent in binary
    mode is told by a header that no page can set, and without a type its data is JSON.
    """
    content_type = headers.get("content-type", JSON if VERSION in headers else "")
    media = content_type.partition(";")[0].strip().lower()
    for sent in route.takes:
        if sent.media == media:
            return sent
    known = ", ".join(sent.media for sent in route.takes)
    raise Problem(415, "media-type", f"content-type: needs {known}, got {content_type[:100] or 'none'}")


def content(sent: Sent, raw: bytes) -> Any:
    """Decode the body into its type."""
    if sent.shape is None:
        return raw
    try:
        return _decoder(sent.shape)(raw)
    except msgspec.ValidationError as error:
        raise unfit(str(error), [_fault(error)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "malformed", f"the body needs to be JSON: {error}") from None


class Arriving:
    """The bytes of all bodies that are being received, at most `most` at a time.

    So slow senders are many or large, but not both.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0

    def take(self, size: int) -> None:
        """Make room for so many bytes. Raises Problem of status 503 where there is none."""
        if self._held + size > self._most:
            raise unavailable("too many bodies are arriving at once; one more may be in a while")
        self._held += size

    def give_back(self, size: int) -> None:
        self._held -= size


async def body(receive: Receive, headers: Mapping[str, str], limit: int, arriving: Arriving) -> bytes:
    """All of the body, uncompressed; a Problem where it is longer than the limit, or does not come."""
    encoding = encoding_of(headers)
    raw = await _received(receive, headers, limit, arriving)
    # A kilobyte may become a megabyte, which would delay others.
    return await asyncio.to_thread(decompress, encoding, raw, limit) if encoding else raw


async def _received(receive: Receive, headers: Mapping[str, str], limit: int, arriving: Arriving) -> bytes:
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    pieces, size, held = [], 0, 0
    try:
        async with asyncio.timeout(BODY_WITHIN.total_seconds()):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Disconnected
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > limit:
                    raise _too_large(limit)
                arriving.take(size - held)
                held = size
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError:
        raise Problem(408, "slow", f"the body did not come within {BODY_WITHIN.seconds} s") from None
    finally:
        arriving.give_back(held)


class Disconnected(Exception):
    """Whoever asked has gone."""


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"the body needs to have at most {limit} bytes; send less at a time")


@cache
def _decoder(shape: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(shape).decode


def _converted(shape: type[Nothing], found: Mapping[str, str]) -> Nothing:
    try:
        return msgspec.convert(found, shape, strict=False)
    except msgspec.ValidationError as error:
        raise unfit(str(error), [_fault(error)]) from None


def _fault(error: msgspec.ValidationError) -> Fault:
    """Split a message of msgspec into words and place: `Expected … - at `$.quantity``."""
    text, _, place = str(error).partition(" - at `$")
    return Fault(text, place.rstrip("`").replace(".", "/").replace("[", "/").replace("]", ""))
