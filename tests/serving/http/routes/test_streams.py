"""Streams: the newest state is never missed, whoever disconnects when, and nobody else's is ever sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import httpx
import pytest

from tests.serving.http.served import CATALOG, Served
from tidegate.operators.model.periods import DAY
from tidegate.operators.model.records import Total
from tidegate.serving.http.app import App
from tidegate.serving.http.routes import customers, streams
from tidegate.serving.http.state import Service
from tidegate.settings.serving import load_serving_settings

MESSAGES_MAX = 20
NOVEMBER, DECEMBER = 1_793_491_200_000_000, 1_796_083_200_000_000


class Message(NamedTuple):
    id: str
    event: str
    data: Any


def total(customer: str, count: int) -> Total:
    """The month's calls, after so many of them."""
    return Total(
        customer, "period", "calls", NOVEMBER, DECEMBER, count, count, count, NOVEMBER + count, 0, 0, 0, True
    )


def messages(response: httpx.Response) -> Iterator[Message]:
    """The messages of a stream as they come; comments are passed over."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield Message(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


def shown(found: Iterator[Message], condition: Callable[[Message], bool]) -> Message:
    """The first message that is so: what tells of something else may come before it."""
    return next(message for message in islice(found, MESSAGES_MAX) if condition(message))


def calls_of(message: Message) -> int:
    """The total of calls."""
    return int(next(meter["total"] for meter in message.data["meters"] if meter["meter"] == "calls"))


@pytest.fixture
def november(served: Served) -> str:
    """Makes the test's month the one that streams tell of."""
    return "at=2026-11-15T00:00:00Z"


def test_no_state_is_missed_by_a_page_that_comes_and_goes(served: Served, november: str) -> None:
    """It disconnects after every second message while totals are written, and has the last one in the end."""
    last, path = 400, f"/v1/customers/comes-and-goes/stream?{november}"
    stop = Event()

    def write() -> None:
        writer = served.writer()
        for count in range(1, last + 1):
            writer.write([total("comes-and-goes", count)], [])
            if stop.wait(0.002):
                break
        writer.close()

    thread = Thread(target=write)
    thread.start()
    seen: list[int] = [0]
    headers: dict[str, str] = {}
    try:
        for _ in range(200):
            with served.client("read").stream("GET", path, headers=headers) as response:
                for number, message in enumerate(messages(response)):
                    headers = {"last-event-id": message.id}
                    seen.append(calls_of(message))
                    if number or seen[-1] == last:
                        break
            if seen[-1] == last:
                break
    finally:
        stop.set()
        thread.join()
    assert seen[-1] == last
    assert seen == sorted(seen), "a total went back"


def test_an_open_page_sees_usage_and_a_raised_cap_without_asking(alone: Served, november: str) -> None:
    alone.start()
    writer = alone.writer()
    with alone.client("acme").stream("GET", f"/v1/customers/acme/stream?{november}") as response:
        found = messages(response)
        assert calls_of(next(found)) == 0
        writer.write([total("acme", 7)], [])
        shown(found, lambda message: calls_of(message) == 7)
        raised = CATALOG.replace("cap: 1000", "cap: 5000")
        control = alone.control()
        control.apply(raised, origin="api", by="test")
        control.close()
        message = shown(found, lambda message: message.data["catalog"] == 2)
        meter = next(meter for meter in message.data["meters"] if meter["meter"] == "calls")
        assert meter["limit"]["cap"] == "5000"
    writer.close()


def test_what_happens_to_others_wakes_nobody(served: Served, november: str) -> None:
    writer = served.writer()
    with served.client("acme").stream("GET", f"/v1/customers/acme/stream?{november}") as response:
        found = messages(response)
        next(found)
        writer.write([total("somebody-else", 5)], [])
        writer.write([total("acme", 3)], [])
        message = next(found)
        assert (message.data["customer"], calls_of(message)) == ("acme", 3)
        assert "somebody-else" not in json.dumps(message.data)
    writer.close()


def test_the_overview_follows_all_customers(served: Served) -> None:
    writer = served.writer()
    with served.client("read").stream("GET", "/v1/stream") as response:
        found = messages(response)
        before = next(found)
        assert before.event == "overview"
        writer.write([total("new-in-the-overview", 1)], [])
        shown(found, lambda message: message.data["customers"] > before.data["customers"])
    writer.close()


def test_a_stream_of_what_cannot_be_is_an_error_at_once(served: Served) -> None:
    answer = served.client().get("/v1/customers/acme/stream?at=yesterday")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_streams_end_when_the_service_does(alone: Served) -> None:
    alone.start()
    with alone.client("read").stream("GET", "/v1/customers/acme/stream") as response:
        found = messages(response)
        next(found)
        process = alone.process
        assert process is not None
        process.terminate()
        assert list(found) == []
    assert process.wait(10) == 0


class Listener:
    """One stream of an application in this process."""

    def __init__(self, app: App, path: str, token: str) -> None:
        self.status = 0
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def next(self) -> dict[str, Any]:
        """What the next message says; comments are passed over."""
        while True:
            piece = await asyncio.wait_for(self.pieces.get(), 10)
            assert piece is not None, "the stream has ended"
            if b"data: " in piece:
                return json.loads(piece.partition(b"data: ")[2])  # type: ignore[no-any-return]

    def leave(self) -> None:
        self._leave.set_result(None)

    async def _receive(self) -> dict[str, Any]:
        await self._leave
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.pieces.put_nowait(message["body"] if message.get("more_body") else None)


@asynccontextmanager
async def running(folder: Path, **choices: Any) -> AsyncIterator[tuple[Service, App, Served]]:
    """A service in this process, on the files of one that is not started."""
    served = Served(folder, start=False)
    clock = choices.pop("clock", None)
    paths = {
        "store": f"sqlite:{served.store}",
        "catalog": str(folder / "catalog.yaml"),
        "keys": str(folder / "data" / "keys.db"),
        "ingest": f"log:{folder}/data/ingest/",
        "data_dir": str(folder / "data"),
    }
    service = Service(load_serving_settings(paths | choices), **({"clock": clock} if clock else {}))
    await service.start()
    try:
        yield service, App(service), served
    finally:
        await service.close()


def test_the_stream_of_a_key_that_was_revoked_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "USAGE_WITHIN_S", 0.05)

    async def scenario() -> None:
        async with running(tmp_path) as (service, app, served):
            listener = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            await listener.next()
            assert service.keys is not None
            service.keys.revoke(served.tokens["read"].split("_")[1])
            while await asyncio.wait_for(listener.pieces.get(), 10) is not None:
                pass
            await listener.task
            assert service.places.taken == 0

    asyncio.run(scenario())


def test_what_changes_while_a_state_is_read_is_told_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A total is written right after the first state was read, and before it was sent."""
    real = customers.usage_of

    async def scenario() -> None:
        async with running(tmp_path) as (service, app, served):
            asked: list[int] = []

            async def usage_of(*given: Any) -> Any:
                found = await real(*given)
                asked.append(service.live.seq)
                # The first is only to see whether it can be told at all.
                if len(asked) == 2:
                    writer = served.writer()
                    writer.write([total("acme", 1)], [])
                    writer.close()
                    while service.live.seq == asked[-1]:
                        await asyncio.sleep(0.002)
                return found

            monkeypatch.setattr(streams, "usage_of", usage_of)
            listener = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            await listener.next()
            await listener.next()
            listener.leave()
            await listener.task

    asyncio.run(scenario())


def test_no_more_streams_than_allowed_and_a_place_is_free_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, streams_max=1) as (service, app, served):
            first = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            await first.next()
            second = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            await second.task
            assert second.status == 503
            first.leave()
            await first.task
            third = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            await third.next()
            third.leave()
            await third.task
            assert service.places.taken == 0

    asyncio.run(scenario())


def test_one_customers_keys_together_take_no_more_streams_than_a_customer_may(tmp_path: Path) -> None:
    """They are in browsers; another customer, and the operator, have theirs all the same."""

    async def scenario() -> None:
        async with running(tmp_path, streams_per_customer=2, streams_per_key=1) as (service, app, served):
            second = served.create_key("acme's other page", "read", customer="acme")
            bolt = served.create_key("bolt's page", "read", customer="bolt")
            asked = [served.tokens["acme"], second, second, served.tokens["read"], served.tokens["read"]]
            listeners = [Listener(app, "/v1/customers/acme/stream", token) for token in asked]
            listeners.append(Listener(app, "/v1/customers/bolt/stream", bolt))
            opened = [listeners[n] for n in (0, 1, 3, 5)]
            for one in opened:
                await one.next()
            assert [one.status for one in listeners] == [200, 200, 429, 200, 429, 200]
            for one in opened:
                one.leave()
            for one in listeners:
                await one.task
            assert service.places.taken == 0

    asyncio.run(scenario())


def test_a_new_period_is_told_though_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At midnight of the first the page is to show 0, and not wait for the month's first event."""
    monkeypatch.setattr(streams, "USAGE_WITHIN_S", 0.05)
    now = [DECEMBER - DAY]
    clock: Callable[[], int] = lambda: now[0]  # noqa: E731

    async def scenario() -> None:
        async with running(tmp_path, clock=clock) as (_, app, served):
            listener = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            assert (await listener.next())["period"]["start"] == "2026-11-01T00:00:00Z"
            now[0] = DECEMBER
            assert (await listener.next())["period"]["start"] == "2026-12-01T00:00:00Z"
            listener.leave()
            await listener.task

    asyncio.run(scenario())


def test_the_store_may_go_and_come_back_while_a_page_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AGAIN_AFTER_S", 0.05)

    async def scenario() -> None:
        async with running(tmp_path) as (service, app, served):
            listener = Listener(app, "/v1/customers/acme/stream", served.tokens["read"])
            await listener.next()
            away = served.store.rename(tmp_path / "away.db")
            while not service.live.problem:
                await asyncio.sleep(0.01)
            away.rename(served.store)
            writer = served.writer()
            while service.live.problem:
                await asyncio.sleep(0.01)
            writer.write([total("acme", 1)], [])
            writer.close()
            await listener.next()
            listener.leave()
            await listener.task

    asyncio.run(scenario())
