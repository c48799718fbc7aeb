"""What the API key that was shown may do, and short-lived tokens of one customer.

Pages and programs ask before they offer what would be refused.
"""

from datetime import timedelta

from tidegate.operators.gate.access import SCOPES
from tidegate.serving.http.problems import not_found
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Sent, Success
from tidegate.serving.http.schemas import CustomerPath, KeyBody, TokenBody, TokenPost
from tidegate.serving.http.serialization import json
from tidegate.serving.http.state import Service
from tidegate.serving.views.formatting import instant


async def get_key(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    key = call.key
    if key is None:
        return json(200, KeyBody("none", "", list(SCOPES), None))
    return json(
        200, KeyBody("keys", key.name, [scope for scope in SCOPES if scope in key.scopes], key.customer)
    )


async def post_token(service: Service, call: Call[CustomerPath, Nothing, TokenPost]) -> Answer:
    if service.keys is None or call.key is None:
        raise not_found("tokens: there are none without keys (auth=none), and pages need none")
    lasts = timedelta(seconds=call.body.expires_in)
    token, key = service.keys.issue(call.key, call.path.customer, lasts)
    return json(201, TokenBody(token, call.path.customer, instant(key.expires_at or 0)))


ROUTES = (
    Route(
        "GET",
        "/v1/key",
        get_key,
        "What this API key may do",
        [Success(200, "Its scopes, and whose it is.", KeyBody)],
        customer="own",
    ),
    Route(
        "POST",
        "/v1/customers/{customer}/tokens",
        post_token,
        "A short-lived token for a customer's page",
        [Success(201, "It reads of this customer alone, and is shown this once.", TokenBody)],
        at=CustomerPath,
        takes=[Sent("application/json", TokenPost)],
        problems=(404,),
        about="For a product's server, which puts it into the page that it embeds. It is stored nowhere, and ends with "
        "the API key that it was issued with. A customer's key issues none.",
    ),
)
