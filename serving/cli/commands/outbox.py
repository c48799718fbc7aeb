"""`tidegate outbox`: usage that waits to be billed, and what is kept back; retried, dropped or sent by hand."""

import getpass
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import Entry, OutboxReader, Standing
from tidegate.connectors.outbox.schema import KEPT_BACK, OutboxError
from tidegate.serving.cli.output import AsJson, print_done
from tidegate.serving.views.formatting import age, clipped, instant, moment
from tidegate.settings.addresses.sinks import Dodo
from tidegate.settings.catalog.versions import Catalogs
from tidegate.settings.durations import read_duration
from tidegate.settings.settings import Settings, load_settings

DETAIL_SHOWN = 80
SHOWN_MAX = 100_000

app = typer.Typer(help="Usage on its way to the biller, and what is kept back.")

Reason = Annotated[str | None, typer.Option(help="Only what is kept back for this reason.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Event ids, as `list` shows them.")]


@app.callback(invoke_without_command=True)
def outbox(context: typer.Context, as_json: AsJson = False) -> None:
    """How much waits and since when, what is kept back and why, and what is wrong."""
    if context.invoked_subcommand is not None:
        return
    _, path = _place()
    with closing(OutboxReader(path)) as reader:
        standing, reasons = reader.standing(), reader.reasons()
    now = wall_clock()
    if as_json:
        kept = [
            {"state": state.name, "reason": why, "events": count} for (state, why), count in reasons.items()
        ]
        print(json.dumps(_fields(standing, now) | {"kept_back": kept}))
        return
    console = Console(highlight=False)
    console.print(_summary(standing, now))
    for (state, why), count in sorted(reasons.items()):
        console.print(f"{state.name}: {count:,} {why}", markup=False)
    for kind, text in standing.alerts.items():
        console.print(f"! {kind}: {text}", markup=False)


@app.command("list")
def list_kept_back(reason: Reason = None, as_json: AsJson = False) -> None:
    """Events that are kept back: parked, which may still be sent, or refused, which are dead letters."""
    _, path = _place()
    with closing(OutboxReader(path)) as reader:
        found = [entry for state in KEPT_BACK for entry in reader.kept_back(state, reason, SHOWN_MAX)]
    if as_json:
        for entry in found:
            print(json.dumps(_entry(entry)))
        return
    if not found:
        print("Nothing is kept back.")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("id", "customer", "time (UTC)", "state", "reason", "detail"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        shown = clipped(entry.detail, DETAIL_SHOWN)
        cells = (entry.id, entry.customer, moment(entry.at), entry.state.name, entry.reason, shown)
        table.add_row(*map(Text, cells))
    Console(width=None if sys.stdout.isatty() else 400, highlight=False).print(table)


@app.command()
def retry(
    ids: Ids = None,
    reason: Reason = None,
    why: Annotated[str, typer.Option()] = "",
    as_json: AsJson = False,
) -> None:
    """Lets events that are kept back wait again, under the same ids; the platform ignores what it has."""
    with _writer() as (writer, reader):
        retried = operator_actions.retry(writer, _chosen(reader, ids, reason), by=_who(), why=why)
    print_done(as_json, f"{len(retried):,} will be sent again", retried=len(retried))


@app.command()
def drop(
    why: Annotated[str, typer.Option(help="Why nobody is to be billed for them; it is written down.")],
    ids: Ids = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Gives events up that are kept back, for good."""
    with _writer() as (writer, reader):
        dropped = operator_actions.drop(writer, _chosen(reader, ids, reason), by=_who(), why=why)
    print_done(as_json, f"{len(dropped):,} are dropped", dropped=len(dropped))


@app.command()
def send(
    limit: Annotated[str, typer.Option("--for", help="How long at most, such as 10m.")] = "1h",
    as_json: AsJson = False,
) -> None:
    """Sends what waits, without a flow; while one runs, it does that itself."""
    settings, path = _place()
    with closing(OutboxReader(path)) as reader, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(_send, settings, read_duration(limit))
        with Console(stderr=True).status("sending") as status:
            while not wait([sent], 0.5).done:
                status.update(f"{reader.standing().waiting:,} wait")
        sent.result()
        left = reader.standing()
    counts = {"waiting": left.waiting, "parked": left.parked, "refused": left.refused}
    print_done(
        as_json, f"{left.waiting:,} wait, {left.parked:,} held back, {left.refused:,} refused", **counts
    )
    if left.waiting:
        raise typer.Exit(1)


def _send(settings: Settings, limit: timedelta) -> None:
    assert isinstance(settings.billing, Dodo)
    billing = settings.billing.model_copy(update={"drain": limit})
    catalogs = Catalogs(settings.store.open_control())
    sink = billing.open(
        api_key=settings.dodo_api_key, data_dir=settings.data_dir, parts=1, catalog=lambda: catalogs.current
    )
    sink.build_part("send", "0000", None).close()


@contextmanager
def _writer() -> Iterator[tuple[Outbox, OutboxReader]]:
    settings, path = _place()
    assert isinstance(settings.billing, Dodo)
    # The reader first, as the writer would make an outbox where there is none.
    with (
        closing(OutboxReader(path)) as reader,
        closing(Outbox(path, unfolded=settings.billing.rollup != "none")) as writer,
    ):
        yield writer, reader


def _chosen(reader: OutboxReader, ids: list[str] | None, reason: str | None) -> list[str]:
    """The ids that were given, or all of a reason."""
    if bool(ids) == bool(reason):
        raise OutboxError("outbox: needs event ids or a --reason, one of the two; see `tidegate outbox list`")
    kept = (
        [entry for state in KEPT_BACK for entry in reader.kept_back(state, reason, SHOWN_MAX)]
        if reason
        else []
    )
    return [*(ids or ()), *(entry.id for entry in kept)]


def _place() -> tuple[Settings, Path]:
    settings = load_settings({"source": "file:-"})
    if not isinstance(settings.billing, Dodo):
        raise OutboxError(
            f"outbox: billing goes to {settings.billing}, which has none; set TIDEGATE_BILLING to dodo:"
        )
    return settings, settings.billing.outbox_path(settings.data_dir)


def _summary(standing: Standing, now: int) -> str:
    since = f", the oldest {age(now - standing.oldest_at)} old" if standing.oldest_at is not None else ""
    sent = standing.counts.get("acknowledged", 0)
    parts = [
        f"{standing.waiting:,} wait{since}",
        f"{sent:,} acknowledged",
        f"{standing.parked:,} parked",
        f"{standing.refused:,} refused",
        f"{standing.bytes / (1 << 20):,.1f} MiB",
    ]
    return "; ".join(parts)


def _fields(standing: Standing, now: int) -> dict[str, Any]:
    oldest = standing.oldest_at
    return {
        "waiting": standing.waiting,
        "oldest": None if oldest is None else instant(oldest),
        "oldest_age_seconds": None if oldest is None else (now - oldest) / 1e6,
        "open_windows": standing.open_windows,
        "parked": standing.parked,
        "refused": standing.refused,
        "bytes": standing.bytes,
        "counts": standing.counts,
        "alerts": standing.alerts,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "customer": entry.customer,
        "at": instant(entry.at),
        "state": entry.state.name,
        "reason": entry.reason,
        "detail": entry.detail,
        "event": None if entry.body is None else entry.body.decode(errors="replace"),
    }


def _who() -> str:
    """Who does it, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
