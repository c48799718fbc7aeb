"""The demo as a user starts it, with the flow as its child; no process may outlive it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

PATIENCE_S = 60.0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, not on a terminal, that would go on for ever."""
    with start(tmp_path) as process:
        yield process
        process.kill()


def start(tmp_path: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("DEMO_", "TIDEGATE_"))
    }
    given = {
        "PYTHONPATH": str(ROOT),
        "DEMO_FOLDER": str(tmp_path / "demo"),
        "DEMO_RATE": "100",
        "DEMO_PORT": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        env=environment | given | settings,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def flows_of(folder: Path, flow_only: bool = False) -> list[int]:
    """The processes that run with this folder as their working directory; of them the flow alone, if so asked."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or (process / "cwd").resolve() != (folder / "demo").resolve():
                continue
            if b"flows.metering" in (process / "cmdline").read_bytes() or not flow_only:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until_flows(folder: Path, there: bool, flow_only: bool = False) -> list[int]:
    deadline = time.monotonic() + PATIENCE_S
    while bool(found := flows_of(folder, flow_only)) is not there:
        assert time.monotonic() < deadline, f"flows of {folder}: {found}"
        time.sleep(0.02)
    return found


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> None:
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return
    raise AssertionError(f"{pattern!r} was not in {seen}, {process.stderr and process.stderr.read()}")


def test_it_ends_by_itself_with_a_summary_and_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, DEMO_SECONDS="4")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert "Every event is accounted for: events" in out
    assert "200 of 200 invoice figures equal the store's totals; of usage, none held back." in out
    assert re.search(r"tidegate totals --store sqlite:\S+tidegate.db --customer cus_\d+", out)
    assert flows_of(tmp_path) == []


def test_ctrl_c_ends_it_as_cleanly(started: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for_line(started, r"[1-9]\d* events, .* newest \d+ ms old")
    # To the whole group, as a terminal's Ctrl-C: the flow must leave its end to the demo.
    os.killpg(started.pid, signal.SIGINT)
    out, err = started.communicate(timeout=PATIENCE_S)
    assert (started.returncode, err) == (0, "")
    assert "Every event is accounted for" in out
    assert flows_of(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: prctl(PR_SET_PDEATHSIG)")
def test_the_flow_dies_with_a_demo_that_is_killed(started: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until_flows(tmp_path, True)
    started.kill()
    started.wait()
    wait_until_flows(tmp_path, False)


def test_a_flow_that_dies_is_told_with_its_last_words(started: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for_line(started, "[1-9]\\d* events")
    (flow,) = wait_until_flows(tmp_path, True, flow_only=True)
    (tmp_path / "demo" / "flow.log").write_text("KeyError: 'it'\n")
    os.kill(flow, signal.SIGKILL)
    _, err = started.communicate(timeout=PATIENCE_S)
    assert started.returncode == 1
    assert err.startswith("The flow was killed by SIGKILL; DEMO_KEEP=1 make demo goes on from here.\n")
    assert err.endswith("KeyError: 'it'\n")
    more = start(tmp_path, DEMO_KEEP="1", DEMO_SECONDS="3")
    out, err = more.communicate(timeout=PATIENCE_S)
    assert (more.returncode, err) == (0, "")
    assert "200 of 200 invoice figures equal the store's totals; of usage, none held back." in out


def test_a_second_demo_in_the_same_folder_is_refused(started: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until_flows(tmp_path, True)
    _, err = start(tmp_path).communicate(timeout=PATIENCE_S)
    assert err.startswith("Another demo runs in ")


def test_it_does_not_empty_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years")
    process = start(tmp_path)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "is not empty and not of a demo" in err
    assert (tmp_path / "demo" / "thesis.txt").exists()
