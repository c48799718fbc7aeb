"""Alerts of a running flow on their way out."""

import pytest
from standardwebhooks import Webhook

from tests.connectors.alerts.test_queue import OLD, hook
from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually


@pytest.mark.parametrize(
    ("alerts", "line"), [("webhook://a/b", "TIDEGATE_WEBHOOK_SECRETS: "), ("slack:", "TIDEGATE_SLACK_URL: ")]
)
def test_a_missing_secret_is_one_line(place: Place, alerts: str, line: str) -> None:
    place.append("first.jsonl")
    complained = place.refused(ALERTS=alerts)
    assert complained.startswith(line) and complained.count("\n") == 1


def test_a_flow_sends_what_crosses_and_once_although_it_is_killed(place: Place) -> None:
    """The receiver is down at first; the flow gets on, is killed, and the alerts arrive after its restart."""
    place.append("first.jsonl")
    with hook() as server:
        server.answers = [(503, {})]
        alerts = f"webhook://127.0.0.1:{server.port}/in?tls=false&private=true&kinds=cap_reached file:alerts.ndjson"
        settings = FOLLOWED | {"ALERTS": alerts, "WEBHOOK_SECRETS": OLD}
        with place.running(**settings):
            eventually(lambda: server.got)
            eventually(lambda: len(place.alerts()) == 3)
        with place.running(**settings):
            eventually(lambda: len(server.got) == 2)
            assert server.got[0][0]["webhook-id"] == server.got[1][0]["webhook-id"]
            place.append("second.jsonl")
            eventually(lambda: place.periods()["acme", "calls"] == "6")
    kinds = {Webhook(OLD).verify(body, headers)["type"] for headers, body, _ in server.got}
    assert kinds == {"alert.cap_reached"} and len(server.got) == 2
