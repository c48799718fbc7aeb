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

from tests import redis_server
from tests.docker.containers import DOCKER, Container, Mapped, composed, manifests, pod
from tests.flows.test_control import eventually
from tests.kafka_server import Mock
from tests.ports import free_ports

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
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30).status == 200
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


def flow_pods(
    light: tuple[Any, redis_server.Server], folder: Path, count: int
) -> tuple[list[Container], dict[str, Any]]:
    """The pods of the flow in docker/kubernetes/tidegate.yaml, scaled to `count`, and how the kubelet probes them."""
    kafka, redis = light
    objects = manifests((DOCKER / "kubernetes/tidegate.yaml").read_text())
    peers, metrics = free_ports(count), free_ports(count)[0]
    names = {name: kafka.topic(4) for name in topics(kafka)}
    suffix = ".flow.tidegate.svc.cluster.local:2101"
    mapped = Mapped(
        folder,
        {
            "kafka:9092": kafka.bootstrap,
            "redis:6379": f"127.0.0.1:{redis.port}",
            "0.0.0.0:9464": f"127.0.0.1:{metrics}",
            **{f"flow-{number}{suffix}": f"127.0.0.1:{port}" for number, port in enumerate(peers)},
            **{name: f"/{text}" if name[0] == "/" else text for name, text in names.items()},
        },
    )
    hosts = objects["ConfigMap", "tidegate-catalog"]["data"]["hosts"].splitlines()
    assert hosts == [f"flow-{number}{suffix}" for number in range(2)]
    hosts = [f"flow-{number}{suffix}" for number in range(count)]
    (folder / "etc/hosts").write_text(mapped("\n".join(hosts)))
    (folder / "etc/catalog.yaml").write_text(objects["ConfigMap", "tidegate-catalog"]["data"]["catalog.yaml"])
    made = [pod(objects, "StatefulSet", "flow", number) for number in range(count)]
    containers = [Container(f"flow-{n}", mapped, one["args"], one["env"]) for n, one in enumerate(made)]
    return containers, made[0]["container"]


@pytest.mark.parametrize(("count", "how"), [(2, signal.SIGTERM), (3, signal.SIGKILL)])
def test_pods_become_ready_survive_a_kill_and_a_deletion(
    light: tuple[Any, redis_server.Server], tmp_path: Path, count: int, how: signal.Signals
) -> None:
    pods, container = flow_pods(light, tmp_path, count)
    ready = container["readinessProbe"]["exec"]["command"]
    alive = container["livenessProbe"]["exec"]["command"]

    def all_ready() -> bool:
        # As the kubelet does: whatever has ended is started again.
        for one in pods:
            if one.process is None or one.process.poll() is not None:
                one.start()
        return all(one.probe(ready) for one in pods)

    try:
        pods[0].start()
        eventually(lambda: pods[0].probe(alive))
        assert not pods[0].probe(ready), "it waits for the others"
        eventually(all_ready)
        first = pods[0].process
        assert first is not None
        assert pods[-1].end(how) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        first.wait(60)
        eventually(all_ready)
    finally:
        for one in pods:
            one.kill()
