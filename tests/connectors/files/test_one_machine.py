"""A file with a write-ahead log is opened by one machine at a time, by as many processes of it as like."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tidegate.connectors.files import one_machine
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.schema import OutboxError

OTHER = """
import sys
from pathlib import Path
from tidegate.connectors.files import one_machine
one_machine.machine = lambda: sys.argv[2]
print(one_machine.claim(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def claimed_by(machine: str, path: Path) -> "subprocess.Popen[str]":
    """A process of another machine, once it has tried."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path), machine],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_second_machine_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with claimed_by("elsewhere", path) as other:
        assert said(other) != "None"
        assert one_machine.claim(path) is None
        with pytest.raises(OutboxError, match="another machine has it open"):
            Outbox(path)
        other.kill()
    with closing(Outbox(path)), claimed_by("elsewhere", path) as other:
        assert said(other) == "None"
        other.kill()


def test_processes_of_one_machine_share_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with closing(Outbox(path)), closing(Outbox(path)), claimed_by(one_machine.machine(), path) as other:
        assert said(other) != "None"
        other.kill()


def test_what_was_written_by_a_machine_that_has_ended_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "outbox.db.machine").write_text("elsewhere")
    lock = one_machine.claim(tmp_path / "outbox.db")
    assert lock is not None
    os.close(lock)
