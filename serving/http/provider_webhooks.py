"""Webhooks of the billing provider: a changed subscription gives its customer the new period and plan, in the catalog.

One that contradicts another of the customer's is not applied: it is logged and listed among reconciliation's findings.

`routes(webhooks)` is for whoever serves HTTP. A delivery is answered once it is on disk
(connectors/dodo/webhook_inbox.py); the catalog follows in the background, all that waits in one version, as thousands
of subscriptions may renew at once. The signature is checked over the bytes as they came, under any of the secrets
that are in force. Source: Standard Webhooks, https://www.standardwebhooks.com; Dodo Payments, webhooks.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Final

import msgspec
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.dodo.webhook_inbox import Inbox, InboxError
from tidegate.connectors.reconciliation.conflicts import note_of
from tidegate.operators.billing.provider import Subscription
from tidegate.operators.billing.subscriptions import Conflict
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.ports import ControlLog
from tidegate.settings.addresses.webhook_secrets import read_webhook_secrets
from tidegate.settings.catalog.pull import apply_periods
from tidegate.settings.reconciliation import WebhookSettings

PATH: Final = "/webhooks/dodo"
BODY_MAX: Final = 1 << 20
LINGER_S: Final = 1.0
AGAIN_AFTER_S: Final = 30.0
SUBSCRIPTION: Final = "subscription."

_log = logging.getLogger("tidegate.webhooks")


class Refused(TidegateError):
    """A delivery that is not to be believed; says why."""


class Webhooks:
    """Takes deliveries, and applies what they say. Without `in_background`, `refresh` is up to the caller.

    `report` takes the subscriptions that contradict others, so that they are not applied.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        inbox: Inbox,
        open_control: Callable[[], ControlLog],
        *,
        report: Callable[[Sequence[Conflict]], None] = lambda conflicts: None,
        in_background: bool = True,
    ) -> None:
        self._verifiers = [Webhook(secret) for secret in secrets]
        self._inbox, self._open_control = inbox, open_control
        self._report = report
        self._lock = Lock()
        self._wake, self._stop = Event(), Event()
        self._thread = Thread(target=self._follow, name="webhooks", daemon=True) if in_background else None

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        """Store a delivery; return False if it came before. Refused if no secret fits."""
        self._verify(body, headers)
        try:
            event = msgspec.json.decode(body, type=dict[str, Any])
            kind = event["type"]
            subscription = _subscription(event["data"]) if kind.startswith(SUBSCRIPTION) else None
        except (msgspec.MsgspecError, KeyError, AttributeError) as error:
            raise Refused(f"needs an event as the provider describes it: {error}") from None
        sent_at = int(float(headers["webhook-timestamp"]))
        is_new = self._inbox.take(headers["webhook-id"], sent_at, subscription)
        if is_new and subscription is not None:
            self._wake.set()
        return is_new

    def refresh(self) -> int:
        """Apply all that waits as one version of the catalog; return how many subscriptions that were."""
        with self._lock, closing(self._open_control()) as control:
            states = self._inbox.waiting()
            if states:
                whose = {state.subscription.customer.customer_id for state in states}
                known = self._inbox.of_customers(whose)
                made = apply_periods(control, known, "webhook", is_complete=False)
                for warning in made.warnings:
                    _log.warning("%s", warning)
                for conflict in made.conflicts:
                    _log.error("%s", conflict)
                if made.conflicts:
                    self._report(made.conflicts)
                self._inbox.applied(states)
            return len(states)

    def start(self) -> None:
        """Begins to follow in the background; what an earlier process left waiting comes first."""
        if self._thread is not None and not self._thread.is_alive():
            self._wake.set()
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(AGAIN_AFTER_S)
        self._inbox.close()

    def _verify(self, body: bytes, headers: dict[str, str]) -> None:
        for verifier in self._verifiers:
            try:
                verifier.verify(body, headers, json_parse=False)
            except (WebhookVerificationError, ValueError):
                continue
            return
        raise Refused("the signature fits none of the secrets, or the time is more than five minutes off")

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            # What comes together is applied together.
            if self._stop.wait(LINGER_S):
                return
            try:
                self.refresh()
            except TidegateError as error:
                _log.error("periods of the provider could not be applied yet: %s", error)
                self._wake.set()
                self._stop.wait(AGAIN_AFTER_S)


def open_webhooks(settings: WebhookSettings) -> Webhooks | None:
    """Return the webhooks that the settings describe; None without a secret, as none could be verified."""
    if settings.dodo_webhook_secrets is None:
        return None
    text = settings.dodo_webhook_secrets.get_secret_value()
    secrets = read_webhook_secrets("TIDEGATE_DODO_WEBHOOK_SECRETS", text)
    inbox = Inbox(Path(settings.data_dir) / "webhooks.db")

    def report(conflicts: Sequence[Conflict]) -> None:
        now = wall_clock()
        with closing(settings.store.open()) as store:
            store.write([], [], [note_of(one, now) for one in conflicts])

    return Webhooks(secrets, inbox, settings.store.open_control, report=report)


def routes(webhooks: Webhooks, path: str = PATH) -> list[Route]:
    """Return the endpoint. Deliveries are signed, so it needs no API key. The first one calls `webhooks.start()`."""

    async def endpoint(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return _problem(413, "too_large", f"needs a body of at most {BODY_MAX} bytes")
        webhooks.start()
        headers = {name: value for name, value in request.headers.items() if name.startswith("webhook-")}
        try:
            await run_in_threadpool(webhooks.take, body, headers)
        except Refused as error:
            return _problem(400, "refused", str(error))
        except InboxError:
            # What is wrong stands in the log of this machine; the provider tries again.
            _log.exception("a webhook could not be kept")
            return _problem(503, "unavailable", "try again later")
        return Response(status_code=204)

    return [Route(path, endpoint, methods=["POST"])]


def _subscription(found: Any) -> Subscription:
    read = msgspec.convert(found, Subscription)
    # As the list leaves the meters out, so may a webhook: then nobody knows whether there are any.
    return read if "meters" in found else msgspec.structs.replace(read, is_short=True)


async def _body(request: Request) -> bytes | None:
    """Read the body as it was sent; None if it is too large."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_MAX:
                return None
    except ClientDisconnect:
        return b""
    return bytes(body)


def _problem(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "message": message}, status)
