"""The Helm chart, rendered by helm where it is installed: with the environment, or in PATH."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.containers import DOCKER

CHART = DOCKER / "helm" / "tidegate"
# Helm itself would take the newest that it knows of.
KUBERNETES = "1.31.0"


def helm() -> str | None:
    """Return the path of helm, None where there is none."""
    return shutil.which("helm", path=Path(sys.executable).parent) or shutil.which("helm")


needs_helm = pytest.mark.skipif(helm() is None, reason="helm is not installed")


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
