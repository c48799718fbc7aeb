"""The simulator as an ASGI application: the API, and the control plane under its prefix."""

import httpx
from starlette.applications import Starlette

from simulator import api
from simulator.http.gateway import Gateway
from simulator.routes import control
from simulator.routes.webhook_deliveries import Sender
from simulator.state.platform import Platform


def build_app(
    platform: Platform, receivers: httpx.AsyncBaseTransport | None = None
) -> tuple[Starlette, Sender]:
    """Return an application for a server, or for `inprocess.AppTransport`, and the sender of its webhooks.

    `receivers` receives the webhooks if they are not to be sent over a socket.
    """
    gateway, sender = Gateway(platform), Sender(platform, receivers)
    return Starlette(routes=[*control.routes(gateway, sender), *api.build_routes(gateway)]), sender
