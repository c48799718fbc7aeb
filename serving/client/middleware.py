"""Metering for applications: check before, tell what was used after.

    metering = Metering(AsyncGate.open(), HttpEmit(url, key), source="/my-app")

    app.add_middleware(UsageMiddleware, metering=metering, meter="api_calls", name="api.call", customer=customer_of)

    @metering.metered("api_calls", "api.call", customer=lambda request: request.state.customer)
    async def endpoint(request): ...

    async with metering.reserved(customer, "tokens", 4000, name="llm.tokens") as held:
        answer = await model(prompt)
        held.used(answer.tokens, model="large")

Each holds the quantity first, so that no other request is promised the same, then works, then makes the event durable,
with the id of what was held, and commits what was used. When the event has come through the flow the hold ends. Work
that fails has used what it reported by `used` until then, and nothing otherwise. A cancelled request ends its hold all
the same. Caps are exact under concurrency, and an answer that was given was metered.
"""

import asyncio
import functools
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from typing import Any, ParamSpec, TypeVar

from anyio import CancelScope
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.connectors.clock import wall_clock
from tidegate.serving.client.emit import Emit, EmitError, event_of
from tidegate.serving.gate import AsyncGate, Decision, Quantity
from tidegate.serving.http.problems import MEDIA, Problem
from tidegate.serving.http.serialization import denied, rate_headers

P = ParamSpec("P")
R = TypeVar("R")

EXPIRES_IN = timedelta(minutes=5)

_log = logging.getLogger("tidegate.metering")


class Denied(Exception):
    """The gate says no; `decision` says why, and `problem` says it over HTTP."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.customer}: {decision.meter or 'spend'}: {decision.reason}")
        self.decision = decision

    @property
    def problem(self) -> Problem:
        return denied(self.decision, wall_clock())


class Held:
    """What is held while the work is done.

    Work that ends well without calling `used` has used all that was held; work that fails, nothing.
    """

    def __init__(self, id: str, decision: Decision, quantity: Quantity) -> None:
        self.id, self.decision = id, decision
        self.quantity = quantity
        self.data: dict[str, Any] = {}
        self.counts = True
        self.is_reported = False

    def used(self, quantity: Quantity, **data: Any) -> None:
        """Report that so much was used so far, also if the work fails later; `data` goes into the event."""
        self.quantity = quantity
        self.counts = self.is_reported = True
        self.data.update(data)

    def unused(self) -> None:
        """Report that nothing was used: no event, and what was held is given back."""
        self.counts = self.is_reported = False


class Metering:
    """One gate and one way for events; `source` is what all these events carry.

    `lost` is given each event that could not be made durable; without it, such an event is in the log, whole, as an
    error. What it used counts against the cap for the gate's `settle_within` all the same.
    """

    def __init__(
        self, gate: AsyncGate, emit: Emit, *, source: str, lost: Callable[[EmitError], None] | None = None
    ) -> None:
        if not source:
            raise ValueError("source: needs some text, as a CloudEvent has one")
        self._gate, self._emit, self._source = gate, emit, source
        self._lost = lost or _say_lost
        # Tasks that end a hold whose request was cancelled; the loop itself keeps none alive.
        self._ending: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def reserved(
        self,
        customer: str,
        meter: str,
        quantity: Quantity,
        *,
        name: str,
        key: str | None = None,
        id: str | None = None,
        expires_in: timedelta = EXPIRES_IN,
    ) -> AsyncIterator[Held]:
        """Hold the quantity while the body runs; Denied if it may not be used.

        After it, an event `name` is sent with the quantity used under `key` (as a `sum` meter reads it; none for a
        `count` meter). Where the body raises or is cancelled, what it reported used until then is sent, and the rest of
        what was held is given back.
        """
        held = await self.hold(customer, meter, quantity, id=id, expires_in=expires_in)
        try:
            yield held
        except BaseException:
            await self.fail(customer, held, name=name, key=key)
            raise
        await self.settle(customer, held, name=name, key=key)

    def metered(
        self,
        meter: str,
        name: str,
        *,
        customer: Callable[P, str],
        quantity: Quantity = 1,
        key: str | None = None,
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
        """Return a decorator: each call uses `quantity`; `customer` returns the customer of the call's arguments."""

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
            @functools.wraps(function)
            async def call(*args: P.args, **kwargs: P.kwargs) -> R:
                who = customer(*args, **kwargs)
                async with self.reserved(who, meter, quantity, name=name, key=key):
                    return await function(*args, **kwargs)

            return call

        return decorate

    async def hold(
        self,
        customer: str,
        meter: str,
        quantity: Quantity,
        *,
        id: str | None = None,
        expires_in: timedelta = EXPIRES_IN,
    ) -> Held:
        """Do the first half of `reserved`, where a context manager does not fit."""
        id = id or uuid.uuid4().hex
        reserving = asyncio.ensure_future(
            self._gate.reserve(customer, meter, quantity, expires_in, id=id, source=self._source)
        )
        try:
            decision = await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # The store may hold it already, and nobody else knows.
            self._start(self._undo(customer, id, reserving))
            raise
        if not decision.allowed:
            raise Denied(decision)
        return Held(id, decision, quantity)

    async def settle(self, customer: str, held: Held, *, name: str, key: str | None = None) -> None:
        """End a hold of `reserve`: when this returns, the event is durable or went to `lost`, also when cancelled."""
        await self._shielded(self._settle(customer, held, name, key))

    async def fail(self, customer: str, held: Held, *, name: str, key: str | None = None) -> None:
        """As `settle`, for work that failed: only what it reported counts."""
        if not held.is_reported:
            held.unused()
        await self.settle(customer, held, name=name, key=key)

    async def give_back(self, customer: str, held: Held) -> None:
        """End a hold that was not used. It ends also when cancelled."""
        await self._shielded(self._gate.release(customer, held.id, source=self._source))

    async def aclose(self) -> None:
        """Wait for what still ends holds of requests that were cancelled."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _settle(self, customer: str, held: Held, name: str, key: str | None) -> None:
        if not held.counts:
            await self._gate.release(customer, held.id, source=self._source)
            return
        data = held.data | ({key: held.quantity} if key else {})
        try:
            await self._emit(event_of(customer, name, self._source, held.id, data), customer)
        except EmitError as error:
            self._lost(error)
        await self._gate.commit(customer, held.id, held.quantity, source=self._source)

    async def _undo(self, customer: str, id: str, reserving: "asyncio.Future[Decision]") -> None:
        with suppress(Exception):
            await reserving
        await self._gate.release(customer, id, source=self._source)

    async def _shielded(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do the work in a task of its own, which goes on when this one is cancelled, by asyncio or an anyio scope."""
        task = self._start(work)
        with CancelScope(shield=True):
            await asyncio.shield(task)

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


class UsageMiddleware:
    """ASGI middleware: each request uses `quantity` of `meter`, if its answer `counts`.

    `customer` says whose request it is, None for one that is not metered. The event is durable before the end of the
    answer is sent. Denied requests are answered with 429 and problem details; all have RateLimit headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metering: Metering,
        meter: str,
        name: str,
        customer: Callable[[Scope], str | None],
        quantity: int | Decimal = 1,
        key: str | None = None,
        counts: Callable[[int], bool] = lambda status: status < 400,
    ) -> None:
        self._app, self._metering = app, metering
        self._meter, self._name, self._key = meter, name, key
        self._customer, self._quantity, self._counts = customer, quantity, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        customer = self._customer(scope) if scope["type"] == "http" else None
        if customer is None:
            await self._app(scope, receive, send)
            return
        try:
            held = await self._metering.hold(customer, self._meter, self._quantity)
        except Denied as no:
            await _refuse(no.problem, send)
            return
        await self._run(customer, held, scope, receive, send)

    async def _run(self, customer: str, held: Held, scope: Scope, receive: Receive, send: Send) -> None:
        settled = False

        async def settle() -> None:
            nonlocal settled
            if not settled:
                settled = True
                await self._metering.settle(customer, held, name=self._name, key=self._key)

        async def metered(message: Message) -> None:
            if message["type"] == "http.response.start":
                if not self._counts(message["status"]):
                    held.unused()
                MutableHeaders(scope=message).update(dict(rate_headers(held.decision, wall_clock())))
            elif not message.get("more_body"):
                await settle()
            await send(message)

        # The endpoint may say what it used: request.state.held.used(…).
        scope.setdefault("state", {})["held"] = held
        try:
            await self._app(scope, receive, metered)
        except BaseException:
            if not settled:
                await self._metering.fail(customer, held, name=self._name, key=self._key)
            raise
        await settle()


async def _refuse(problem: Problem, send: Send) -> None:
    body = problem.body()
    headers = [(b"content-type", MEDIA.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _say_lost(error: EmitError) -> None:
    _log.error("%s; send it again as it is: %s", error, error.event.decode(errors="replace"))
