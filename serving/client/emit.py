"""Where applications put their usage events: over HTTP to the service, or straight into its log."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol, Self

import httpx
import msgspec

from tidegate.operators.model.errors import TidegateError, one_line
from tidegate.operators.model.ports import Ingest

TRIES: Final = 5
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 2.0
WITHIN_S: Final = 5.0
EVENT: Final = "application/cloudevents+json"


class EmitError(TidegateError):
    """An event could not be put anywhere; `event` is what it was, to be sent again as it is."""

    def __init__(self, detail: str, event: bytes) -> None:
        super().__init__(f"event not sent: {detail}")
        self.event = event


class Emit(Protocol):
    """Makes an event durable, or raises EmitError. Sent again it does no harm."""

    async def __call__(self, event: bytes, customer: str) -> None: ...


def event_of(customer: str, name: str, source: str, id: str, data: dict[str, Any]) -> bytes:
    """Return a CloudEvent of the current time. Decimals in `data` are written as numbers, so that meters read them."""
    event = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": name,
        "subject": customer,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }
    return msgspec.json.Encoder(decimal_format="number").encode(event)


class HttpEmit:
    """Sends to `POST /v1/events` of the service at `url`, with an API key of the scope `ingest`.

    What is not answered, or with 429 or 5xx, is sent again, five times within some seconds; any other refusal raises.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        client: httpx.AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client or httpx.AsyncClient(timeout=WITHIN_S)
        self._url, self._sleep, self._chance = f"{url.rstrip('/')}/v1/events", sleep, chance
        self._headers = {"authorization": f"Bearer {key}", "content-type": EVENT}

    async def __call__(self, event: bytes, customer: str) -> None:
        detail, pause = "", PAUSE_FIRST_S
        for tried in range(TRIES):
            if tried:
                await self._sleep(pause * (1 - self._chance() / 2))
                pause = min(2 * pause, PAUSE_MAX_S)
            try:
                answer = await self._client.post(self._url, content=event, headers=self._headers)
            except httpx.RequestError as error:
                detail = f"{type(error).__name__} {one_line(error)}"
                continue
            if answer.status_code == 202:
                return
            detail = f"{answer.status_code} {one_line(answer.text[:500])}"
            if answer.status_code != 429 and answer.status_code < 500:
                break
        raise EmitError(detail, event)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


class LogEmit:
    """Writes into the log that the flow reads, on a lane of its own: durable within a fsync, without a service."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    async def __call__(self, event: bytes, customer: str) -> None:
        try:
            await self._ingest.put([event], [customer])
        except Exception as error:
            raise EmitError(str(error), event) from error
