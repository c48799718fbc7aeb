"""Webhook endpoints over the API: `/webhooks`."""

import base64
import hashlib
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from simulator.http.calls import Answer, Call
from simulator.state.instants import DAY, write_instant
from simulator.state.platform import Platform
from simulator.state.problems import wrong_query
from simulator.state.records import Endpoint

PAGE_MAX: Final = 250


class NewEndpoint(msgspec.Struct, kw_only=True):
    url: Annotated[str, Meta(pattern="^https?://")]
    description: str | None = None
    disabled: bool | None = None
    filter_types: list[str] | None = None
    headers: dict[str, str] | None = None
    idempotency_key: str | None = None
    metadata: dict[str, str] | None = None
    rate_limit: int | None = None


class EndpointChange(msgspec.Struct, kw_only=True):
    url: Annotated[str, Meta(pattern="^https?://")] | None = None
    description: str | None = None
    disabled: bool | None = None
    filter_types: list[str] | None = None
    metadata: dict[str, str] | None = None
    rate_limit: int | None = None


def create(platform: Platform, call: Call) -> Answer:
    """Create an endpoint, or return the one that was created with the same idempotency key."""
    new = call.read_body(NewEndpoint)
    for endpoint in platform.endpoints:
        if new.idempotency_key is not None and endpoint.idempotency_key == new.idempotency_key:
            return Answer(200, view(endpoint))
    now, id = platform.now, platform.new_id("whk")
    endpoint = Endpoint(
        id=id,
        url=new.url,
        secret=_new_secret(platform, id),
        created_at=now,
        updated_at=now,
        description=new.description or "",
        metadata=new.metadata or {},
        headers=new.headers or {},
        filter_types=new.filter_types,
        disabled=bool(new.disabled),
        rate_limit=new.rate_limit,
        idempotency_key=new.idempotency_key,
    )
    return Answer(200, view(platform.endpoints.put(id, endpoint)))


def list_endpoints(platform: Platform, call: Call) -> Answer:
    """Return endpoints by cursor, as this list alone does: `iterator` is the id after which to continue."""
    ids = [endpoint.id for endpoint in platform.endpoints]
    after = call.read_text("iterator")
    if after is not None and after not in ids:
        raise wrong_query("iterator: is none of ours")
    begin = 0 if after is None else ids.index(after) + 1
    size = min(call.read_number("limit") or PAGE_MAX, PAGE_MAX)
    shown = ids[begin : begin + size]
    return Answer(
        200,
        {
            "data": [view(platform.endpoints.get(id)) for id in shown],
            "iterator": shown[-1] if shown else None,
            "done": begin + size >= len(ids),
        },
    )


def get(platform: Platform, call: Call) -> Answer:
    return Answer(200, view(platform.endpoints.get(call.params["webhook_id"])))


def change(platform: Platform, call: Call) -> Answer:
    endpoint, wanted = platform.endpoints.get(call.params["webhook_id"]), call.read_body(EndpointChange)
    for field in EndpointChange.__struct_fields__:
        if (value := getattr(wanted, field)) is not None:
            setattr(endpoint, field, value)
    endpoint.updated_at = platform.now
    return Answer(200, view(platform.endpoints.put(endpoint.id, endpoint)))


def delete(platform: Platform, call: Call) -> Answer:
    platform.endpoints.remove(platform.endpoints.get(call.params["webhook_id"]).id)
    return Answer(204)


def secret(platform: Platform, call: Call) -> Answer:
    return Answer(200, {"secret": platform.endpoints.get(call.params["webhook_id"]).secret})


def rotate(platform: Platform, id: str) -> None:
    """Create a new secret; the old one also signs for a day."""
    endpoint = platform.endpoints.get(id)
    endpoint.old_secret, endpoint.old_until = endpoint.secret, platform.now + DAY
    endpoint.secret = _new_secret(platform, platform.new_id("rot"))
    platform.endpoints.put(id, endpoint)


def _new_secret(platform: Platform, name: str) -> str:
    digest = hashlib.sha256(f"{platform.memory.seed}/{name}".encode()).digest()[:24]
    return f"whsec_{base64.b64encode(digest).decode()}"


def view(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "description": endpoint.description,
        "metadata": endpoint.metadata,
        "disabled": endpoint.disabled,
        "filter_types": endpoint.filter_types,
        "rate_limit": endpoint.rate_limit,
        "created_at": write_instant(endpoint.created_at),
        "updated_at": write_instant(endpoint.updated_at),
    }
