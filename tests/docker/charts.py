"""The Helm chart, rendered by helm where it is installed: in PATH, or where `go install` puts it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.containers import DOCKER

CHART = DOCKER / "helm" / "tidegate"
# Such as `go install` builds it, helm knows of no Kubernetes newer than 1.20.
KUBERNETES = "1.31.0"


def helm() -> str | None:
    """Return the path of helm, None where there is none."""
    gopath = os.environ.get("GOPATH", str(Path.home() / "go")).split(":")[0]
    return shutil.which("helm") or shutil.which("helm", path=f"{gopath}/bin")


needs_helm = pytest.mark.skipif(
    helm() is None, reason="helm is not installed (go install helm.sh/helm/v3/cmd/helm@v3.18.6)"
)


def run_helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = helm()
    assert program is not None
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def rendered(*options: str, release: str = "tidegate", namespace: str = "tidegate") -> str:
    """Return the manifests of a release with these options."""
    found = template(*options, release=release, namespace=namespace)
    assert found.returncode == 0, found.stderr
    return found.stdout


def template(
    *options: str, release: str = "tidegate", namespace: str = "tidegate"
) -> "subprocess.CompletedProcess[str]":
    versions = ("--kube-version", KUBERNETES)
    return run_helm("template", release, str(CHART), "--namespace", namespace, *versions, *options)
