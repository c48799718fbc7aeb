"""What clients do that mean harm or are broken, one kind each, and clients that are good meanwhile."""

import asyncio
import gzip
import resource
import time
from contextlib import suppress
from pathlib import Path

import httpx

from tests.serving.http.raw import request
from tests.serving.http.served import Served

CHUNKED = ("Transfer-Encoding: chunked",)


def memory(served: Served) -> float:
    """Megabytes that the service's process has in memory."""
    assert served.process is not None
    pages = int(Path(f"/proc/{served.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def _say(host: str, port: int, until: float, first: bytes, piece: bytes, pause: float) -> None:
    """Say something, and then more of the same for as long as the service listens, or until that time."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(first)
        while not reader.at_eof() and time.monotonic() < until:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 1)
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(65536), 0.001)
    finally:
        writer.close()


def attacks(token: str) -> dict[str, tuple[bytes, bytes, float]]:
    """What each kind says first, then again and again, and how long it pauses between."""
    key, piece = f"Authorization: Bearer {token}", b"a" * 65535
    post = ("Content-Type: application/json", key)
    bomb = gzip.compress(bytes(8 << 20))
    zipped = (*post, "Content-Encoding: gzip", f"Content-Length: {len(bomb)}")
    return {
        "half open": (b"", b"", 0.5),
        "slow headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n", 0.2),
        "endless headers": (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"a" * 60_000, 0),
        "slow body": (request("/v1/events", *post, "Content-Length: 99999", method="POST"), b" ", 0.2),
        "endless body": (
            request("/v1/events", *post, *CHUNKED, method="POST"),
            b"ffff\r\n%b\r\n" % piece,
            0,
        ),
        "many streams": (request("/v1/customers/acme/stream", key), b"", 0.5),
        "heads of streams": (b"", request("/v1/customers/acme/stream", key, method="HEAD"), 0.05),
        "pipelined": (b"", request() * 200, 0),
        "long addresses": (b"", request("/" + "a" * 15_000), 0.02),
        "too long addresses": (b"", request("/" + "a" * 30_000), 0),
        "bad chunks": (b"", request("/v1/events", *post, *CHUNKED, method="POST", body=b"x\r\n"), 0),
        "wrong hosts": (b"", request("/", "Host: evil.example"), 0),
        "bombs": (b"", request("/v1/events", *zipped, method="POST", body=bomb), 0.2),
        "junk": (b"", b"\x16\x03\x01" + bytes(range(256)) * 16, 0),
    }


async def attack_again(url: httpx.URL, attack: tuple[bytes, bytes, float], until: float) -> None:
    while time.monotonic() < until:
        with suppress(OSError, TimeoutError):
            await _say(str(url.host), url.port or 80, until, *attack)
        await asyncio.sleep(0.02)


async def ask_well(url: httpx.URL, token: str, until: float, took: list[float]) -> None:
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, verify=False) as client:
        while time.monotonic() < until:
            began = time.monotonic()
            answer = await client.get("/v1/check?customer=good&meter=calls")
            assert answer.status_code == 200, answer.text
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
