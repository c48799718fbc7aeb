"""The flow with the provider at its end, as people start it, and what the command line shows of it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simulator.client import Simulator
from tests.flows.conftest import Place
from tests.support.platform import KEY, platform, platform_process  # noqa: F401
from tidegate.serving.cli.main import app

CATALOG = """
meters:
  - {name: tokens, event_name: llm, aggregation: {type: sum, key: tokens}}
plans: {free: {}}
customers:
  acme: {plan: free, billing_id: cus_acme}
"""
SECRET = "hunter2"
# Found by Python at its start; whoever is told to be quieter later is not.
TALKATIVE = """
import logging
logging.basicConfig(level=logging.DEBUG)
logging.basicConfig = logging.Logger.setLevel = lambda *given, **named: None
"""


class Billed(Place):
    """A place whose billing goes to the simulator."""

    def __init__(self, folder: Path, simulator: Simulator) -> None:
        super().__init__(folder)
        self.simulator = simulator
        (folder / "catalog.yaml").write_text(CATALOG)
        self.settings |= {
            "CATALOG": "catalog.yaml",
            "BILLING": f"dodo:{simulator.url.removeprefix('http:')}?tls=false&tier=2&linger=0&drain=60s",
            "DODO_API_KEY": KEY,
        }

    def come(self, numbers: range, customer: str = "acme", ago: float = 5) -> None:
        """Events of these numbers at the end of the input."""
        time = (datetime.now(UTC) - timedelta(minutes=ago)).isoformat()
        with (self.folder / "in.ndjson").open("a") as file:
            for number in numbers:
                fields = {
                    "specversion": "1.0",
                    "id": f"e{number}",
                    "source": "s",
                    "type": "llm",
                    "subject": customer,
                }
                file.write(json.dumps(fields | {"time": time, "data": {"tokens": number}}) + "\n")

    def tidegate(self, *arguments: str, code: int = 0, **settings: str) -> str:
        """What the command line says, on either output."""
        kept = {name: None for name in os.environ if name.startswith("TIDEGATE_")}
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(app, arguments, env={**kept, **self.environment(**settings)})
        said = done.output
        if done.exception and not isinstance(done.exception, SystemExit):
            said += str(done.exception)
        assert done.exit_code == code, said
        return said

    def outbox(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.tidegate("outbox", "--json"))
        return shown

    def stored(self) -> list[int]:
        return sorted(event["metadata"]["tokens"] for event in self.simulator.list_events())


@pytest.fixture
def billed(tmp_path: Path, platform: Simulator) -> Iterator[Billed]:  # noqa: F811
    platform.set_tier("2")
    platform.create_customer("cus_acme")
    yield Billed(tmp_path, platform)


def test_what_is_metered_is_what_is_billed_and_a_restart_bills_only_what_is_new(billed: Billed) -> None:
    billed.come(range(500))
    billed.run()
    billed.come(range(400, 600), ago=4)
    billed.run("-w", "2")
    # The last hundred came with another time, so they are conflicts and no usage.
    assert billed.stored() == list(range(600))
    assert billed.periods()["acme", "tokens"] == str(sum(range(600)))
    assert billed.outbox()["counts"]["acknowledged"] == 600


def test_an_outage_leaves_usage_in_the_outbox_that_a_command_sends(billed: Billed) -> None:
    billed.simulator.add_fault("error", status=503, times=None)
    billed.come(range(30))
    billed.settings["BILLING"] = billed.settings["BILLING"].replace("drain=60s", "drain=300ms")
    billed.run()
    assert billed.outbox()["waiting"] == 30
    assert billed.outbox()["oldest_age_seconds"] >= 300
    assert "30 wait, the oldest 5 min old" in billed.tidegate("outbox")
    assert "30 wait" in billed.tidegate("outbox", "send", "--for", "300ms", code=1)
    billed.simulator.clear_faults()
    assert "0 wait" in billed.tidegate("outbox", "send", "--for", "1m")
    assert billed.stored() == list(range(30))


def test_what_is_kept_back_is_listed_retried_and_dropped(billed: Billed) -> None:
    billed.come(range(3))
    billed.come(range(3, 5), "unmapped")
    billed.run()
    assert billed.outbox()["kept_back"] == [{"state": "parked", "reason": "no_billing_id", "events": 2}]
    assert "parked: 2 no_billing_id" in billed.tidegate("outbox")
    first, second = map(json.loads, billed.tidegate("outbox", "list", "--json").splitlines())
    assert (first["customer"], first["state"]) == ("unmapped", "parked")
    assert json.loads(first["event"])["data"] == {"tokens": 3}
    assert second["id"] in billed.tidegate("outbox", "list", "--reason", "no_billing_id")
    assert "1 are dropped" in billed.tidegate("outbox", "drop", first["id"], "--why", "a test")
    assert "needs event ids or a --reason" in billed.tidegate("outbox", "retry", code=1)
    billed.simulator.create_customer("cus_late")
    (billed.folder / "catalog.yaml").write_text(
        f"{CATALOG}  unmapped: {{plan: free, billing_id: cus_late}}\n"
    )
    billed.run()
    assert billed.stored() == [0, 1, 2, 4]
    assert billed.outbox()["kept_back"] == []
    assert "Nothing is held back" in billed.tidegate("outbox", "list")


def test_a_command_without_an_outbox_says_so_in_a_line(billed: Billed) -> None:
    assert "there is no such file" in billed.tidegate("outbox", code=1)
    assert "set TIDEGATE_BILLING to dodo:" in billed.tidegate("outbox", code=1, BILLING="file:billing/")


@pytest.mark.parametrize("given", ["", "no spaces"])
def test_a_key_that_is_missing_or_cannot_be_one_ends_the_start_in_one_line(
    billed: Billed, given: str
) -> None:
    billed.come(range(1))
    complained = billed.refused(DODO_API_KEY=given)
    assert "TIDEGATE_DODO_API_KEY" in complained
    assert not given or given not in complained


def test_a_rollup_without_recovery_is_refused(billed: Billed) -> None:
    billed.come(range(1))
    complained = billed.refused(RECOVERY="false", BILLING=billed.settings["BILLING"] + "&rollup=1m")
    assert "rollup needs TIDEGATE_RECOVERY" in complained


def test_the_key_is_nowhere_to_be_seen(billed: Billed) -> None:
    """Planted as the key, refused by the provider, with every library at its most talkative."""
    billed.come(range(3))
    noisy = billed.folder / "sitecustomize.py"
    noisy.write_text(TALKATIVE)
    environment = billed.environment(
        DODO_API_KEY=SECRET, BILLING=billed.settings["BILLING"].replace("=60s", "=1s")
    )
    environment["PYTHONPATH"] = os.pathsep.join((str(billed.folder), environment["PYTHONPATH"]))
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"],
        cwd=billed.folder,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"HTTP Request" in done.stderr, "nothing was logged, so this proves nothing"
    said = [done.stdout, done.stderr, billed.tidegate("outbox", DODO_API_KEY=SECRET).encode()]
    said += [billed.tidegate("outbox", "send", "--for", "1s", code=1, DODO_API_KEY=SECRET).encode()]
    said += [billed.refused(DODO_API_KEY=SECRET, SHARDS="3").encode()]
    files = [path.read_bytes() for path in billed.folder.rglob("*") if path.is_file()]
    assert not [text for text in (*said, *files) if SECRET.encode() in text]
    assert "unauthorized" in billed.outbox()["alerts"]
