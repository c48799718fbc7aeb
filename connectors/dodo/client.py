"""Dodo Payments over HTTP: one request at a time, what came back, and never more of them than the limits allow.

`DodoClient` keeps no state but its connections. It neither retries nor raises for what the provider or the network
does: an `Answer` says what came, and its `kind` what is known of it. Whoever sends decides. Bodies, times and
connections are bounded. The key is in no error, log or repr.
Source: Dodo Payments, API reference, events; openapi 1.53.2.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote

import httpx
import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.operators.billing.rate_limit import Pace, Rate
from tidegate.operators.model.errors import TidegateError

TIME_OUT = httpx.Timeout(connect=5, read=20, write=20, pool=20)
# Each of the above may begin anew with every byte; this may not.
REQUEST_SECONDS_MAX = 45
ANSWER_BYTES_MAX = 16 << 20
CONNECTIONS_MAX = 32
PAGE = 100
WORDS_MAX = 300
WAIT_MAX = 300.0
SECOND = 1_000_000
# Clocks are kept by NTP or drift slowly; what was measured longer ago says little.
MEASURED_FOR = 600 * SECOND

# What the provider calls its errors; proxies have other shapes, or HTML.
CODE = re.compile(r"[A-Z][A-Z0-9_]*")

Kind = Literal["ok", "refused", "too_large", "unauthorized", "limited", "unreached", "unknown"]
# Failures before anything was sent.
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL)


class DodoError(TidegateError):
    """The provider does not answer as it must, or not at all; says what to do."""


class Answer(NamedTuple):
    """What came of a request. `status` is None where nothing came.

    `code` and `message` are the provider's own, or say what went wrong on the way; `retry_after` are the seconds that
    it asks for. `content` is the decoded JSON of a good answer, else None. `sent` is False where nothing left here.
    `is_own` is False for an error that the provider itself did not write, such as the page of a proxy: it is a failure
    to retry, and never a verdict.
    """

    status: int | None
    code: str = ""
    message: str = ""
    retry_after: float | None = None
    content: Any = None
    sent: bool = True
    is_own: bool = True

    @property
    def is_missing(self) -> bool:
        """Whether the provider itself says that it does not have what was asked for."""
        return self.status == 404 and self.is_own

    @property
    def kind(self) -> Kind:
        """What is known: `refused` was looked at and not taken, `unknown` may have been taken or not."""
        if not self.sent:
            return "unreached"
        match self.status:
            case 400 | 422 if self.is_own:
                return "refused"
            case 413:
                # Also where a proxy says so, a request of this size does not get through.
                return "too_large"
            case 401 | 403 if self.is_own:
                return "unauthorized"
            case 429:
                return "limited"
        return "ok" if self.content is not None else "unknown"

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.status or "no answer", self.code, self.message) if part)


class Ahead(NamedTuple):
    """How far (µs) the provider's clock is ahead of ours, and when that was seen."""

    by: int
    measured_at: int


class DodoClient:
    """Requests to one account at `base_url`, at most at `rate`. Safe to share between threads.

    `sleep` is given seconds, `clock` gives µs that never go back, `wall` µs since the epoch; `transport` stands in for
    the network.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        rate: Rate,
        *,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
        sleep: Callable[[float], object] = time.sleep,
        wall: Callable[[], int] = wall_clock,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if (
            not api_key.isascii()
            or not api_key.isprintable()
            or " " in api_key
            or not 0 < len(api_key) <= 512
        ):
            raise DodoError(
                "dodo: the API key needs 1 to 512 visible ASCII characters; set TIDEGATE_DODO_API_KEY"
            )
        # It writes every header down at this level, the one with the key too.
        logging.getLogger("hpack").setLevel(logging.INFO)
        self.base_url = base_url
        self._pace, self._lock = Pace(rate), Lock()
        self._clock, self._sleep, self._wall = clock, sleep, wall
        self._ahead: Ahead | None = None
        self._http = httpx.Client(
            base_url=base_url,
            auth=_Bearer(api_key),
            headers={
                "Accept": "application/json",
                "Content-Type": "application/json",
                "User-Agent": "Tidegate",
            },
            timeout=TIME_OUT,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            http2=transport is None and base_url.startswith("https:"),
            follow_redirects=False,
            # Proxies and certificates of the environment are for the provider, not for a simulator on this machine.
            trust_env=base_url.startswith("https:"),
            transport=transport,
        )

    def ingest(self, events: Sequence[bytes]) -> Answer:
        """Send events, each the bytes of one JSON object. It is `ok` only if the provider counted them."""
        answer = self._request("POST", "/events/ingest", content=b'{"events":[' + b",".join(events) + b"]}")
        if answer.content is None or type(_member(answer.content, "ingested_count")) is int:
            return answer
        return answer._replace(content=None, message="the answer has no ingested_count")

    def clock_ahead(self) -> int | None:
        """Return how far (µs) the provider's clock is ahead of ours by its last answer; None if that is long ago."""
        known = self._ahead
        return known.by if known and self._wall() - known.measured_at <= MEASURED_FOR else None

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Answer:
        """One read. Parts of the path that are ids go through `part`."""
        return self._request("GET", path, params=dict(params or {}))

    def post(self, path: str, body: Any) -> Answer:
        """One write of a JSON object. Only for what carries an idempotency key, as an answer may be lost."""
        return self._request("POST", path, content=msgspec.json.encode(body))

    def event(self, event_id: str) -> Answer:
        """`ok` if the provider has the event, `is_missing` if not, as far as it shows now."""
        return _named(self.get(f"/events/{part(event_id)}"), "event_id", event_id)

    def customer(self, customer_id: str) -> Answer:
        """`ok` if there is such a customer, `is_missing` if not."""
        return _named(self.get(f"/customers/{part(customer_id)}"), "customer_id", customer_id)

    def pages(
        self, path: str, params: Mapping[str, str | int] | None = None, size: int = PAGE
    ) -> Iterator[list[Any]]:
        """Return the items of each page, from page 0 to the first that is not full. DodoError if one is unreadable."""
        number = 0
        while True:
            answer = self.get(path, {**(params or {}), "page_size": size, "page_number": number})
            items = _member(answer.content, "items")
            if not isinstance(items, list):
                raise DodoError(f"dodo: page {number} of {path} cannot be read ({answer}); try again later")
            yield items
            if len(items) < size:
                return
            number += 1

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _request(self, method: str, path: str, **given: Any) -> Answer:
        self._admit()
        deadline = self._clock() + REQUEST_SECONDS_MAX * SECOND
        try:
            with self._http.stream(method, path, **given) as response:
                answer = _answer(response, self._body(response, deadline))
                is_theirs = answer.content is not None or (answer.is_own and bool(answer.code))
                if is_theirs and (date := _date(response.headers)) is not None:
                    now = self._wall()
                    self._ahead = Ahead(date - now, now)
                return answer
        except (httpx.HTTPError, httpx.InvalidURL, _Endless) as error:
            # The kind and the words of a transport's error; it knows address and method, not the headers.
            sent = not isinstance(error, _UNREACHED)
            return Answer(None, type(error).__name__, _words(str(error)), sent=sent)

    def _admit(self) -> None:
        while True:
            with self._lock:
                wait = self._pace.admit(self._clock())
            if not wait:
                return
            self._sleep(wait / SECOND)

    def _body(self, response: httpx.Response, deadline: int) -> bytes:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > ANSWER_BYTES_MAX:
                raise _Endless(f"more than {ANSWER_BYTES_MAX} bytes")
            if self._clock() > deadline:
                raise _Endless(f"more than {REQUEST_SECONDS_MAX} seconds")
        return bytes(body)


def part(text: str) -> str:
    """Return an id as one segment of a path. DodoError where it would be another path."""
    if text in ("", ".", ".."):
        raise DodoError(f"dodo: needs an id, got {text!r}")
    return quote(text, safe="")


class _Bearer(httpx.Auth):
    """Puts the key into each request. Unlike a client's header, nothing that is printed has it."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}"

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = self._header
        yield request


class _Endless(Exception):
    """An answer that is too long or takes too long."""


def _answer(response: httpx.Response, body: bytes) -> Answer:
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        content = None
    code, message = _words(_member(content, "code")), _words(_member(content, "message"))
    # HTML and the like never; a truncated answer says nothing either.
    good = content if response.is_success and isinstance(content, dict) else None
    is_own = response.is_success or bool(CODE.fullmatch(code) and _is_json(response.headers))
    if good is None and not code:
        message = message or _words(response.reason_phrase)
    if not is_own:
        message = f"{message}, not in the words of the provider: a proxy on the way?".removeprefix(", ")
    return Answer(response.status_code, code, message, _retry_after(response.headers), good, is_own=is_own)


def _is_json(headers: httpx.Headers) -> bool:
    kind: str = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _named(answer: Answer, field: str, id: str) -> Answer:
    """Decode the answer; return an empty one for any other JSON, which a proxy may send."""
    if answer.content is None or _member(answer.content, field) == id:
        return answer
    return answer._replace(content=None, message=f"the answer is not of {field} {id}")


def _member(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, dict) else None


def _words(value: Any) -> str:
    return "".join(c if c.isprintable() else " " for c in value[:WORDS_MAX]) if isinstance(value, str) else ""


def _date(headers: httpx.Headers) -> int | None:
    """Return the middle of the second (µs) in which an answer was written; None if it has no date."""
    try:
        return int(parsedate_to_datetime(headers["date"]).timestamp() * SECOND) + SECOND // 2
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, or a date, as RFC 9110 10.2.3 has it; None where there is none or it makes no sense."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), WAIT_MAX)
    try:
        until = parsedate_to_datetime(text)
        wait = until - parsedate_to_datetime(headers["date"])
    except (ValueError, KeyError, TypeError):
        return None
    return min(max(wait / timedelta(seconds=1), 0.0), WAIT_MAX)
