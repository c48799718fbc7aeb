"""`tidegate check`, `usage`, `top`, `alerts`, `catalog …` and `keys`: answers, exit codes, JSON for programs."""

import json
import re
from pathlib import Path

import pytest

from tests.serving.cli.run_tidegate import Run
from tests.serving.http.served import CATALOG
from tests.support.heartbeats import ENDED
from tidegate.connectors.clock import wall_clock
from tidegate.connectors.sqlite.api_keys import KeyFile
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.ports import Note
from tidegate.operators.model.records import Counter, Total


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """acme has used 950 of 1000 calls this month, small 99 of 100; a catalog, an alert."""
    monkeypatch.chdir(tmp_path)
    for name in ("SOURCE", "STORE", "CATALOG", "KEYS", "CONFIG"):
        monkeypatch.delenv(f"TIDEGATE_{name}", raising=False)
    monkeypatch.setenv("TIDEGATE_STORE", "sqlite:store.db")
    control = SqliteControl("store.db")
    control.apply(CATALOG, origin="cli", by="me", note="first")
    control.close()
    now = wall_clock()
    start, end = find_period(Calendar("month"), "UTC", now)
    writer = SqliteWriter("store.db")
    alert = {
        "id": "1",
        "kind": "threshold",
        "state": "raised",
        "customer": "acme",
        "meter": "calls",
        "level": "80%",
    }
    writer.write(
        [
            Total(customer, "period", "calls", start, end, used, used, used, now - 1_500_000, 0, 0, 0, True)
            for customer, used in (("acme", 950), ("small", 99))
        ],
        [Counter(0, "events", 1049), Counter(0, "accepted", 1049)],
        [Note("alert", "1", "acme", now, json.dumps(alert).encode())],
        heartbeats=[ENDED],
    )
    writer.close()


def test_check_answers_with_its_exit_code(run: Run) -> None:
    yes, no = run("check", "acme", "calls", "50"), run("check", "acme", "calls", "51")
    assert (yes.code, yes.out) == (0, "yes: within, 950 of 1,000 used\n")
    assert (no.code, no.out) == (3, "no: cap_reached, 950 of 1,000 used\n")
    decision = run("check", "small", "calls", "--json").lines()[0]
    assert (decision["allowed"], decision["used"], decision["remaining"]) == (True, "99", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "acme", "calls", "many"], "quantity: needs a number, got 'many'"),
        (["check", "acme", "calls", "--", "-1"], "quantity: needs a number"),
        (["check", "acme", "calls", "--store", "sqlite:nowhere.db"], "nowhere.db"),
        (["catalog", "apply", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["catalog", "diff", "7"], "catalog: there is no version 7"),
        (["keys", "create", "x", "--scope", "reed"], "scope: needs ingest, check, read, admin, got 'reed'"),
        (["keys", "create", "x", "--scope", "admin", "--customer", "acme"], "a customer's key needs read"),
        (["keys", "create", "x", "--scope", "read", "--expires-in", "soon"], "expires-in: needs"),
        (["keys", "revoke", "nobody"], "keys: there is none with the id 'nobody'"),
    ],
)
def test_what_goes_wrong_is_one_line_and_ends_with_1(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (1, "")
    assert message in done.err and "Traceback" not in done.err


def test_usage_of_a_customer(run: Run) -> None:
    done = run("usage", "acme")
    assert re.search(r"^acme: plan free, .* UTC \(UTC\), catalog 1$", done.out, re.MULTILINE)
    assert re.search(r"calls +950 +1,000 +95 % +80 % +0", done.out)
    assert "acme calls threshold 80% raised" in done.out
    body = run("usage", "acme", "--json").lines()[0]
    assert next((meter["meter"], meter["total"]) for meter in body["meters"]) == ("calls", "950")


def test_top_shows_who_is_near_a_limit_first(run: Run) -> None:
    done = run("top", "--once")
    assert done.code == 0
    assert re.search(r"small +free +calls +99 +99 %.*\n.*acme +free +calls +950 +95 %", done.out)
    body = run("top", "--once", "--json").lines()[0]
    assert [row["customer"] for row in body["near"]] == ["small", "acme"]
    assert (body["customers"], body["counters"]["events"], body["lag"]) == (
        2,
        1049,
        pytest.approx(1.5, abs=1),
    )


def test_alerts_of_all_or_one(run: Run) -> None:
    assert re.search(r"acme +calls +threshold +80% +raised", run("alerts").out)
    assert run("alerts", "--customer", "small").out == "No alerts.\n"
    assert [alert["id"] for alert in run("alerts", "--json").lines()] == ["1"]


def test_a_catalog_is_compared_applied_and_remembered(run: Run) -> None:
    Path("new.yaml").write_text(CATALOG.replace("cap: 1000", "cap: 2000"))
    differs = run("catalog", "diff", "new.yaml")
    assert differs.code == 3
    assert "-      calls: {cap: 1000}\n+      calls: {cap: 2000}\n" in differs.out
    applied = run("catalog", "apply", "new.yaml", "--note", "they asked", "--expect", "1")
    assert (applied.code, applied.out) == (0, "catalog: is now version 2\n")
    assert run("catalog", "apply", "new.yaml").out == "catalog: is already version 2\n"
    assert run("catalog", "diff", "new.yaml").code == 0
    assert run("catalog", "diff", "1", "2").code == 3
    late = run("catalog", "apply", "new.yaml", "--expect", "1")
    assert (late.code, "at version 2 by now" in late.err) == (1, True)
    assert [(one["number"], one["note"]) for one in run("catalog", "history", "--json").lines()] == [
        (2, "they asked"),
        (1, "first"),
    ]
    assert re.search(r"2 +\S+ \S+ +cli +\S+ +they asked", run("catalog", "history").out)
    assert run("check", "acme", "calls", "1000").code == 0


def test_a_wrong_catalog_is_told_line_by_line_and_not_applied(run: Run) -> None:
    Path("bad.yaml").write_text("meters:\n  - name: calls\n")
    done = run("catalog", "apply", "bad.yaml")
    assert done.code == 1 and done.err.startswith("bad.yaml:2")
    assert len(run("catalog", "history", "--json").lines()) == 1


def test_keys_are_rotated_and_pruned(run: Run) -> None:
    made = run("keys", "create", "server", "--scope", "check", "--json").lines()[0]
    rotated = run("keys", "rotate", made["id"], "--overlap", "0", "--json").lines()[0]
    assert rotated["name"] == "server" and rotated["token"] != made["token"]
    assert run("keys", "rotate").code == run("keys", "rotate", made["id"]).code == 1
    assert "good for 5m" in run("keys", "rotate", "--signing", "--overlap", "5m").err
    assert "1 keys are deleted" in run("keys", "prune").err
    assert [key["id"] for key in run("keys", "list", "--json").lines()] == [rotated["id"]]


def test_keys_are_made_listed_and_revoked(run: Run) -> None:
    made = run("keys", "create", "page", "--scope", "read", "--customer", "acme", "--expires-in", "90d")
    token = made.out.strip()
    id = token.split("_")[1]
    assert f"Key {id}; the token is not shown again." in made.err
    (key,) = run("keys", "list", "--json").lines()
    assert (key["id"], key["name"], key["scopes"], key["customer"]) == (id, "page", ["read"], "acme")
    assert key["expires_at"] > key["created_at"] and key["revoked_at"] is None
    # Nothing of the secret is told, or kept.
    secret = token.split("_", 2)[2]
    assert secret not in run("keys", "list").out + run("keys", "list", "--json").out
    assert secret.encode() not in b"".join(path.read_bytes() for path in Path("data").iterdir())
    assert run("keys", "revoke", id).code == 0
    assert "revoked" in run("keys", "list").out
    keys = KeyFile("data/keys.db")
    assert keys.find(token, 0) is None
    keys.close()


def test_unmetered_names_what_no_meter_read(run: Run) -> None:
    """Rows of several shards are one; names are shown safely."""
    assert run("unmetered").out.startswith("Every accepted event was read by all meters of its name.")
    row = {
        "event_name": "llm.tokenz\u001b[31m", "reason": "unknown_name", "meter": "", "key": "", "partly": False,
        "events": 2, "first_at": "2026-11-01T00:00:00Z", "last_at": "2026-11-02T00:00:00Z", "customer": "acme",
        "event_id": "e1",
    }  # fmt: skip
    later = row | {"events": 40, "last_at": "2026-11-03T00:00:00Z", "customer": "small", "event_id": "e2"}
    writer = SqliteWriter("store.db")
    notes = [
        Note("unmetered", str(i), "", i, json.dumps(each).encode()) for i, each in enumerate((row, later))
    ]
    notes.append(Note("unmetered_of", "0", "acme", 1, json.dumps(row).encode()))
    writer.write([], [Counter(0, "unmetered", 42)], notes)
    writer.close()
    (found,) = run("unmetered", "--json").lines()
    assert found == later | {
        "events": 42,
        "text": "no meter takes events of the name 'llm.tokenz\\x1b[31m'",
    }
    shown = run("unmetered").out
    assert "42 of 1,049 accepted events were not metered." in shown and "\u001b" not in shown
    assert [each["events"] for each in run("unmetered", "--customer", "acme", "--json").lines()] == [2]
    assert "2 not metered: no meter takes events of the name" in run("usage", "acme").out
