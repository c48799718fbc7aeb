"""Alerts to a chat room, by an incoming webhook as Slack has them (Mattermost and Discord's `/slack` take the same).

Source: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import httpx
import msgspec

from tidegate.connectors.alerts.queue import Message, Refused
from tidegate.connectors.retry_after import read_retry_after
from tidegate.operators.model.alert_text import write_sentence

TIMEOUT = httpx.Timeout(15.0, connect=5.0)
_MARKS = {"raised": "🔺", "resolved": "✅"}


class SlackDeliverer:
    """Posts to the incoming webhook at `url`, which is a secret: whoever knows it may post."""

    at_once = 20

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        self._client = httpx.Client(
            timeout=TIMEOUT, follow_redirects=False, transport=transport, trust_env=False
        )

    def __repr__(self) -> str:
        return "SlackDeliverer()"

    def deliver(self, messages: Sequence[Message]) -> None:
        """One post with a line for each. Raises Refused where it did not arrive."""
        alerts = [msgspec.json.decode(message.body) for message in messages]
        lines = [
            f"{_MARKS.get(alert.get('state', ''), '•')} {_escaped(write_sentence(alert))}" for alert in alerts
        ]
        try:
            answer = self._client.post(self._url, json={"text": "\n".join(lines)})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Refused(f"slack: {type(error).__name__}") from None
        if not answer.is_success:
            again = read_retry_after(answer.headers.get("retry-after", ""), datetime.now(UTC))
            raise Refused(f"slack answered {answer.status_code}", again, answer.status_code == 410)


def _escaped(text: str) -> str:
    """Escape a customer's name: it is text, not markup, and mentions nobody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
