"""`tidegate deliveries` shows what nobody took, and has it tried again."""

import json
from contextlib import closing
from pathlib import Path

from typer.testing import CliRunner

from tests.connectors.alerts.test_queue import ALERT, Clock
from tidegate.connectors.alerts.queue import KEEP, Message, Queue, Refused
from tidegate.serving.cli.main import app


def test_what_was_given_up_is_seen_and_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    body = json.dumps(ALERT).encode()
    with closing(Queue(tmp_path / "deliveries-0.db", clock)) as queue:
        queue.add("webhook://example.com/x", [("a1", body)])
        clock.now += KEEP.total_seconds() + 1
        queue.failed("webhook://example.com/x", [Message("a1", body, 9)], Refused("example.com answered 500"))
    runner = CliRunner()
    told = runner.invoke(app, ["deliveries", "list", "--data", str(tmp_path), "--json"])
    (line,) = map(json.loads, told.stdout.splitlines())
    assert (line["state"], line["error"], line["alert"]) == ("undelivered", "example.com answered 500", ALERT)
    assert "undelivered" in runner.invoke(app, ["deliveries", "list", "--data", str(tmp_path)]).stdout
    told = runner.invoke(app, ["deliveries", "retry", "--data", str(tmp_path)])
    assert told.stdout == "1 will be tried again\n"
    with closing(Queue(tmp_path / "deliveries-0.db")) as queue:
        assert [message.id for message in queue.due("webhook://example.com/x", 9)] == ["a1"]


def test_an_empty_folder_has_nothing_to_deliver(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["deliveries", "list", "--data", str(tmp_path)])
    assert told.exit_code == 0 and "nothing" in told.stdout
