"""Dependencies held to .ci/dependencies.toml: `locked`, `licenses`, `vulnerabilities`, and the image's `sbom`.

Usage: python .ci/dependencies.py COMMAND [FILE]. Ends with 1, and a line for each, where something is against it.
Source: https://cyclonedx.org/docs/1.6/json/
"""

import datetime
import json
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RUN, ALL = ROOT / "constraints-run.txt", ROOT / "constraints.txt"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; [^\\]+?)?((?:\s+\\?\s*--hash=sha256:[0-9a-f]{64})*)\s*$")
OURS = "tidegate"
TOOLS = {"pip", "setuptools"}
"""What every environment has beside what is pinned."""


class Pin(NamedTuple):
    name: str
    version: str
    hashes: tuple[str, ...]


def policy() -> dict[str, Any]:
    return tomllib.loads((ROOT / ".ci" / "dependencies.toml").read_text())


def pins(path: Path) -> Iterator[Pin]:
    """Yield what the file pins. Raises ValueError for a line that pins nothing."""
    text = re.sub(r"\\\n", " ", path.read_text())
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("#"):
            continue
        found = PIN.match(line)
        if found is None:
            raise ValueError(f"{path.name}: needs NAME==VERSION with hashes, got {line[:60]!r}")
        yield Pin(normal(found[1]), found[2], tuple(re.findall(r"sha256:([0-9a-f]{64})", found[3])))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def unlocked(installed: Mapping[str, str]) -> list[str]:
    """Return the packages that are not pinned with hashes, or whose installed version differs from the pin."""
    known = {pin.name: pin for pin in pins(ALL)}
    wrong = [
        f"{pin.name}: is pinned without hashes" for path in (ALL, RUN) for pin in pins(path) if not pin.hashes
    ]
    wrong += [
        f"{pin.name}: is {pin.version} in {RUN.name} and {known[pin.name].version} in {ALL.name}"
        for pin in pins(RUN)
        if known.get(pin.name, pin).version != pin.version
    ]
    for name, version in installed.items():
        if name not in known and name not in TOOLS:
            wrong.append(f"{name}: is installed and not pinned")
        elif name in known and known[name].version != version:
            wrong.append(f"{name}: is pinned as {known[name].version} and installed as {version}")
    return wrong


def license_of(found: Distribution, rules: Mapping[str, Any]) -> str:
    """Return the SPDX expression of what is installed; empty where nobody says."""
    metadata = found.metadata
    name = normal(metadata["Name"])
    if stated := rules["stated"].get(name):
        return str(stated)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [one for one in metadata.get_all("Classifier") or () if one.startswith("License ::")]
    words = [one.rpartition(" :: ")[2] for one in classifiers]
    known = [rules["words"][one] for one in words if one in rules["words"]]
    if known:
        return " OR ".join(known)
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    return str(rules["words"].get(text, text))


def is_allowed(expression: str, allowed: list[str]) -> bool:
    """Return whether an SPDX expression can be met by licences that are allowed."""
    inner = re.search(r"\(([^()]*)\)", expression)
    if inner is not None:
        met = allowed[0] if is_allowed(inner[1], allowed) else "NOT-ALLOWED"
        return is_allowed(expression[: inner.start()] + met + expression[inner.end() :], allowed)
    return any(
        all(one.strip() in allowed for one in choice.split(" AND ")) for choice in expression.split(" OR ")
    )


def unlicensed(installed: list[Distribution], rules: Mapping[str, Any]) -> list[str]:
    """Return packages with a forbidden or missing licence, and exceptions for packages that the image has."""
    shipped = {pin.name for pin in pins(RUN)}
    wrong = [
        f"{name}: is an exception for development, and in the image"
        for name in rules["development"]
        if name in shipped
    ]
    for found in installed:
        name = normal(found.metadata["Name"])
        if name in rules["development"] or name == OURS:
            continue
        expression = license_of(found, rules)
        if not expression or not is_allowed(expression, rules["allowed"]):
            wrong.append(
                f"{name}: needs one of {', '.join(rules['allowed'])}; is {expression[:60] or 'unknown'}"
            )
    return wrong


def accepted(rules: Mapping[str, Any], today: datetime.date) -> tuple[list[str], list[str]]:
    """Return the ids of vulnerabilities that are accepted still, and what is wrong with the others."""
    ids, wrong = [], []
    for id, why in rules["vulnerabilities"].items():
        found = re.match(r"until (\d{4}-\d{2}-\d{2}): \S", why)
        if found is None:
            wrong.append(f"{id}: needs 'until YYYY-MM-DD: WHY', got {why[:60]!r}")
        elif datetime.date.fromisoformat(found[1]) < today:
            wrong.append(f"{id}: was accepted until {found[1]}")
        else:
            ids.append(id)
    return ids, wrong


def vulnerable(rules: Mapping[str, Any]) -> list[str]:
    """Return what pip-audit finds in the pinned packages; print a line and return nothing if it is unreachable."""
    ids, wrong = accepted(rules, datetime.date.today())
    try:
        # One package first: where the service is out of reach, pip-audit tries each of them for long.
        probe = ROOT / "build" / "probe.txt"
        probe.parent.mkdir(exist_ok=True)
        probe.write_text(f"idna==3.7 --hash=sha256:{'0' * 64}\n")
        if any("skip_reason" in one for one in _audit(probe, [])):
            print("vulnerabilities: not checked, as the service of pip-audit cannot be reached")
            return wrong
        found = _audit(ALL, ids)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"vulnerabilities: not checked, as pip-audit cannot be had ({type(error).__name__})")
        return wrong
    for one in found:
        name = f"{one['name']} {one.get('version', '')}"
        wrong += [f"{name}: {bug['id']}, fixed in {bug['fix_versions']}" for bug in one.get("vulns", ())]
        if "skip_reason" in one:
            print(f"vulnerabilities: {one['name']} is not checked: {one['skip_reason']}")
    return wrong


def _audit(requirements: Path, ignored: list[str]) -> list[Any]:
    """Return what pip-audit says of each package; it is installed into build/ if it is not there."""
    folder = ROOT / "build" / "pip-audit"
    program = folder / "bin" / "pip-audit"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=60)
        pip = [
            str(folder / "bin" / "pip"),
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "pip-audit>=2.9",
        ]
        subprocess.run(pip, check=True, timeout=120, capture_output=True)
    options = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--timeout=5", "--format=json"]
    ids = [part for id in ignored for part in ("--ignore-vuln", id)]
    command = [str(program), *options, *ids, "--requirement", str(requirements)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found: list[Any] = json.loads(ended.stdout)["dependencies"]
    return found


def bill() -> dict[str, Any]:
    """Return what the image consists of, as CycloneDX; the same input gives the same bytes."""
    rules = policy()
    known = {normal(found.metadata["Name"]): found for found in distributions()}
    base = re.findall(r"^FROM (\S+):(\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)[-1]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    components = [_component(pin, known, rules) for pin in pins(RUN)]
    image = {"type": "container", "bom-ref": "base-image", "name": base[0], "version": base[1]}
    content = json.dumps([version, image, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": OURS, "name": OURS, "version": version}},
        "components": [image, *components],
        "dependencies": [
            {"ref": OURS, "dependsOn": [image["bom-ref"], *(one["bom-ref"] for one in components)]}
        ],
    }


def _component(pin: Pin, known: Mapping[str, Distribution], rules: Mapping[str, Any]) -> dict[str, Any]:
    purl = f"pkg:pypi/{pin.name}@{pin.version}"
    files = [{"alg": "SHA-256", "content": one} for one in pin.hashes]
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": pin.name,
        "version": pin.version,
        "purl": purl,
    }
    if pin.name in known and (expression := license_of(known[pin.name], rules)):
        made["licenses"] = [{"expression": expression}]
    made["externalReferences"] = [{"type": "distribution", "url": purl, "hashes": files}]
    return made


def main(command: str, file: str = "build/sbom.json") -> list[str]:
    rules, installed = policy(), list(distributions())
    match command:
        case "locked":
            versions = {normal(one.metadata["Name"]): one.version for one in installed}
            return unlocked({name: version for name, version in versions.items() if name != OURS})
        case "licenses":
            return unlicensed(installed, rules)
        case "vulnerabilities":
            return vulnerable(rules)
        case "sbom":
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(json.dumps(bill(), indent=2) + "\n")
            print(f"sbom: {file}")
            return []
    return [f"needs locked, licenses, vulnerabilities or sbom, got {command}"]


if __name__ == "__main__":
    sys.exit("\n".join(main(*sys.argv[1:3])) or 0)
