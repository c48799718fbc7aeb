"""What stands in docker/ is what the tools it is for accept, and its entry points run outside of a container too."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.flows.conftest import SECONDS, Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tests.support.places import ROOT
from tests.support.ports import free_ports
from tidegate.settings.serving import ServingSettings

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent


def checked(*command: str | Path, cwd: Path = DOCKER) -> str:
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_image_is_built_as_it_should_be() -> None:
    checked(BIN / "hadolint", "Dockerfile")
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    last = [line for line in lines[lines.index("", 5) :] if line]
    assert "USER 10001" in last and any(line.startswith("HEALTHCHECK") for line in last)


def test_everything_that_the_image_copies_is_sent_to_the_builder() -> None:
    """A file that .dockerignore keeps back fails the build only where there is an engine."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists() and name in allowed, name


def test_compose_fits_its_schema_and_its_services_each_other() -> None:
    checked(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DOCKER / source).exists(), source
    known = {f"TIDEGATE_{name.upper()}" for name in ServingSettings.model_fields}
    used = {
        name
        for one in services.values()
        for name in one.get("environment", {})
        if name.startswith("TIDEGATE_")
    }
    assert used - known == set()


def test_manifests_are_what_kubernetes_takes() -> None:
    kinds = []
    for manifest in yaml.safe_load_all((DOCKER / "kubernetes" / "tidegate.yaml").read_text()):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        kinds.append(manifest["kind"])
    assert {"StatefulSet", "Deployment", "PodDisruptionBudget", "PersistentVolumeClaim"} <= set(kinds)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alert_rules_are_valid_and_fire_when_they_should() -> None:
    # The key is made as the stack starts.
    checked("promtool", "check", "config", "--syntax-only", "prometheus/prometheus.yml")
    checked("promtool", "test", "rules", "prometheus/rules_test.yml")


def test_every_alert_has_its_section_in_the_runbook_and_no_other() -> None:
    groups = yaml.safe_load((DOCKER / "prometheus" / "rules.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in rules)


def exported(place: Place) -> set[str]:
    """The names of metrics that a flow and its code tell."""
    folders = ("connectors", "flows", "serving")
    code = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    gauges = re.findall(
        r'^ +\("([a-z_]+)", "', (ROOT / "serving" / "http" / "metrics.py").read_text(), re.MULTILINE
    )
    return {*re.findall(r'"(tidegate_[a-z_]+)"', code), *(f"tidegate_{name}" for name in gauges)}


def test_rules_and_dashboard_ask_for_metrics_that_there_are(place: Place) -> None:
    """A panel of a metric that was renamed stays empty, and an alert on it never fires."""
    known = exported(place)
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "tidegate.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    groups = yaml.safe_load((DOCKER / "prometheus" / "rules.yml").read_text())["groups"]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    for name in re.findall(r"tidegate_[a-z_]+", " ".join(asked)):
        assert name in known or re.sub(r"_(total|bucket|count|sum)$", "", name) in known, name


def test_the_entry_point_runs_a_flow_that_is_healthy_and_stops(place: Place) -> None:
    """What a container does from its start to `docker stop`."""
    place.append("first.jsonl")
    (port,) = free_ports(1)
    environment = place.environment(**FOLLOWED, METRICS=f"0.0.0.0:{port}")
    environment["PATH"] = f"{BIN}:{os.environ['PATH']}"
    command = ["/bin/sh", str(DOCKER / "entrypoint.sh"), "metering"]
    health = [sys.executable, str(DOCKER / "healthcheck.py")]
    with subprocess.Popen(command, cwd=place.folder, env=environment) as process:
        try:
            eventually(lambda: has_totals(place))
            eventually(lambda: subprocess.run(health, env=environment).returncode == 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    assert subprocess.run(health, env=environment).returncode == 1


def test_the_entry_point_knows_its_roles() -> None:
    found = subprocess.run(["/bin/sh", DOCKER / "entrypoint.sh", "metring"], capture_output=True, text=True)
    assert (
        found.returncode == 64
        and "needs metering, reconciliation, serve, tidegate or metrics-key" in found.stderr
    )
