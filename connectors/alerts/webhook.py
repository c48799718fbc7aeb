"""Alerts as Standard Webhooks: one signed POST each.

Body: `{"type": "alert.KIND", "timestamp": …, "data": ALERT}`, the same bytes on every attempt: its timestamp is the
alert's, the header's is that of the attempt. Headers `webhook-id` (the alert's id, so that a receiver drops repeats),
`webhook-timestamp` and `webhook-signature`, signed under every secret that is given, so that secrets can be rotated:
put the new one first, and take the old one away when receivers have changed.

Any 2xx is an arrival; 410 says that nothing is wanted any more; all else is tried again, no redirect is followed.
Addresses that are not public are refused unless `private`, and the address that was looked at is the one that is
connected to, whatever a name server says a moment later.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import socket
from collections.abc import Sequence
from datetime import UTC, datetime

import httpx
import msgspec
from standardwebhooks import Webhook

from tidegate.connectors.alerts.public_address import is_public
from tidegate.connectors.alerts.queue import Message, Refused
from tidegate.connectors.retry_after import read_retry_after

TIMEOUT = httpx.Timeout(15.0, connect=5.0)


class WebhookDeliverer:
    """Posts to `url`. `secrets` are `whsec_…`, the first one the newest."""

    at_once = 1

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        private: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = httpx.URL(url)
        self._signers = [Webhook(secret) for secret in secrets]
        self._private = private
        self._client = httpx.Client(
            timeout=TIMEOUT, follow_redirects=False, transport=transport, trust_env=False
        )

    def __repr__(self) -> str:
        return f"WebhookDeliverer({self._url.host})"

    def deliver(self, messages: Sequence[Message]) -> None:
        """Raise Refused where one did not arrive."""
        for message in messages:
            self._post(message)

    def _post(self, message: Message) -> None:
        alert = msgspec.json.decode(message.body)
        now = datetime.now(UTC)
        # Of the alert alone, so that a receiver that keeps or compares bodies sees one message and not several.
        payload = {"type": f"alert.{alert['kind']}", "timestamp": alert.get("at", ""), "data": alert}
        body = msgspec.json.encode(payload)
        signatures = " ".join(signer.sign(message.id, now, body.decode()) for signer in self._signers)
        headers = {
            "content-type": "application/json",
            "user-agent": "Tidegate",
            "host": self._url.netloc.decode(),
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signatures,
        }
        address = self._checked()
        try:
            answer = self._client.post(
                self._url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": self._url.host},
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Of the text only its kind: it may quote the URL, and a URL may hold a token.
            raise Refused(f"{self._url.host}: {type(error).__name__}") from None
        if not answer.is_success:
            raise Refused(
                f"{self._url.host} answered {answer.status_code}", _again(answer), answer.status_code == 410
            )

    def _checked(self) -> str:
        """Return the address to connect to; Refused if it has to be public and is not."""
        try:
            found = socket.getaddrinfo(self._url.host, self._url.port or 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Refused(f"{self._url.host}: is not known ({error})") from None
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        if not self._private and not all(map(is_public, addresses)):
            raise Refused(
                f"{self._url.host}: is no public address; allow it with private=true if it is meant"
            )
        return addresses[0]


def _again(answer: httpx.Response) -> float | None:
    """Return the seconds that the receiver asks us to wait, within reason."""
    if answer.status_code not in (429, 503):
        return None
    return read_retry_after(answer.headers.get("retry-after", ""), datetime.now(UTC))
