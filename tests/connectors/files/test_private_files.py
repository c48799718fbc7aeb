"""What the product creates is its user's alone, whatever the umask; what somebody made before keeps its mode."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serving.http.served import START_S, Served
from tidegate.connectors.files.private_files import make_private_file, make_private_folder

SECRET = f"whsec_{b64encode(bytes(24)).decode()}"
EVENT = {"specversion": "1.0", "source": "/t", "type": "api.call", "subject": "acme"}


@pytest.fixture
def loose() -> Iterator[None]:
    """A umask that lets everybody read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The mode of everything inside that others may do anything with."""
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}
    return {str(path.relative_to(folder)): oct(mode) for path, mode in found.items() if mode & 0o077}


@contextmanager
def metering(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A metering flow, stopped in order at the end."""
    with (folder / "flow.log").open("ab") as log:
        command = [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"]
        flow = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            flow.send_signal(signal.SIGTERM)
            flow.wait(START_S)


def wait_for(folder: Path, *patterns: str) -> None:
    """Wait until files of all these names are there."""
    deadline = time.monotonic() + START_S
    while missing := [one for one in patterns if not any((folder / "data").glob(one))]:
        assert time.monotonic() < deadline, (missing, (folder / "flow.log").read_text())
        time.sleep(0.05)


FLOW = {
    "TIDEGATE_SOURCE": "log:data/ingest/",
    "TIDEGATE_EPOCH": "1s",
    "TIDEGATE_METRICS": "127.0.0.1:0",
    "TIDEGATE_BRANCHES": "store,alerts,billing",
    "TIDEGATE_ALERTS": "file:data/sub/alerts.ndjson webhook://127.0.0.1:9/x?tls=false&private=true",
    "TIDEGATE_DEAD_LETTERS": "file:data/dead/letters.ndjson",
    "TIDEGATE_WEBHOOK_SECRETS": SECRET,
}


def test_all_that_a_flow_and_a_service_create_is_their_users_alone(tmp_path: Path, loose: None) -> None:
    served = Served(tmp_path, start=False, dodo_webhook_secrets=SECRET)
    # What this process made is not at issue; the folder was there before.
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    (tmp_path / "data").chmod(0o750)
    with metering(tmp_path, served.environment() | FLOW):
        wait_for(tmp_path, "tidegate.db", "journal/*", "recovery/*")
        served.start()
        headers = {
            "authorization": f"Bearer {served.create_key('all', 'ingest')}",
            "content-type": "application/json",
        }
        event = EVENT | {"id": "1", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        sent = httpx.post(f"{served.url}/v1/events", content=json.dumps(event), headers=headers, timeout=10)
        try:
            assert sent.status_code < 300, sent.text
            wait_for(tmp_path, "*.db-wal", "deliveries-*.db", "webhooks.db", "ingest/*/*", "billing/*")
            # While they run, as SQLite's -wal and -shm are there only then.
            assert modes(tmp_path / "data") == {}
        finally:
            served.stop()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o750


def test_what_is_there_keeps_its_mode(tmp_path: Path, loose: None) -> None:
    (tmp_path / "there").mkdir(0o755)
    make_private_folder(tmp_path / "there" / "new" / "inside")
    (tmp_path / "there" / "file").touch()
    make_private_file(tmp_path / "there" / "file")
    make_private_file(tmp_path / "there" / "new" / "file")
    assert modes(tmp_path) == {"there": "0o755", "there/file": "0o644"}
