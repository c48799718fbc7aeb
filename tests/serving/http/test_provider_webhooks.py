"""The provider's webhooks: believed only if signed, each once, the latest state whatever the order."""

import asyncio
import base64
import json
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette

from simulator.app import build_app
from simulator.client import Simulator
from simulator.inprocess import AppTransport
from simulator.state.platform import Platform
from tidegate.connectors.dodo.webhook_inbox import Inbox
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.operators.billing.subscriptions import Conflict
from tidegate.operators.model.periods import Billing
from tidegate.serving.http.provider_webhooks import BODY_MAX, PATH, Webhooks, open_webhooks, routes
from tidegate.settings.catalog.file import parse_catalog
from tidegate.settings.catalog.versions import apply_text
from tidegate.settings.problems import SettingsError
from tidegate.settings.reconciliation import WebhookSettings
from tidegate.settings.settings import load_settings_of

CATALOG = """# kept by hand
meters: [{name: calls, event_name: api.call, aggregation: {type: count}}]
plans: {p: {}}
customers:
  acme: {plan: p, billing_id: cus_1}
"""
OLD, NEW = (f"whsec_{base64.b64encode(word * 24).decode()}" for word in (b"o", b"n"))
START = datetime(2026, 11, 3, 9, 12, 44, tzinfo=UTC)


class Endpoint:
    """The endpoint as it is mounted, over a catalog in a store."""

    def __init__(self, folder: Path, secrets: tuple[str, ...] = (NEW, OLD)) -> None:
        self.store = folder / "store.db"
        with closing(self.control()) as control:
            apply_text(control, CATALOG, origin="file", by="test")
        inbox = Inbox(folder / "data" / "webhooks.db")
        self.webhooks = Webhooks(secrets, inbox, self.control, in_background=False)
        self._webhooks_start = self.webhooks.start
        self.app = Starlette(routes=routes(self.webhooks))

    def control(self) -> SqliteControl:
        return SqliteControl(self.store)

    def post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        async def sent() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://t"
            ) as client:
                return await client.post(PATH, content=body, headers=headers)

        return asyncio.run(sent())

    def edges(self) -> list[str]:
        with closing(self.control()) as control:
            newest = control.catalog()
        assert newest is not None
        policy = parse_catalog(newest.text).customers["acme"].period
        return [f"{edge:%m-%d}" for edge in policy.edges] if isinstance(policy, Billing) else []

    def number(self) -> int:
        with closing(self.control()) as control:
            return control.catalog_number()


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    made = Endpoint(tmp_path)
    yield made
    made.webhooks.close()


def state(start: datetime, days: int = 30, **fields: Any) -> dict[str, Any]:
    return {
        "payload_type": "Subscription", "subscription_id": "sub_1", "status": "active", "product_id": "pdt_1",
        "customer": {"customer_id": "cus_1"}, "previous_billing_date": start.isoformat(),
        "next_billing_date": (start + timedelta(days=days)).isoformat(),
    } | fields  # fmt: skip


def delivery(
    data: dict[str, Any],
    id: str = "msg_1",
    *,
    type: str = "subscription.renewed",
    secret: str = NEW,
    ago: float = 0,
) -> tuple[bytes, dict[str, str]]:
    sent_at = datetime.fromtimestamp(time.time() - ago, UTC)
    event = {"business_id": "bus_1", "type": type, "timestamp": sent_at.isoformat(), "data": data}
    body = json.dumps(event).encode()
    signature = Webhook(secret).sign(id, sent_at, body.decode())
    stamp = str(int(sent_at.timestamp()))
    return body, {"webhook-id": id, "webhook-timestamp": stamp, "webhook-signature": signature}


def test_a_renewal_gives_the_customer_its_new_period_and_keeps_the_old(endpoint: Endpoint) -> None:
    assert endpoint.post(*delivery(state(START), "msg_1", ago=9)).status_code == 204
    assert endpoint.edges() == [] and endpoint.webhooks.refresh() == 1
    assert endpoint.edges() == ["11-03", "12-03"]
    endpoint.post(*delivery(state(START + timedelta(days=30), 31), "msg_2"))
    endpoint.webhooks.refresh()
    assert endpoint.edges() == ["11-03", "12-03", "01-03"]
    with closing(endpoint.control()) as control:
        newest = control.catalog()
        assert newest is not None and (newest.origin, newest.by) == ("platform", "webhook")
        assert "# kept by hand" in newest.text and "acme" in newest.note


def test_the_latest_state_counts_whatever_the_order(tmp_path: Path) -> None:
    """Deliveries overtake each other and come twice; ids and times of sending settle it."""
    for seed in range(10):
        noise = random.Random(seed)
        sent = [
            delivery(state(START + timedelta(days=30 * n)), f"msg_{n}", ago=100 - 10 * n) for n in range(5)
        ]
        coming = sent + noise.choices(sent, k=5)
        noise.shuffle(coming)
        made = Endpoint(tmp_path / str(seed))
        for one in coming:
            assert made.post(*one).status_code == 204
            if noise.random() < 0.5:
                made.webhooks.refresh()
        made.webhooks.refresh()
        assert made.edges()[-2:] == ["03-03", "04-02"]
        made.webhooks.close()


def test_a_repeat_changes_nothing_also_after_a_restart(endpoint: Endpoint) -> None:
    """By its id, on disk: a later state is not undone by the repeat of an earlier delivery."""
    first = delivery(state(START), "msg_1")
    endpoint.post(*first)
    endpoint.webhooks.refresh()
    number = endpoint.number()
    path = endpoint.webhooks._inbox._file.path
    endpoint.webhooks.close()
    again = Webhooks([NEW], Inbox(path), endpoint.control, in_background=False)
    assert again.take(*first) is False
    assert again.refresh() == 0 and endpoint.number() == number
    again.close()


def test_what_was_taken_is_applied_by_the_next_process(endpoint: Endpoint) -> None:
    """Answered is on disk: a kill before the catalog followed loses no period."""
    endpoint.post(*delivery(state(START)))
    path = endpoint.webhooks._inbox._file.path
    endpoint.webhooks.close()
    again = Webhooks([NEW], Inbox(path), endpoint.control)
    again.start()
    deadline = time.monotonic() + 60
    while endpoint.edges() != ["11-03", "12-03"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again.close()


@pytest.mark.parametrize("secret", [NEW, OLD])
def test_either_secret_is_believed_while_they_are_rotated(endpoint: Endpoint, secret: str) -> None:
    assert endpoint.post(*delivery(state(START), secret=secret)).status_code == 204


def test_what_is_not_signed_for_us_is_refused(endpoint: Endpoint) -> None:
    """One added space, another secret, another id, no signature, or an old delivery played again."""
    body, headers = delivery(state(START))
    other = f"whsec_{base64.b64encode(b'hunter2' * 4).decode()}"
    wrong = [
        (body + b" ", headers),
        (body, headers | {"webhook-id": "msg_2"}),
        (body, {}),
        (body, headers | {"webhook-signature": "v1,bm9uc2Vuc2U="}),
        (body, headers | {"webhook-signature": "nonsense"}),
        (body, headers | {"webhook-timestamp": "soon"}),
        (b"\xff", headers),
        delivery(state(START), secret=other),
        delivery(state(START), ago=310),
        delivery(state(START), ago=-310),
    ]
    for given in wrong:
        answer = endpoint.post(*given)
        assert (answer.status_code, answer.json()["code"]) == (400, "refused"), given
        assert "hunter2" not in answer.text and NEW[6:] not in answer.text
    assert endpoint.webhooks.refresh() == 0


def test_other_events_are_taken_and_change_nothing(endpoint: Endpoint) -> None:
    credit = {"payload_type": "CreditLedgerEntry", "id": "x"}
    assert endpoint.post(*delivery(credit, type="credit.added")).status_code == 204
    assert endpoint.webhooks.refresh() == 0 and endpoint.number() == 1


def test_a_subscription_that_is_none_is_refused(endpoint: Endpoint) -> None:
    """So that the provider shows it as failed, and an operator reacts."""
    assert endpoint.post(*delivery({"subscription_id": 5})).status_code == 400
    assert endpoint.post(*delivery(state(START), type="")).status_code == 204


def test_a_body_without_end_is_cut_off(endpoint: Endpoint) -> None:
    assert endpoint.post(b"x" * (BODY_MAX + 1), {}).status_code == 413


def test_a_catalog_that_changes_meanwhile_is_tried_again(endpoint: Endpoint) -> None:
    """An operator's change between reading and writing is neither lost nor undone."""
    real = endpoint.control
    raced: list[int] = []

    def racing() -> Any:
        control = real()
        read = control.catalog

        def catalog(number: int | None = None) -> Any:
            found = read(number)
            if number is None and not raced and found is not None:
                raced.append(1)
                changed = found.text.replace("plans: {p: {}}", "plans: {p: {}, q: {}}")
                with closing(real()) as other:
                    apply_text(other, changed, origin="api", by="x")
            return found

        control.catalog = catalog  # type: ignore[method-assign]
        return control

    endpoint.webhooks._open_control = racing
    endpoint.post(*delivery(state(START)))
    assert endpoint.webhooks.refresh() == 1
    with closing(real()) as control:
        newest = control.catalog()
    assert newest is not None and endpoint.edges() == ["11-03", "12-03"]
    assert "q" in parse_catalog(newest.text).plans


METER = {"meter_id": "mtr_1", "free_threshold": 0}


def test_a_subscription_without_meters_changes_nothing(endpoint: Endpoint) -> None:
    """A support contract that begins later does not cut the period that usage is billed in."""
    endpoint.post(*delivery(state(START, meters=[METER]), "msg_1", ago=9))
    endpoint.webhooks.refresh()
    number = endpoint.number()
    later = state(START + timedelta(days=9), subscription_id="sub_2", meters=[])
    endpoint.post(*delivery(later, "msg_2"))
    assert endpoint.webhooks.refresh() == 1
    assert endpoint.edges() == ["11-03", "12-03"] and endpoint.number() == number


@pytest.mark.parametrize("is_known", [True, False])
def test_a_second_metered_subscription_is_not_applied_but_named(
    endpoint: Endpoint, is_known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Known by its webhook, or by the catalog that was pulled; once the other has ended, it is applied."""
    told: list[Conflict] = []
    endpoint.webhooks._report = told.extend
    first = state(START, meters=[METER])
    if is_known:
        endpoint.post(*delivery(first, "msg_1", ago=9))
        endpoint.webhooks.refresh()
    else:
        with closing(endpoint.control()) as control:
            period = "period: {type: billing, edges: ['2026-11-03T09:12:44Z', '2026-12-03T09:12:44Z']}"
            text = CATALOG.replace("billing_id: cus_1", f"billing_id: cus_1, {period}")
            apply_text(control, text, origin="file", by="test")
    second = state(START + timedelta(days=9), subscription_id="sub_2", meters=[METER])
    endpoint.post(*delivery(second, "msg_2", ago=8))
    endpoint.webhooks.refresh()
    assert endpoint.edges() == ["11-03", "12-03"]
    assert [one.customer for one in told] == ["acme"] and "sub_2" in caplog.text
    endpoint.post(*delivery(first | {"status": "cancelled"}, "msg_3", type="subscription.cancelled"))
    endpoint.webhooks.refresh()
    assert endpoint.edges() == (["11-03", "11-12", "12-12"] if is_known else ["11-03", "12-03"])


def test_an_upgrade_moves_the_plan(endpoint: Endpoint) -> None:
    """By its webhook alone, to the plan that stands for the product."""
    with closing(endpoint.control()) as control:
        linked = CATALOG.replace("plans: {p: {}}", "plans: {p: {}, pro: {billing_id: pdt_pro}}")
        apply_text(control, linked, origin="file", by="test")
    endpoint.post(*delivery(state(START, meters=[METER]), "msg_1", ago=9))
    endpoint.webhooks.refresh()
    endpoint.post(*delivery(state(START, meters=[METER], product_id="pdt_pro"), "msg_2"))
    endpoint.webhooks.refresh()
    with closing(endpoint.control()) as control:
        newest = control.catalog()
    assert newest is not None and parse_catalog(newest.text).plan_of("acme").name == "pro"


def test_many_renewals_are_one_version(endpoint: Endpoint) -> None:
    for n in range(50):
        data = state(START, subscription_id=f"sub_{n}", customer={"customer_id": f"cus_{n}"})
        endpoint.post(*delivery(data, f"msg_{n}"))
    assert endpoint.webhooks.refresh() == 50
    assert endpoint.number() == 2


def test_a_full_disk_is_told_as_to_be_tried_again(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    file = endpoint.webhooks._inbox._file
    db = file.db
    monkeypatch.setattr(file, "db", type("Db", (), {"execute": full, "close": lambda self: db.close()})())
    assert endpoint.post(*delivery(state(START))).status_code == 503


def test_without_a_secret_there_is_no_endpoint(tmp_path: Path) -> None:
    given = {"data_dir": str(tmp_path), "store": f"sqlite:{tmp_path / 's.db'}"}
    assert open_webhooks(load_settings_of(WebhookSettings, given)) is None
    with pytest.raises(SettingsError) as caught:
        open_webhooks(
            load_settings_of(WebhookSettings, given | {"dodo_webhook_secrets": "whsec_hunter2 hunter2!"})
        )
    assert "hunter2" not in str(caught.value)


def test_the_platform_and_we_understand_each_other(tmp_path: Path) -> None:
    """A subscription that renews at the simulated platform, its own signature and retries, down to the catalog."""
    made = Endpoint(tmp_path, ("whsec_AAAA",))
    platform = Platform(1, key="k")
    transport = AppTransport(build_app(platform, httpx.ASGITransport(made.app))[0])
    simulator = Simulator("http://simulator", "k", transport)
    meter = simulator.create_meter("api.call", name="calls")
    customer = simulator.create_customer(id="cus_1")
    product = simulator.create_product([meter])
    simulator.set_clock("2026-11-22T12:00:00Z")
    hook = simulator.api.post("/webhooks", json={"url": f"http://us{PATH}"}).json()["id"]
    secret = simulator.api.get(f"/webhooks/{hook}/secret").json()["secret"]
    made.webhooks._verifiers = [Webhook(secret)]
    fields = {"start": "2026-11-03T09:12:44Z", "end": "2026-12-03T09:12:44Z"}
    subscription = simulator.create_subscription(customer, product, **fields)
    simulator.deliver()
    made.webhooks.refresh()
    assert made.edges() == ["11-03", "12-03"]
    simulator.rotate_secret(hook)
    simulator.roll(subscription, at="2026-11-20T00:00:00Z", end="2026-12-20T00:00:00Z")
    simulator.deliver()
    made.webhooks.refresh()
    assert made.edges() == ["11-03", "11-20", "12-20"]
    simulator.close()
    transport.close()
    made.webhooks.close()
