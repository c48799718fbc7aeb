"""`tidegate serve`: the HTTP service."""

import sys
from typing import Annotated

import typer

from tidegate.connectors.files.private_files import keep_private
from tidegate.connectors.sqlite.api_keys import KeyFile
from tidegate.settings.reconciliation import WebhookSettings
from tidegate.settings.serving import ServingSettings, load_serving_settings
from tidegate.settings.settings import load_settings_of


def serve(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where it listens, else TIDEGATE_LISTEN.")
    ] = None,
    auth: Annotated[
        str | None, typer.Option(help="keys, or none for anybody on this machine, else TIDEGATE_AUTH.")
    ] = None,
    store: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Else TIDEGATE_STORE.")] = None,
) -> None:
    """Serve the API and the dashboard until it is stopped."""
    # Only here, as its libraries are of the extra `serve`.
    from tidegate.serving.http.provider_webhooks import open_webhooks
    from tidegate.serving.http.server import serve as run

    keep_private()
    given = {"listen": listen, "auth": auth, "store": store}
    settings = load_serving_settings({name: text for name, text in given.items() if text is not None})
    webhooks = open_webhooks(load_settings_of(WebhookSettings))
    run(settings, lambda address: _say(settings, address), webhooks)


def _say(settings: ServingSettings, address: str) -> None:
    print(f"Tidegate listens on {address}", file=sys.stderr, flush=True)
    if settings.auth == "none":
        print("WARNING: auth=none: anybody on this machine may do anything.", file=sys.stderr, flush=True)
        return
    keys = KeyFile(settings.keys)
    if not keys.count():
        print(
            "There is no API key yet, so every request is refused; make one:\n"
            "    tidegate keys create NAME --scope admin --scope read --scope check --scope ingest",
            file=sys.stderr,
            flush=True,
        )
    keys.close()
