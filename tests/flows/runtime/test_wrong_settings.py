"""What only a connector can see to be wrong ends each start with one line that says what to change, and exit code 1."""

import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.flows.conftest import SECONDS, Place
from tests.support.places import ROOT
from tests.support.ports import free_ports
from tidegate.connectors.sqlite.store import make_store

METERING: Final = ("-m", "bytewax.run", "tidegate.flows.metering")
RECONCILIATION: Final = ("-m", "bytewax.run", "tidegate.flows.reconciliation")
SERVE: Final = ("-m", "tidegate", "serve")
COMMANDS: Final = {"metering": METERING, "reconciliation": RECONCILIATION, "serve": SERVE}
SECRET: Final = "whsec_c2hvcnQ"
NOWHERE: Final = "kafka://127.0.0.1:9/t"
AUTHORITY: Final = f"{NOWHERE}?tls=true&config.ssl.ca.location=none.pem"
TLS_STORE: Final = "rediss://u:hidden@127.0.0.1:9?wait=0"
DODO: Final = "dodo://127.0.0.1:9?tls=false"
HIDING: Final = 'raise ModuleNotFoundError("No module named {0!r}", name={0!r})\n'


class Case(NamedTuple):
    """A wrong setting: whose start ends, what is set, the library that is not there, and what the line says."""

    commands: str
    settings: dict[str, str]
    says: str
    without: str = ""


ALL: Final = "metering reconciliation serve"
FLOWS: Final = "metering reconciliation"
CASES: Final = {
    "a store that is a folder": Case(ALL, {"STORE": "sqlite:folder"}, "store '{folder}/folder': needs a file"),
    "a store that is a text": Case(ALL, {"STORE": "sqlite:text"}, "store '{folder}/text': cannot open it"),
    "a CA that is missing": Case(ALL, {"STORE": f"{TLS_STORE}&ca=none.pem"}, "ca 'none.pem': cannot be used"),
    "a CA that is a text": Case(ALL, {"STORE": f"{TLS_STORE}&ca=text"}, "ca 'text': cannot be used"),
    "a certificate that is missing": Case(ALL, {"STORE": f"{TLS_STORE}&cert=no.pem"}, "cert 'no.pem'"),
    "brokers' CA": Case("metering", {"SOURCE": AUTHORITY}, "ssl.ca.location"),
    "brokers' CA of the service": Case("serve", {"INGEST": AUTHORITY}, "ssl.ca.location"),
    "brokers' CA of alerts": Case("metering", {"ALERTS": AUTHORITY}, "ssl.ca.location"),
    "a property that Kafka has not": Case(
        "metering", {"DEAD_LETTERS": f"{NOWHERE}?config.nonsense=1"}, 'property: "nonsense"'
    ),
    "a malformed secret": Case(
        FLOWS, {"ALERTS": "webhook://example.com/x", "WEBHOOK_SECRETS": SECRET}, "TIDEGATE_WEBHOOK_SECRETS"
    ),
    "a malformed secret of the provider": Case(
        "serve", {"DODO_WEBHOOK_SECRETS": SECRET}, "TIDEGATE_DODO_WEBHOOK_SECRETS"
    ),
    "no URL of chat": Case(FLOWS, {"ALERTS": "slack:", "SLACK_URL": "hidden"}, "TIDEGATE_SLACK_URL: needs the URL"),
    "a malformed key": Case(FLOWS, {"BILLING": DODO, "DODO_API_KEY": "a b"}, "TIDEGATE_DODO_API_KEY"),
    "an outbox that is a text": Case(
        "metering", {"BILLING": f"{DODO}&outbox=text", "DODO_API_KEY": "hidden"}, "outbox '{folder}/text'"
    ),
    "alerts that are a folder": Case("metering", {"ALERTS": "file:folder"}, "folder: Is a directory"),
    "a report that is a folder": Case(
        "reconciliation", {"RECONCILE_REPORT": "file:folder"}, "folder: Is a directory"
    ),
    "a data folder that is a file": Case("reconciliation", {"DATA_DIR": "text"}, "text/reconciliation: Not a dir"),
    "a log that is a file": Case("serve", {"INGEST": "log:text"}, "log 'text': cannot be opened"),
    "keys that are a folder": Case(
        "serve", {"AUTH": "keys", "KEYS": "folder"}, "folder': needs a file, got something else"
    ),
    "no provider": Case("reconciliation", {}, "dodo: /meters cannot be read"),
    "no redis": Case(ALL, {"STORE": "redis://127.0.0.1:9"}, "pip install 'tidegate[redis]'", "redis"),
    "no hiredis": Case(ALL, {"STORE": "redis://127.0.0.1:9"}, "pip install 'tidegate[redis]'", "hiredis"),
    "no Kafka": Case("metering", {"SOURCE": NOWHERE}, "pip install 'tidegate[kafka]'", "confluent_kafka"),
    "no Kafka for the service": Case("serve", {"INGEST": NOWHERE}, "tidegate[kafka]'", "confluent_kafka"),
    "no httpx": Case(
        FLOWS, {"BILLING": DODO, "DODO_API_KEY": "k"}, "pip install 'tidegate[dodo]'", "httpx"
    ),
    "no httpx for chat": Case(
        "metering", {"ALERTS": "slack:", "SLACK_URL": "https://e.com/x"}, "tidegate[slack]'", "httpx"
    ),
    "no standardwebhooks": Case(
        FLOWS,
        {"ALERTS": "webhook://example.com/x", "WEBHOOK_SECRETS": f"whsec_{'QUFB' * 11}"},
        "pip install 'tidegate[webhook]'",
        "standardwebhooks",
    ),
    "no jinja2": Case(
        FLOWS, {"ALERTS": "smtp://127.0.0.1:9?to=a@b.c&sender=a@b.c"}, "pip install 'tidegate[smtp]'", "jinja2"
    ),
    "no opentelemetry": Case("metering", {"TRACES": "http://127.0.0.1:9"}, "tidegate[otel]'", "opentelemetry"),
    "no uvicorn": Case("serve", {}, "pip install 'tidegate[serve]'", "uvicorn"),
    "no starlette": Case("serve", {}, "pip install 'tidegate[serve]'", "starlette"),
}  # fmt: skip
STARTS: Final = [(command, name) for name, case in CASES.items() for command in case.commands.split()]


def start(
    place: Place, command: str, settings: dict[str, str], without: str
) -> "subprocess.CompletedProcess[str]":
    """The command with these settings beside good ones, in an environment where `without` is not installed."""
    place.append("first.jsonl")
    (place.folder / "folder").mkdir()
    (place.folder / "text").write_text("This is no file of ours.\n" * 400)
    hidden = place.folder / "hidden"
    hidden.mkdir()
    if without:
        (hidden / f"{without}.py").write_text(HIDING.format(without))
    if command == "reconciliation":
        # Only the flow makes one, as there is nothing to reconcile without it.
        make_store(place.folder / "store.db")
        settings = {"BILLING": DODO, "DODO_API_KEY": "hidden", "RECONCILE_ONCE": "true", **settings}
    if command == "serve":
        [port] = free_ports(1)
        settings = {"AUTH": "none", "LISTEN": f"127.0.0.1:{port}", **settings}
    return subprocess.run(
        [sys.executable, *COMMANDS[command]],
        cwd=place.folder,
        env={**place.environment(**settings), "PYTHONPATH": f"{hidden}:{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.mark.parametrize(("command", "name"), STARTS)
def test_a_start_ends_with_one_line(place: Place, command: str, name: str) -> None:
    case = CASES[name]
    ended = start(place, command, case.settings, case.without)
    assert ended.returncode == 1, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert case.says.format(folder=place.folder) in ended.stderr
    assert "hidden" not in ended.stderr and SECRET not in ended.stderr


def test_a_store_that_is_away_does_not_end_the_start_of_the_service(tmp_path: Path) -> None:
    """It may be back in a moment; what is not there yet is made by the flow."""
    from tidegate.settings.settings import load_settings

    for store in ("redis://127.0.0.1:9?wait=0", f"sqlite:{tmp_path}/not-yet.db"):
        load_settings({"source": "file:-", "store": store}).store.check()
