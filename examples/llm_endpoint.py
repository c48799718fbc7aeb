"""A language model behind caps that are exact, though nobody knows beforehand how long an answer will be.

    tidegate serve &                                     # with TIDEGATE_CATALOG=examples/catalog.yaml
    METERING_KEY=tg_… uvicorn --factory examples.llm_endpoint:create

    curl -d '{"prompt": "tides?", "max_tokens": 200}' -H 'x-customer: cus_001' localhost:8000/complete

It holds `max_tokens` of `tokens_out` before the model is asked, as an answer can be no longer; then it says how many
there were, in an event with the id of what was held. So two requests at once cannot both use what is left, and what
was held too much is free again at once.
"""

import os
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tidegate import AsyncGate, Denied, HttpEmit, Metering

Model = Callable[[str, int], Awaitable[list[str]]]
TOKENS_MAX = 1000


async def parrot(prompt: str, most: int) -> list[str]:
    """Stands for a model: the prompt's words, backwards, for as long as it may."""
    return (prompt.split() * most)[::-1][:most]


def build(metering: Metering, model: Model) -> Starlette:
    """Return the application."""

    async def complete(request: Request) -> Response:
        asked = await request.json()
        most = min(int(asked.get("max_tokens", TOKENS_MAX)), TOKENS_MAX)
        # Whoever signed in, in a real application; never what a client may write itself.
        customer = request.headers["x-customer"]
        try:
            async with metering.reserved(
                customer, "tokens_out", most, name="llm.tokens", key="output_tokens"
            ) as held:
                words = await model(asked["prompt"], most)
                held.used(len(words), input_tokens=len(asked["prompt"].split()))
        except Denied as no:
            problem = no.problem
            return Response(
                problem.body(), problem.status, problem.headers, media_type="application/problem+json"
            )
        return JSONResponse({"answer": " ".join(words), "tokens": len(words)})

    return Starlette(routes=[Route("/complete", complete, methods=["POST"])])


def create() -> Starlette:
    """With the gate of TIDEGATE_STORE, and events to the service at METERING_URL, with the key METERING_KEY."""
    emit = HttpEmit(os.environ.get("METERING_URL", "http://127.0.0.1:8080"), os.environ["METERING_KEY"])
    return build(Metering(AsyncGate.open(), emit, source="/llm"), parrot)
