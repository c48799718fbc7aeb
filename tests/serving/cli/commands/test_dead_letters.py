"""`tidegate dead-letters`: what was not metered is shown, retried or dropped, and every act is written down."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.serving.cli.run_tidegate import Run
from tidegate.connectors.files.dead_letters import FileDeadLetters
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import make_store
from tidegate.operators.model.ports import Adjustment
from tidegate.operators.model.records import Accepted

LATE = "2026-10-01T10:00:00Z"
CATALOG = """
meters:
  - {name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: tokens}}
  - {name: requests, event_name: llm.tokens, aggregation: {type: count}}
  - name: dear
    event_name: llm.tokens
    aggregation: {type: count}
    filter: {conjunction: and, clauses: [{key: dear, operator: equals, value: true}]}
  - {name: peak, event_name: llm.tokens, aggregation: {type: max, key: tokens}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three letters, and settings that name where things are."""
    monkeypatch.chdir(tmp_path)
    Path("catalog.yaml").write_text(CATALOG)
    monkeypatch.setenv("TIDEGATE_DEAD_LETTERS", "file:dead.ndjson")
    monkeypatch.setenv("TIDEGATE_STORE", "sqlite:store.db")
    make_store("store.db")
    monkeypatch.setenv("TIDEGATE_BILLING", "dodo://127.0.0.1:9?tls=false")
    monkeypatch.setenv("TIDEGATE_DODO_API_KEY", "hunter2")
    write(
        letter("a" * 32, "too_late", event()),
        letter("b" * 32, "not_json", "GET /"),
        letter("b" * 31 + "c", "future", event()),
    )


def event(tokens: Any = 0.1, **properties: Any) -> str:
    data = {"tokens": tokens, **properties}
    return json.dumps(
        {
            "event_id": "e1",
            "customer_id": "acme",
            "event_name": "llm.tokens",
            "timestamp": LATE,
            "metadata": data,
        }
    )


def letter(id: str, reason: str, payload: str) -> dict[str, str]:
    received = "2026-11-22T10:00:00.000000Z"
    return {"id": id, "reason": reason, "detail": "why", "received_at": received, "payload": payload}


def write(*letters: dict[str, str]) -> None:
    Path("dead.ndjson").write_text("".join(json.dumps(one) + "\n" for one in letters))


def control() -> list[Adjustment]:
    with closing(SqliteControl("store.db")) as log:
        return [record for _, record in log.after("") if isinstance(record, Adjustment)]


def test_a_late_event_becomes_an_adjustment_of_each_meter_that_adds_it_up(run: Run) -> None:
    """Named first; applied once, however often it is asked for."""
    named = run("dead-letters", "retry", "aaaa")
    assert named.code == 0 and "2 adjustments would do it; add --apply" in named.out
    assert control() == []
    for _ in range(2):
        applied = run("dead-letters", "retry", "aaaa", "--apply", "--why", "asked")
        assert "are appended to the control log" in applied.out
    made = control()
    assert [(one.customer, one.meter, one.quantity, one.reason) for one in made] == [
        ("acme", "tokens", "0.1", "asked"),
        ("acme", "requests", "1", "asked"),
    ]
    assert {one.at for one in made} == {1_790_848_800_000_000}
    shown = json.loads(run("dead-letters", "show", "aaaa", "--json").out)
    assert (shown["state"], shown["why"]) == ("adjusted", "asked")


def test_what_cannot_be_read_is_not_adjusted(run: Run) -> None:
    write(letter("a" * 32, "too_late", "GET /"))
    done = run("dead-letters", "retry", "a", "--apply")
    assert done.code == 1 and "cannot be read as an event" in done.err
    assert control() == []


def test_an_event_goes_to_a_source_again(run: Run) -> None:
    Path("in.ndjson").write_text("first\n")
    done = run("dead-letters", "retry", "b" * 31 + "c", "--to", "in.ndjson")
    assert done.code == 0
    assert Path("in.ndjson").read_text() == f"first\n{event()}\n"
    assert json.loads(run("dead-letters", "show", "b" * 31 + "c", "--json").out)["state"] == "retried"


def test_without_a_place_to_send_it_to_it_says_so(run: Run) -> None:
    done = run("dead-letters", "retry", "b" * 31 + "c")
    assert "cannot be an adjustment" in done.out and "--to" in done.out


def test_dropped_letters_are_out_of_sight_and_still_there(run: Run) -> None:
    before = Path("dead.ndjson").read_bytes()
    assert run("dead-letters", "drop", "aaaa", "--why", "test data").code == 0
    listed = run("dead-letters", "list").out
    assert "too_late" not in listed and "not_json" in listed
    assert "dropped" in run("dead-letters", "list", "--all").out
    assert Path("dead.ndjson").read_bytes() == before
    shown = run("dead-letters", "show", "aaaa").out
    assert "test data" in shown and "dropped" in shown


def test_the_acts_are_only_appended_and_survive_a_torn_line(run: Run) -> None:
    run("dead-letters", "drop", "aaaa", "--why", "one")
    acts = Path("dead.ndjson.acts")
    first = acts.read_bytes()
    acts.write_bytes(first + b'{"at":"2026')
    run("dead-letters", "drop", "b" * 32, "--why", "two")
    assert acts.read_bytes().startswith(first)
    letters = FileDeadLetters(Path("dead.ndjson")).letters(every=True)
    assert {letter.act.why for letter in letters if letter.act} == {"one", "two"}


def test_an_id_that_fits_two_letters_is_not_guessed(run: Run) -> None:
    done = run("dead-letters", "drop", "bbbb", "--why", "x")
    assert done.code == 1 and "give more of it" in done.err
    assert not Path("dead.ndjson.acts").exists()


def test_usage_that_the_platform_refused_goes_out_again_or_is_dropped(run: Run) -> None:
    """It lies in the outbox under its event's id."""
    with closing(Outbox("data/outbox.db")) as outbox:
        outbox.add([Accepted(id, "acme", 1, "on_time", event().encode()) for id in ("u1", "u2")])
        outbox.keep_back(outbox.too_old(10), State.refused, "refused_by_platform", "400 NO")
    shown = json.loads(run("dead-letters", "show", "u1", "--json").out)
    assert (shown["state"], shown["reason"], shown["detail"]) == ("refused", "refused_by_platform", "400 NO")
    assert "1 will be sent again" in run("dead-letters", "retry", "u1").out
    assert "1 are not billed" in run("dead-letters", "drop", "u2", "--why", "no").out
    with closing(OutboxReader("data/outbox.db")) as reader:
        states = {id: entry.state for id, entry in reader.find(["u1", "u2"]).items()}
    assert states == {"u1": State.waiting, "u2": State.skipped}


def test_both_places_are_one_list(run: Run) -> None:
    with closing(Outbox("data/outbox.db")) as outbox:
        outbox.add([Accepted("aaaa-u1", "acme", 1, "on_time", event().encode())])
        outbox.keep_back(outbox.too_old(10), State.parked, "no_billing_id", "acme")
    rows = [json.loads(line) for line in run("dead-letters", "list", "--json").out.splitlines()]
    assert [(row["id"][:7], row["state"], row["customer"], row["reason"]) for row in rows] == [
        ("aaaaaaa", "open", "acme", "too_late"),
        ("bbbbbbb", "open", "", "not_json"),
        ("bbbbbbb", "open", "acme", "future"),
        ("aaaa-u1", "parked", "acme", "no_billing_id"),
    ]
    assert "aaaa-u1" in run("dead-letters", "list", "--reason", "no_billing_id").out
    # One beginning that fits a letter of each is not guessed.
    assert "give more of it" in run("dead-letters", "drop", "aaaa", "--why", "x").err
    assert run("dead-letters", "drop", "aaaa-u1", "a" * 32, "--why", "x").code == 0
    left = [json.loads(line) for line in run("dead-letters", "list", "--json").out.splitlines()]
    assert [row["reason"] for row in left] == ["not_json", "future"]
    done = [json.loads(line) for line in run("dead-letters", "list", "--all", "--json").out.splitlines()]
    assert sum(row["state"] == "dropped" for row in done) == 2


def test_usage_is_listed_where_the_flow_keeps_no_letters(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_DEAD_LETTERS", "stdout:")
    with closing(Outbox("data/outbox.db")) as outbox:
        outbox.add([Accepted("u1", "acme", 1, "on_time", event().encode())])
        outbox.keep_back(outbox.too_old(10), State.refused, "refused_by_platform", "400 NO")
    done = run("dead-letters", "list")
    assert done.code == 0 and "u1" in done.out
    assert done.err.startswith("dead letters: go to stdout:, which keeps none")


def test_an_act_that_cannot_be_read_is_named(run: Run) -> None:
    Path("dead.ndjson.acts").write_text("x\n")
    done = run("dead-letters", "list")
    assert done.code == 1 and done.err.startswith("dead.ndjson.acts:1: needs an act, got b'x'")


def test_what_is_nowhere_is_said_before_anything_is_done(run: Run) -> None:
    done = run("dead-letters", "drop", "aaaa", "nowhere", "--why", "x")
    assert done.code == 1 and "'nowhere': is neither in the file nor in the outbox" in done.err
    assert not Path("dead.ndjson.acts").exists()


def test_no_secret_is_shown(run: Run) -> None:
    for arguments in (["list"], ["show", "aaaa"], ["retry", "aaaa"], ["show", "zzz"]):
        done = run("dead-letters", *arguments)
        assert "hunter2" not in done.out + done.err
