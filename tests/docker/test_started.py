"""Every process is started as the manifests say, with a broker and a Redis of this machine, and is healthy."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.charts import needs_helm, rendered
from tests.docker.containers import (
    DOCKER,
    Container,
    Mapped,
    Objects,
    composed,
    config_file,
    manifests,
    pod,
)
from tests.flows.meter.test_control_source import eventually
from tests.support import redis_server
from tests.support.kafka_server import Mock
from tests.support.ports import free_ports

READY = ("python", "/opt/tidegate/healthcheck.py")
CATALOG = "meters:\n  - {name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: tokens}}\n"


@pytest.fixture
def light() -> Iterator[tuple[Any, redis_server.Server]]:
    """The same without Java, which takes longer to start than all pods do."""
    kafka = Mock("no need of more here")
    with redis_server.single() as redis:
        yield kafka, redis
    kafka.close()


@pytest.fixture
def outside(kafka: Any) -> Iterator[tuple[Any, redis_server.Server]]:
    with redis_server.single() as redis:
        yield kafka, redis


def metrics_of(port: int, key: str = "") -> str:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def is_up(port: int, path: str) -> bool:
    with suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30).status == 200)
    return False


def topics(kafka: Any) -> dict[str, str]:
    """A name that nobody else has for each topic of the manifests."""
    return {name: kafka.unused() for name in ("usage-events", "dead-letters", "/alerts")}


def event(number: int) -> bytes:
    return json.dumps({
        "event_id": str(number), "customer_id": "acme", "event_name": "llm.tokens",
        "timestamp": "2026-06-17T10:00:00Z", "metadata": {"tokens": 5},
    }).encode()  # fmt: skip


def test_compose_starts_and_prometheus_reaches_all_of_it(
    outside: tuple[Any, redis_server.Server], tmp_path: Path
) -> None:
    kafka, redis = outside
    peers = free_ports(2)
    # The second process has the port after the first one's.
    metrics, _, http = free_ports(3)
    names = topics(kafka)
    addresses = {
        "kafka:9092": kafka.bootstrap,
        "redis:6379": f"127.0.0.1:{redis.port}",
        "flow-0:2101": f"127.0.0.1:{peers[0]}",
        "flow-1:2101": f"127.0.0.1:{peers[1]}",
        "0.0.0.0:9464": f"127.0.0.1:{metrics}",
        "0.0.0.0:8080": f"127.0.0.1:{http}",
        "127.0.0.1:8080": f"127.0.0.1:{http}",
        **{name: f"/{text}" if name[0] == "/" else text for name, text in names.items()},
    }
    mapped = Mapped(tmp_path, addresses)
    (tmp_path / "etc" / "catalog.yaml").write_text(CATALOG)
    started: list[Container] = []

    def start(name: str) -> Container:
        one = composed(name, mapped)
        started.append(one)
        one.start()
        return one

    try:
        for once in ("topics", "metrics-key"):
            one = start(once)
            assert one.process is not None and one.process.wait(120) == 0, one.said()
        long = [start(name) for name in ("flow-0", "flow-1", "serve")]
        for one in long:
            eventually(lambda one=one: one.probe(READY) or one.process.poll() is not None)  # type: ignore[misc]
            assert one.probe(READY), one.said()
        conf = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
        jobs = {job["job_name"]: job for job in conf["scrape_configs"]}
        assert jobs["tidegate"]["static_configs"][0]["targets"] == ["flow-0:9464", "flow-1:9465"]
        for number in range(2):
            assert "tidegate_ready 1.0" in metrics_of(metrics + number)
        key = Path(mapped(jobs["tidegate-serve"]["authorization"]["credentials_file"])).read_text()
        assert "tidegate_store_reachable 1.0" in metrics_of(http, key)
        with pytest.raises(urllib.error.HTTPError):
            metrics_of(http)
        # A restart of the stack keeps the key.
        again = start("metrics-key")
        assert again.process is not None and again.process.wait(120) == 0
        assert Path(mapped("/run/tidegate/metrics.key")).read_text() == key
        assert long[0].end(signal.SIGTERM) == 0 and long[1].process is not None
        assert long[1].process.wait(60) == 0, "the other process of the cluster ends with it"
    finally:
        for one in started:
            one.kill()


def kubernetes(how: str) -> tuple[Objects, str]:
    """Return the objects of the manifests or of the rendered chart, and what their names begin with."""
    if how == "manifests":
        return manifests((DOCKER / "kubernetes/tidegate.yaml").read_text()), ""
    return manifests(rendered("--set", "secrets.values.TIDEGATE_EPOCH=2s")), "tidegate-"


class Pods:
    """The pods of flow and service, the flow scaled to `count`, and whether the kubelet finds them ready."""

    def __init__(
        self, deployed: tuple[Objects, str], light: tuple[Any, redis_server.Server], folder: Path, count: int
    ) -> None:
        self._objects, self._prefix = deployed
        kafka, redis = light
        peers, metrics = free_ports(count), free_ports(count)[0]
        suffix = f".{self._prefix}flow.tidegate.svc.cluster.local:2101"
        topic_names = {name: kafka.topic(4) for name in topics(kafka)}
        self._addresses = {
            "kafka:9092": kafka.bootstrap,
            "redis:6379": f"127.0.0.1:{redis.port}",
            "0.0.0.0:9464": f"127.0.0.1:{metrics}",
            **{f"{self._prefix}flow-{n}{suffix}": f"127.0.0.1:{port}" for n, port in enumerate(peers)},
            **{name: f"/{text}" if name[0] == "/" else text for name, text in topic_names.items()},
        }
        self._folder, self._mapped = folder, Mapped(folder, self._addresses)
        hosts = [f"{self._prefix}flow-{number}{suffix}" for number in range(count)]
        assert config_file(self._objects, "hosts").split() == hosts[:2]
        (folder / "etc/hosts").write_text(self._mapped("\n".join(hosts)))
        (folder / "etc/catalog.yaml").write_text(config_file(self._objects, "catalog.yaml"))
        self.flow = [self._container("StatefulSet", "flow", n, self._mapped) for n in range(count)]
        self._ports = free_ports(self._objects["Deployment", f"{self._prefix}serve"]["spec"]["replicas"])
        # On a machine of its own each would have the port of its manifest.
        self.serve = [
            self._container(
                "Deployment",
                "serve",
                n,
                Mapped(folder, {**self._addresses, "0.0.0.0:8080": f"127.0.0.1:{port}"}),
            )
            for n, port in enumerate(self._ports)
        ]

    def _container(self, kind: str, name: str, number: int, mapped: Mapped) -> Container:
        made = pod(self._objects, kind, self._prefix + name, number)
        return Container(f"{name}-{number}", mapped, made["args"], made["env"])

    def probe(self, one: Container, name: str) -> bool:
        kind, role = ("StatefulSet", "flow") if one in self.flow else ("Deployment", "serve")
        probe = pod(self._objects, kind, self._prefix + role, 0)["container"][name]
        if "exec" in probe:
            return one.probe(probe["exec"]["command"])
        assert probe["httpGet"]["port"] == "http"
        return is_up(self._ports[self.serve.index(one)], probe["httpGet"]["path"])

    def are_ready(self, containers: list[Container]) -> bool:
        # As the kubelet does: whatever has ended is started again.
        for one in containers:
            if one.process is None or one.process.poll() is not None:
                one.start()
        return all(self.probe(one, "readinessProbe") for one in containers)

    def kill(self) -> None:
        for one in (*self.flow, *self.serve):
            one.kill()


@pytest.mark.parametrize(
    ("where", "count", "how"),
    [
        ("manifests", 2, signal.SIGTERM),
        ("manifests", 3, signal.SIGKILL),
        pytest.param("chart", 2, signal.SIGTERM, marks=needs_helm),
    ],
)
def test_pods_become_ready_survive_a_kill_and_a_deletion(
    light: tuple[Any, redis_server.Server], tmp_path: Path, where: str, count: int, how: signal.Signals
) -> None:
    pods = Pods(kubernetes(where), light, tmp_path, count)
    everything = [*pods.flow, *pods.serve]
    try:
        pods.flow[0].start()
        eventually(lambda: pods.probe(pods.flow[0], "livenessProbe"))
        assert not pods.probe(pods.flow[0], "readinessProbe"), "it waits for the others"
        eventually(lambda: pods.are_ready(everything))
        first = pods.flow[0].process
        assert first is not None
        assert pods.flow[-1].end(how) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        first.wait(60)
        eventually(lambda: pods.are_ready(everything))
    finally:
        pods.kill()
