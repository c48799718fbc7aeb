"""`tidegate` as it is called: the whole command line in this process, and as a process where that matters."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.cli.run_tidegate import Run
from tests.serving.samples import total
from tests.support.heartbeats import ENDED
from tests.support.places import ROOT
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.operators.model.records import Counter

STORE = "sqlite:store.db"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with two customers in the working directory, and an environment without settings."""
    for name in ("SOURCE", "STORE", "DEAD_LETTERS", "CONFIG", "CATALOG"):
        monkeypatch.delenv(f"TIDEGATE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    writer = SqliteWriter("store.db")
    hour = total(total="0.3", version=3)._replace(window="hour", end=3_600_000_000)
    totals = [total(total=12345, version=2), hour, total("cus_2", total=7, version=1)]
    ends = {"events": 10, "accepted": 7, "rejects": 1, "duplicates": 2}
    writer.write(totals, [Counter(0, name, value) for name, value in ends.items()], heartbeats=[ENDED])
    writer.close()


def test_totals_for_programs_are_one_object_a_line_with_the_exact_total_as_text(run: Run) -> None:
    done = run("totals", "--json", "--store", STORE)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert [(line["customer"], line["window"], line["total"]) for line in lines] == [
        ("cus_1", "hour", "0.3"),
        ("cus_1", "period", "12345"),
        ("cus_2", "period", "7"),
    ]
    first = lines[0]
    assert (first["start"], first["end"]) == ("1970-01-01T00:00:00Z", "1970-01-01T01:00:00Z")
    assert (first["events"], first["version"], first["meter"]) == (3, 3, "calls")
    assert first["as_of"] == "1970-01-01T00:00:01.500000Z"


def test_totals_of_one_customer_and_window(run: Run) -> None:
    done = run("totals", "--customer", "cus_1", "--window", "period", "--json", "--store", STORE)
    assert [json.loads(line)["total"] for line in done.out.splitlines()] == ["12345"]


def test_totals_for_people_are_a_table(run: Run) -> None:
    done = run("totals", "--store", STORE)
    assert re.search(r"cus_1 +calls +period +1970-01-01 +1970-01-12 13:46 +12,345 +2 +0", done.out)


def test_the_store_of_the_settings_is_the_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TIDEGATE_SOURCE, which a reader has no use for."""
    monkeypatch.setenv("TIDEGATE_STORE", STORE)
    assert run("totals").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["totals", "--store", "sqlite:nowhere.db"], "store '.*nowhere.db': there is no such file; "),
        (["totals", "--store", "postgres:x"], "TIDEGATE_STORE: needs an address that begins with sqlite:"),
        (["totals", "--store", STORE, "--customer", "nobody"], "totals: there are none of customer 'nobody'"),
        (["catalog", "validate", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
    ],
)
def test_an_error_is_one_line_and_ends_with_1(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (1, "")
    assert re.match(message, done.err) and done.err.count("\n") == 1


def test_a_misspelt_option_is_no_traceback(run: Run) -> None:
    done = run("totals", "--window", "week")
    assert done.code == 2
    assert "'week' is not one of 'period', 'day', 'hour'" in done.err


def test_counters_add_up_and_say_so(run: Run) -> None:
    done = run("counters", "--store", STORE)
    assert done.code == 0
    assert "Every event is accounted for: events 10 = rejects 1" in done.out
    assert json.loads(run("counters", "--json", "--store", STORE).out)["balanced"] is True


def test_counters_that_do_not_add_up_end_with_1(run: Run) -> None:
    writer = SqliteWriter("store.db")
    writer.write([], [Counter(3, "conflicts", 1)])
    writer.close()
    done = run("counters", "--store", STORE)
    assert (done.code, "events 10 ≠ rejects 1" in done.out) == (1, True)
    assert run("counters", "--json", "--store", STORE).code == 1


def test_a_good_catalog_is_counted_and_a_bad_one_told_line_by_line(run: Run) -> None:
    good = ROOT / "examples" / "catalog.yaml"
    assert re.search(r": ok: 7 meters, 3 plans, 7 customers\n$", run("catalog", "validate", str(good)).out)
    Path("bad.yaml").write_text("meters:\n  - name: calls\n    event_name: x\ndefault_plan: nope\n")
    done = run("catalog", "validate", "bad.yaml")
    assert done.code == 1
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == ["bad.yaml:2", "bad.yaml:4"]


def test_a_catalog_is_held_against_what_its_meters_have_counted(run: Run) -> None:
    """By validate as by apply, also where the meter was taken out in between; in the store that is there or named."""
    meters = [
        "{name: tok, event_name: x, aggregation: {type: sum, key: n}}",
        "{name: calls, event_name: x, aggregation: {type: count}}",
    ]
    back = Path("back.yaml")
    for version in (meters, meters[1:]):
        Path("catalog.yaml").write_text(f"meters: [{', '.join(version)}]\n")
        assert run("catalog", "apply", "catalog.yaml").code == 0
    back.write_text(f"meters: [{', '.join(meters).replace('sum', 'max')}]\n")
    for command in ("validate", "apply"):
        done = run("catalog", command, "back.yaml")
        assert (done.code, "meter 'tok': its aggregation is fixed" in done.err) == (1, True)
    Path("other.yaml").write_text("meters: [{name: other, event_name: o, aggregation: {type: count}}]\n")
    assert run("catalog", "apply", "other.yaml", "--store", "sqlite:other.db").code == 0
    assert run("catalog", "validate", "back.yaml", "--store", "sqlite:other.db").code == 0
    wrong = run("catalog", "validate", "back.yaml", "--store", "sqlite:misspelt.db")
    assert (wrong.code, "there is no such file" in wrong.err, Path("misspelt.db").exists()) == (
        1,
        True,
        False,
    )
    back.write_text(f"meters: [{', '.join(meters)}]\n")
    assert run("catalog", "apply", "back.yaml").out == "catalog: is now version 3\n"


def test_dead_letters_are_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_DEAD_LETTERS", "file:dead.ndjson")
    assert run("dead-letters", "list").code == 0
    letter = {
        "id": "1",
        "reason": "not_json",
        "detail": "needs JSON",
        "received_at": "2026-11-22T10:00:00.000000Z",
    }
    lines = [letter | {"payload": "GET /" + "x" * 500}, letter | {"payload_base64": "/w=="}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # The last line is still being written.
    Path("dead.ndjson").write_text(text + '{"id"')
    done = run("dead-letters", "list")
    assert re.search(r"2026-11-22 10:00:00 +not_json +needs JSON +GET /x+… ", done.out)
    assert "/w==" in done.out
    whole = [json.loads(line) for line in run("dead-letters", "list", "--json").out.splitlines()]
    assert [{name: one[name] for name in line} for one, line in zip(whole, lines, strict=True)] == lines


def test_a_file_that_holds_something_else_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_DEAD_LETTERS", "file:dead.ndjson")
    Path("dead.ndjson").write_text("[1]\n")
    done = run("dead-letters", "list")
    assert (done.code, done.err.startswith("dead.ndjson:1: needs a dead letter, got b'[1]'")) == (1, True)
    monkeypatch.setenv("TIDEGATE_DEAD_LETTERS", "stdout:")
    assert run("dead-letters", "list").err.startswith("dead letters: go to stdout:, which keeps none")


def test_as_a_process_it_is_quiet_when_its_reader_goes_away() -> None:
    writer = SqliteWriter("store.db")
    writer.write([total(f"cus_{i:06}", total=i, version=1) for i in range(20_000)], [])
    writer.close()
    command = [sys.executable, "-m", "tidegate", "totals", "--json", "--store", STORE]
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b'{"customer":"cus_000000"')
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_version(run: Run) -> None:
    assert re.fullmatch(r"tidegate \d+\.\d+\.\d+\n", run("--version").out)
