"""How events are wrapped over HTTP: headers, encodings and batches, each of which ends in an answer."""

import base64
import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import zstandard

from tests.reference.malformed import dodo
from tests.serving.http.routes.test_events import JSON, URL, event, taken
from tests.serving.http.served import Served
from tidegate.operators.events.envelope import EnvelopeError, split_request
from tidegate.serving.http.connection.encoded import PARTS_MAX, decompress
from tidegate.serving.http.problems import Problem

LIMIT = 4 << 20


def binary(id: str, **changed: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of an event in binary mode, as bytes on the wire."""
    attributes = {name: str(value).encode() for name, value in event(id).items() if name != "data"}
    headers = {f"ce-{name}".encode(): value for name, value in (attributes | changed).items()}
    return [*headers.items(), (b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("sent", "subject"),
    [
        (b"caf%C3%A9", "café"),
        ("café".encode(), "café"),
        (b"caf%c3%a9%20%25%22", 'café %"'),
        (b"%61cme", "acme"),
        (b'"acme"', "acme"),
        (b'"a \\"b\\" \\\\ c"', 'a "b" \\ c'),
        (b'"caf%C3%A9"', "café"),
        ('"日本 %F0%9F%98%80"'.encode(), "日本 😀"),
        (b"a+b", "a+b"),
        (b"%2541", "%41"),
        (b'a"b', 'a"b'),
        (b"100%", "100%"),
    ],
)
def test_a_header_is_unquoted_and_then_decoded_once(
    api: httpx.Client, served: Served, sent: bytes, subject: str
) -> None:
    """As the binding says; a customer's name that is read as another one is another customer's usage."""
    id = f"header {sent.hex()}"
    answer = api.post(URL, headers=binary(id, subject=sent), content=b'{"n":1}')
    assert answer.status_code == 202, answer.text
    assert taken(served, id)["subject"] == subject


@pytest.mark.parametrize("sent", [b"%C0%A0", b"%FF", b"caf\xe9", b'"acme', b'"a"b"', b'"a" b', b'"acme\\"'])
def test_a_header_that_is_no_text_is_refused(api: httpx.Client, sent: bytes) -> None:
    answer = api.post(URL, headers=binary("bad header", subject=sent), content=b"{}")
    assert (answer.status_code, answer.json()["detail"].partition(":")[0]) == (400, "ce-subject")


@pytest.mark.parametrize("name", [b"ce-subject", b"CE-Subject", b"ce-id", b"content-type"])
def test_a_header_that_is_there_twice_is_refused(api: httpx.Client, name: bytes) -> None:
    """Reading the other one would meter another customer."""
    headers = [*binary("twice"), (name, b"application/json")]
    answer = api.post(URL, headers=headers, content=b"{}")
    assert (answer.status_code, "needs to be there once" in answer.text) == (400, True)


def zipped(body: bytes) -> bytes:
    return gzip.compress(body[:40]) + gzip.compress(body[40:])


def framed(body: bytes) -> bytes:
    pack = zstandard.ZstdCompressor().compress
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    return pack(body[:40]) + skipped + pack(body[40:])


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": zipped,
    "GZIP": zipped,
    "zstd": framed,
    "ZSTD": zstandard.ZstdCompressor(level=19).compress,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_a_compressed_body_is_read(api: httpx.Client, served: Served, encoding: str) -> None:
    body = json.dumps([event(f"{encoding} {i}") for i in range(3)]).encode()
    headers = {**JSON, "content-encoding": encoding}
    answer = api.post(URL, headers=headers, content=ENCODED[encoding](body))
    assert (answer.status_code, answer.json()["accepted"]) == (202, 3), answer.text
    assert taken(served, f"{encoding} 2")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "compress", "\xff"])
def test_other_encodings_are_refused_with_those_that_are_taken(api: httpx.Client, encoding: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-encoding", encoding.encode("latin-1"))]
    answer = api.post(URL, headers=headers, content=gzip.compress(b"{}"))
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, zstd")


def test_two_encodings_in_two_headers_are_refused(api: httpx.Client) -> None:
    headers = [*JSON.items(), ("content-encoding", "gzip"), ("content-encoding", "gzip")]
    assert api.post(URL, headers=headers, content=gzip.compress(gzip.compress(b"{}"))).status_code == 415


WHOLE = json.dumps(event("whole")).encode()
BROKEN = {
    "cut gzip": ("gzip", gzip.compress(WHOLE)[:-9]),
    "cut zstd": ("zstd", zstandard.ZstdCompressor().compress(WHOLE)[:-5]),
    "gzip and more": ("gzip", gzip.compress(WHOLE) + b"more"),
    "zstd and more": ("zstd", zstandard.ZstdCompressor().compress(WHOLE) + b"more"),
    "wrong sum": ("gzip", gzip.compress(WHOLE)[:-8] + bytes(8)),
    "not compressed": ("gzip", WHOLE),
    "not compressed either": ("zstd", WHOLE),
    "another": ("zstd", gzip.compress(WHOLE)),
    "raw deflate": ("gzip", zlib.compress(WHOLE)),
    "a window of 128 MiB": ("zstd", b"\x28\xb5\x2f\xfd\x00\x88" + b"\x01\0\0"),
    "nothing": ("gzip", b""),
    "not said": ("", gzip.compress(WHOLE)),
    "not said of zstd": ("", zstandard.ZstdCompressor().compress(WHOLE)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_body_that_is_not_what_it_says_is_refused_in_words(api: httpx.Client, name: str) -> None:
    """Also no byte of it in the answer, which logs and terminals show."""
    encoding, body = BROKEN[name]
    headers = {**JSON, **({"content-encoding": encoding} if encoding else {})}
    answer = api.post(URL, headers=headers, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].isascii() and answer.json()["detail"].isprintable()


def bomb(encoding: str) -> bytes:
    """A kilobyte or so a megabyte, 64 MiB of it."""
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
    return gzip.compress(bytes(64 << 20), 9)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_small_body_that_becomes_a_large_one_is_refused(api: httpx.Client, encoding: str) -> None:
    body = bomb(encoding)
    assert len(body) < 100_000
    headers = {**JSON, "content-encoding": encoding}
    assert api.post(URL, headers=headers, content=body).status_code == 413


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_parts_without_end_are_refused(encoding: str) -> None:
    empty = gzip.compress(b"") if encoding == "gzip" else zstandard.ZstdCompressor().compress(b"")
    assert decompress(encoding, empty * PARTS_MAX, LIMIT) == b""
    with pytest.raises(Problem, match=f"at most {PARTS_MAX}"):
        decompress(encoding, empty * (PARTS_MAX + 1), LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_the_limit_is_that_of_the_uncompressed_body(encoding: str, size: int) -> None:
    pack = gzip.compress if encoding == "gzip" else zstandard.ZstdCompressor().compress
    assert decompress(encoding, pack(bytes(size)), 1000) == bytes(size)
    for more in (1, 100_000):
        with pytest.raises(Problem, match="at most 1000 bytes"):
            decompress(encoding, pack(bytes(1000 + more)), 1000)


def test_data_in_base64_is_metered_as_what_it_is(api: httpx.Client, served: Served) -> None:
    one = event("base64") | {"data_base64": base64.b64encode(b'{"tokens":5}').decode()}
    assert (
        api.post(URL, json={name: value for name, value in one.items() if name != "data"}).status_code == 202
    )
    assert "data_base64" in taken(served, "base64")
    wrong = api.post(URL, json=event("no base64") | {"data": None, "data_base64": "%%"})
    assert wrong.json()["errors"][0]["reason"] == "data_base64_invalid"


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b'{"events":[]}', b'{"events": [ ], "more": 1}'])
def test_a_request_without_events_is_refused(api: httpx.Client, body: bytes) -> None:
    """A 202 would say that something was taken."""
    assert api.post(URL, headers=JSON, content=body).status_code == 400
    lines = {"content-type": "application/x-ndjson"}
    assert api.post(URL, headers=lines, content=b"\n \r\n").status_code == 400


def test_an_event_is_an_event_though_it_has_events(api: httpx.Client, served: Served) -> None:
    """Its own fields say what it is; what it has besides is nobody's to guess."""
    for number, is_dodo in enumerate((True, False)):
        plain = event(f"besides {number}")
        one = dodo(plain) if is_dodo else plain
        assert api.post(URL, json=one | {"events": []}).json()["accepted"] == 1
        assert taken(served, f"besides {number}")
        both = api.post(URL, json=one | {"events": [event("inside")]})
        assert (both.status_code, "got both" in both.text) == (400, True)


@pytest.mark.parametrize(
    "wrap", [lambda one: [[one]], lambda one: [{"events": [one]}], lambda one: {"events": [[one]]}]
)
def test_a_batch_in_a_batch_is_refused(api: httpx.Client, wrap: Any) -> None:
    assert api.post(URL, json=wrap(event("nested"))).status_code == 422


def test_odd_headers_and_bodies_end_in_events_or_in_a_refusal() -> None:
    """Whatever comes: payloads of one line each, at least one, or an error that can be shown."""
    random_ = random.Random(12)
    pieces = [
        b'{"id":"1"}', b"[", b"]", b'{"events":', b"}", b",", b"\n", b'"', b"\\", b"%C3", b"\xef\xbb\xbf", b"\xff",
        b'"specversion":"1.0"', b'"event_id":1', b" ", b"\0", b"\x1f\x8b", b"data_base64",
    ]  # fmt: skip
    media = ["application/json", "application/x-ndjson", "application/cloudevents+json",
             "application/cloudevents-batch+json", ""]  # fmt: skip
    for _ in range(3000):
        body = b"".join(random_.choices(pieces, k=random_.randrange(8)))
        headers = {
            f"ce-{random_.choice(['id', 'specversion', 'subject', 'x-y', 'data', ''])}": b"".join(
                random_.choices(pieces, k=random_.randrange(4))
            ).decode("latin-1")
            for _ in range(random_.randrange(3))
        }
        encoding = random_.choice(["", "", "gzip", "zstd"])
        try:
            if encoding:
                body = decompress(encoding, random_.choice([body, gzip.compress(body)]), 1000)
            found = split_request(random_.choice(media), headers, body)
        except (EnvelopeError, Problem) as error:
            assert str(error).isprintable()
            continue
        assert found
        assert not any(b"\n" in payload for payload in found)
