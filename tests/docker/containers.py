"""Containers without an engine: command, environment, ports and probes as the manifests have them, on this machine.

What a container would have of its own is mapped: addresses of other containers to ports of the loopback address,
`/var/lib/tidegate`, `/etc/tidegate`, `/run/tidegate` and `/opt/tidegate` to folders. Nothing else is changed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.places import ROOT

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
# Those of the Dockerfile that a container has unless its manifest says otherwise.
IMAGE = dict(re.findall(r"(TIDEGATE_\w+)=(\S+)", (DOCKER / "Dockerfile").read_text()))


class Mapped:
    """Where things are: `addresses` has what stands for the address of another container."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        self.folder = folder
        self._texts = {
            "/var/lib/tidegate": str(folder / "state"),
            "/etc/tidegate": str(folder / "etc"),
            "/run/tidegate": str(folder / "run"),
            "/opt/tidegate": str(DOCKER),
            **addresses,
        }
        for name in ("state", "etc", "run"):
            (folder / name).mkdir(exist_ok=True)

    def __call__(self, text: str) -> str:
        # The longest first, as one may begin with another.
        for name in sorted(self._texts, key=len, reverse=True):
            text = text.replace(name, self._texts[name])
        return text


class Container:
    """One container, which `start` runs by the image's entry point."""

    def __init__(
        self, name: str, mapped: Mapped, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.name, self._mapped = name, mapped
        self._arguments = [mapped(word) for word in arguments]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "BYTEWAX_"))}
        given = {k: mapped(v) for k, v in {**IMAGE, **environment}.items()}
        self.environment = kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | given
        self.process: subprocess.Popen[bytes] | None = None
        self.log = mapped.folder / f"{name}.log"

    def start(self) -> None:
        command = ["/bin/sh", str(DOCKER / "entrypoint.sh"), *self._arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self._mapped.folder / "state", env=self.environment, stdout=log, stderr=log
            )

    def probe(self, command: Sequence[str]) -> bool:
        """Whether a probe's command ends with 0 in the container."""
        words = [sys.executable if word == "python" else self._mapped(word) for word in command]
        return subprocess.run(words, env=self.environment).returncode == 0

    def end(self, how: int) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def composed(name: str, mapped: Mapped) -> Container:
    """A service of docker/compose.yaml."""
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"][name]
    assert service["image"] == "tidegate"
    # Its own interpolation: ${NAME:-default}.
    environment = {
        key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for key, value in service["environment"].items()
    }
    return Container(name, mapped, service.get("command", ["metering"]), environment)


Objects = Mapping[tuple[str, str], dict[str, Any]]


def manifests(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return Kubernetes' objects by kind and name."""
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}


def config_file(objects: Objects, name: str) -> str:
    """Return the text of the file of this name in one of the ConfigMaps."""
    (text,) = [
        one["data"][name] for (kind, _), one in objects.items() if kind == "ConfigMap" and name in one["data"]
    ]
    return str(text)


def pod(objects: Objects, kind: str, name: str, number: int) -> dict[str, Any]:
    """What the kubelet would start as the pod of this number: arguments, environment and probes."""
    (container,) = objects[kind, name]["spec"]["template"]["spec"]["containers"]
    environment: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            environment |= objects["ConfigMap", source["configMapRef"]["name"]]["data"]
        else:
            environment |= objects["Secret", source["secretRef"]["name"]]["stringData"]
    fields = {"metadata.name": f"{name}-{number}", "status.podIP": "127.0.0.1"}
    for one in container.get("env", ()):
        if "value" in one:
            environment[one["name"]] = one["value"]
        elif "fieldRef" in one["valueFrom"]:
            environment[one["name"]] = fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
    return {"args": container["args"], "env": environment, "container": container}
