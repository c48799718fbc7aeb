"""Checks over HTTP: how many a second on one core, and how long they take at half of that.

    python -m benchmarks.service

Starts `tidegate serve` on core 0, fills its store, and asks from core 1: first as fast as 32 connections can, then at
half of that rate, each request at its own time whether or not the one before it was answered, so that a pause shows in
all the requests that fell into it. With `wrk` on the PATH its figure is shown as well.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import typer

from benchmarks.ended import ENDED
from tidegate.connectors.sqlite.api_keys import KeyFile
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.records import Total

CONNECTIONS: Final = 32
CUSTOMERS: Final = 1000
CATALOG: Final = """meters:
  - {name: calls, event_name: api.call, aggregation: {type: count}}
default_plan: free
plans: {free: {limits: {calls: {cap: 1000000}}}}
"""
SERVER_CORE, CLIENT_CORE = 0, 1


def main(seconds: float = 5.0, churn: float = 100.0, rate: float = 0.0) -> None:
    """Asks for so many seconds each, while `churn` customers a second are written, as a flow would.

    `rate` is that of the second part, half of what was reached if it is 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        token = _prepare(path)
        server = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "serve", "--listen", "127.0.0.1:0"],
            cwd=path,
            env=os.environ | {"TIDEGATE_RATE_PER_KEY": "1000000", "PYTHONPATH": str(Path.cwd())},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr is not None
            url = server.stderr.readline().split()[-1]
            port = int(url.rpartition(":")[2])
            os.sched_setaffinity(server.pid, {SERVER_CORE})
            for thread in Path(f"/proc/{server.pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), {SERVER_CORE})
            os.sched_setaffinity(0, {CLIENT_CORE})
            asyncio.run(
                _measure(server.pid, port, token, seconds, path / "data" / "tidegate.db", churn, rate)
            )
            _wrk(url, token, seconds)
        finally:
            server.terminate()
            server.wait(10)


def _prepare(folder: Path) -> str:
    (folder / "catalog.yaml").write_text(CATALOG)
    (folder / "data").mkdir()
    writer = SqliteWriter(folder / "data" / "tidegate.db")
    writer.write([_total(customer, 1) for customer in range(CUSTOMERS)], [], heartbeats=[ENDED])
    writer.close()
    keys = KeyFile(folder / "data" / "keys.db")
    token, _ = keys.create("benchmark", frozenset({"check"}))
    keys.close()
    return token


def _total(customer: int, count: int) -> Total:
    now = time.time_ns() // 1000
    start, end = find_period(Calendar("month"), "UTC", now)
    return Total(f"c{customer}", "period", "calls", start, end, count, count, count, now, 0, 0, 0, True)


def _request(customer: int, token: str) -> bytes:
    return (
        f"GET /v1/check?customer=c{customer}&meter=calls&quantity=1 HTTP/1.1\r\n"
        f"Host: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


class _Client(asyncio.Protocol):
    """One connection; requests are answered in order."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._rest = b""
        self.degraded = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self._rest) < end + 4 + length:
                return
            assert head.startswith(b"http/1.1 200"), self._rest
            self.degraded += b'"degraded":true' in self._rest[end : end + 4 + length]
            self._rest = self._rest[end + 4 + length :]
            self._waiting.pop(0).set_result(None)

    def ask(self, request: bytes) -> asyncio.Future[None]:
        answered = asyncio.get_running_loop().create_future()
        self._waiting.append(answered)
        self._transport.write(request)
        return answered


def _cpu_seconds(pid: int) -> float:
    """Of all threads of a process: what is left to compare where other programs run too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _measure(
    pid: int, port: int, token: str, seconds: float, store: Path, churn: float, paced: float
) -> None:
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(_Client, "127.0.0.1", port))[1] for _ in range(CONNECTIONS)]
    requests = [_request(customer, token) for customer in range(CUSTOMERS)]
    writing = asyncio.create_task(_churn(store, churn))
    for warm in range(2):
        before = _cpu_seconds(pid)
        rate = await _as_fast_as_can_be(clients, requests, seconds if warm else 1.0)
    each = (_cpu_seconds(pid) - before) / (rate * seconds)
    print(
        f"{rate:,.0f} checks/s on one core, {CONNECTIONS} connections, {churn:g} customers written a second; "
        f"{each * 1e6:.0f} µs of CPU each, so {1 / each:,.0f} checks/s on a core that nobody else uses"
    )
    paced = paced or rate / 2
    took = sorted(await _at_a_rate(clients, requests, paced, seconds))
    shown = ", ".join(
        f"p{part:g} {took[int(len(took) * part / 100)] * 1e3:.2f} ms" for part in (50, 90, 99, 99.9)
    )
    print(f"at {paced:,.0f} a second: {shown}, {len(took):,} requests")
    degraded = sum(client.degraded for client in clients)
    print(f"decided without the store, in all: {degraded:,}")
    writing.cancel()


async def _churn(store: Path, rate: float) -> None:
    writer, count = SqliteWriter(store), 1
    while True:
        count += 1
        await asyncio.to_thread(writer.write, [_total(count % CUSTOMERS, count)], [])
        await asyncio.sleep(1 / rate)


async def _as_fast_as_can_be(clients: list[_Client], requests: list[bytes], seconds: float) -> float:
    begin, counts = time.perf_counter(), [0]

    async def one(client: _Client, number: int) -> None:
        while time.perf_counter() - begin < seconds:
            await client.ask(requests[number % len(requests)])
            number += 7
            counts[0] += 1

    await asyncio.gather(*(one(client, number) for number, client in enumerate(clients)))
    return counts[0] / (time.perf_counter() - begin)


async def _at_a_rate(
    clients: list[_Client], requests: list[bytes], rate: float, seconds: float
) -> list[float]:
    """How long each request took, from when it was due."""
    begin, took, due = time.perf_counter(), list[float](), 0.0
    pending: set[asyncio.Future[None]] = set()
    number = 0
    while due < seconds:
        now = time.perf_counter() - begin
        while due <= now and due < seconds:
            answered = clients[number % len(clients)].ask(requests[number % len(requests)])
            answered.add_done_callback(lambda _, due=due: took.append(time.perf_counter() - begin - due))  # type: ignore[misc]
            pending.add(answered)
            answered.add_done_callback(pending.discard)
            number += 1
            due = number / rate
        await asyncio.sleep(0.0005)
    while pending:
        await asyncio.sleep(0.01)
    return took


def _wrk(url: str, token: str, seconds: float) -> None:
    if shutil.which("wrk") is None:
        return
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}", "-H", f"Authorization: Bearer {token}"]
    done = subprocess.run(
        [*command, f"{url}/v1/check?customer=c1&meter=calls"], capture_output=True, text=True, check=True
    )
    print("wrk:", next(line.strip() for line in done.stdout.splitlines() if "Requests/sec" in line))


if __name__ == "__main__":
    typer.run(main)
