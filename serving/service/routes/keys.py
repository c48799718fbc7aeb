"""What the API key that was shown may do: pages and programs ask before they offer what would be refused."""

from operators.access import SCOPES
from serving.service.routing import Answer, Call, Nothing, Route, Success
from serving.service.shapes import KeyBody
from serving.service.state import Service
from serving.service.wording import json


async def get_key(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    key = call.key
    if key is None:
        return json(200, KeyBody("none", "", list(SCOPES), None))
    return json(
        200, KeyBody("keys", key.name, [scope for scope in SCOPES if scope in key.scopes], key.customer)
    )


ROUTES = (
    Route(
        "GET",
        "/v1/key",
        get_key,
        "What this API key may do",
        [Success(200, "Its scopes, and whose it is.", KeyBody)],
        customer="own",
    ),
)
