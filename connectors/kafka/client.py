"""What Kafka's source, sinks and ingest have in common: librdkafka's settings, and errors that say what to do.

Source: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakMethod

import confluent_kafka as rd

from tidegate.operators.model.errors import TidegateError, one_line

MECHANISMS = {
    "plain": "PLAIN",
    "scram-sha-256": "SCRAM-SHA-256",
    "scram-sha-512": "SCRAM-SHA-512",
    "oauthbearer": "OAUTHBEARER",
}
_SECRETIVE = re.compile(r"password|secret|key|pem|token|oauthbearer\.config|jaas")
# How long brokers may take to answer what is asked at the start.
ANSWER_S = 30.0
ASK_S = 5.0
# What is over when brokers are back.
PASSING = frozenset(
    {
        rd.KafkaError._ALL_BROKERS_DOWN,
        rd.KafkaError._DESTROY_BROKER,
        rd.KafkaError._TIMED_OUT,
        rd.KafkaError._TIMED_OUT_QUEUE,
        rd.KafkaError._TRANSPORT,
        # Of a partition that the topic is known to have: a client that connects again may not have heard of it yet.
        rd.KafkaError._UNKNOWN_PARTITION,
        rd.KafkaError._WAIT_COORD,
        rd.KafkaError.BROKER_NOT_AVAILABLE,
        rd.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        rd.KafkaError.LEADER_NOT_AVAILABLE,
        rd.KafkaError.NOT_LEADER_FOR_PARTITION,
        rd.KafkaError.REQUEST_TIMED_OUT,
    }
)

_ADVICE = {
    rd.KafkaError._ALL_BROKERS_DOWN: "no broker can be reached; check the address, the network and the brokers",
    rd.KafkaError._TRANSPORT: "no broker can be reached; check the address, the network and the brokers",
    rd.KafkaError._TIMED_OUT: "no broker answers in time; check the address, the network and the brokers",
    rd.KafkaError._RESOLVE: "the broker's name is not known; check the address",
    rd.KafkaError._AUTHENTICATION: "the login is refused; check user, password and sasl",
    rd.KafkaError.SASL_AUTHENTICATION_FAILED: "the login is refused; check user, password and sasl",
    rd.KafkaError._SSL: "the TLS handshake fails; check tls, and config.ssl.ca.location for a CA of your own",
    rd.KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not use the topic; allow it Describe and Read to meter, "
    "Describe and Write to deliver",
    rd.KafkaError.GROUP_AUTHORIZATION_FAILED: "this user may not commit for the group; allow it Read on the group",
    rd.KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not do that; allow it what the message names",
    rd.KafkaError.UNKNOWN_TOPIC_OR_PART: "there is no such topic, or this user may not see it; create it, or allow "
    "Describe",
    rd.KafkaError._UNKNOWN_TOPIC: "there is no such topic, or this user may not see it; create it, or allow Describe",
    rd.KafkaError._UNKNOWN_PARTITION: "there is no such partition any more; was the topic deleted or made anew?",
    rd.KafkaError.UNKNOWN_MEMBER_ID: "another program consumes with this group; give this one a group of its own",
    rd.KafkaError._MSG_TIMED_OUT: "brokers and replicas did not take it within config.delivery.timeout.ms; check them",
    rd.KafkaError.MSG_SIZE_TOO_LARGE: "the topic takes no message as large as this; raise its max.message.bytes",
}


Answer = TypeVar("Answer")


class KafkaError(TidegateError):
    """Kafka can't be used as asked, or can't be for too long; says what to do."""


class Cluster:
    """Where a cluster is and how to log in; what a client's settings begin with. Secrets are in no message."""

    def __init__(
        self,
        hosts: Sequence[object],
        *,
        user: str | None = None,
        password: str | None = None,
        sasl: str | None = None,
        tls: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"kafka {','.join(map(str, hosts))!r}"
        kept = [value for name, value in (config or {}).items() if _SECRETIVE.search(name)]
        self._secrets = [text for text in (password, *kept) if text]
        self._settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(
                str(host) if ":" in str(host) else f"{host}:9092" for host in hosts
            ),
            "client.id": "tidegate",
            "security.protocol": ("sasl_" if sasl else "") + ("ssl" if tls else "plaintext"),
            # Back at once after a broker was; it is asked ten times a second at most.
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 1000,
            # What is wrong arrives as errors, which say more than the log.
            "log_level": 0,
        }
        if sasl:
            self._settings |= _login(sasl, user, password)
        self._config = dict(config or {})

    def settings(self, ours: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of librdkafka: users may change `ours`, but not `own`, on which guarantees depend.

        ValueError if one of `own` was to be changed.
        """
        for name in self._config:
            if name in own or name in ("bootstrap.servers", "security.protocol"):
                raise ValueError(
                    f"config.{name}: can't be changed here; what the connector promises depends on it"
                )
        return {**self._settings, **ours, **self._config, **own}

    def made(self, make: Callable[[dict[str, Any]], Any], settings: dict[str, Any]) -> Any:
        """Return a client; ValueError where librdkafka does not take its settings."""
        try:
            return make(settings)
        except rd.KafkaException as error:
            reason = self.safe(error.args[0].str())
        except (TypeError, ValueError) as error:
            reason = self.safe(str(error))
        raise ValueError(f"{reason}; see librdkafka's CONFIGURATION.md for what config.NAME may be")

    def answer(self, ask: Callable[[float], Answer], what: str) -> Answer:
        """Return the brokers' answer, asking again while they are away; KafkaError after `ANSWER_S`, or if they refuse.

        `ask` takes seconds that it may wait.
        """
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                return ask(ASK_S)
            except rd.KafkaException as error:
                failed: rd.KafkaError = error.args[0]
            if time.monotonic() > deadline or not (failed.code() in PASSING or failed.retriable()):
                raise self.error(failed, what)
            time.sleep(random.uniform(0.1, 0.4))

    def error(self, error: rd.KafkaError, what: str) -> KafkaError:
        """In words: what was asked of which cluster, what it said, and what to do about it."""
        # A handshake that fails while a client tries again may be told as a lost connection.
        is_tls = "certificate" in error.str() and error.code() == rd.KafkaError._TRANSPORT
        advice = _ADVICE.get(rd.KafkaError._SSL if is_tls else error.code())
        said = f"{error.name()}: {self.safe(error.str())}" + (f"; {advice}" if advice else "")
        return KafkaError(f"{self.name}: {what}: {said}")

    def safe(self, text: str) -> str:
        """Return it in one line, without any secret that may be in it."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return one_line(text)


def _login(sasl: str, user: str | None, password: str | None) -> dict[str, Any]:
    mechanism = {"sasl.mechanisms": MECHANISMS[sasl]}
    if sasl != "oauthbearer":
        return mechanism | {"sasl.username": user, "sasl.password": password}
    if user is None:
        return mechanism
    named = {"sasl.oauthbearer.client.id": user, "sasl.oauthbearer.client.secret": password}
    return mechanism | {"sasl.oauthbearer.method": "oidc"} | named


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Call `method` for as long as its object lives, which it does not keep alive.

    A client and who listens to it would be a cycle, which the collector ends on any thread; and on a thread of
    librdkafka's own, such as that of an administrator's answers, the end of a client is the end of the process.
    """
    held = WeakMethod(method)

    def call(*heard: Any) -> None:
        if (listening := held()) is not None:
            listening(*heard)

    return call
