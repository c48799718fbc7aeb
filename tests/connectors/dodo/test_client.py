"""The client of the provider's API: what each answer is taken for, and that the key is nowhere to be seen."""

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from dodopayments import DodoPayments
from hpack import Encoder

from tidegate.connectors.dodo.client import (
    ANSWER_BYTES_MAX,
    REQUEST_SECONDS_MAX,
    Answer,
    DodoClient,
    DodoError,
)
from tidegate.operators.billing.outgoing import ENVELOPE_BYTES
from tidegate.operators.billing.rate_limit import Rate

SECRET = "hunter2"
FAST = Rate(10_000, 100_000)
EVENT = b'{"event_id":"a","customer_id":"cus_1","event_name":"llm","timestamp":"2026-11-22T12:00:00Z","metadata":{}}'


def client(answer: Callable[[httpx.Request], httpx.Response], rate: Rate = FAST, **given: Any) -> DodoClient:
    return DodoClient("http://platform", SECRET, rate, transport=httpx.MockTransport(answer), **given)


def asked(answer: httpx.Response | Exception) -> Answer:
    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    dodo = client(respond)
    try:
        return dodo.ingest([EVENT])
    finally:
        dodo.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(200, json={"ingested_count": 1}), "ok"),
        (httpx.Response(202, json={"ingested_count": 0}), "ok"),
        (httpx.Response(200, json={"ingested_count": None}), "unknown"),
        (httpx.Response(200, json={"ingested_count": "1"}), "unknown"),
        (httpx.Response(200, json={"ingested_count": True}), "unknown"),
        (httpx.Response(200, json={"ingested_count": 1.0}), "unknown"),
        (httpx.Response(200, json={}), "unknown"),
        (httpx.Response(200, json=[{"ingested_count": 1}]), "unknown"),
        (httpx.Response(200, text='{"ingested_count": 1'), "unknown"),
        (httpx.Response(200, text="<html>ingested_count</html>"), "unknown"),
        (httpx.Response(200, content=b""), "unknown"),
        (httpx.Response(204), "unknown"),
        (httpx.Response(302, headers={"location": "http://elsewhere/"}), "unknown"),
        (httpx.Response(400, json={"code": "INVALID_REQUEST_PARAMETERS", "message": "no"}), "refused"),
        (httpx.Response(400, text="<html>"), "unknown"),
        (httpx.Response(422, json={"code": "INVALID_REQUEST_BODY"}), "refused"),
        (httpx.Response(413), "too_large"),
        (httpx.Response(401, json={"code": "UNAUTHORIZED"}), "unauthorized"),
        (httpx.Response(403, json={"code": "FORBIDDEN"}), "unauthorized"),
        (httpx.Response(404), "unknown"),
        (httpx.Response(408), "unknown"),
        (httpx.Response(409), "unknown"),
        (httpx.Response(429), "limited"),
        (httpx.Response(500, json={"ingested_count": 1}), "unknown"),
        (httpx.Response(503), "unknown"),
        (
            httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip")),
            "unknown",
        ),
        (httpx.ConnectError("refused"), "unreached"),
        (httpx.ConnectTimeout("slow"), "unreached"),
        (httpx.PoolTimeout("busy"), "unreached"),
        (httpx.ReadTimeout("slow"), "unknown"),
        (httpx.WriteTimeout("slow"), "unknown"),
        (httpx.ReadError("reset"), "unknown"),
        (httpx.RemoteProtocolError("server disconnected"), "unknown"),
    ],
    ids=str,
)
def test_only_a_count_is_an_acknowledgment_and_only_what_never_left_is_sure(
    answer: httpx.Response | Exception, kind: str
) -> None:
    assert asked(answer).kind == kind


def test_the_platforms_words_are_kept_short_and_on_one_line() -> None:
    answer = asked(httpx.Response(400, json={"code": "BAD", "message": "a\nb\x1b[31m" + "x" * 1000}))
    assert str(answer).startswith("400 BAD a b [31mxxx")
    assert len(str(answer)) < 320 and "\n" not in str(answer)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "86400"}, 300.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:30 GMT", "date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT", "date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:30 GMT"}, None),
        ({}, None),
    ],
)
def test_a_wish_to_be_left_alone_is_read_in_both_forms_and_bounded(
    headers: dict[str, str], wait: float | None
) -> None:
    assert asked(httpx.Response(429, headers=headers)).retry_after == wait


def test_an_answer_without_end_ends() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 100_000

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return endless()

    answer = asked(httpx.Response(200, stream=Endless()))
    assert answer.kind == "unknown" and str(ANSWER_BYTES_MAX) in answer.message


def test_an_answer_that_drips_ends() -> None:
    """Each byte begins a time-out anew; the whole has one too."""
    now = 0

    class Dripping(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal now
            while True:
                now += 1_000_000
                yield b"x"

    dodo = client(lambda _: httpx.Response(200, stream=Dripping()), clock=lambda: now)
    answer = dodo.ingest([EVENT])
    dodo.close()
    assert answer.kind == "unknown" and now <= (REQUEST_SECONDS_MAX + 2) * 1_000_000


def test_a_body_is_what_the_official_sdk_sends() -> None:
    """Byte for byte, and of the length that batching reckons with."""
    sent: list[bytes] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(200, json={"ingested_count": 2})

    mine = {
        "event_id": "a",
        "customer_id": "cus_1",
        "event_name": "llm",
        "metadata": {"tokens": 812, "x": 0.1, "ok": True, "model": "small é"},
        "timestamp": "2026-11-22T12:00:00.250000Z",
    }
    with client(note) as dodo:
        body = json.dumps(mine, separators=(",", ":"), ensure_ascii=False).encode()
        dodo.ingest([body, body])
    sdk = DodoPayments(
        bearer_token=SECRET,
        base_url="http://platform",
        http_client=httpx.Client(transport=httpx.MockTransport(note)),
    )
    sdk.usage_events.ingest(events=[mine, mine])  # type: ignore[list-item]
    sdk.close()
    assert sent[0] == sent[1]
    assert len(sent[0]) == ENVELOPE_BYTES + 2 * len(body) + 1


def test_pages_are_read_from_the_first_to_the_first_short_one() -> None:
    """The official SDKs skip the second page (page 1) when they iterate."""
    items = list(range(45))

    def page(request: httpx.Request) -> httpx.Response:
        number, size = (int(request.url.params[name]) for name in ("page_number", "page_size"))
        return httpx.Response(200, json={"items": items[number * size : (number + 1) * size]})

    with client(page) as dodo:
        assert [item for found in dodo.pages("/events", size=10) for item in found] == items
        assert [len(found) for found in dodo.pages("/events", size=15)] == [15, 15, 15, 0]


def test_a_page_that_cannot_be_read_is_an_error_and_no_end() -> None:
    with (
        client(lambda _: httpx.Response(200, json={"items": None})) as dodo,
        pytest.raises(DodoError, match="page 0"),
    ):
        list(dodo.pages("/events"))
    with client(lambda _: httpx.Response(503)) as dodo, pytest.raises(DodoError, match="503"):
        list(dodo.pages("/events"))


def test_an_event_is_only_there_if_the_answer_is_of_it() -> None:
    """What a proxy says instead must not make an event acknowledged."""
    for body, kind in (
        ({"event_id": "a"}, "ok"),
        ({"event_id": "b"}, "unknown"),
        ({}, "unknown"),
        ([], "unknown"),
    ):

        def respond(_: httpx.Request, body: object = body) -> httpx.Response:
            return httpx.Response(200, json=body)

        with client(respond) as dodo:
            assert dodo.event("a").kind == kind
    with client(lambda _: httpx.Response(404)) as dodo:
        assert dodo.event("a").status == 404


def test_an_id_is_one_segment_of_a_path() -> None:
    asked_for: list[bytes] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked_for.append(request.url.raw_path)
        return httpx.Response(404)

    with client(note) as dodo:
        for id in ("a/b", "a?b#c", "a b", "é"):
            dodo.event(id)
        for id in ("", ".", ".."):
            with pytest.raises(DodoError):
                dodo.event(id)
    assert asked_for == [b"/events/a%2Fb", b"/events/a%3Fb%23c", b"/events/a%20b", b"/events/%C3%A9"]


def test_requests_keep_to_the_rate() -> None:
    now, slept = 0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += int(seconds * 1e6)

    with client(lambda _: httpx.Response(404), Rate(2, 10), clock=lambda: now, sleep=sleep) as dodo:
        for _ in range(5):
            dodo.event("a")
    assert len(slept) == 3 and now >= 3 * 6_000_000


@pytest.mark.parametrize("key", ["", "with space", "line\nbreak", "umläut", "x" * 513])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(DodoError, match="TIDEGATE_DODO_API_KEY") as caught:
        DodoClient("http://platform", key, FAST)
    assert not key or key not in "".join(traceback.format_exception(caught.value))


def test_the_key_is_in_no_log_error_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def note(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == f"Bearer {SECRET}"
        seen.append(repr(request))
        raise httpx.ReadError("reset", request=request)

    with client(note) as dodo:
        seen += [repr(dodo), str(vars(dodo)), repr(dodo.ingest([EVENT])), str(dodo.event("a"))]
    # What writes headers for HTTP/2 writes them down as well, if it is asked to.
    Encoder().encode([("authorization", f"Bearer {SECRET}")])
    assert seen
    assert SECRET not in "".join((*seen, caplog.text))


def test_time_outs_have_names() -> None:
    with client(lambda _: httpx.Response(404)) as dodo:
        time_out = dodo._http.timeout
    assert None not in (time_out.connect, time_out.read, time_out.write, time_out.pool)


def test_https_offers_http_2() -> None:
    with DodoClient("https://127.0.0.1:1", SECRET, FAST) as dodo:
        assert dodo._http._transport._pool._http2  # type: ignore[attr-defined]
        assert dodo.event("a").kind == "unreached"
