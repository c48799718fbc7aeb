"""Kafka for tests: brokers of our own on this machine, a cluster that is named, or librdkafka's mock.

A session has one `Kafka`. `Brokers` runs Apache Kafka (KRaft) with the machine's Java, jars by
tests/support/kafka/get.py; `TIDEGATE_TEST_KAFKA` names a cluster that runs already, which is neither stopped nor
given users; where neither can be had, the mock inside confluent-kafka speaks the protocol and knows no
administration. Tests that need more than is to be had are skipped, with the reason.
"""

import atexit
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from uuid import uuid4

from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    NewPartitions,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from tests.support.kafka.get import VERSION, NotToBeHad, jars
from tests.support.kafka.mock import MockCluster
from tests.support.ports import free_addresses
from tests.support.servers import dies_with_us

NAMED = "TIDEGATE_TEST_KAFKA"
CLUSTER_ID = "dGlkZWdhdGUtdGVzdHMtMQ"
START_S = 60
JAVA = (
    "java",
    "-Xms64m",
    "-Xmx256m",
    # What runs for seconds is not worth compiling well.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
LISTENERS = {
    "plain": "PLAINTEXT",
    "wire": "PLAINTEXT",
    "sasl": "SASL_PLAINTEXT",
    "tls": "SSL",
    "sasl_tls": "SASL_SSL",
}
USERS = {"ada": "ada-secret", "eve": "eve-secret"}
MECHANISMS = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}


class Kafka:
    """What a test has of a cluster, whichever it is: `bootstrap`, fresh topics and a producer."""

    def __init__(self, bootstrap: str, described: str) -> None:
        self.bootstrap = bootstrap
        self.described = described
        self._numbers = count(1)
        self._run = uuid4().hex[:8]

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient(self.client())

    @cached_property
    def producer(self) -> Producer:
        return Producer(self.client(linger__ms=1, enable__idempotence=True))

    def client(self, **options: Any) -> dict[str, Any]:
        """Settings of a client that is quick to find its broker again; `__` stands for a dot."""
        quick = {"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 100}
        return quick | {name.replace("__", "."): value for name, value in options.items()}

    def topic(self, partitions: int = 1, replicas: int = 1, **config: str) -> str:
        """The name of a new topic. `config` as the broker has it, `_` for a dot."""
        name = self.unused()
        options = {key.replace("_", "."): value for key, value in config.items()}
        new = NewTopic(name, partitions, replicas, config=options)
        self.admin.create_topics([new])[name].result(timeout=START_S)
        return name

    def unused(self) -> str:
        """A name that no topic or group has."""
        return f"t{next(self._numbers)}-{self._run}"

    def grow(self, topic: str, partitions: int) -> None:
        """Adds partitions, up to so many."""
        self.admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(timeout=START_S)
        while len(self.producer.list_topics(topic, timeout=START_S).topics[topic].partitions) < partitions:
            time.sleep(0.01)

    def put(self, topic: str, values: list[bytes | None], partition: int = 0, **message: Any) -> None:
        """Appends messages, and waits until they are there."""
        failed: list[Any] = []
        for value in values:
            self.producer.produce(
                topic,
                value,
                partition=partition,
                on_delivery=lambda error, _: failed.append(error) if error else None,
                **message,
            )
        assert self.producer.flush(START_S) == 0 and not failed, failed

    def close(self) -> None:
        """Nothing of ours runs after it."""


class Named(Kafka):
    """A cluster that somebody else runs."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(bootstrap, f"the cluster in {NAMED}")


class Mock(Kafka):
    """librdkafka's mock, which speaks the protocol but has neither users nor retention, nor much of administration."""

    def __init__(self, why: str) -> None:
        self._mock = MockCluster()
        super().__init__(self._mock.bootstrap, f"librdkafka's mock of Kafka, as there is {why}")

    def topic(self, partitions: int = 1, replicas: int = 1, **config: str) -> str:
        name = self.unused()
        self._mock.create(name, partitions)
        return name

    def close(self) -> None:
        self._mock.close()


class Node(NamedTuple):
    """A broker: its place in the cluster, its folder, and the address of each of its listeners."""

    number: int
    folder: Path
    listeners: dict[str, str]


class Brokers(Kafka):
    """Apache Kafka, as many brokers as asked for, each also a controller; killed with this process."""

    def __init__(self, count: int = 1) -> None:
        self._jars = jars()
        self._folder = Path(mkdtemp(prefix="tidegate-kafka-"))
        atexit.register(self.close)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # Who reaches the listener `wire` is told to come to `proxy`, where a test may listen.
        names = ("controller", "proxy", *self._listeners())
        addresses = iter(free_addresses(count * len(names)))
        self.nodes = [
            Node(number, self._folder / str(number), {name: next(addresses) for name in names})
            for number in range(1, count + 1)
        ]
        bootstrap = ",".join(node.listeners["plain"] for node in self.nodes)
        super().__init__(bootstrap, f"Apache Kafka {VERSION}, {count} broker{'s' * (count > 1)}, KRaft")
        for node in self.nodes:
            self._format(node)
        for node in self.nodes:
            self.start(node.number)
        self.wait()

    @property
    def certificate(self) -> Path:
        """What clients trust on the listeners with TLS."""
        return self._folder / "tls.crt"

    def address(self, listener: str) -> str:
        """Of the first broker."""
        return self.nodes[0].listeners[listener]

    def start(self, number: int = 1) -> None:
        """Starts a broker, on what its folder has; `wait` says when it answers."""
        node = self.nodes[number - 1]
        with (self._folder / f"said-{number}").open("ab") as said:
            self._processes[number] = subprocess.Popen(
                [*JAVA, "-cp", f"{self._jars}/*", "kafka.Kafka", node.folder / "server.properties"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=dies_with_us,
            )

    def wait(self) -> None:
        """Until every broker that runs can be asked by its clients."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(Exception):
                if len(self.admin.list_topics(timeout=5).brokers) == len(self._processes):
                    return
            dead = [process for process in self._processes.values() if process.poll() is not None]
            assert not dead, self.said()
        raise AssertionError(f"Kafka does not come up in {START_S} s:\n{self.said()}")

    def kill(self, number: int = 1) -> None:
        """SIGKILL: what the broker has acknowledged is in the page cache, as after any crash of it."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def pause(self, number: int = 1) -> None:
        """SIGSTOP: connections stay, nothing answers, until `resume`."""
        self._processes[number].send_signal(signal.SIGSTOP)

    def resume(self, number: int = 1) -> None:
        self._processes[number].send_signal(signal.SIGCONT)

    def add_users(self) -> None:
        """Gives `USERS` their passwords for SCRAM."""
        for mechanism in MECHANISMS.values():
            wanted: list[UserScramCredentialAlteration] = [
                UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), password.encode())
                for user, password in USERS.items()
            ]
            for done in self.admin.alter_user_scram_credentials(wanted).values():
                done.result(timeout=START_S)

    def said(self) -> str:
        """The brokers' last words."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("said-*")))

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listeners(self) -> list[str]:
        if not shutil.which("openssl"):
            return ["plain", "wire", "sasl"]
        key, certificate = self._folder / "tls.key", self.certificate
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        command += ["-days", "2", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        (self._folder / "tls.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
        return list(LISTENERS)

    def _format(self, node: Node) -> None:
        node.folder.mkdir()
        properties = node.folder / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties(node).items()))
        command = [*JAVA, "-cp", f"{self._jars}/*", "kafka.tools.StorageTool", "format"]
        command += ["-t", CLUSTER_ID, "-c", str(properties)]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def _properties(self, node: Node) -> dict[str, Any]:
        voters = ",".join(f"{each.number}@{each.listeners['controller']}" for each in self.nodes)
        protocols = {"CONTROLLER": "PLAINTEXT"} | {name.upper(): LISTENERS[name] for name in LISTENERS}
        listening = {name: at for name, at in node.listeners.items() if name != "proxy"}
        told = listening | {"wire": node.listeners["proxy"]}
        del told["controller"]
        replicas = min(3, len(self.nodes))
        plain = " ".join(f'user_{user}="{password}"' for user, password in USERS.items())
        jaas, security = "sasl.jaas.config", "org.apache.kafka.common.security"
        found: dict[str, Any] = {
            "process.roles": "broker,controller",
            "node.id": node.number,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join(f"{name.upper()}://{at}" for name, at in listening.items()),
            "advertised.listeners": ",".join(f"{name.upper()}://{at}" for name, at in told.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "inter.broker.listener.name": "PLAIN",
            "log.dirs": node.folder / "log",
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # So that a broker that died or stopped is noticed in seconds.
            "broker.heartbeat.interval.ms": 300,
            "broker.session.timeout.ms": 2000,
            # Tests give messages times of their own, also old and future ones.
            "log.retention.ms": -1,
            "log.message.timestamp.after.max.ms": (1 << 63) - 1,
            "file.delete.delay.ms": 100,
            "log.cleaner.dedupe.buffer.size": 2 << 20,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._folder / "tls.pem",
            "ssl.client.auth": "none",
        }
        for name in (name for name in node.listeners if name.startswith("sasl")):
            at = f"listener.name.{name}"
            found[f"{at}.plain.{jaas}"] = f"{security}.plain.PlainLoginModule required {plain};"
            for scram in ("scram-sha-256", "scram-sha-512"):
                found[f"{at}.{scram}.{jaas}"] = f"{security}.scram.ScramLoginModule required;"
            oauth, module = f"{at}.oauthbearer", f"{security}.oauthbearer"
            found[f"{oauth}.{jaas}"] = (
                f'{module}.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="-";'
            )
            found[f"{oauth}.sasl.server.callback.handler.class"] = (
                f"{module}.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
            )
        return found


def any_kafka() -> Kafka:
    """The best that is to be had here."""
    if named := os.environ.get(NAMED):
        return Named(named)
    try:
        return Brokers()
    except NotToBeHad as why:
        return Mock(str(why))
