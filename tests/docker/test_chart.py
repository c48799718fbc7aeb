"""The Helm chart is rendered with the values that a user may set, and what comes out is what Kubernetes takes."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.docker.charts import CHART, needs_helm, rendered, run_helm, template
from tests.docker.containers import DOCKER, Objects, config_file, manifests, pod
from tests.support.places import ROOT
from tidegate.settings.serving import ServingSettings
from tidegate.settings.settings import Settings

pytestmark = needs_helm

FULL = """
image: {repository: registry.example/tidegate, tag: "9", pullSecrets: [{name: pull}]}
source: ""
ingest: ""
settings: {TIDEGATE_BRANCHES: "store,alerts,billing", TIDEGATE_BILLING: "dodo:live"}
secrets: {values: {TIDEGATE_DODO_API_KEY: key, TIDEGATE_SOURCE: "kafka://ada:secret@kafka:9092/usage?sasl=plain"}}
flow:
  processes: 3
  env: [{name: TZ, value: UTC}]
  podAnnotations: {a: b}
  nodeSelector: {disk: ssd}
  tolerations: [{key: metering, operator: Exists}]
  affinity: {nodeAffinity: {}}
serve: {replicas: 5, service: {type: LoadBalancer, port: 8080}, env: [{name: TZ, value: UTC}]}
topics: {create: true}
state: {storageClass: nfs, size: 5Gi}
networkPolicy:
  serveFrom: [{namespaceSelector: {matchLabels: {ingress: "yes"}}}]
  metricsFrom: [{podSelector: {matchLabels: {app: prometheus}}}]
serviceMonitor: {enabled: true, labels: {release: prometheus}, keySecret: {name: tidegate-metrics}}
"""
GIVEN = (
    "secrets.existing=ours",
    "catalog.existing=ours",
    "state.existingClaim=ours",
    "serve.enabled=false",
    "networkPolicy.enabled=false",
)
DEFAULT: tuple[str, ...] = ()
ELSEWHERE = ("--set", ",".join(GIVEN))


@pytest.fixture(params=["default", "full", "given"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    (tmp_path / "values.yaml").write_text(FULL)
    options = {"default": DEFAULT, "full": ("--values", str(tmp_path / "values.yaml")), "given": ELSEWHERE}
    return manifests(rendered(*options[request.param]))


@pytest.fixture
def full(tmp_path: Path) -> Objects:
    (tmp_path / "values.yaml").write_text(FULL)
    return manifests(rendered("--values", str(tmp_path / "values.yaml"), release="prod", namespace="billing"))


def test_the_chart_is_one_that_helm_takes() -> None:
    found = run_helm("lint", "--strict", str(CHART))
    assert found.returncode == 0, found.stdout


def test_what_is_rendered_is_what_kubernetes_takes(objects: Objects) -> None:
    for (kind, _), one in objects.items():
        # The operator's own kind is in no schema of Kubernetes.
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        assert one["metadata"]["namespace"] == "tidegate"


def test_what_an_object_names_is_there(objects: Objects) -> None:
    for (kind, _), one in objects.items():
        if kind not in ("StatefulSet", "Deployment", "Job"):
            continue
        spec = one["spec"]["template"]["spec"]
        for name in re.findall(r"'(?:configMapRef|configMap)': \{'name': '([^']+)'", str(spec)):
            assert name == "ours" or ("ConfigMap", name) in objects
        for name in re.findall(r"'secretRef': \{'name': '([^']+)'", str(spec)):
            assert name == "ours" or ("Secret", name) in objects
        (claim,) = re.findall(r"'claimName': '([^']+)'", str(spec))
        assert claim == "ours" or ("PersistentVolumeClaim", claim) in objects
        labels = one["spec"]["template"]["metadata"]["labels"]
        if kind != "Job":
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_by_default_it_runs_what_the_manifests_run() -> None:
    """Arguments, environment, ports, probes and security of both pods, as in docker/kubernetes/tidegate.yaml."""
    plain = manifests((DOCKER / "kubernetes/tidegate.yaml").read_text())
    chart = manifests(rendered())
    for kind, name in (("StatefulSet", "flow"), ("Deployment", "serve")):
        ours, theirs = pod(chart, kind, f"tidegate-{name}", 0), pod(plain, kind, name, 0)
        expected = {**theirs["env"], **({"BYTEWAX_POD_NAME": "tidegate-flow-0"} if name == "flow" else {})}
        if name == "flow":
            expected["BYTEWAX_STATEFULSET_NAME"] = "tidegate-flow"
        assert ours["args"] == theirs["args"] and ours["env"] == expected
        for part in (
            "ports",
            "securityContext",
            "volumeMounts",
            "resources",
            "livenessProbe",
            "readinessProbe",
        ):
            same = {"timeoutSeconds": 3} if part.endswith("Probe") else {}
            found, wanted = ours["container"][part], theirs["container"][part]
            assert found == ({**same, **wanted} if same else wanted), part
    assert chart["StatefulSet", "tidegate-flow"]["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert config_file(chart, "catalog.yaml").strip() == config_file(plain, "catalog.yaml").strip()


def test_every_setting_that_it_sets_is_one(full: Objects) -> None:
    known = {f"TIDEGATE_{name.upper()}" for name in {**Settings.model_fields, **ServingSettings.model_fields}}
    for kind, name in (("StatefulSet", "flow"), ("Deployment", "serve")):
        made = pod(full, kind, f"prod-tidegate-{name}", 0)["env"]
        assert {one for one in made if one.startswith("TIDEGATE_")} <= known
        assert made["TIDEGATE_SOURCE"].startswith("kafka://ada:secret@") and made["TZ"] == "UTC"


def test_secrets_are_in_the_secret_alone(full: Objects) -> None:
    others = [one for (kind, _), one in full.items() if kind != "Secret"]
    assert "secret@" not in str(others) and "secret@" in str(full["Secret", "prod-tidegate"])


def test_only_the_flow_reaches_the_peers_port(full: Objects) -> None:
    policy = full["NetworkPolicy", "prod-tidegate-flow"]["spec"]
    peers, metrics = policy["ingress"]
    assert policy["podSelector"]["matchLabels"] == peers["from"][0]["podSelector"]["matchLabels"]
    assert policy["podSelector"]["matchLabels"]["role"] == "flow" and peers["ports"][0]["port"] == 2101
    assert metrics["from"] == [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
    assert full["NetworkPolicy", "prod-tidegate-serve"]["spec"]["ingress"][0]["from"]


def test_each_process_is_scraped_once_at_its_own_port(full: Objects) -> None:
    monitor = full["ServiceMonitor", "prod-tidegate-flow"]
    service = full["Service", "prod-tidegate-flow"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {one["name"]: one["port"] for one in service["spec"]["ports"]}
    for number, endpoint in enumerate(monitor["spec"]["endpoints"]):
        (only,) = endpoint["relabelings"]
        assert ports[endpoint["port"]] == 9464 + number and only["action"] == "keep"
        assert re.fullmatch(only["regex"], f"prod-tidegate-flow-{number}")
        assert not re.fullmatch(only["regex"], f"prod-tidegate-flow-1{number}")
    serve = full["ServiceMonitor", "prod-tidegate-serve"]["spec"]["endpoints"][0]
    assert serve["authorization"]["credentials"] == {"name": "tidegate-metrics", "key": "key"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("flow.processes=9", "flow.recoveryParts"),
        ("flow.processes=40", "32"),
        ("store=sqlite:data/tidegate.db", "is for one machine"),
        ("source=file:in.ndjson", "is for one machine"),
        ("serviceMonitor.enabled=true", "serviceMonitor.keySecret.name: is missing"),
        ("settings.TDEGATE_EPOCH=2s", "TDEGATE_EPOCH"),
        ("procesess=2", "procesess"),
    ],
)
def test_a_wrong_value_is_refused(wrong: str, said: str) -> None:
    found = template("--set", wrong)
    assert found.returncode != 0 and said in found.stderr


def test_chart_image_and_package_are_of_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None and chart["version"] == chart["appVersion"] == project[1]
