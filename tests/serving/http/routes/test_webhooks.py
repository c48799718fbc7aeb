"""The billing provider's webhooks at the service: believed by their signature, asked for no key."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from tests.serving.http.local import local
from tidegate.connectors.dodo.webhook_inbox import Inbox
from tidegate.serving.http.provider_webhooks import PATH, Webhooks

SECRET = f"whsec_{base64.b64encode(bytes(24)).decode()}"


def signed(id: str, body: str) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(id, now, body),
    }


def test_a_signed_delivery_is_taken_without_a_key_and_another_is_refused(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "webhooks.db")
    webhooks = Webhooks([SECRET], inbox, lambda: None, in_background=False)  # type: ignore[arg-type,return-value]
    body = json.dumps(
        {"type": "credit.added", "data": {}, "business_id": "b", "timestamp": "2026-11-22T10:00:00Z"}
    )
    with local(tmp_path, webhooks=webhooks) as here:
        anybody = here.client_of(None)
        assert anybody.post(PATH, content=body, headers=signed("m1", body)).status_code == 204
        assert anybody.post(PATH, content=body + " ", headers=signed("m2", body)).status_code == 400
        assert anybody.get(PATH).status_code == 405
        anybody.close()


def test_without_a_secret_there_is_no_such_path(tmp_path: Path) -> None:
    """Whoever can't check a signature must believe nothing."""
    with local(tmp_path) as here:
        assert here.client.post(PATH, content="{}").status_code == 404
