"""The official Node SDK drives every route of the simulator; its routes against ours are compared as well.

It is installed once, as the lock file beside `drive.mjs` pins it, into pytest's cache; from the registry that npm is
set to, so the lock names none.
"""

import fcntl
import json
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from simulator.api import HANDLERS
from simulator.client import Simulator
from tests.simulator.test_sdk_routes import is_left_out, ours
from tests.support import servers
from tests.support.platform import KEY

NODE: Final = Path(__file__).parent / "node"
FILES: Final = ("package.json", "package-lock.json")
INSTALL: Final = (
    "npm",
    "ci",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--prefer-offline",
    "--fetch-retries=0",
)
INSTALL_S: Final = 60
RUN_S: Final = 60
CALLS: Final = re.compile(r"_client\.(get|getAPIList|post|patch|put|delete)\((?:path)?\s*[`']([^`']+)[`']")
# Routes that only the Python SDK knows.
NOT_IN_NODE: Final = {("PATCH", "/meters/{}")}


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Path:
    """Where the SDK is installed; skips the test where it cannot be."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            servers.lacking(f"needs {program}, for the official Node SDK")
    pinned = sha256(b"".join((NODE / name).read_bytes() for name in FILES)).hexdigest()[:16]
    assert request.config.cache is not None
    folder = request.config.cache.mkdir(f"dodopayments-node-{pinned}")
    with (folder / "lock").open("w") as lock:
        # Other workers of this session wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _install(folder)
            (folder / "done").touch()
    return folder


def _install(folder: Path) -> None:
    for name in FILES:
        shutil.copy(NODE / name, folder)
    try:
        done = subprocess.run(INSTALL, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        servers.lacking("needs npm's registry, for the official Node SDK")
    if done.returncode != 0:
        assert "EINTEGRITY" not in done.stderr, done.stderr
        servers.lacking("needs npm's registry, for the official Node SDK")


@pytest.fixture
def found(installed: Path, platform: Simulator) -> dict[str, Any]:
    """What one run of `drive.mjs` has found."""
    platform.set_tier("unlimited")
    command = ["node", str(NODE / "drive.mjs"), str(installed), platform.url, KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_node_sdk_drives_every_route(found: dict[str, Any], platform: Simulator) -> None:
    """From a meter to the bill; each route answers as that SDK's types have it, and none was left out."""
    catalog, customer, usage, plans = (found[name] for name in ("catalog", "customer", "usage", "plans"))
    assert catalog["archived"] == [catalog["meter"]] and catalog["kinds"] == ["coins"]
    assert catalog["listed"] == catalog["products"] and catalog["product"] == "free 100"
    assert (customer["name"], customer["listed"]) == ("Grace", [customer["id"]])
    assert (customer["wallet"], customer["moved"], customer["entitlements"]) == (500, [500], [])
    assert (usage["counts"], usage["twice"], usage["missing"]) == ([1, 0], "BadRequestError", "NotFoundError")
    assert (usage["events"], usage["read"], usage["billed"]) == (["node-1"], {"n": 150}, [["150", "50", 100]])
    assert plans["lines"] == [["subscription", None], ["meter", "150"]]
    assert plans["planned"] == plans["product"] == catalog["products"][1]
    assert plans["listed"] == [usage["subscription"]] and plans["states"] == ["paused", "active"]
    assert (plans["payment"], plans["items"]) == (["plan_change", True], [1000, 100])
    credits = found["credits"]
    assert (credits["none"], credits["again"]) == ("NotFoundError", "ConflictError")
    assert {credits["after"], credits["balance"], *credits["grants"], *credits["ledger"]} == {"500.5"}
    assert (credits["balances"], credits["held"]) == (1, ["coins"])
    assert found["webhooks"] == {"disabled": True, "listed": 1, "secret": "whsec_", "gone": "NotFoundError"}
    asked = [(one["method"], one["path"]) for one in platform.list_requests() if (one["status"] or 500) < 300]
    unasked = {route for route in HANDLERS if not any(_is_of(route, one) for one in asked)}
    assert {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in unasked} == NOT_IN_NODE


def test_every_route_of_the_node_sdk_is_there_or_left_out_on_purpose(installed: Path) -> None:
    known = node_routes(installed)
    assert len(known) > 100
    assert not {one for one in known - ours() if not is_left_out(*one)}
    assert ours() - known == NOT_IN_NODE


def node_routes(folder: Path) -> set[tuple[str, str]]:
    """Return the method and path of each call in the SDK's source, parameters as {}."""
    found = set()
    for file in (folder / "node_modules" / "dodopayments" / "resources").rglob("*.mjs"):
        for method, path in CALLS.findall(file.read_text()):
            name = "GET" if method == "getAPIList" else method.upper()
            found.add((name, re.sub(r"\$\{[^}]*\}", "{}", path)))
    return found


def _is_of(route: tuple[str, str], asked: tuple[str, str]) -> bool:
    pattern = re.sub(r"\{[^}]*\}", "[^/]+", route[1])
    return route[0] == asked[0] and re.fullmatch(pattern, asked[1]) is not None
