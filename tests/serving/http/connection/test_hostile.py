"""Clients that mean harm, or are broken: each kind alone, and all of them at once while good clients are served."""

import asyncio
import gzip
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.http.hostile import CHUNKED, ask_well, attack_again, attacks, memory
from tests.serving.http.local import Local, local
from tests.serving.http.raw import Raw, request, status
from tests.serving.http.served import Served
from tests.support.options import option
from tidegate.serving.http.connection import connections, protocol
from tidegate.serving.http.connection.connections import Connections
from tidegate.serving.http.connection.descriptors import OWN, fit_descriptors
from tidegate.serving.http.server import listening_on
from tidegate.settings.serving import ServingSettings, load_serving_settings

SECONDS = float(option("TIDEGATE_HOSTILE_SECONDS", "4"))

SMUGGLED = {
    "space before the colon": request("/", "Transfer-Encoding : chunked", method="POST", body=b"0\r\n\r\n"),
    "space before the colon of a length": request("/", "Content-Length : 1", method="POST", body=b"a"),
    "two lengths": request("/", "Content-Length: 5", *CHUNKED, method="POST", body=b"0\r\n\r\n"),
    "two lengths the other way": request(
        "/", *CHUNKED, "Content-Length: 5", method="POST", body=b"0\r\n\r\n"
    ),
    "a length twice": request("/", "Content-Length: 1", "Content-Length: 2", method="POST", body=b"ab"),
    "a list of lengths": request("/", "Content-Length: 1, 1", method="POST", body=b"a"),
    "a signed length": request("/", "Content-Length: +1", method="POST", body=b"a"),
    "a length past all": request("/", "Content-Length: 99999999999999999999", method="POST"),
    "another coding": request("/", "Transfer-Encoding: xchunked", method="POST", body=b"0\r\n\r\n"),
    "no coding": request("/", "Transfer-Encoding: identity", method="POST"),
    "a coding before": request("/", "Transfer-Encoding: gzip, chunked", method="POST", body=b"0\r\n\r\n"),
    "a coding after": request("/", "Transfer-Encoding: chunked, identity", method="POST", body=b"0\r\n\r\n"),
    "a coding twice": request("/", *CHUNKED, *CHUNKED, method="POST", body=b"0\r\n\r\n"),
    "a coding of HTTP/1.0": b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": request("/", "A: b\r\n c"),
    "a folded coding": request("/", "Transfer-Encoding:\r\n chunked", method="POST", body=b"0\r\n\r\n"),
    "line feeds alone": b"GET / HTTP/1.1\nHost: x\n\n",
    "a line feed alone": request("/", "A: b\nTransfer-Encoding: chunked"),
    "a carriage return alone": request("/", "A: b\rC: d"),
    "a null": request("/", "A: b\0c"),
    "no name": request("/", ": b"),
    "no colon": request("/", "Host"),
    "two hosts": request("/", "Host: elsewhere"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "a path that is no text": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk without a size": request("/", *CHUNKED, method="POST", body=b"xyz\r\n\r\n"),
    "a chunk of no number": request("/", *CHUNKED, method="POST", body=b"0x1\r\na\r\n0\r\n\r\n"),
    "a chunk past all": request("/", *CHUNKED, method="POST", body=b"fffffffffffffffff\r\na\r\n"),
    "a chunk longer than it says": request("/", *CHUNKED, method="POST", body=b"1\r\nabc\r\n0\r\n\r\n"),
    "chunks with line feeds": request("/", *CHUNKED, method="POST", body=b"1\na\n0\n\n"),
}


@pytest.mark.parametrize("form", SMUGGLED)
def test_what_two_readers_may_read_differently_is_refused(served: Served, form: str) -> None:
    """Also with a second request hidden behind it, which is never answered."""
    with Raw(served.url) as raw:
        raw.send(SMUGGLED[form] + request())
        answer = raw.rest()
    assert (status(answer), answer.count(b"content-length: ")) == (400, 1)
    assert b"application/problem+json" in answer and b"connection: close" in answer


def flood(raw: Raw, first: bytes, piece: bytes, most: int) -> int:
    """Send pieces until the service closes or `most` bytes are sent; how many it took."""
    raw.send(first)
    sent = 0
    while sent < most and raw.send(piece):
        sent += len(piece)
    return sent


ENDLESS = {
    "headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-A: " + b"a" * 60_000 + b"\r\n", {431}),
    "one header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 60_000, {431}),
    "a header's name": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"a" * 60_000, {431}),
    "an address": (b"GET /", b"a" * 60_000, {414}),
    "empty lines": (b"", b"\r\n" * 30_000, {431}),
    "trailers": (
        request("/", *CHUNKED, method="POST", body=b"0\r\n"),
        b"X-A: " + b"a" * 60_000 + b"\r\n",
        {405, 431},
    ),
    "one trailer": (request("/", *CHUNKED, method="POST", body=b"0\r\nX-A: "), b"a" * 60_000, {405, 431}),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_is_cut_off_and_answered(served: Served, what: str) -> None:
    first, piece, expected = ENDLESS[what]
    before = memory(served)
    with Raw(served.url) as raw:
        raw.send(first + piece * 10)
        answer = raw.rest()
    # Before its trailers the request may have been answered already, and is then answered no second time.
    assert status(answer) in expected
    assert answer.count(b"HTTP/1.1 ") == 1
    with Raw(served.url) as raw:
        assert flood(raw, first, piece, 40_000_000) < 40_000_000
    assert memory(served) - before < 8


def test_headers_are_limited_in_number(served: Served) -> None:
    with Raw(served.url) as raw:
        raw.send(request("/healthz", *(f"X-{n}: a" for n in range(protocol.HEADERS_MAX))))
        assert status(raw.rest()) == 431


def test_a_trailer_changes_nothing(served: Served) -> None:
    """A key that comes after the body opens nothing, also where the application has not looked yet."""
    body = b"2\r\n{}\r\n0\r\nAuthorization: Bearer " + served.tokens["all"].encode() + b"\r\n\r\n"
    with Raw(served.url) as raw:
        raw.send(request("/v1/events", "Content-Type: application/json", *CHUNKED, method="POST", body=body))
        assert status(raw.head()) == 401


def test_head_of_a_stream_ends_and_holds_no_place(tmp_path: Path) -> None:
    with local(tmp_path, auth="none", streams_max=1) as here, Raw(here.url) as raw:
        for _ in range(3):
            raw.send(request("/v1/stream", method="HEAD"))
            assert status(raw.head()) == 200
        raw.send(request())
        assert status(raw.head()) == 200
        with here.client.stream("GET", "/v1/stream") as response:
            assert response.status_code == 200


@pytest.mark.parametrize("how", ["length", "chunks"])
@pytest.mark.parametrize("after", ["close", "keep-alive"])
def test_the_answer_to_too_large_a_body_reaches_who_sends_all_of_it_first(
    served: Served, how: str, after: str
) -> None:
    size = 12 << 20
    length = f"Content-Length: {size}" if how == "length" else CHUNKED[0]
    headers = (f"Authorization: Bearer {served.tokens['all']}", "Content-Type: application/json", length)
    with Raw(served.url) as raw:
        raw.send(request("/v1/events", *headers, f"Connection: {after}", method="POST"))
        body = b"a" * size if how == "length" else b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"a" * size)
        assert raw.send(body)
        assert status(raw.head()) == 413
        if after == "keep-alive":
            raw.send(request())
            assert status(raw.head()) == 200


def test_requests_ahead_of_their_answers_are_limited(served: Served) -> None:
    """The first ones are answered, in order, and the last says that no more will be."""
    with Raw(served.url) as raw:
        raw.send(request() * 2000)
        answers = raw.rest()
    count = answers.count(b"HTTP/1.1 200")
    assert protocol.PIPELINED_MAX <= count <= 2 * protocol.PIPELINED_MAX
    assert answers.count(b"HTTP/1.1 ") == count and answers.count(b"connection: close") == 1


def test_an_offer_of_another_protocol_is_answered_in_this_one(served: Served) -> None:
    with Raw(served.url) as raw:
        raw.send(request("/healthz", "Connection: Upgrade", "Upgrade: h2c") + b"PRI * HTTP/2.0\r\n\r\n")
        answer = raw.rest()
    assert (status(answer), answer.count(b"content-length: ")) == (200, 1)


def test_a_body_that_grows_a_thousandfold_is_refused(served: Served) -> None:
    before = memory(served)
    bomb = gzip.compress(bytes(512 << 20), 1)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert served.client().post("/v1/events", content=bomb, headers=headers).status_code == 413
    assert memory(served) - before < 64


@contextmanager
def hasty(monkeypatch: pytest.MonkeyPatch, folder: Path, **choices: Any) -> Iterator[Local]:
    """A service that waits for nobody."""
    for module, names in (
        (protocol, ("HEAD_S", "BODY_S", "IDLE_S", "LINGER_S")),
        (connections, ("STALLED_S",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, 0.3)

    def small(host: str, port: int) -> socket.socket:
        listening = listening_on(host, port)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listening

    monkeypatch.setattr("tests.serving.http.local.listening_on", small)
    with local(folder, auth="none", **choices) as here:
        yield here


def test_who_takes_too_long_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hasty(monkeypatch, tmp_path) as here:
        silent, slow, idle, body = (Raw(here.url) for _ in range(4))
        slow.send(b"GET /healthz HTTP/1.1\r\nHost:")
        idle.send(request())
        body.send(request("/v1/events", "Content-Type: application/json", "Content-Length: 9", method="POST"))
        assert silent.rest() == b""
        assert status(slow.rest()) == 408
        assert idle.rest().count(b"HTTP/1.1 200") == 1
        body.rest()
        for raw in (silent, slow, idle, body):
            raw.socket.close()


def test_who_does_not_read_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's place, or a large answer's memory, is not held by a client that stands still."""
    with hasty(monkeypatch, tmp_path) as here, Raw(here.url, receive_buffer=4096) as raw:
        raw.send(request("/openapi.json") * 30)
        deadline = time.monotonic() + 20
        while 'why="stalled"' not in here.client.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_silent_connections_make_room_for_who_has_something_to_ask(tmp_path: Path) -> None:
    with local(tmp_path, auth="none", connections_max=20, streams_max=5) as here:
        silent = [Raw(here.url) for _ in range(60)]
        for _ in range(5):
            with httpx.Client(base_url=here.url) as client:
                assert client.get("/v1/check?customer=a&meter=calls").status_code == 200
        assert 'why="full"' in here.client.get("/metrics").text
        for raw in silent:
            raw.socket.close()


class Fake:
    """A connection that only waits."""

    deadline = stalled_since = closing_since = float("inf")

    def __init__(self) -> None:
        self.aborted = self.paused = False

    def is_closing(self) -> bool:
        return False

    def expire(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


def test_the_address_that_holds_most_gives_way() -> None:
    table = Connections(10, 10, lambda: 0.0)
    good, bad = Fake(), [Fake() for _ in range(30)]
    assert table.admit(good, "10.0.0.1") is not None
    for one in bad:
        assert table.admit(one, "10.0.0.2") is not None
    assert not good.aborted and len(table) == 10
    assert [one.aborted for one in bad] == [True] * 21 + [False] * 9


def test_nobody_who_is_served_is_closed_for_a_newcomer() -> None:
    table = Connections(3, 2, lambda: 0.0)
    first, second = Fake(), Fake()
    for one in (first, second):
        address = table.admit(one, "2001:db8::1")
        assert address is not None
        address.fresh.pop(one)
    # All of an IPv6 network are one, and another has room.
    assert table.admit(Fake(), "2001:db8::2") is None
    assert table.admit(Fake(), "2001:db8:0:1::1") is not None
    assert not first.aborted and not second.aborted


def test_what_nobody_wants_is_read_no_faster_than_allowed() -> None:
    """A body that was refused is no way to keep the service busy."""
    table, sender = Connections(3, 3, lambda: 0.0), Fake()
    for _ in range(connections.DISCARDED_PER_TICK >> 16):
        table.discard(sender, 1 << 16)
    assert not sender.paused
    table.discard(sender, 1)
    assert sender.paused
    table.tick()
    assert not sender.paused


def settings_with(**choices: int) -> ServingSettings:
    return load_serving_settings({"store": "sqlite:x.db", **choices})


def test_no_more_connections_are_taken_than_there_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, found: limits.__setitem__(slice(None), found))
    said: list[str] = []
    assert fit_descriptors(settings_with(connections_max=3000), said.append).connections == 3000
    assert (limits, said) == ([3000 + OWN, 4096], [])
    fitted = fit_descriptors(settings_with(connections_max=100_000), said.append)
    assert fitted.connections == 4096 - OWN and fitted.streams_max == 1000 and len(said) == 1
    limits[:] = [256, 256]
    fitted = fit_descriptors(settings_with(), said.append)
    assert fitted.connections <= 128 and fitted.streams_max <= 64


def test_good_clients_are_served_while_all_kinds_of_others_are_at_it(tmp_path: Path) -> None:
    """`TIDEGATE_HOSTILE_SECONDS=120` goes on for two minutes. The customer's own key is what attackers may have."""
    served = Served(tmp_path, connections_max="200", streams_max="50")
    took: list[float] = []

    async def scenario(url: httpx.URL) -> None:
        until = time.monotonic() + SECONDS
        bad = [
            attack_again(url, attack, until)
            for attack in attacks(served.tokens["acme"]).values()
            for _ in range(2)
        ]
        half_open = [attack_again(url, (b"", b"", 1), until) for _ in range(250)]
        good = [ask_well(url, served.tokens["check"], until, took) for _ in range(4)]
        await asyncio.gather(*bad, *half_open, *good)

    try:
        served.client().get("/v1/check?customer=good&meter=calls")
        before = memory(served)
        asyncio.run(scenario(httpx.URL(served.url)))
        assert len(took) >= 8, "each good client, twice at least, on however slow a machine"
        assert memory(served) - before < 150
        # All recovers: streams have their places again, and another customer has one.
        with served.client("acme").stream("GET", "/v1/customers/acme/stream") as response:
            assert response.status_code == 200
        assert served.client("check").get("/v1/check?customer=good&meter=calls").status_code == 200
        assert "Traceback" not in served.said()
    finally:
        assert served.stop() == 0
