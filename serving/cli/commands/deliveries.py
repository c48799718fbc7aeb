"""`tidegate deliveries`: alerts that wait for their receivers, or that nobody took."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tidegate.connectors.alerts.queue import Queue, QueuedMessage, undelivered
from tidegate.operators.model.alert_text import write_sentence
from tidegate.serving.cli.output import print_done

app = typer.Typer(no_args_is_help=True, help="Alerts on their way to webhooks, chat and mail.")

Data = Annotated[Path, typer.Option("--data", envvar="TIDEGATE_DATA_DIR", help="The flow's data directory.")]


@app.command("list")
def list_deliveries(
    data: Data = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
) -> None:
    """Show the alerts that wait for their receivers, and those that were given up."""
    found = [one for path in _queues(data) for one in undelivered(path)]
    if as_json:
        for one in found:
            typer.echo(msgspec.json.encode(_fields(one)).decode())
        return
    if not found:
        typer.echo("nothing waits, and nothing was given up")
        return
    table = Table("to", "state", "tries", "next", "alert", "last answer", box=None, header_style="bold")
    for one in found:
        fields = _fields(one)
        table.add_row(
            one.target, one.state, str(one.tries), str(fields["due"]), str(fields["text"]), one.error
        )
    Console().print(table)


@app.command("retry")
def retry(
    data: Data = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
) -> None:
    """Has what was given up tried again, by the flow that runs or the next one."""
    count = 0
    for path in _queues(data):
        with closing(Queue(path)) as queue:
            count += queue.retry()
    print_done(as_json, f"{count} will be tried again", retried=count)


def _queues(data: Path) -> list[Path]:
    return sorted(data.glob("deliveries-*.db"))


def _fields(one: QueuedMessage) -> dict[str, object]:
    alert = msgspec.json.decode(one.body)
    due = datetime.fromtimestamp(one.due_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "target": one.target, "id": one.id, "state": one.state, "tries": one.tries, "due": due,
        "error": one.error, "text": write_sentence(alert), "alert": alert,
    }  # fmt: skip
