"""Logging in to Kafka: TLS, SASL, and what is said where it is refused. No message shows a password."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, TypedDict

import confluent_kafka as rd
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.connectors.kafka.helpers import Reader, until
from tests.support.kafka_server import USERS, Brokers
from tests.support.servers import lacking
from tidegate.connectors.kafka.client import Cluster, KafkaError
from tidegate.connectors.kafka.source import KafkaSource


class Login(TypedDict):
    user: str
    password: str


ADA: Login = {"user": "ada", "password": USERS["ada"]}
EVE = {"user": "eve", "password": USERS["eve"]}


@pytest.fixture(scope="module")
def guarded(brokers: Brokers) -> Brokers:
    """Brokers with users, of whom ada may read."""
    brokers.add_users()
    allow(brokers, "ada", ResourceType.TOPIC, AclOperation.READ)
    allow(brokers, "ada", ResourceType.GROUP, AclOperation.READ)
    return brokers


@pytest.fixture(scope="module")
def topic(guarded: Brokers) -> str:
    name = guarded.topic()
    guarded.put(name, [b"1"])
    return name


def allow(brokers: Brokers, user: str, kind: ResourceType, act: AclOperation) -> None:
    rule = AclBinding(
        kind, "*", ResourcePatternType.LITERAL, f"User:{user}", "*", act, AclPermissionType.ALLOW
    )
    for done in brokers.admin.create_acls([rule]).values():
        done.result(10)


def reads(brokers: Brokers, listener: str, topic: str, **options: Any) -> list[bytes]:
    """What is read through a listener."""
    if listener not in brokers.nodes[0].listeners:
        lacking("no openssl to make a certificate with")
    return Reader(KafkaSource([brokers.address(listener)], topic, follow=False, **options)).to_the_end()


@pytest.mark.parametrize("sasl", ["plain", "scram-sha-256", "scram-sha-512"])
def test_a_user_with_a_password(guarded: Brokers, topic: str, sasl: str) -> None:
    assert reads(guarded, "sasl", topic, sasl=sasl, **ADA) == [b"1"]


@pytest.mark.parametrize("sasl", ["plain", "scram-sha-512"])
def test_a_wrong_password_is_refused_at_once(guarded: Brokers, topic: str, sasl: str) -> None:
    """Waiting would not mend it; and neither password is shown."""
    with pytest.raises(KafkaError, match=r"_AUTHENTICATION: .*; the login is refused; check user") as refused:
        reads(guarded, "sasl", topic, sasl=sasl, user="ada", password="wrong-one")
    assert "wrong-one" not in str(refused.value)


@pytest.mark.parametrize("listener", ["tls", "sasl_tls"])
def test_tls_with_a_ca_of_ones_own(guarded: Brokers, topic: str, listener: str) -> None:
    login: dict[str, Any] = {"sasl": "scram-sha-512", **ADA} if listener == "sasl_tls" else {}
    allow(guarded, "*", ResourceType.TOPIC, AclOperation.READ)
    config = {"ssl.ca.location": str(guarded.certificate)}
    assert reads(guarded, listener, topic, tls=True, config=config, **login) == [b"1"]


def test_a_certificate_that_nobody_vouches_for(
    guarded: Brokers, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.connectors.kafka.topic.ANSWER_S", 1.0)
    with pytest.raises(KafkaError, match=r"certificate verify failed.*config\.ssl\.ca\.location"):
        reads(guarded, "tls", topic, tls=True)


def test_a_handshake_that_is_told_as_a_lost_connection_gets_the_advice_for_tls() -> None:
    """It depends on when librdkafka is asked how it speaks of the same thing."""
    said = rd.KafkaError(
        rd.KafkaError._TRANSPORT, "ssl://h:9093: SSL handshake failed: certificate verify failed"
    )
    assert "config.ssl.ca.location" in str(Cluster(["h:9093"]).error(said, "its metadata"))


def test_a_token_of_ones_own_making(guarded: Brokers, topic: str) -> None:
    config = {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": "principal=ada"}
    assert reads(guarded, "sasl", topic, sasl="oauthbearer", config=config) == [b"1"]


def test_a_token_from_a_server_of_tokens(guarded: Brokers, topic: str) -> None:
    """User and password are the client's id and secret."""
    with tokens() as (url, asked):
        config = {"sasl.oauthbearer.token.endpoint.url": url}
        assert reads(guarded, "sasl", topic, sasl="oauthbearer", config=config, **ADA) == [b"1"]
    assert asked
    assert base64.b64decode(asked[0].removeprefix("Basic ")) == f"ada:{USERS['ada']}".encode()


@contextmanager
def tokens() -> Iterator[tuple[str, list[str]]]:
    """A server that gives anybody a token of ada's, and who asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])
            parts = (
                {"alg": "none", "typ": "JWT"},
                {"sub": "ada", "iat": 1_700_000_000, "exp": 4_000_000_000},
            )
            token = ".".join(
                base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts
            )
            body = json.dumps(
                {"access_token": f"{token}.", "token_type": "Bearer", "expires_in": 3600}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/token", asked
        server.shutdown()
        thread.join()


def test_a_user_who_may_not_read_the_topic(guarded: Brokers) -> None:
    secret = guarded.topic()
    guarded.put(secret, [b"1"])
    deny(guarded, "ada", ResourceType.TOPIC, secret, AclOperation.READ)
    with pytest.raises(KafkaError, match=r"TOPIC_AUTHORIZATION_FAILED.*allow it Describe and Read"):
        reads(guarded, "sasl", secret, sasl="plain", **ADA)


def test_a_user_who_may_not_use_the_group(guarded: Brokers) -> None:
    """Said at the first commit, and not left to whoever wonders about the lag."""
    group = guarded.unused()
    deny(guarded, "ada", ResourceType.GROUP, group, AclOperation.READ)
    name = guarded.topic()
    reader = Reader(KafkaSource([guarded.address("sasl")], name, sasl="plain", group=group, **ADA))
    reader.snapshot()
    with pytest.raises(KafkaError, match=r"GROUP_AUTHORIZATION_FAILED.*allow it Read on the group"):
        until(reader.poll, "the refusal is not said")
    reader.close()


def deny(brokers: Brokers, user: str, kind: ResourceType, name: str, act: AclOperation) -> None:
    rule = AclBinding(
        kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", act, AclPermissionType.DENY
    )
    for done in brokers.admin.create_acls([rule]).values():
        done.result(10)
