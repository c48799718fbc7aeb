"""With a log of JSON every line on standard error is a JSON object, whatever writes it."""

import json
import subprocess
import sys

import pytest

from tests.support.places import ROOT

PROGRAM = """
import logging, os, sys
from tidegate.settings.logs import configure
configure({style!r})
logging.getLogger("ours").warning("by the log")
os.write(2, b"worker 1:\\terror connecting to worker 0: Connection refused (os error 111); retrying\\n")
print("{{ by print", file=sys.stderr)
{end}
"""


def run(style: str, end: str) -> tuple[int, list[str]]:
    program = PROGRAM.format(style=style, end=end)
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    return found.returncode, found.stderr.splitlines()


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("sys.exit('the last words')", 1), ("raise KeyError(1)", 1)]
)
def test_every_line_is_an_object(end: str, code: int) -> None:
    status, lines = run("json", end)
    records = [json.loads(line) for line in lines]
    assert status == code
    said = [(record["logger"], record["message"]) for record in records]
    assert ("ours", "by the log") in said and ("stderr", "{ by print") in said
    assert any(logger == "stderr" and "retrying" in words for logger, words in said)
    if end:
        assert said[-1][1] in ("the last words", "KeyError: 1")


def test_a_log_for_people_leaves_standard_error_alone() -> None:
    _, lines = run("text", "")
    assert "{ by print" in lines and any(line.startswith("worker 1:") for line in lines)


def test_a_process_that_starts_over_has_its_standard_error_back() -> None:
    again = (
        "from tidegate.settings.foreign_lines import restore_stderr; restore_stderr(); logging.shutdown();"
    )
    status, lines = run("json", again + "os.execvp('sh', ['sh', '-c', 'echo after >&2'])")
    assert status == 0 and lines[-1] == "after"
    assert any("retrying" in line for line in lines)
