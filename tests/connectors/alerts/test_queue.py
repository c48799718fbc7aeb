"""Alerts reach webhooks, chat and mail: each one, signed, in spite of failures, and never in the flow's way."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.ports import free_ports
from tidegate.connectors.alerts.mail import MailDeliverer
from tidegate.connectors.alerts.public_address import is_public
from tidegate.connectors.alerts.queue import KEEP, PAUSE_MAX, Message, Queue, Refused, Sender, undelivered
from tidegate.connectors.alerts.slack import SlackDeliverer
from tidegate.connectors.alerts.webhook import WebhookDeliverer
from tidegate.connectors.retry_after import read_retry_after
from tidegate.settings.addresses.alerts import AlertMail, AlertSlack, AlertWebhook
from tidegate.settings.problems import SettingsError
from tidegate.settings.settings import load_settings

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))
ALERT = {
    "id": "a1", "kind": "cap_reached", "state": "raised", "customer": "acme <b>\nBcc: x@y", "meter": "tokens",
    "period_start": "2026-06-01T00:00:00Z", "period_end": "2026-07-01T00:00:00Z", "level": "500", "limit": "500",
    "total": "512.5", "at": "2026-06-17T10:00:00Z", "limit_version": "v", "turn": 1,
}  # fmt: skip


def message(id: str = "a1", tries: int = 0, **fields: Any) -> Message:
    return Message(id, json.dumps(ALERT | {"id": id} | fields).encode(), tries)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """Refuses as told, and keeps what it took."""

    at_once = 3

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.asked = 0
        self.refuse: Callable[[Sequence[Message]], Exception | None] = lambda _: None

    def deliver(self, messages: Sequence[Message]) -> None:
        self.asked += 1
        if error := self.refuse(messages):
            raise error
        self.taken += [one.id for one in messages]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[Queue]:
    with closing(Queue(tmp_path / "queue.db", clock)) as found:
        yield found


def added(queue: Queue, *ids: str) -> None:
    queue.add("hook", [(id, message(id).body) for id in ids])


def drained(sender: Sender, clock: Clock, until: float) -> None:
    """Steps to `until`, letting the clock jump to whatever is next."""
    while clock.now < until:
        pause = sender.step()
        clock.now += until - clock.now if pause is None else max(pause, 0.001)


def test_each_alert_arrives_once_in_order(queue: Queue, clock: Clock) -> None:
    receiver = Receiver()
    sender = Sender(queue, "hook", receiver, clock)
    added(queue, *"abcde")
    added(queue, *"cdef")
    drained(sender, clock, clock.now + 60)
    assert receiver.taken == list("abcdef")
    added(queue, *"abcdef")
    drained(sender, clock, clock.now + 60)
    assert receiver.taken == list("abcdef")


def test_a_receiver_that_is_down_for_two_days_gets_everything(queue: Queue, clock: Clock) -> None:
    """And is not asked once for each alert that waits."""
    receiver = Receiver()
    sender = Sender(queue, "hook", receiver, clock)
    up_at = clock.now + 48 * 3600
    receiver.refuse = lambda _: None if clock.now >= up_at else OSError("down")
    added(queue, *(str(n) for n in range(1000)))
    drained(sender, clock, up_at)
    assert receiver.taken == []
    assert receiver.asked < 3 * 48 * 60
    drained(sender, clock, up_at + 24 * 3600)
    assert sorted(map(int, receiver.taken)) == list(range(1000))


def test_what_nobody_takes_for_three_days_is_kept_to_be_seen(
    queue: Queue, clock: Clock, tmp_path: Path
) -> None:
    receiver = Receiver()
    receiver.refuse = lambda _: Refused("hook answered 500")
    sender = Sender(queue, "hook", receiver, clock)
    added(queue, "a")
    drained(sender, clock, clock.now + 2 * KEEP.total_seconds())
    (left,) = undelivered(tmp_path / "queue.db")
    assert (left.id, left.state, left.error) == ("a", "undelivered", "hook answered 500")
    assert json.loads(left.body)["kind"] == "cap_reached"
    receiver.refuse = lambda _: None
    assert queue.retry() == 1
    drained(sender, clock, clock.now + 120)
    assert receiver.taken == ["a"]


def test_a_poisoned_alert_does_not_hold_up_the_rest(queue: Queue, clock: Clock) -> None:
    receiver = Receiver()
    receiver.at_once = 1
    receiver.refuse = lambda messages: Refused("no") if messages[0].id == "bad" else None
    sender = Sender(queue, "hook", receiver, clock)
    added(queue, "bad", "a", "b")
    drained(sender, clock, clock.now + 120)
    assert receiver.taken == ["a", "b"]


def test_a_receiver_that_wants_nothing_more_is_left_alone(queue: Queue, clock: Clock) -> None:
    receiver = Receiver()
    receiver.refuse = lambda _: Refused("gone", gone=True)
    sender = Sender(queue, "hook", receiver, clock)
    added(queue, "a")
    drained(sender, clock, clock.now + 3600)
    assert receiver.asked == 1


def test_what_waits_outlives_the_process(tmp_path: Path, clock: Clock) -> None:
    with closing(Queue(tmp_path / "queue.db", clock)) as first:
        added(first, "a", "b")
    receiver = Receiver()
    with closing(Queue(tmp_path / "queue.db", clock)) as second:
        drained(Sender(second, "hook", receiver, clock), clock, clock.now + 1)
    assert receiver.taken == ["a", "b"]


class Hook(ThreadingHTTPServer):
    """An HTTP receiver that answers what it is told to, and keeps what came."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes, float]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        hook = self.server
        assert isinstance(hook, Hook)
        body = self.rfile.read(int(self.headers["content-length"]))
        hook.got.append(({name.lower(): value for name, value in self.headers.items()}, body, time.time()))
        status, headers = hook.answers.pop(0) if hook.answers else (204, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def hook() -> Iterator[Hook]:
    server = Hook()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_the_official_library_verifies_what_arrives() -> None:
    """Under the new secret and, while it is being rotated, under the old one."""
    with hook() as server:
        WebhookDeliverer(f"http://localhost:{server.port}/in?x=1", [NEW, OLD], private=True).deliver(
            [message()]
        )
        (headers, body, _) = server.got[0]
    for secret in (NEW, OLD):
        payload = Webhook(secret).verify(body, headers)
        assert payload["type"] == "alert.cap_reached" and payload["data"] == ALERT
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(body + b" ", headers)
    assert headers["webhook-id"] == "a1"
    assert headers["host"] == f"localhost:{server.port}"


@pytest.mark.parametrize(
    ("status", "headers", "again", "gone"),
    [
        (500, {}, None, False),
        (301, {"location": "http://127.0.0.1:1/"}, None, False),
        (400, {}, None, False),
        (410, {}, None, True),
        (429, {"retry-after": "7"}, 7.0, False),
        (503, {"retry-after": "99999999"}, 3600.0, False),
        (503, {"retry-after": "soon"}, None, False),
    ],
)
def test_every_other_answer_is_a_refusal(
    status: int, headers: dict[str, str], again: float | None, gone: bool
) -> None:
    with hook() as server:
        server.answers.append((status, headers))
        deliverer = WebhookDeliverer(f"http://127.0.0.1:{server.port}/token-hunter2", [NEW], private=True)
        with pytest.raises(Refused) as caught:
            deliverer.deliver([message()])
        assert (caught.value.again, caught.value.gone) == (again, gone)
        assert len(server.got) == 1
    assert "hunter2" not in f"{caught.value} {deliverer!r}" and NEW not in repr(vars(caught.value))


def test_the_body_is_the_same_on_every_attempt_and_has_the_alerts_own_time() -> None:
    with hook() as server:
        server.answers.append((503, {}))
        deliverer = WebhookDeliverer(f"http://127.0.0.1:{server.port}/", [NEW], private=True)
        with pytest.raises(Refused):
            deliverer.deliver([message()])
        deliverer.deliver([message(tries=1)])
        first, second = (body for _, body, _ in server.got)
    assert first == second
    assert json.loads(first)["timestamp"] == ALERT["at"]


NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("nan", None), ("inf", None), ("-5", None), ("1e9", None), ("", None), ("²", None), ("1_0", None),
        ("0", 1.0), ("0000000000007", 7.0), ("9" * 400, 3600.0), ("5000", 3600.0),
        ("Sun, 22 Nov 2026 00:00:30 GMT", 30.0), ("Sun, 22 Nov 2026 00:00:30", 30.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 1.0),
        ("Sun, 22 Nov 99999 00:00:00 GMT", None), ("Sun, 99 Nov 2026 00:00:00 GMT", None), ("\x00", None),
    ],
)  # fmt: skip
def test_retry_after_is_bounded_whatever_it_says(text: str, seconds: float | None) -> None:
    assert read_retry_after(text, NOW) == seconds


@pytest.mark.parametrize("again", [float("nan"), float("inf"), -1.0, 1e300])
def test_no_refusal_parks_an_alert_for_ever(queue: Queue, clock: Clock, again: float) -> None:
    receiver = Receiver()
    receiver.refuse = lambda _: Refused("no", again)
    added(queue, "a")
    sender = Sender(queue, "hook", receiver, clock)
    sender.step()
    receiver.refuse = lambda _: None
    clock.now += PAUSE_MAX
    sender.step()
    assert receiver.taken == ["a"]


def test_what_an_earlier_version_stranded_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    """NaN was stored as NULL, which is never due."""
    path = tmp_path / "queue.db"
    with closing(Queue(path, clock)) as queue:
        added(queue, "a", "b")
        queue._file.db.execute("UPDATE deliveries SET due_at = NULL WHERE id = 'a'")
        queue._file.db.execute("UPDATE deliveries SET due_at = 9e99 WHERE id = 'b'")
    with closing(Queue(path, clock)) as queue:
        assert [one.id for one in queue.due("hook", 10)] == ["a", "b"]


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "::ffff:10.0.0.1", "::ffff:100.64.0.1", "::ffff:8.8.8.8", "::10.0.0.1", "::ffff:0:10.0.0.1", "fec0::1",
        "fe80::1%eth0", "fd00::1", "ff02::1", "ff0e::1", "::", "::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1",
        "4000::1", "0.1.2.3", "100.64.0.1", "100.100.100.200", "127.9.9.9", "169.254.169.254", "172.31.0.1",
        "192.0.0.1", "192.0.0.192", "192.88.99.1", "198.19.0.1", "203.0.113.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1", "255.255.255.255", "168.63.129.16",
    ],
)  # fmt: skip
def test_no_form_of_an_address_that_is_not_public_passes(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"]
)
def test_public_addresses_pass(address: str) -> None:
    assert is_public(address)


def test_one_private_address_among_several_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 443)) for one in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Refused, match="no public address"):
        WebhookDeliverer("https://example.com/", [NEW]).deliver([message()])


GOOD = OLD.removeprefix("whsec_")


@pytest.mark.parametrize(
    "secret",
    [
        f"v1,{OLD}", f"whsk_{GOOD}", f"whpk_{GOOD}", "whsec_YQ==", f"{OLD},{NEW}", f"{OLD} {NEW},", GOOD, "whsec_",
        f"WHSEC_{GOOD}", f"whsec_{GOOD[:-1]}-", f"whsec_{'A' * 88}", f"whsec_{GOOD}é", f"{NEW} hunter2", " ", "",
    ],
)  # fmt: skip
def test_a_secret_that_no_receiver_can_verify_is_refused_at_the_start(secret: str, tmp_path: Path) -> None:
    given = {"source": "demo:", "alerts": "webhook://example.com/x", "webhook_secrets": secret}
    with pytest.raises(SettingsError) as caught:
        found = load_settings(given)
        found.alerts[0].open(queue=tmp_path / "q", secrets=found.delivery_secrets)
    text = str(caught.value)
    assert "TIDEGATE_WEBHOOK_SECRETS" in text and "\n" not in text
    assert GOOD not in text and "hunter2" not in text


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[fd00::1]", "0.0.0.0"],
)
def test_no_alert_goes_into_the_private_network(host: str) -> None:
    """Whoever may set a webhook must not thereby reach the machines behind the firewall."""
    with pytest.raises(Refused, match="no public address"):
        WebhookDeliverer(f"http://{host}:9/", [NEW]).deliver([message()])


def test_the_address_that_was_looked_at_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers differently the second time leads nowhere else."""
    asked: list[str] = []
    answers = ["93.184.216.34", "127.0.0.1"]

    def looked_up(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    def answered(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.url.host} {request.headers['host']} {request.extensions['sni_hostname']}")
        return httpx.Response(204)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    WebhookDeliverer("https://example.com/x", [NEW], transport=httpx.MockTransport(answered)).deliver(
        [message()]
    )
    assert asked == ["93.184.216.34 example.com example.com"]


def test_a_chat_room_gets_a_line_for_each_alert() -> None:
    with hook() as server:
        deliverer = SlackDeliverer(f"http://127.0.0.1:{server.port}/services/hunter2")
        deliverer.deliver([message(), message("a2", state="resolved", kind="cap_released")])
        lines = json.loads(server.got[0][1])["text"].splitlines()
        assert len(server.got) == 1
        server.answers.append((404, {}))
        with pytest.raises(Refused) as caught:
            deliverer.deliver([message()])
    assert "hunter2" not in f"{caught.value} {deliverer!r}"
    assert "has reached its cap of 500: tokens stands at 512.5" in "\n".join(lines)
    assert "<b>" not in "\n".join(lines) and "&lt;b&gt;" in "\n".join(lines)


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.refuse = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            return "451 later"
        parsed = BytesParser(policy=policy.default).parsebytes(envelope.content)
        assert isinstance(parsed, EmailMessage)
        self.mails.append(parsed)
        return "250 OK"


@contextmanager
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    (port,) = free_ports(1)
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield box, port
    finally:
        controller.stop()


def test_a_mail_says_what_happened_in_text_and_html() -> None:
    with mailbox() as (box, port):
        deliverer = MailDeliverer("127.0.0.1", port, "tidegate@example.com", ["ops@example.com"], tls="none")
        deliverer.deliver([message()])
        deliverer.deliver([message(), message("a2")])
        box.refuse = True
        with pytest.raises(Refused, match="451"):
            deliverer.deliver([message()])
    one, two = box.mails
    assert one["subject"].startswith("[Tidegate] Cap reached: acme <b> Bcc: x@y, tokens")
    assert one["bcc"] is None and one["to"] == "ops@example.com"
    assert two["subject"] == "[Tidegate] 2 alerts"
    text, html = (one.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None and "has reached its cap of 500: tokens stands at 512.5" in text.get_content()
    assert html is not None and "acme &lt;b&gt;" in html.get_content() and "<b>" not in html.get_content()
    assert one["message-id"] != two["message-id"]


def test_addresses_route_by_kind_and_customer() -> None:
    found = load_settings(
        {"source": "demo:", "alerts": "slack:?kinds=cap_reached&customers=acme*,globex stdout:"}
    )
    slack, stdout = found.alerts
    assert isinstance(slack, AlertSlack)
    wanted = [("cap_reached", "acme-eu"), ("cap_reached", "globex")]
    refused = [("threshold", "acme"), ("cap_reached", "globex-2"), ("cap_reached", "other")]
    assert all(slack.wants(*one) for one in wanted) and not any(slack.wants(*one) for one in refused)
    assert all(stdout.wants(*one) for one in wanted + refused)
    with pytest.raises(SettingsError, match="needs kinds out of"):
        load_settings({"source": "demo:", "alerts": "slack:?kinds=cap_reched"})


def test_no_secret_is_shown(tmp_path: Path) -> None:
    found = load_settings(
        {
            "source": "demo:",
            "alerts": "webhook://example.com/x smtp://me:hunter2@mail:587?sender=a@b.c&to=d@e.f slack:",
            "webhook_secrets": "whsec_hunter2+hunter2+hunter2+hunter2+",
            "slack_url": "https://hooks/hunter2",
        }
    )
    assert "hunter2" not in f"{found} {found!r} {[str(one) for one in found.alerts]} {found.alerts!r}"
    for address in found.alerts:
        assert "hunter2" not in repr(address.open(queue=tmp_path / "q", secrets=found.delivery_secrets))
    assert isinstance(found.alerts[0], AlertWebhook) and isinstance(found.alerts[1], AlertMail)
