"""Each library's errors become ours at one seam: every class that it has, in one line, and with no secret of ours."""

import asyncio
import smtplib
import socket
import sqlite3
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import confluent_kafka as rd
import httpx
import msgspec
import pytest
import yaml
from redis import exceptions as redis_errors

from tidegate.connectors.alerts.mail import MailDeliverer
from tidegate.connectors.alerts.queue import Message, Refused
from tidegate.connectors.alerts.slack import SlackDeliverer
from tidegate.connectors.alerts.webhook import WebhookDeliverer
from tidegate.connectors.dodo.client import DodoClient, DodoError
from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.kafka import client as kafka
from tidegate.connectors.redis.change_feed import RedisFeed
from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.key_layout import Keys
from tidegate.connectors.redis.servers import Servers
from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.billing.rate_limit import TIERS
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.ports import StoreError
from tidegate.serving.client.emit import EmitError, HttpEmit
from tidegate.settings.catalog.file import CatalogError, parse_catalog

SECRET: Final = "hunter2"
TEXT: Final = "it fails\nfor a reason"
ALERT: Final = Message("a1", msgspec.json.encode({
    "id": "a1", "kind": "cap_reached", "state": "raised", "customer": "acme", "meter": "tokens",
    "period_start": "2026-06-01T00:00:00Z", "period_end": "2026-07-01T00:00:00Z", "level": "500", "limit": "500",
    "total": "512.5", "at": "2026-06-17T10:00:00Z", "limit_version": "v", "turn": 1,
}), 0)  # fmt: skip
SYSTEM: Final = (
    ConnectionResetError,
    TimeoutError,
    socket.gaierror,
    ssl.SSLError,
    ssl.SSLCertVerificationError,
)


def classes(*bases: type[BaseException]) -> list[Any]:
    """The bases and all classes below them."""
    found = [*bases, *(below for base in bases for below in classes(*base.__subclasses__()))]
    return list(dict.fromkeys(found))


def made(kind: Any, *given: object) -> Any:
    """An error of this class; each library's constructors want something else, which `args` stands in for."""
    error = kind.__new__(kind, *(given or (TEXT,)))
    error.args = given or (TEXT,)
    return error


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def becomes(ours: type[TidegateError], act: Callable[[], object]) -> None:
    with pytest.raises(ours) as caught:
        act()
    text = str(caught.value)
    assert text and "\n" not in text and SECRET not in text


REDIS: Final = [*classes(redis_errors.RedisError), *SYSTEM]


@pytest.mark.parametrize("kind", REDIS)
@pytest.mark.parametrize("form", ["single", "sentinel", "cluster"])
def test_redis(kind: Any, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error = made(kind)
    monkeypatch.setattr(Servers, "connected", raising(error))
    monkeypatch.setattr(Servers, "connection", raising(error))
    servers = Servers([("h", None)], form, "main", password=SECRET, wait=timedelta(0))
    becomes(StoreError, lambda: Redis(servers).run([Command(0, ("PING",))]))
    becomes(StoreError, lambda: RedisFeed(servers, Keys("tidegate")))


CODES: Final = sorted(
    {code for name in dir(rd.KafkaError) if type(code := getattr(rd.KafkaError, name)) is int}
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> kafka.Cluster:
    monkeypatch.setattr(kafka, "ANSWER_S", -1.0)
    return kafka.Cluster(["b"], user="u", password=SECRET, sasl="plain")


@pytest.mark.parametrize("code", CODES)
def test_kafka(code: int, cluster: kafka.Cluster) -> None:
    failed = rd.KafkaError(code, f"{TEXT} {SECRET}")
    becomes(kafka.KafkaError, lambda: cluster.answer(raising(rd.KafkaException(failed)), "topic 't'"))


@pytest.mark.parametrize("kind", classes(rd.KafkaException))
def test_clients_of_kafka(kind: Any, cluster: kafka.Cluster) -> None:
    error = made(kind, rd.KafkaError(rd.KafkaError._FAIL, f"{TEXT} {SECRET}"))
    becomes(kafka.KafkaError, lambda: cluster.answer(raising(error), "topic 't'"))
    # A setting that librdkafka does not take; the address, which has the setting's name, makes one of ours of it.
    with pytest.raises(ValueError, match="it fails for a reason") as caught:
        cluster.made(raising(error), {})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", [*classes(sqlite3.Error), *SYSTEM, FileNotFoundError, PermissionError])
def test_sqlite(kind: Any) -> None:
    schema = Schema(
        name="store",
        error=StoreError,
        mark="",
        migrations=(),
        maker="start the flow",
        if_damaged="restore it",
    )

    def act() -> None:
        with schema.explained(Path("store.db"), "read"):
            raise made(kind)

    becomes(StoreError, act)


HTTP: Final = classes(httpx.HTTPError, httpx.InvalidURL)


@pytest.mark.parametrize("kind", HTTP)
def test_the_provider(kind: Any) -> None:
    transport = httpx.MockTransport(raising(made(kind)))
    with DodoClient(
        "http://127.0.0.1:9", SECRET, TIERS[0], sleep=lambda _: None, transport=transport
    ) as client:
        answer = str(client.get("/meters"))
        assert "\n" not in answer and SECRET not in answer and kind.__name__ in answer
        becomes(DodoError, lambda: list(client.pages("/meters")))
        becomes(DodoError, DodoReads(client, sleep=lambda _: None).meters)


@pytest.mark.parametrize("kind", HTTP)
def test_receivers_of_alerts(kind: Any) -> None:
    """Their URLs are secrets, and an error of httpx may quote the URL."""
    transport = httpx.MockTransport(raising(made(kind, f"{TEXT} {SECRET}")))
    slack = SlackDeliverer(f"http://127.0.0.1/{SECRET}", transport)
    becomes(Refused, lambda: slack.deliver([ALERT]))
    webhook = WebhookDeliverer(f"http://127.0.0.1/{SECRET}", [], private=True, transport=transport)
    becomes(Refused, lambda: webhook.deliver([ALERT]))


@pytest.mark.parametrize("kind", classes(smtplib.SMTPException))
def test_mail(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mail = MailDeliverer("h", 25, "a@b.c", ["d@e.f"], user="u", password=SECRET)
    is_login = issubclass(kind, smtplib.SMTPAuthenticationError)
    monkeypatch.setattr(mail, "_connected", raising(made(kind, f"{TEXT} {SECRET if is_login else ''}")))
    becomes(Refused, lambda: mail.deliver([ALERT]))


@pytest.mark.parametrize("kind", classes(httpx.RequestError))
def test_emitting(kind: Any) -> None:
    async def pause(_: float) -> None: ...

    async def send() -> None:
        client = httpx.AsyncClient(transport=httpx.MockTransport(raising(made(kind))))
        async with HttpEmit("http://127.0.0.1:9", SECRET, client=client, sleep=pause) as emit:
            await emit(b"{}", "acme")

    becomes(EmitError, lambda: asyncio.run(send()))


@pytest.mark.parametrize("kind", classes(yaml.YAMLError))
def test_yaml(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("catalog.yaml", 0, 0, "utf-8", TEXT) if issubclass(kind, yaml.reader.ReaderError) else ()
    monkeypatch.setattr(yaml, "parse", raising(kind(*given)))
    becomes(CatalogError, lambda: parse_catalog("meters: []", "catalog.yaml"))
