"""`tidegate outbox`: usage that waits to be billed, and what is held back; retried, dropped or sent by hand."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.outbox.reader import OutboxReader, QueueStatistics
from tidegate.connectors.outbox.schema import OutboxError
from tidegate.operators.model.dead_letters import DeadLetterPlace, HeldLetter
from tidegate.serving.cli.output import AsJson, print_done, user_name
from tidegate.serving.views.formatting import age, clipped, instant
from tidegate.settings.addresses.sinks import Dodo
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.durations import read_duration
from tidegate.settings.settings import Settings, load_settings

DETAIL_SHOWN = 80

app = typer.Typer(help="Usage in flight to the provider, and what is held back.")

Reason = Annotated[str | None, typer.Option(help="Only what is held back for this reason.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Event ids, as `list` shows them.")]


@app.callback(invoke_without_command=True)
def outbox(context: typer.Context, as_json: AsJson = False) -> None:
    """How much waits and since when, what is held back and why, and what is wrong."""
    if context.invoked_subcommand is not None:
        return
    _, path = _place()
    with closing(OutboxReader(path)) as reader:
        statistics, reasons = reader.read_statistics(), reader.reasons()
    now = wall_clock()
    if as_json:
        kept = [
            {"state": state.name, "reason": why, "events": count} for (state, why), count in reasons.items()
        ]
        print(json.dumps(_fields(statistics, now) | {"kept_back": kept}))
        return
    console = Console(highlight=False)
    console.print(_summary(statistics, now))
    for (state, why), count in sorted(reasons.items()):
        console.print(f"{state.name}: {count:,} {why}", markup=False)
    for kind, text in statistics.alerts.items():
        console.print(f"! {kind}: {text}", markup=False)


@app.command("list")
def list_kept_back(reason: Reason = None, as_json: AsJson = False) -> None:
    """Events that are held back: parked, which may still be sent, or refused, which are dead letters."""
    found = list(_letters().letters(reason))
    if as_json:
        for letter in found:
            print(json.dumps(_fields_of(letter)))
        return
    if not found:
        print("Nothing is held back.")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("id", "customer", "time (UTC)", "state", "reason", "detail"):
        table.add_column(heading, overflow="fold")
    for letter in found:
        shown = clipped(letter.detail, DETAIL_SHOWN)
        at = letter.at[:16].replace("T", " ")
        cells = (letter.id, letter.customer, at, letter.state, letter.reason, shown)
        table.add_row(*map(Text, cells))
    Console(width=None if sys.stdout.isatty() else 400, highlight=False).print(table)


@app.command()
def retry(
    ids: Ids = None,
    reason: Reason = None,
    why: Annotated[str, typer.Option()] = "",
    as_json: AsJson = False,
) -> None:
    """Let events that are held back wait again, under the same ids; the provider ignores what it has."""
    letters = _letters()
    retried = letters.retry(_chosen(letters, ids, reason), by=user_name(), why=why)
    print_done(as_json, f"{len(retried):,} will be sent again", retried=len(retried))


@app.command()
def drop(
    why: Annotated[str, typer.Option(help="Why nobody is to be billed for them; it is written down.")],
    ids: Ids = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Drop events that are held back, for good."""
    letters = _letters()
    dropped = letters.drop(_chosen(letters, ids, reason), by=user_name(), why=why)
    print_done(as_json, f"{len(dropped):,} are dropped", dropped=len(dropped))


@app.command()
def send(
    limit: Annotated[str, typer.Option("--for", help="How long at most, such as 10m.")] = "1h",
    as_json: AsJson = False,
) -> None:
    """Send what waits, without a flow; while one runs, it does that itself."""
    settings, path = _place()
    with closing(OutboxReader(path)) as reader, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(_send, settings, read_duration(limit))
        with Console(stderr=True).status("sending") as status:
            while not wait([sent], 0.5).done:
                status.update(f"{reader.read_statistics().waiting:,} wait")
        sent.result()
        left = reader.read_statistics()
    counts = {"waiting": left.waiting, "parked": left.parked, "refused": left.refused}
    print_done(
        as_json, f"{left.waiting:,} wait, {left.parked:,} held back, {left.refused:,} refused", **counts
    )
    if left.waiting:
        raise typer.Exit(1)


def _send(settings: Settings, limit: timedelta) -> None:
    assert isinstance(settings.billing, Dodo)
    billing = settings.billing.model_copy(update={"drain": limit})
    catalogs = CatalogFollower(settings.store.open_control())
    sink = billing.open(
        api_key=settings.dodo_api_key,
        data_dir=settings.data_dir,
        parts=1,
        catalog=lambda: catalogs.current.catalog,
    )
    sink.build_part("send", "0000", None).close()


def _letters() -> DeadLetterPlace:
    """Return the outbox's dead letters; OutboxError where there is no outbox."""
    settings, path = _place()
    OutboxReader(path).close()
    letters = settings.billing.open_letters(settings.data_dir)
    assert letters is not None
    return letters


def _chosen(letters: DeadLetterPlace, ids: list[str] | None, reason: str | None) -> list[str]:
    """Return the ids that were given, or all of a reason."""
    if bool(ids) == bool(reason):
        raise OutboxError("outbox: needs event ids or a --reason, one of the two; see `tidegate outbox list`")
    return ids or [letter.id for letter in letters.letters(reason)]


def _place() -> tuple[Settings, Path]:
    settings = load_settings({"source": "file:-"})
    if not isinstance(settings.billing, Dodo):
        raise OutboxError(
            f"outbox: billing goes to {settings.billing}, which has none; set TIDEGATE_BILLING to dodo:"
        )
    return settings, settings.billing.outbox_path(settings.data_dir)


def _summary(statistics: QueueStatistics, now: int) -> str:
    since = f", the oldest {age(now - statistics.oldest_at)} old" if statistics.oldest_at is not None else ""
    sent = statistics.counts.get("acknowledged", 0)
    parts = [
        f"{statistics.waiting:,} wait{since}",
        f"{sent:,} acknowledged",
        f"{statistics.parked:,} parked",
        f"{statistics.refused:,} refused",
        f"{statistics.bytes / (1 << 20):,.1f} MiB",
    ]
    return "; ".join(parts)


def _fields(statistics: QueueStatistics, now: int) -> dict[str, Any]:
    oldest = statistics.oldest_at
    return {
        "waiting": statistics.waiting,
        "oldest": None if oldest is None else instant(oldest),
        "oldest_age_seconds": None if oldest is None else (now - oldest) / 1e6,
        "open_windows": statistics.open_windows,
        "parked": statistics.parked,
        "refused": statistics.refused,
        "bytes": statistics.bytes,
        "counts": statistics.counts,
        "alerts": statistics.alerts,
    }


def _fields_of(letter: HeldLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "customer": letter.customer,
        "at": letter.at,
        "state": letter.state,
        "reason": letter.reason,
        "detail": letter.detail,
        "event": None if letter.payload is None else letter.payload.decode(errors="replace"),
    }
